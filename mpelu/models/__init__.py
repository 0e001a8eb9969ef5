"""The networks of the paper, built without being initialized."""

from mpelu.models.activations import ActivationFactory, activation_factory
from mpelu.models.catalog import FAMILIES, Family, ModelInfo, create_model, list_models, parse_name
from mpelu.models.cifar_resnet import DESIGNS, Block, Design, residual
from mpelu.models.factory import load_factory
from mpelu.models.nin import nin
from mpelu.models.plain import CaffeMaxPool, CaffePyramidPool, PyramidPool, imagenet, plain

__all__ = [
    "DESIGNS",
    "FAMILIES",
    "ActivationFactory",
    "Block",
    "CaffeMaxPool",
    "CaffePyramidPool",
    "Design",
    "Family",
    "ModelInfo",
    "PyramidPool",
    "activation_factory",
    "create_model",
    "imagenet",
    "list_models",
    "load_factory",
    "nin",
    "parse_name",
    "plain",
    "residual",
]
