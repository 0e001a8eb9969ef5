"""Time the moments of activations, cold (what is cached inside is thrown away before each call), on one core.

    python benchmarks/bench_moments.py [--repeat 5]

For every elementwise activation of ``torch.nn`` and for functions with unknown kinks, at several means and variances:
the CPU time of one call of ``mpelu.moments.moments``, torch being imported, and of the same function hidden from the
closed forms, so that it has to be integrated. Of several calls the median counts. The error bounds are those returned.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mpelu.moments import Activation, moments
from mpelu.moments.quadrature import rule
from mpelu.moments.tails import legendre
from mpelu.nn import MPELU, SPELU, SReLU

PLACES = [(mean, variance) for mean in (-2.0, 0.0, 2.0) for variance in (1e-4, 1.0, 1e4)]
ACTIVATIONS: dict[str, list[Activation]] = {
    "MPELU": [MPELU(1, 0.25, 1.0), MPELU(1, 1.0, 1.0), MPELU(1, 98.0, 0.01), MPELU(64, 0.25, 1.0)],
    "SPELU": [SPELU(1)],
    "SReLU": [SReLU(1)],
    "ELU": [nn.ELU(), nn.ELU(0.25)],
    "Hardshrink": [nn.Hardshrink(), nn.Hardshrink(0.31)],
    "Hardsigmoid": [nn.Hardsigmoid()],
    "Hardtanh": [nn.Hardtanh(), nn.Hardtanh(-0.37, 1.1)],
    "Hardswish": [nn.Hardswish()],
    "LeakyReLU": [nn.LeakyReLU()],
    "LogSigmoid": [nn.LogSigmoid()],
    "PReLU": [nn.PReLU(), nn.PReLU(64)],
    "ReLU": [nn.ReLU()],
    "ReLU6": [nn.ReLU6()],
    "RReLU": [nn.RReLU()],
    "SELU": [nn.SELU()],
    "CELU": [nn.CELU(), nn.CELU(0.3)],
    "GELU": [nn.GELU()],
    "GELU, tanh": [nn.GELU("tanh")],
    "Sigmoid": [nn.Sigmoid()],
    "SiLU": [nn.SiLU()],
    "Mish": [nn.Mish()],
    "Softplus": [nn.Softplus(), nn.Softplus(0.7, 3.0)],
    "Softshrink": [nn.Softshrink(), nn.Softshrink(0.31)],
    "Softsign": [nn.Softsign()],
    "Tanh": [nn.Tanh()],
    "Tanhshrink": [nn.Tanhshrink()],
    "Threshold": [nn.Threshold(0.1, 20.0), nn.Threshold(-1.234, 0.0)],
    "erf": [torch.erf],
    "sin": [torch.sin],
    "sign": [torch.sign],
    "clamp(-0.37, 1.3)^2": [lambda x: x.clamp(-0.37, 1.3) ** 2],
    "abs(x - 0.123)": [lambda x: (x - 0.123).abs()],
    "two jumps": [lambda x: torch.where(x > 0.711, x.sin(), torch.where(x > -1.234, x, -2.0))],
}


def hidden(activation: Activation) -> Activation:
    """Return the same function without its closed form."""
    if isinstance(activation, nn.Module):
        return nn.Sequential(activation)

    def function(x: Tensor) -> Tensor:
        result: Tensor = activation(x)
        return result

    return function


def cold(activation: Activation, mean: float, variance: float) -> tuple[float, float, str]:
    """Return milliseconds of CPU time, the error bound and the method of one call."""
    rule.cache_clear()
    legendre.cache_clear()
    start = time.process_time()
    found = moments(activation, mean=mean, variance=variance)
    return 1e3 * (time.process_time() - start), found.error, found.method


def measure(
    activations: Iterable[Activation], repeat: int, wrap: Callable[[Activation], Activation]
) -> tuple[list[float], float, str]:
    """Return the median time at each setting and place, the largest error bound, and the method."""
    times, errors, method = [], [], ""
    for activation in map(wrap, activations):
        for mean, variance in PLACES:
            calls = [cold(activation, mean, variance) for _ in range(repeat)]
            times.append(statistics.median(call[0] for call in calls))
            errors.append(calls[0][1])
            method = calls[0][2]
    return times, max(errors), method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="calls of which the median counts (default: 5)")
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    first = cold(torch.tanh, 0.0, 1.0)[0]
    print(f"first call of the process: {first:.1f} ms\n")
    print(
        "| activation | ms, median | ms, worst | error bound | method | integrated: ms, median | worst | error bound |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    chosen, integrated = [], []
    for name, activations in ACTIVATIONS.items():
        own, error, method = measure(activations, repeat, lambda activation: activation)
        other, other_error, _ = measure(activations, repeat, hidden)
        chosen.append(own)
        integrated.append(other)
        print(
            f"| {name} | {statistics.median(own):.2f} | {max(own):.2f} | {error:.0e} | {method} "
            f"| {statistics.median(other):.2f} | {max(other):.2f} | {other_error:.0e} |"
        )
    for label, rows in (("moments()", chosen), ("integrated", integrated)):
        middle, worst = statistics.median(map(statistics.median, rows)), max(map(max, rows))
        print(f"\n{label}: median over activations {middle:.2f} ms, worst {worst:.2f} ms")


if __name__ == "__main__":
    main()
