"""Run under torchrun: trains a recipe and notes which images each process saw in each step.

usage: torchrun --nproc-per-node 2 two_processes.py FOLDER
"""

import atexit
import json
import os
import sys
from pathlib import Path

import torch

from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run


def note_group(folder: Path) -> None:
    """Write down whether this process, at its very end, is still in a group, and which threads of gloo it has."""
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
    left = {"joined": torch.distributed.is_initialized(), "threads": [name for name in names if "gloo" in name]}
    (folder / f"left{os.environ.get('RANK', '0')}.json").write_text(json.dumps(left))


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    recipe = Recipe(
        model="plain9", width=4, batch_norm=True, data="digits", limit=100, epochs=2, batch_size=32, lr=0.05
    )
    atexit.register(note_group, folder)  # is called behind those that the run registers
    seen: list[list[int]] = []
    run(prepare(recipe, seed=3, runs=folder), device="cpu", on_step=lambda step, indices: seen.append(indices.tolist()))
    (folder / f"seen{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
