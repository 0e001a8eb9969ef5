"""What a diagnosis costs: CPU time and memory of its pass beside one plain forward and backward pass.

    python benchmarks/bench_diagnose.py [--threads 1] [--rounds 9] [--batch 16]

``pass`` is the measured pass alone; ``diagnose`` is everything: reading the graph, predictions and the verdict. Both
take turns with a plain pass of the same model on the same batch. Memory is the difference of the peaks, as torch's
allocator counts them.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mpelu.bench.timing import clock, take_turns
from mpelu.diagnostics.examine import diagnose, measured_pass, projection
from mpelu.diagnostics.untouched import untouched
from mpelu.graph import Graph, read
from mpelu.models import FAMILIES, create_model, parse_name

NETWORKS = ("nopre164", "plain100")


def plain_pass(model: nn.Module, images: Tensor) -> tuple[float]:
    """Return the seconds of one forward and backward pass, with gradients that are freed as they come."""
    with untouched(model, training=True, seed=0) as parameters:
        start = clock()
        handles = [
            own.register_post_accumulate_grad_hook(forget)  # type: ignore[no-untyped-call]
            for own in parameters.values()
        ]
        torch.autograd.backward(projection(model(images), 0), inputs=list(parameters.values()))
        seconds = clock() - start
        del handles
    return (seconds,)


def forget(parameter: Tensor) -> None:
    """Free a gradient."""
    parameter.grad = None


def observed_pass(model: nn.Module, images: Tensor, graph: Graph) -> tuple[float]:
    """Return the seconds of the same pass, measured."""
    with untouched(model, training=True, seed=0) as parameters:
        start = clock()
        measured_pass(model, images, graph, parameters, None, lambda output: projection(output, 0))
        return (clock() - start,)


def whole(model: nn.Module, images: Tensor) -> tuple[float]:
    """Return the seconds of a diagnosis."""
    start = clock()
    diagnose(model, images, jacobian=False)
    return (clock() - start,)


def peak_bytes(task: Callable[[], object]) -> int:
    """Return the most bytes that a task holds at a time, of those that it allocates itself."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    blocks = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(int(size) for _, size in blocks))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'network':10} {'batch':>5} {'plain ms':>9} {'pass':>6} {'diagnose':>9} {'peak MB':>8} {'more KB':>8}")
    for name in NETWORKS:
        torch.manual_seed(0)
        model = create_model(name)
        images = torch.randn(options.batch, *FAMILIES[parse_name(name)[0]].image_shape)
        graph = read(model, images)
        tasks: dict[str, Callable[[], tuple[float, ...]]] = {
            "plain": partial(plain_pass, model, images),
            "pass": partial(observed_pass, model, images, graph),
            "diagnose": partial(whole, model, images),
        }
        seconds = take_turns(tasks, options.rounds)
        ratios = {
            key: statistics.median(
                ours / theirs for (ours,), (theirs,) in zip(seconds[key], seconds["plain"], strict=True)
            )
            for key in ("pass", "diagnose")
        }
        peak, more = peak_bytes(tasks["plain"]), peak_bytes(tasks["pass"])
        fastest = 1e3 * min(seconds["plain"])[0]
        print(
            f"{name:10} {options.batch:5} {fastest:9.1f} {ratios['pass']:6.2f} {ratios['diagnose']:9.2f} "
            f"{peak / 1e6:8.1f} {(more - peak) / 1e3:8.1f}"
        )


if __name__ == "__main__":
    main()
