"""The error of float32 MPELU for random alpha and beta in [0.05, 5], forward and backward, on random numbers.

    python benchmarks/any_alpha_and_beta.py [--pairs 1000] [--isa NAME] [--seed 0]

Half of the pairs lie in [1, 2], where roundings weigh most; x reaches to where exp(beta x) is subnormal. The
exact value is computed in float64. Errors are in units in the last place of the exact value as a float32. A minute.
"""

import argparse
import os

import torch
from torch import Tensor

from mpelu.functional import mpelu
from mpelu.ops import cpu

SAMPLES = 50_000


def ulp_error(found: Tensor, exact: Tensor) -> float:
    """Return the largest error where the exact value, and what the kernel multiplies for it, are normal numbers."""
    unit = torch.ldexp(torch.ones_like(exact), torch.frexp(exact)[1] - 24)
    error = (found.double() - exact).abs() / unit
    return error[exact.abs() >= 2.0**-121].max().item()


def inputs(beta: float, generator: torch.Generator) -> Tensor:
    """Return negative numbers, evenly and logarithmically spread."""
    uniform, power = torch.rand(2, SAMPLES, generator=generator, dtype=torch.float64)
    return torch.cat(
        [-uniform * 3 / beta, -uniform * 20 / beta, -uniform * 87 / beta, -(10.0 ** (30 * power - 29))]
    ).float()


def pair(number: int, generator: torch.Generator) -> tuple[float, float]:
    spread = torch.rand(2, generator=generator)
    alpha, beta = (1 + spread if number % 2 else 0.05 * 100**spread).tolist()
    return alpha, beta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--isa", help="instruction set; the best one otherwise")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.isa:
        os.environ["MPELU_ISA"] = options.isa
    assert cpu.compiled() is not None, "there is nothing to test: the compiled part is missing"
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(options.seed)
    worst = {"y": (0.0, 0.0, 0.0), "grad_x": (0.0, 0.0, 0.0)}
    for number in range(options.pairs):
        alpha, beta = pair(number, generator)
        x = inputs(beta, generator).requires_grad_()
        grad = 0.5 + torch.rand(x.shape, generator=generator)
        y = mpelu(x, alpha, beta)
        (grad_x,) = torch.autograd.grad(y, x, grad)
        wide = x.detach().double()
        exact = alpha * torch.expm1(beta * wide), grad.double() * alpha * beta * torch.exp(beta * wide)
        for name, found, wanted in zip(worst, (y.detach(), grad_x), exact, strict=True):
            worst[name] = max(worst[name], (ulp_error(found, wanted), alpha, beta))
    for name, (error, alpha, beta) in worst.items():
        print(f"{name}: at most {error:.3f} ulp, with alpha = {alpha:.6g} and beta = {beta:.6g}")


if __name__ == "__main__":
    main()
