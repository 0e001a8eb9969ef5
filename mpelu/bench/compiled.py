"""Time MPELU under torch.compile, where it is fused with its neighbours, against ELU and the plain formula there."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.bench.activation import DTYPES, LAYOUTS, PROVIDERS
from mpelu.bench.timing import Row, clock, passes, take_turns
from mpelu.models import FAMILIES, create_model, parse_name

SHAPES = ("128,64,32,32", "64,128,36,36")
NETWORKS = {"nopre11": 64, "nin": 8}
"""Network and batch size."""
ACTIVATIONS = ("mpelu", "elu", "naive")
ROUNDS = 21


class Block(nn.Module):
    """An affine map of each channel, an activation, and a residual that is added to it."""

    def __init__(self, activation: nn.Module, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.activation = activation
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, channels).view(-1, 1, 1), requires_grad=learned)
        self.shift = nn.Parameter(torch.linspace(-0.1, 0.1, channels).view(-1, 1, 1), requires_grad=learned)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        result: Tensor = self.activation(x * self.scale.to(x.dtype) + self.shift.to(x.dtype)) + residual
        return result


class Loss(nn.Module):
    """A network and the cross-entropy of what it returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images), labels)


def step(
    compiled: Callable[..., Tensor], inputs: Sequence[Tensor], leaves: Sequence[Tensor], grad: Tensor | None
) -> tuple[float, float]:
    """Return the seconds of one forward and one backward pass.

    Gradients are returned, not accumulated: that would add a copy of the residual's, which nothing had to compute.
    """
    start = clock()
    y = compiled(*inputs)
    middle = clock()
    torch.autograd.grad(y, leaves, grad)
    return middle - start, clock() - middle


def bench(
    *,
    shapes: Sequence[str] = SHAPES,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    networks: Sequence[str] = tuple(NETWORKS),
    rounds: int = ROUNDS,
) -> Iterator[list[Row]]:
    """Time blocks with a learned and a fixed affine map, then networks; yields the rows of one setting at a time.

    Args:
        shapes: Sizes with commas, as in ``128,64,32,32``.
        dtypes: Keys of :data:`mpelu.bench.activation.DTYPES`, for the blocks.
        networks: Names of :func:`mpelu.models.create_model`, timed in float32.
        rounds: How often each is timed.
    """
    for shape in shapes:
        for affine in ("learned", "fixed"):
            for layout in LAYOUTS:
                for dtype in dtypes:
                    candidates = _blocks(shape, layout, dtype, learned=affine == "learned")
                    seconds = take_turns(candidates, rounds)
                    yield passes("compiled", f"{shape}, {affine} affine", layout, dtype, seconds)
    for name in networks:
        batch = NETWORKS.get(name, 16)
        for layout in LAYOUTS:
            candidates = _networks(name, batch, layout)
            yield passes("compiled", f"{name}, batch {batch}", layout, "float32", take_turns(candidates, rounds))


def _blocks(shape: str, layout: str, dtype: str, *, learned: bool) -> dict[str, Callable[[], tuple[float, float]]]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes = tuple(int(size) for size in shape.split(","))
    x, residual, grad = (torch.randn(sizes, dtype=DTYPES[dtype]).to(memory_format=LAYOUTS[layout]) for _ in range(3))
    inputs = (x.requires_grad_(), residual.requires_grad_())
    blocks = {name: Block(PROVIDERS[name](sizes[1], x.dtype), sizes[1], learned=learned) for name in ACTIVATIONS}
    return {name: _candidate(block, inputs, grad) for name, block in blocks.items()}


def _networks(name: str, batch: int, layout: str) -> dict[str, Callable[[], tuple[float, float]]]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    shape = FAMILIES[parse_name(name)[0]].image_shape
    images = torch.randn(batch, *shape).to(memory_format=LAYOUTS[layout])
    inputs = (images, torch.randint(10, (batch,)))
    networks = {activation: _network(name, activation, shape[0]) for activation in ACTIVATIONS}
    return {
        activation: _candidate(Loss(network.to(memory_format=LAYOUTS[layout])), inputs, None)  # type: ignore[call-overload]
        for activation, network in networks.items()
    }


def _network(name: str, activation: str, channels: int) -> nn.Module:
    provide = PROVIDERS[activation]
    return create_model(name, activation=lambda width: provide(width, torch.float32), in_channels=channels)


def _candidate(module: nn.Module, inputs: Sequence[Tensor], grad: Tensor | None) -> Callable[[], tuple[float, float]]:
    leaves = [tensor for tensor in (*inputs, *module.parameters()) if tensor.requires_grad]
    return partial(step, torch.compile(module, fullgraph=True), inputs, leaves, grad)
