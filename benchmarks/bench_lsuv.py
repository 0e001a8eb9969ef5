"""LSUV here against the package of its authors, as CPU time, in turns: a plain net of linear layers.

    pip install --no-deps lsuv==0.3.0
    python benchmarks/bench_lsuv.py [--depth 100] [--width 256] [--batch 2048] [--rounds 5]

The published package needs two passes over the network for each layer; one pass does here. Its printing is discarded.
"""

import argparse
import contextlib
import copy
import io
import statistics
import sys
import time
from collections.abc import Callable

import torch
from lsuv import lsuv_with_singlebatch  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor, nn

import mpelu


def network(depth: int, width: int) -> nn.Module:
    layers = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, width))


def ours(model: nn.Module, batch: Tensor) -> None:
    mpelu.initialize(model, batch, method="lsuv", seed=0)


def theirs(model: nn.Module, batch: Tensor) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        lsuv_with_singlebatch(model, batch, verbose=False)


def seconds(initialize: Callable[[nn.Module, Tensor], None], model: nn.Module, batch: Tensor) -> float:
    fresh = copy.deepcopy(model)
    start = time.process_time()
    initialize(fresh, batch)
    return time.process_time() - start


def deviations(initialize: Callable[[nn.Module, Tensor], None], model: nn.Module, batch: Tensor) -> list[float]:
    """Return the standard deviation of each layer's output afterwards, over the wanted 1."""
    fresh, found = copy.deepcopy(model), []
    initialize(fresh, batch)
    with torch.no_grad():
        value = batch
        for module in fresh.children():
            value = module(value)
            if isinstance(module, nn.Linear):
                found.append(value.std().item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batch = network(options.depth, options.width), torch.randn(options.batch, options.width)
    ratios = []
    for number in range(options.rounds + 1):
        pair = seconds(ours, model, batch), seconds(theirs, model, batch)
        if number:  # the first round warms up
            ratios.append(pair[1] / pair[0])
    sys.stdout.write(f"CPU time of lsuv 0.3.0 / ours at depth {options.depth}: {statistics.median(ratios):.1f}\n")
    for name, way in (("ours", ours), ("lsuv 0.3.0", theirs)):
        found = deviations(way, model, batch)
        sys.stdout.write(
            f"{name}: outputs of the layers have standard deviations {min(found):.3f} to {max(found):.3f}\n"
        )


if __name__ == "__main__":
    main()
