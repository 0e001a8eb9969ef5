"""The error of MPELU with alpha = beta = 1 for every negative float32 number, forward and backward.

    python benchmarks/every_negative_float.py [instruction set]

The exact value is computed in float64. Errors are in units in the last place of the exact value as a float32; results
below the smallest normal number, where the kernel flushes, are left out and counted. About five minutes.
"""

import os
import sys

import numpy as np
import torch

from mpelu.functional import mpelu
from mpelu.ops import cpu

BLOCK = 2**24
NEGATIVE_ZERO, NEGATIVE_INFINITY = 0x80000000, 0xFF800000
SMALLEST_NORMAL = 2.0**-126


def ulp_error(found: torch.Tensor, exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the errors, 0 for exact values below the smallest normal number, and where these are."""
    _, exponent = torch.frexp(exact)
    unit = torch.ldexp(torch.ones_like(exact), exponent - 24)
    small = exact.abs() < SMALLEST_NORMAL
    return ((found.double() - exact).abs() / unit).masked_fill(small, 0.0), small


def main() -> None:
    if len(sys.argv) > 1:
        os.environ["MPELU_ISA"] = sys.argv[1]
    assert cpu.compiled() is not None, "there is nothing to test: the compiled part is missing"
    one = torch.ones(())
    worst: dict[str, tuple[float, float]] = {"y": (0.0, 0.0), "grad_x": (0.0, 0.0)}
    skipped = {"y": 0, "grad_x": 0}
    for start in range(NEGATIVE_ZERO, NEGATIVE_INFINITY, BLOCK):
        bits = np.arange(start, min(start + BLOCK, NEGATIVE_INFINITY), dtype=np.uint32)
        x = torch.from_numpy(bits.view(np.float32)).requires_grad_()
        y = mpelu(x, one, one)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        wide = x.detach().double()
        for name, found, exact in (("y", y.detach(), wide.expm1()), ("grad_x", gradient, wide.exp())):
            error, small = ulp_error(found, exact)
            index = int(error.argmax())
            worst[name] = max(worst[name], (error[index].item(), wide[index].item()))
            skipped[name] += int(small.sum())
    for name, (error_found, at) in worst.items():
        print(f"{name}: at most {error_found:.4f} ulp, at x = {at!r}; {skipped[name]:,} results below 2^-126 left out")


if __name__ == "__main__":
    main()
