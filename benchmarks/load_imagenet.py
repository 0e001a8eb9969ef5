"""Images per second that a stream of photographs decodes, against plain Pillow in one process.

python benchmarks/load_imagenet.py FILES.parquet ... [--repeat 1] [--workers 0 1 2] [--steps 40]

Plain Pillow opens an image from memory, makes it RGB, resizes all of it to 256x256 (bilinear) and takes its pixels; the
stream also crops, mirrors, puts batches together and sends them to the main process. What counts is CPU time, which
depends little on what else the machine does; the start of the workers and the first step are taken off. Both take turns
on the same images, and the first turn is not counted.
"""

import argparse
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mpelu.data.photographs import ParquetPhotographs, open_shards
from mpelu.data.stream import Stream
from mpelu.data.view import View

TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeat", type=int, default=1, help="Read the files so often.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photographs, classes = open_shards(options.files * options.repeat)
    print(f"{len(photographs.labels)} images in {len(photographs.groups)} row groups")
    for workers in options.workers:
        stream = Stream(photographs, len(classes), View(), batch_size=options.batch, workers=workers)
        compare(photographs, stream, options.steps)


def compare(photographs: ParquetPhotographs, stream: Stream, steps: int) -> None:
    """Print the rates of both, and what the workers and the main process take of it."""
    count = sum(batch_sizes(stream, steps + 1)[1:])
    turns = [
        (
            seconds(lambda: decode_plainly(photographs, count)),
            seconds(lambda: exhaust(stream, steps + 1)) - seconds(lambda: exhaust(stream, 1)),
        )
        for _ in range(TURNS)
    ]
    plain, streamed = (np.mean([turn[which] for turn in turns[1:]], axis=0) / count for which in (0, 1))
    decoding = streamed[1] if stream.workers else streamed[0]
    print(
        f"{stream.workers} workers: plain {1 / plain[0]:.0f} images/s of CPU time; stream {1 / decoding:.0f} images/s "
        f"of a worker's CPU time, {plain[0] / decoding:.2f} of plain"
        + (f"; the main process adds {1e6 * streamed[0]:.0f} us an image" if stream.workers else "")
        + f" (by the clock: plain {1 / plain[2]:.0f}, stream {1 / streamed[2]:.0f} images/s)",
        flush=True,
    )


def batch_sizes(stream: Stream, steps: int) -> list[int]:
    """Return the images of each step; the last one of an epoch may be smaller."""
    images = len(stream.photographs.labels)
    starts = [step % stream.steps_per_epoch * stream.batch_size for step in range(steps)]
    return [min(stream.batch_size, images - start) for start in starts]


def seconds(work: Callable[[], None]) -> NDArray[np.float64]:
    """Return CPU seconds of this process and of the child processes that ended, and wall seconds."""
    before, wall = os.times(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - wall, os.times()
    return np.array([sum(after[:2]) - sum(before[:2]), sum(after[2:4]) - sum(before[2:4]), wall])


def decode_plainly(photographs: ParquetPhotographs, count: int) -> None:
    done = 0
    while done < count:
        for block in range(len(photographs.groups)):
            for data in photographs.read_block(block):
                assert data is not None
                with Image.open(io.BytesIO(data)) as image:
                    np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
                done += 1
                if done == count:
                    return


def exhaust(stream: Stream, steps: int) -> None:
    for batch in stream.training(seed=0, start=0, stop=steps):
        assert not batch.skipped


if __name__ == "__main__":
    main()
