"""Time activations, forward and backward, and the ratio of MPELU to each of them.

Source:  the times are CPU time of the calling thread. Candidates take turns in every round, in reverse order in every
         second one, so that other work on the machine meets all of them alike.
Command: MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 python benchmarks/bench_activation.py
"""

import argparse
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import mpelu
from mpelu.nn import MPELU
from mpelu.ops import cpu, reference

SHAPES = ("64,128,36,36", "128,64,32,32", "128,16,32,32", "4096,1024", "2,16,8,8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM_UP_ROUNDS = 2


class Reference(MPELU):
    """MPELU as the definition computes it, operator by operator."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = reference.Reference.apply(x, self.alpha, self.beta)  # type: ignore[no-untyped-call]
        return result


PROVIDERS: dict[str, Callable[[int, torch.dtype], nn.Module]] = {
    "mpelu": lambda channels, _: MPELU(channels),  # as under autocast, the parameters stay in float32
    "reference": lambda channels, _: Reference(channels),
    "elu": lambda *_: nn.ELU(),
    "prelu": lambda channels, dtype: nn.PReLU(channels, dtype=dtype),
    "leaky_relu": lambda *_: nn.LeakyReLU(),
    "relu": lambda *_: nn.ReLU(),
    "silu": lambda *_: nn.SiLU(),
    "gelu": lambda *_: nn.GELU(),
}


@dataclass(frozen=True)
class Timing:
    """Smallest times of one activation, and the median over rounds of the time of MPELU divided by its own."""

    name: str
    forward_ms: float
    backward_ms: float
    mpelu_ratio: float


def measure(activations: dict[str, nn.Module], x: Tensor, grad: Tensor, rounds: int) -> list[Timing]:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in activations}
    parameters = [parameter for module in activations.values() for parameter in module.parameters()]
    for round_number in range(rounds + WARM_UP_ROUNDS):
        for name in list(activations) if round_number % 2 == 0 else reversed(activations):
            start = time.thread_time()
            y = activations[name](x)
            middle = time.thread_time()
            y.backward(grad)
            end = time.thread_time()
            for leaf in (x, *parameters):
                leaf.grad = None
            if round_number >= WARM_UP_ROUNDS:
                seconds[name].append((middle - start, end - middle))
    return [
        Timing(
            name,
            forward_ms=1e3 * min(forward for forward, _ in times),
            backward_ms=1e3 * min(backward for _, backward in times),
            mpelu_ratio=statistics.median(
                sum(ours) / sum(theirs) for ours, theirs in zip(seconds["mpelu"], times, strict=True)
            ),
        )
        for name, times in seconds.items()
    ]


def activations_for(x: Tensor, names: list[str], *, compiled: bool) -> dict[str, nn.Module]:
    modules = {name: PROVIDERS[name](x.shape[1], x.dtype) for name in dict.fromkeys(["mpelu", *names])}
    if compiled:
        for name in names:
            modules[f"compiled {name}"] = PROVIDERS[name](x.shape[1], x.dtype)
            modules[f"compiled {name}"].compile()
    return modules


def machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    cpu_info = Path("/proc/cpuinfo")
    models = [line for line in cpu_info.read_text().splitlines() if "model name" in line] if cpu_info.exists() else []
    compiled_module = cpu.compiled()
    best = compiled_module.instruction_sets()[-1] if compiled_module else "none"
    return {
        "machine": f"{models[0].partition(': ')[2] if models else platform.processor()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mpelu": mpelu.__version__,
        "isa": os.environ.get("MPELU_ISA") or best,
        "threads": str(torch.get_num_threads()),
        "mmap_threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_", "default"),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="sizes with commas, such as 128,64,32,32")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--providers", nargs="+", default=list(PROVIDERS), choices=PROVIDERS)
    parser.add_argument("--compiled", action="store_true", help="also each provider under torch.compile")
    parser.add_argument("--rounds", type=int, help="default: as many as make 2^27 elements, at least 9")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    settings = machine()
    print(", ".join(f"{key}: {value}" for key, value in settings.items()))
    print(f"{'shape':16s} {'layout':14s} {'dtype':9s} {'activation':20s}   forward  backward  ratio   (ms)")
    for shape_text in options.shapes:
        shape = tuple(int(size) for size in shape_text.split(","))
        for layout in options.layouts:
            if layout == "channels_last" and len(shape) != 4:
                continue
            for dtype in options.dtypes:
                torch.manual_seed(0)
                new = partial(torch.randn, shape, dtype=DTYPES[dtype])
                x, grad = (new().to(memory_format=LAYOUTS[layout]) for _ in range(2))
                x.requires_grad_()
                rounds = options.rounds or max(9, 2**27 // x.numel() // len(options.providers))
                activations = activations_for(x, options.providers, compiled=options.compiled)
                rows = [
                    {
                        **settings,
                        "shape": shape_text,
                        "layout": layout,
                        "dtype": dtype,
                        "activation": timing.name,
                        "forward_ms": f"{timing.forward_ms:.4f}",
                        "backward_ms": f"{timing.backward_ms:.4f}",
                        "mpelu_ratio": f"{timing.mpelu_ratio:.3f}",
                    }
                    for timing in measure(activations, x, grad, min(rounds, 2000))
                ]
                for row in rows:
                    print(
                        f"{shape_text:16s} {layout:14s} {dtype:9s} {row['activation']:20s} "
                        f"{row['forward_ms']:>9s} {row['backward_ms']:>9s} {row['mpelu_ratio']:>6s}",
                        flush=True,
                    )
                if options.csv:
                    append(options.csv, rows)


def append(path: Path, rows: list[dict[str, str]]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
