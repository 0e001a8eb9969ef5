"""Time MPELU under torch.compile, within a block (affine map, activation, residual) and within networks:

    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 python benchmarks/bench_compiled.py

It needs a C++ compiler, which torch.compile calls. About eight minutes, most of them compilation.
"""

import argparse
import sys
from pathlib import Path

import torch

from mpelu.bench import compiled, tables, timing


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", type=Path, help="Append the rows to this file.")
    parser.add_argument("--table", type=Path, help="Time nothing: print the table of this file.")
    parser.add_argument("--networks", nargs="*", default=list(compiled.NETWORKS), help="Networks after the blocks.")
    parser.add_argument("--shapes", nargs="*", default=list(compiled.SHAPES), help="Shapes of the blocks.")
    parser.add_argument("--rounds", type=int, default=compiled.ROUNDS)
    options = parser.parse_args()
    if options.table:
        sys.stdout.write(tables.compiled_table(timing.read(options.table)))
        return
    torch.set_num_threads(1)
    rows = []
    for part in compiled.bench(shapes=options.shapes, networks=options.networks, rounds=options.rounds):
        rows += part
        if options.csv:
            timing.append(options.csv, part)
        sys.stderr.write(tables.compiled_table(part).splitlines()[-1] + "\n")
    sys.stdout.write(tables.compiled_table(rows))


if __name__ == "__main__":
    main()
