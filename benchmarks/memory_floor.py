"""What memory alone takes of an activation in float32, beside MPELU and torch's activations:

    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 python benchmarks/memory_floor.py

The floor moves what MPELU moves, and in the same way: it reads x and writes y forward, and reads the gradient and x and
writes the gradient of x backward, past the caches; it asks for memory ahead, and computes one maximum. What it takes of
the time of another activation is the least that MPELU can take of it. Candidates follow each other in random order,
since each finds in the caches what the one before has left there. Needs a C++ compiler (``c++``, or what ``CXX``
names), and AVX-512 for stores past the caches. A minute.
"""

import argparse
import ctypes
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpelu.bench.activation import LAYOUTS, PROVIDERS, SHAPES, step
from mpelu.bench.timing import ratio

SOURCE = """
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
typedef float Line __attribute__((vector_size(64)));  // a line of the cache
const int kAhead = 512;

static Line load(const float* from) { Line line; std::memcpy(&line, from, 64); return line; }

template <bool past_cache>
static void pass(const float* a, const float* b, float* to, std::int64_t size) {
  for (std::int64_t i = 0; i + 16 <= size; i += 16) {
    __builtin_prefetch(a + i + kAhead);
    if (b != a) __builtin_prefetch(b + i + kAhead);
    Line x = load(a + i), y = load(b + i), largest = x > y ? x : y;
#if defined(__AVX512F__)
    if (past_cache) {
      _mm512_stream_ps(to + i, largest);
      continue;
    }
#endif
    __builtin_prefetch(to + i + kAhead, 1);
    std::memcpy(to + i, &largest, 64);
  }
}

extern "C" {
void through(const float* a, const float* b, float* to, std::int64_t size) { pass<false>(a, b, to, size); }
void past(const float* a, const float* b, float* to, std::int64_t size) { pass<true>(a, b, to, size); }
}
"""


def compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "floor.so"
        compiler = [os.environ.get("CXX", "c++"), "-O3", "-march=native", "-shared", "-fPIC", "-x", "c++", "-"]
        subprocess.run([*compiler, "-o", library], input=SOURCE, text=True, check=True)
        return ctypes.CDLL(str(library))


class Floor(nn.Module):
    """An activation that only moves what one has to move."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()

        def run(function: Any, a: Tensor, b: Tensor) -> Tensor:
            result = torch.empty_like(a)
            addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, result))
            function(*addresses, ctypes.c_int64(a.numel()))
            return result

        class Pass(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return run(library.through, x, x)

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                (x,) = ctx.saved_tensors
                return run(library.past, grad, x)

        self.run: Callable[[Tensor], Tensor] = Pass.apply

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def milliseconds(seconds: list[tuple[float, float]]) -> str:
    return " / ".join(f"{1000 * statistics.median(part):.2f}" for part in zip(*seconds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=[shape for shape in SHAPES if shape != "2,16,8,8"])
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        floor, others = Floor(compiled()), ("elu", "prelu", "relu")
    except FileNotFoundError as error:
        parser.error(f"there is no C++ compiler {error.filename!r}; install one, or name another in CXX")
    print("| shape, layout | MPELU fwd / bwd ms | floor fwd / bwd ms | MPELU / floor | MPELU, floor / ELU "
          "| / PReLU | / ReLU |")  # fmt: skip
    print("| --- " + "| ---: " * 6 + "|")
    for shape in options.shapes:
        sizes = tuple(int(size) for size in shape.split(","))
        for layout, memory_format in LAYOUTS.items():
            if layout == "channels_last" and len(sizes) != 4:
                continue
            torch.manual_seed(0)
            x, grad = (torch.randn(sizes).to(memory_format=memory_format) for _ in range(2))
            x.requires_grad_()
            modules = {name: PROVIDERS[name](sizes[1], x.dtype) for name in ("mpelu", *others)} | {"floor": floor}
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in modules}
            for number in range(options.rounds + 2):
                for name in random.Random(number).sample(list(modules), len(modules)):
                    times = step(modules[name], x, grad)
                    if number >= 2:
                        seconds[name].append(times)
            ours, least = seconds["mpelu"], seconds["floor"]
            print(
                f"| {shape} {layout} | {milliseconds(ours)} | {milliseconds(least)} | {ratio(ours, least):.2f} |",
                end="",
            )
            for name in others:
                print(f" {ratio(ours, seconds[name]):.2f}, {ratio(least, seconds[name]):.2f} |", end="")
            print(flush=True)


if __name__ == "__main__":
    main()
