"""How a weight is held: as a parameter, or as what a parametrization computes from others."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpelu.graph import Graph, Node
from mpelu.init.fill import draw, generator


@dataclass(frozen=True)
class Weight:
    """A weight that can be given values.

    Attributes:
        name: Of the parameter; of a parametrized weight that of the attribute, ``conv.weight``.
        shape: Of the values.
        originals: Names of the parameters that a parametrization computes it from; empty for a parameter.
        computed_by: Name of the parametrization.
    """

    name: str
    shape: tuple[int, ...]
    originals: tuple[str, ...] = ()
    computed_by: str = ""


def weight_of(graph: Graph, model: nn.Module, node: Node) -> Weight | None:
    """Return how the weight of a call is held; None where it cannot be given values: see :func:`why_not`."""
    names = node.parameters["weight"]
    if len(names) == 1 and not node.options["computed"]:
        parameter = model.get_parameter(names[0])
        tied = any(graph.nodes[index].kind == "embedding" for index in graph.parameters.get(names[0], ()))
        fits = parameter.is_floating_point() and parameter.dim() > 1 and not tied
        return Weight(names[0], tuple(parameter.shape)) if fits else None
    found = _parametrization(model, names)
    if found is None:
        return None
    name, shape = found, tuple(node.options["weight_shape"])
    values = draw(shape, 1 / math.sqrt(math.prod(shape[1:])), generator=generator(0, name))
    taken = originals(model, name, values)
    if taken is None:
        return None
    kind = " and ".join(type(step).__name__.strip("_") for step in _steps(model, name))
    return Weight(name, shape, tuple(taken), kind)


def why_not(graph: Graph, model: nn.Module, node: Node) -> str:
    """Return why the weight of a call is left as it is."""
    names = node.parameters["weight"]
    if len(names) == 1 and not node.options["computed"]:
        parameter = model.get_parameter(names[0])
        if not parameter.is_floating_point():
            return f"{parameter.dtype}: rules are for real numbers"
        tables = [graph.nodes[index].name for index in graph.parameters[names[0]] if
                  graph.nodes[index].kind == "embedding"]  # fmt: skip
        if tables:
            return f"shared with the embedding {tables[0]}"
        return f"no rule for {node.op} with a weight of shape {tuple(parameter.shape)}"
    found = _parametrization(model, names)
    if found is not None:
        kinds = " and ".join(type(step).__name__.strip("_") for step in _steps(model, found))
        return f"{kinds} computes {found.rpartition('.')[2]} and does not take the values that it is given"
    module = model.get_submodule(names[0].rpartition(".")[0])
    hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values() if hasattr(hook, "compute_weight")]
    by = f"the hook {hooks[0]}" if hooks else type(module).__name__
    return f"{by} computes the weight from {' and '.join(name.rpartition('.')[2] for name in names)}"


def originals(model: nn.Module, name: str, values: Tensor) -> dict[str, Tensor] | None:
    """Return the parameters from which the parametrizations of a weight compute the values given, by name.

    They are worked out on copies, in float32 on the CPU: nothing is written, and the parameters may be on the meta
    device or sharded.

    Returns:
        None where there are none: not every parametrization can be inverted, and some (spectral norm) take every value
        and compute another from it.
    """
    path, _, attribute = name.rpartition(".")
    listed: parametrize.ParametrizationList = model.get_submodule(path).parametrizations[attribute]  # type: ignore
    if any(tensor.is_meta for step in listed for tensor in (*step.parameters(), *step.buffers())):
        return None
    steps = [copy.deepcopy(step).to("cpu") for step in listed]
    prefix = f"{path}.parametrizations.{attribute}.".removeprefix(".")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            held: Tensor | tuple[Tensor, ...] = values
            for step in reversed(steps):
                held = step.right_inverse(held)  # type: ignore[operator]  # some have none: caught below
            found = (held,) if isinstance(held, Tensor) else tuple(held)
            computed = steps[0](*found)
            for step in steps[1:]:
                computed = step(computed)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    # 1e-4 is far above what float32 loses in a division, and far below what any change of scale would be
    if computed.shape != values.shape or (computed - values).norm() > 1e-4 * values.norm():
        return None
    names = ["original"] if listed.is_tensor else [f"original{place}" for place in range(len(found))]
    return dict(zip((prefix + item for item in names), found, strict=True))


def _parametrization(model: nn.Module, names: tuple[str, ...]) -> str | None:
    """Return the name of the weight that a parametrization computes from the parameters given, if one does."""
    parts = {name.partition("parametrizations.")[::2] for name in names}
    attributes = {(path, rest.partition(".")[0]) for path, rest in parts}
    if len(attributes) != 1 or not all(rest for _, rest in parts):
        return None
    path, attribute = attributes.pop()
    module = model.get_submodule(path.removesuffix("."))
    return path + attribute if parametrize.is_parametrized(module, attribute) else None


def _steps(model: nn.Module, name: str) -> Iterator[nn.Module]:
    path, _, attribute = name.rpartition(".")
    yield from model.get_submodule(path).parametrizations[attribute]  # type: ignore


def held_values(model: nn.Module, name: str, values: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters to be written for a row of a plan: itself, or those behind a parametrized weight."""
    if name in parameters:
        return {name: values}
    found = originals(model, name, values)
    assert found is not None
    return found
