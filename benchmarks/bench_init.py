"""Which initialization keeps the signal: forward and backward, by network, depth and activation.

For every activation and method: q = mean second moment of the pre-activations, g = norm of their gradient, on fresh
N(0, 1) inputs and a fresh random cotangent. A method keeps the forward signal of an activation where the median over
seeds of |log10(q_last / q_first)| is at most 0.1, and the backward signal where that of g_first / g_last lies in
[0.1, 10].

    python benchmarks/bench_init.py --network conv --depth 100 --seeds 5 --csv results/init.csv
    python benchmarks/bench_init.py --table results/init.csv
    python benchmarks/bench_init.py --table results/init.csv --decades linear 50
"""

import argparse
import copy
import csv
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import mpelu
from mpelu.init.shape import tailored_slope
from mpelu.init.transform import Transformed, tailored
from mpelu.moments import moments

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(),
    "lrelu(0.25)": lambda channels: nn.LeakyReLU(0.25),
    "prelu": nn.PReLU,
    "elu": lambda channels: nn.ELU(),
    "selu": lambda channels: nn.SELU(),
    "gelu": lambda channels: nn.GELU(),
    "silu": lambda channels: nn.SiLU(),
    "mish": lambda channels: nn.Mish(),
    "tanh": lambda channels: nn.Tanh(),
    "mpelu(1,1)": lambda channels: mpelu.MPELU(channels, 1.0, 1.0),
    "mpelu(0.25,1)": lambda channels: mpelu.MPELU(channels, 0.25, 1.0),
}


class Stack(nn.Sequential):
    """Weight, activation, weight, ...: so many weights of one width, and no normalization."""

    def __init__(self, network: str, depth: int, unit: Callable[[int], nn.Module], width: int) -> None:
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [unit(width)] if index else []
            layers.append(nn.Linear(width, width) if network == "linear" else nn.Conv2d(width, width, 3, padding=1))
        super().__init__(*layers)

    def weights(self) -> list[nn.Linear | nn.Conv2d]:
        return [layer for layer in self if isinstance(layer, nn.Linear | nn.Conv2d)]


WIDTH = {"linear": 256, "conv": 64}
FRESH = {"linear": (64, 256), "conv": (4, 64, 16, 16)}
"""Shapes of the inputs that the signals are measured on."""

Method = Callable[[Stack, Tensor, int], object]


def library(method: str) -> Method:
    return lambda model, example, seed: mpelu.initialize(model, example, method=method, seed=seed)


def default(model: Stack, example: Tensor, seed: int) -> None:
    for layer in model.weights():
        layer.reset_parameters()


def zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def autoinit(model: Stack, example: Tensor, seed: int) -> None:
    """The rule of AutoInit (Bingham and Miikkulainen, arXiv:2109.08958) for layers one behind the other.

    Mean and variance are propagated, and truncated normal weights with fan_in take the variance back to 1. Activations
    that it has no estimator for pass (Mish, MPELU), and PReLU counts as ReLU, as in its released code.
    """
    mean, variance = 0.0, 1.0
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan = layer.weight[0].numel()
            mpelu.init.fill_(layer.weight, 1 / math.sqrt(fan * (mean**2 + variance)), distribution="truncated_normal")
            zero_bias(layer)
            mean, variance = 0.0, 1.0
        elif not isinstance(layer, nn.Mish | mpelu.MPELU):
            of = moments(nn.ReLU() if isinstance(layer, nn.PReLU) else layer, mean=mean, variance=variance)
            mean, variance = of.mean, of.variance


def tat(model: Stack, example: Tensor, seed: int) -> None:
    """Tailored Activation Transformations (Zhang et al., arXiv:2203.08120): orthogonal, no bias, not calibrated.

    Kernels are delta-orthogonal, as the source wants them: zero padding then takes nothing. Units of two straight lines
    get their tailored slope, and for SELU there is none; MPELU needs alpha * beta = 1.
    """
    depth = len(model.weights()) - 1
    for index, layer in enumerate(model):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight[0].numel()
            fed_by = model[index - 1] if index else nn.Identity()
            gain = mpelu.init.gain(fed_by) if isinstance(fed_by, nn.LeakyReLU) else 1.0
            matrix = "orthogonal" if isinstance(layer, nn.Linear) else "delta_orthogonal"
            mpelu.init.fill_(layer.weight, gain / math.sqrt(weight), distribution=matrix)
            zero_bias(layer)
        elif isinstance(layer, nn.ReLU | nn.LeakyReLU | nn.PReLU):
            model[index] = nn.LeakyReLU(tailored_slope(depth).negative_slope)
        else:
            numbers = affine(layer, depth)
            model[index] = Transformed(layer, *numbers)


SOLVED: dict[tuple[str, int], tuple[float, float, float, float]] = {}
"""The solver takes longer than a net is built; nets of one depth share what it finds."""


def affine(layer: nn.Module, depth: int) -> tuple[float, float, float, float]:
    key = (repr(layer) + str([value.detach().flatten()[0].item() for value in layer.parameters()]), depth)
    if key not in SOLVED:
        wrapped = tailored(copy.deepcopy(layer), depth)
        SOLVED[key] = (wrapped.input_scale, wrapped.input_shift, wrapped.output_scale, wrapped.output_shift)
    return SOLVED[key]


def tailored_to_depth(model: Stack, example: Tensor, seed: int) -> object:
    """The last weight stands for one of many here, and not for a head, whose output may have another size."""
    return mpelu.tailor(model, example, seed=seed, head_gain=1.0)


METHODS: dict[str, Method] = {
    "default": default,
    "kaiming": library("msra"),
    "xavier": library("xavier"),
    "eq22": library("eq22"),
    "autoinit": autoinit,
    "lsuv": library("lsuv"),
    "tat": tat,
    "second_moment": library("second_moment"),
    "critical": library("critical"),
    "auto": library("auto"),
    "tailored": tailored_to_depth,
}


def measure(model: Stack, inputs: Tensor, cotangent: Tensor) -> tuple[float, float]:
    """Return log10(q_last / q_first) and log10(g_first / g_last)."""
    pre_activations: list[Tensor] = []
    values = inputs
    for layer in model:
        values = layer(values)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            values.retain_grad()
            pre_activations.append(values)
    torch.autograd.backward((values * cotangent).sum())
    ends = (pre_activations[0], pre_activations[-1])
    q = [end.detach().double().square().mean().item() for end in ends]
    g = [math.nan if end.grad is None else end.grad.double().norm().item() for end in ends]
    return _log10(q[1], q[0]), _log10(g[0], g[1])


def _log10(top: float, bottom: float) -> float:
    """Return the decades between two numbers; infinite where one is 0 or infinite, nan only for nan."""
    if math.isnan(top) or math.isnan(bottom):
        return math.nan
    if top == 0.0 or math.isinf(bottom):
        return -math.inf
    return math.inf if bottom == 0.0 or math.isinf(top) else math.log10(top / bottom)


def one(network: str, depth: int, activation: str, method: str, seed: int) -> dict[str, object]:
    """Build, initialize and measure one net; a method that does not cover it gives a row that says so."""
    torch.manual_seed(seed)
    model = Stack(network, depth, ACTIVATIONS[activation], WIDTH[network])
    example = torch.randn(FRESH[network])
    row: dict[str, object] = {
        "network": network,
        "depth": depth,
        "activation": activation,
        "method": method,
        "seed": seed,
    }
    start = time.process_time()
    try:
        done = METHODS[method](model, example, seed)
    except mpelu.MpeluError as error:
        return row | {"forward": "", "backward": "", "cpu_seconds": "", "passes": "", "note": str(error)[:60]}
    seconds = time.process_time() - start
    torch.manual_seed(1000 + seed)
    forward, backward = measure(model, torch.randn(FRESH[network]), torch.randn(FRESH[network]))
    passes = done.passes if isinstance(done, mpelu.InitPlan) else 0
    return row | {
        "forward": f"{forward:.4g}",
        "backward": f"{backward:.4g}",
        "cpu_seconds": f"{seconds:.2f}",
        "passes": passes,
        "note": "",
    }


COLUMNS = ("network", "depth", "activation", "method", "seed", "forward", "backward", "cpu_seconds", "passes", "note")


def table(rows: list[dict[str, str]]) -> str:
    """Return the markdown table: for how many activations a method keeps the signal, and the worst of them."""
    places = sorted({(row["network"], int(row["depth"])) for row in rows})
    lines = [
        "| method | " + " | ".join(f"{network} {depth}" for network, depth in places) + " |",
        "| --- |" + " ---: |" * len(places),
    ]
    lines += [
        "| " + " | ".join([method, *(_cell(rows, network, depth, method) for network, depth in places)]) + " |"
        for method in METHODS
        if any(row["method"] == method for row in rows)
    ]
    return "\n".join(lines)


def _cell(rows: list[dict[str, str]], network: str, depth: int, method: str) -> str:
    """Return forward / backward / both, of all activations that were tried."""
    wanted = (network, str(depth), method)
    here = [row for row in rows if (row["network"], row["depth"], row["method"]) == wanted]
    if not here:
        return "–"
    forward = backward = both = 0
    names = sorted({row["activation"] for row in here})
    for name in names:
        runs = [row for row in here if row["activation"] == name]
        kept_forward = _median_size(runs, "forward") <= 0.1
        kept_backward = _median_size(runs, "backward") <= 1.0
        forward, backward = forward + kept_forward, backward + kept_backward
        both += kept_forward and kept_backward
    return f"{forward} / {backward} / {both} of {len(names)}"


def decades(rows: list[dict[str, str]], network: str, depth: str) -> str:
    """Return the markdown table of one net: medians over seeds of both logarithms, by method and activation."""
    here = [row for row in rows if (row["network"], row["depth"]) == (network, depth)]
    names = [name for name in ACTIVATIONS if any(row["activation"] == name for row in here)]
    lines = ["| method | " + " | ".join(names) + " | CPU s |", "| --- |" + " ---: |" * (len(names) + 1)]
    for method in METHODS:
        of = [row for row in here if row["method"] == method]
        if of:
            cells = [_both([row for row in of if row["activation"] == name]) for name in names]
            seconds = statistics.median(float(row["cpu_seconds"]) for row in of if row["cpu_seconds"])
            lines.append("| " + " | ".join([method, *cells, f"{seconds:.2g}"]) + " |")
    return "\n".join(lines)


def _both(runs: list[dict[str, str]]) -> str:
    """Return forward / backward in decades; a dash where the method does not cover the activation."""
    if not all(row["forward"] and row["backward"] for row in runs):
        return "–"
    return " / ".join(_signed(statistics.median(float(row[name]) for row in runs)) for name in ("forward", "backward"))


def _signed(decade: float) -> str:
    return f"{decade:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")


def _median_size(runs: list[dict[str, str]], column: str) -> float:
    sizes = [abs(float(row[column])) if row[column] else math.inf for row in runs]
    return statistics.median(math.inf if math.isnan(size) else size for size in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(WIDTH), default="linear")
    parser.add_argument("--depth", type=int, nargs="+", default=[50])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--activation", nargs="+", choices=list(ACTIVATIONS), default=list(ACTIVATIONS))
    parser.add_argument("--csv", type=Path, help="append the rows to this file; what it has already is not repeated")
    parser.add_argument("--table", type=Path, help="only print the table of a CSV file")
    parser.add_argument("--decades", nargs=2, metavar=("NETWORK", "DEPTH"), help="of that file: one net, in decades")
    options = parser.parse_args()
    if options.table:
        with options.table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        print(decades(rows, *options.decades) if options.decades else table(rows))
        return
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a signal that vanishes becomes subnormal, and a convolution takes minutes
    known = _known(options.csv)
    rows = []
    for depth in options.depth:
        for method in options.method:
            for activation in options.activation:
                for seed in range(options.seeds):
                    key = (options.network, str(depth), activation, method, str(seed))
                    if key in known:
                        continue
                    row = {
                        key: str(value) for key, value in one(options.network, depth, activation, method, seed).items()
                    }
                    rows.append(row)
                    _append(options.csv, row)
                    print(*row.values(), file=sys.stderr)
    print(table(rows))


def _known(path: Path | None) -> set[tuple[str, ...]]:
    if path is None or not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {tuple(row[name] for name in COLUMNS[:5]) for row in csv.DictReader(file)}


def _append(path: Path | None, row: dict[str, str]) -> None:
    if path is None:
        return
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator=os.linesep)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
