"""The networks of the paper, built without being initialized."""

from mpelu.models.activations import ActivationFactory, activation_factory
from mpelu.models.build import OWN, build_model, count_costs, family_of, takes_activation
from mpelu.models.catalog import FAMILIES, Family, ModelInfo, create_model, list_models, parse_name
from mpelu.models.cifar_resnet import DESIGNS, Block, Design, residual
from mpelu.models.factory import load_factory, source_sha256
from mpelu.models.nin import nin
from mpelu.models.plain import CaffeMaxPool, CaffePyramidPool, PyramidPool, imagenet, plain

__all__ = [
    "DESIGNS",
    "FAMILIES",
    "OWN",
    "ActivationFactory",
    "Block",
    "CaffeMaxPool",
    "CaffePyramidPool",
    "Design",
    "Family",
    "ModelInfo",
    "PyramidPool",
    "activation_factory",
    "build_model",
    "count_costs",
    "create_model",
    "family_of",
    "imagenet",
    "list_models",
    "load_factory",
    "nin",
    "parse_name",
    "plain",
    "residual",
    "source_sha256",
    "takes_activation",
]
