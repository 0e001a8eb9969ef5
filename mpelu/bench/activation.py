"""Time activations, forward and backward, and the time of MPELU divided by that of each other one."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mpelu.bench.timing import Row, clock, passes, take_turns
from mpelu.nn import MPELU
from mpelu.ops import reference

SHAPES = ("64,128,36,36", "128,64,32,32", "128,16,32,32", "4096,1024", "2,16,8,8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ELEMENTS = 2**27
"""How many elements an activation works on in all: the number of rounds follows from it."""


class Reference(MPELU):
    """MPELU as the definition computes it, operator by operator."""

    def forward(self, x: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = reference.Reference.apply
        return apply(x, self.alpha, self.beta)


class Naive(MPELU):
    """MPELU as one would write it down."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *([1] * (x.dim() - 2)))
        alpha, beta = (parameter.to(x.dtype).view(shape) for parameter in (self.alpha, self.beta))
        return torch.where(x > 0, x, alpha * torch.expm1(beta * x.clamp(max=0)))


class Copy(nn.Module):
    """What memory allows: one read and one write forward; backward is torch's copy of the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


PROVIDERS: dict[str, Callable[[int, torch.dtype], nn.Module]] = {
    "mpelu": lambda channels, _: MPELU(channels),  # as under autocast, the parameters stay in float32
    "reference": lambda channels, _: Reference(channels),
    "naive": lambda channels, _: Naive(channels),
    "elu": lambda *_: nn.ELU(),
    "prelu": lambda channels, dtype: nn.PReLU(channels, dtype=dtype),
    "leaky_relu": lambda *_: nn.LeakyReLU(),
    "relu": lambda *_: nn.ReLU(),
    "silu": lambda *_: nn.SiLU(),
    "gelu": lambda *_: nn.GELU(),
    "copy": lambda *_: Copy(),
}


def step(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[float, float]:
    """Return the seconds of one forward and one backward pass."""
    start = clock()
    y = module(x)
    middle = clock()
    y.backward(grad)
    end = clock()
    for leaf in (x, *module.parameters()):
        leaf.grad = None
    return middle - start, end - middle


def bench(
    *,
    shapes: Sequence[str] = SHAPES,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    layouts: Sequence[str] = tuple(LAYOUTS),
    providers: Sequence[str] = tuple(PROVIDERS),
    compiled: Sequence[str] = (),
    rounds: int | None = None,
) -> Iterator[list[Row]]:
    """Time every activation in every setting; yields the rows of one setting at a time.

    Args:
        shapes: Sizes with commas, as in ``128,64,32,32``.
        dtypes: Keys of :data:`DTYPES`.
        layouts: Keys of :data:`LAYOUTS`; channels_last is for four dimensions only.
        providers: Keys of :data:`PROVIDERS`; mpelu is always among them.
        compiled: Those that are timed under torch.compile too.
        rounds: None is as many as make 2^27 elements, from 9 to 2000.
    """
    for shape in shapes:
        sizes = tuple(int(size) for size in shape.split(","))
        for layout in layouts:
            if layout == "channels_last" and len(sizes) != 4:
                continue
            for dtype in dtypes:
                torch.manual_seed(0)
                x, grad = (torch.randn(sizes, dtype=DTYPES[dtype]).to(memory_format=LAYOUTS[layout]) for _ in range(2))
                x.requires_grad_()
                modules = {name: PROVIDERS[name](sizes[1], x.dtype) for name in dict.fromkeys(["mpelu", *providers])}
                for name in compiled:
                    modules[f"compiled {name}"] = PROVIDERS[name](sizes[1], x.dtype)
                    modules[f"compiled {name}"].compile()
                count = rounds or min(max(9, ELEMENTS // x.numel() // len(modules)), 2000)
                seconds = take_turns({name: partial(step, module, x, grad) for name, module in modules.items()}, count)
                yield passes("activation", shape, layout, dtype, seconds)
