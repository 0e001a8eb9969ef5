"""The networks by name: a family and a depth, as in ``plain30`` or ``nopre164``."""

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.models.activations import ActivationFactory, activation_factory
from mpelu.models.cifar_resnet import DESIGNS, residual
from mpelu.models.nin import nin
from mpelu.models.plain import imagenet, plain


@dataclass(frozen=True)
class Family:
    """A builder, the depths of the paper, and the image shape it is listed with.

    The builder is given a depth, unless there are no depths to choose from.
    """

    build: Callable[..., nn.Sequential]
    depths: tuple[int, ...]
    image_shape: tuple[int, int, int]
    about: str

    @property
    def options(self) -> set[str]:
        """Names of the keyword arguments that are the family's own."""
        parameters = inspect.signature(self.build).parameters.values()
        keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        return keywords - {"activation", "num_classes"}


def _residual(name: str, depths: tuple[int, ...], about: str) -> Family:
    design = DESIGNS[name]
    return Family(partial(residual, design), depths, (3, 32, 32), f"{about} ({design.figure})")


FAMILIES = {
    "plain": Family(plain, (15, 30, 52), (1, 16, 16), "plain 2x2 net for small images, no normalization"),
    "imagenet": Family(imagenet, (15, 30, 52), (3, 224, 224), "plain 2x2 net for ImageNet; depth 15 with BN"),
    "nin": Family(nin, (), (3, 28, 28), "Network in Network, 9 convolutions"),
    "resnet": _residual("resnet", (20, 32, 44, 56, 110), "ResNet, activation behind each addition"),
    "nonbottleneck": _residual("nonbottleneck", (20, 32, 44, 56, 110), "ResNet, nothing behind the additions"),
    "preact": _residual("preact", (164, 1001), "bottleneck ResNet with full pre-activation"),
    "nopre": _residual("nopre", (29, 47, 164, 1001), "bottleneck ResNet without pre-activation"),
    "fig5a": _residual("fig5a", (164,), "nopre, led by an activation, ending with BN"),
    "fig5b": _residual("fig5b", (164,), "nopre, led by an activation"),
    "fig5c": _residual("fig5c", (164,), "nopre, ending with BN"),
    "fig5e": _residual("fig5e", (164,), "nopre without BN in the blocks"),
}


@dataclass(frozen=True)
class ModelInfo:
    """A row of ``mpelu models``: for one image of the listed shape, in float32, with MPELU.

    ``activation_bytes`` is what autograd keeps from the forward pass for the backward pass.
    """

    name: str
    depth: int
    parameters: int
    multiply_adds: int
    activation_bytes: int
    image_shape: tuple[int, int, int]
    about: str


def create_model(
    name: str,
    num_classes: int | None = None,
    activation: str | ActivationFactory = "mpelu",
    *,
    alpha: float | None = None,
    beta: float | None = None,
    **options: Any,
) -> nn.Sequential:
    """Build a network of the catalog. It has torch's default weights: see :func:`mpelu.initialize`.

    Args:
        name: Family and depth: ``plain15``, ``plain30``, ``plain52`` or any other depth from 9 on; ``nopre164``,
            ``nopre1001``, ``preact164`` or any other 9n + 2; ``resnet110`` or any other 6n + 2; ``mpelu models`` lists
            the families.
        num_classes: Size of the output; None is 1000 for the ImageNet nets and 10 for the others.
        activation: ``relu``, ``lrelu``, ``prelu``, ``elu``, ``spelu``, ``mpelu``, ``srelu``, or a callable that is
            given the number of channels and returns a module.
        alpha: Start value of alpha, or slope of the leaky units; None is the usual value of the activation.
        beta: Start value of beta (mpelu only); None is 1.
        **options: Those of the family: ``in_channels``; for nin ``width``; for plain nets ``input_size``, ``width``,
            ``batch_norm`` and ``dropout``; for residual nets ``shortcut``, ``after``, ``first_norm`` and ``end_norm``
            (:func:`mpelu.models.cifar_resnet.residual`).

    Raises:
        UsageError: If the name, the depth, the activation or an option is unknown.

    Example:
        >>> sum(parameter.numel() for parameter in create_model("nopre164").parameters())
        1696250
    """
    family, depth = parse_name(name)
    entry = FAMILIES[family]
    unknown = sorted(set(options) - entry.options)
    if unknown:
        raise UsageError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(sorted(entry.options))}")
    factory = activation_factory(activation, alpha, beta) if isinstance(activation, str) else activation
    if num_classes is not None:
        options["num_classes"] = num_classes
    positional = () if depth is None else (depth,)
    return entry.build(*positional, activation=factory, **options)


def parse_name(name: str) -> tuple[str, int | None]:
    """Split ``nopre164`` into family and depth (None for ``nin``), or raise a UsageError that suggests a name."""
    match = re.fullmatch(r"(.*?)(\d*)", name)
    if match and match[1] in FAMILIES and bool(match[2]) == bool(FAMILIES[match[1]].depths):
        return match[1], int(match[2]) if match[2] else None
    close = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise UsageError(f"unknown model {name!r}{hint} Known: {', '.join(names())} and other depths of these families")


def names() -> list[str]:
    """Return the names of the networks in the depths of the paper."""
    return [family + str(depth) for family, entry in FAMILIES.items() for depth in entry.depths or ("",)]


def list_models() -> list[ModelInfo]:
    """Return one row for each network of the paper."""
    rows = []
    for name in names():
        family, depth = parse_name(name)
        entry = FAMILIES[family]
        # a hundred million weights need not be filled to be counted; for a thousand small layers, values are faster
        device = torch.device("meta" if entry.image_shape[-1] > 64 else "cpu")
        with torch.random.fork_rng(devices=[]), device:
            model = create_model(name, in_channels=entry.image_shape[0])
            example = torch.zeros(1, *entry.image_shape)
        of = costs(model, example)
        rows.append(
            ModelInfo(
                name=name,
                depth=depth or sum(isinstance(module, nn.Conv2d) for module in model.modules()),
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                multiply_adds=of.multiply_adds,
                activation_bytes=of.activation_bytes,
                image_shape=entry.image_shape,
                about=entry.about,
            )
        )
    return rows


@dataclass(frozen=True)
class Costs:
    """Of one example: the multiply-adds of convolutions and linear layers, and the bytes kept for the backward pass."""

    multiply_adds: int
    activation_bytes: int


def costs(model: nn.Module, example: Tensor) -> Costs:
    """Return what a network costs for one example, shape ``(1, C, H, W)``, on its device; meta is enough.

    Hooks on one pass: ``torch.utils.flop_counter`` gives the same multiply-adds and takes ten times as long on 1001
    layers. The model is put into eval mode, so that masks of dropout are not counted.
    """
    multiply_adds = 0
    kept: dict[int, Tensor] = {}
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_adds
        multiply_adds += output.numel() * module.get_parameter("weight")[0].numel()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor  # kept, so that its memory cannot be another's later
        return tensor

    handles = [
        module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    return Costs(multiply_adds, sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
