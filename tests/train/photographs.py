"""Photographs and a network for tests of training from a stream: files in, files out.

usage: [torchrun --nproc-per-node 2] photographs.py FOLDER RUNS OPTIONS-AS-JSON
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from mpelu.train.recipe import Recipe

TRAIN, TEST = 8, 3
"""Images of each of the two classes."""


def build() -> nn.Module:
    """Return a network that sees little of an image of 224 pixels, quickly."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 8, stride=32),
        nn.BatchNorm2d(4),
        nn.ELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, 2),
    )


def write(folder: Path) -> Path:
    """Write two classes of class folders, dark and bright images."""
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", TEST)):
        for label, name in enumerate(("dark", "bright")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(20, 60, 2)
                pixels = random.integers(100 * label, 100 * label + 100, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def spoil(folder: Path, *names: str) -> None:
    """Damage files, which keep their sizes."""
    for name in names:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:50] + bytes(len(content) - 50))


def recipe(folder: Path, **options: object) -> Recipe:
    """Return a training of two epochs, four steps each."""
    fields = {
        "model": f"{Path(__file__)}:build", "data": str(folder), "stream": "squash", "epochs": 2, "batch_size": 4,
        "lr": 0.01, "weight_decay": 1e-4,
    }  # fmt: skip
    return Recipe(**(fields | options))  # type: ignore[arg-type]


def main() -> None:
    from mpelu.train.run import prepare, run

    torch.set_num_threads(1)
    folder, runs, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    seen: list[list[int]] = []
    prepared = prepare(recipe(folder, **options), seed=3, runs=runs)
    run(prepared, device="cpu", on_step=lambda _, indices: seen.append(indices.tolist()))
    (runs / f"seen{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
