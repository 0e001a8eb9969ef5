"""The networks of the paper, built without being initialized."""

from mpelu.models.activations import ActivationFactory, activation_factory
from mpelu.models.catalog import FAMILIES, Family, ModelInfo, create_model, list_models, parse_name
from mpelu.models.cifar_resnet import Bottleneck, nopre
from mpelu.models.factory import load_factory
from mpelu.models.nin import nin
from mpelu.models.plain import PyramidPool, plain

__all__ = [
    "FAMILIES",
    "ActivationFactory",
    "Bottleneck",
    "Family",
    "ModelInfo",
    "PyramidPool",
    "activation_factory",
    "create_model",
    "list_models",
    "load_factory",
    "nin",
    "nopre",
    "parse_name",
    "plain",
]
