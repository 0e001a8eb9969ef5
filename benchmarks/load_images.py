"""CPU and wall seconds of loading a data set: as it is, and whitened; the first time, and from the cache.

python benchmarks/load_images.py FOLDER   # e.g. a folder with CIFAR-10 in Parquet

It also prints what whitening left of the covariance of the training images, and the speed of augmentation.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from mpelu.data import AUGMENTATIONS, Dataset, augment, load
from mpelu.data.whiten import fit

BATCH = 128
ROUNDS = 200


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first time", "from the cache", "from the cache"):
            plain = timed_load(name, "none", Path(cache))
        for name in ("whitened anew", "whitened, cache", "whitened, cache"):
            whitened = timed_load(name, "gcn_zca", Path(cache))
    print_covariance(plain.train.images, whitened.train.images)
    for dataset in (plain, whitened):
        for kind in AUGMENTATIONS:
            print_augmentation(dataset, kind)


def timed_load(name: str, preprocess: str, cache: Path) -> Dataset:
    wall, cpu = time.perf_counter(), time.process_time()
    dataset = load(sys.argv[1], preprocess=preprocess, cache=cache)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    images = len(dataset.train.labels) + len(dataset.test.labels)
    print(f"{name:16} {images} images of {dataset.name}: {cpu:.2f} CPU s, {wall:.2f} s", flush=True)
    return dataset


def print_covariance(original: Tensor, whitened: Tensor) -> None:
    """Compare the covariance of the stored (half precision) images with the identity, in the principal directions."""
    whitening = fit(original)
    size = len(whitening.mean)
    total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(whitened), 1000):
        rows = whitened[start : start + 1000].flatten(1).double() @ whitening.directions
        total += rows.sum(0)
        products.addmm_(rows.T, rows)
    mean = total / len(whitened)
    covariance = products / len(whitened) - torch.outer(mean, mean)
    kept = whitening.kept
    inside = covariance[kept][:, kept]
    worst = (inside - torch.eye(len(inside), dtype=torch.float64)).abs().max()
    across = covariance[kept][:, ~kept].abs().max() if not kept.all() else torch.tensor(0.0)
    share = whitening.eigenvalues[kept].sum() / whitening.eigenvalues.sum()
    print(f"kept directions {int(kept.sum())} of {size}, with {100 * float(share):.2f} % of the variance")
    print(f"covariance: within {float(worst):.1e} of the identity on them, {float(across):.1e} between them and others")
    print(
        f"largest mean of a direction: {float(mean.abs().max()):.1e}, largest value {float(whitened.abs().max()):.1f}"
    )


def print_augmentation(dataset: Dataset, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = dataset.train.images[:BATCH]
    augment(images, kind, mean=dataset.mean, generator=generator)
    started = time.process_time()
    for _ in range(ROUNDS):
        augment(images, kind, mean=dataset.mean, generator=generator)
    rate = ROUNDS * len(images) / (time.process_time() - started)
    print(f"augment {kind:12} {images.dtype}: {rate:,.0f} images/s of one core")


if __name__ == "__main__":
    main()
