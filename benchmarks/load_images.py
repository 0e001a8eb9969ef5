"""CPU and wall seconds of loading a data set for the first time and from the cache.

python benchmarks/load_images.py FOLDER   # e.g. a folder with CIFAR-10 in Parquet
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from mpelu.data import load


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first time", "from the cache", "from the cache"):
            wall, cpu = time.perf_counter(), time.process_time()
            dataset = load(sys.argv[1], cache=Path(cache))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            images = len(dataset.train.labels) + len(dataset.test.labels)
            print(f"{name:16} {images} images of {dataset.name}: {cpu:.2f} CPU s, {wall:.2f} s")


if __name__ == "__main__":
    main()
