"""What ``mpelu predict`` costs beside the network: its start, and reading, decoding and batching images.

python benchmarks/bench_predict.py [--model resnet20 nopre164] [--images 1000] [--threads 1]

Images are PNG files of 32x32 pixels, made here; weights are those that the model is built with. Of each network:
CPU seconds of the command for one image, a process of its own; and seconds for all images, by the clock and of CPU
time, beside those that the network alone takes for the same batches, in turns; medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from startup import cpu_seconds

import mpelu
from mpelu.deploy.images import decode, inputs, pixels, read
from mpelu.deploy.network import Network
from mpelu.deploy.predicting import BATCH, open_network, predict
from mpelu.train.recipe import Recipe

ROUNDS = 5
CLASSES = 10


def write_images(folder: Path, count: int) -> None:
    """Write photograph-like images, coarse colours scaled up, as class folders of training and test images."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        for part in ("train", "test") if number < CLASSES else ("test",):
            path = folder / part / str(number % CLASSES) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(path)


def seconds(work: Callable[[], None]) -> NDArray[np.float64]:
    """Return seconds by the clock, and CPU seconds of all threads."""
    before = time.perf_counter(), time.process_time()
    work()
    return np.subtract((time.perf_counter(), time.process_time()), before)


def through_predict(network: Network, paths: list[str]) -> None:
    for prediction in predict(network, paths):
        assert prediction.top


@torch.inference_mode()
def alone(network: Network, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        network.net(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=["resnet20", "nopre164"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the network.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place, "data"), options.images)
        data = mpelu.data.load(Path(place, "data"))
        paths = sorted(map(str, Path(place, "data", "test").rglob("*.png")))
        for name in options.model:
            recipe = Recipe(model=name)
            net = mpelu.create_model(name, CLASSES)
            folder = mpelu.save_pretrained(net, Path(place, name), recipe=recipe, data=data)
            network = open_network(str(folder))
            squares = [pixels(decode(read(path)), network.description) for path in paths]
            starts = range(0, len(squares), BATCH)
            batches = [inputs(squares[start : start + BATCH], network.description) for start in starts]
            rounds = [
                (seconds(partial(through_predict, network, paths)), seconds(partial(alone, network, batches)))
                for _ in range(ROUNDS + 1)
            ][1:]
            ours, bare = np.median(rounds, axis=0)
            shares = np.median([of_network / of_all for of_all, of_network in rounds], axis=0)
            for kind, one, other, share in zip(("", " CPU"), ours, bare, shares, strict=True):
                rate, bare_rate = len(paths) / one, len(paths) / other
                print(f"{name}: {rate:.0f} images a{kind} second, the network alone {bare_rate:.0f}: {share:.3f} of it")
            command = [sys.executable, "-m", "mpelu", "predict", str(folder), paths[0]]
            started = statistics.median(cpu_seconds(command) for _ in range(ROUNDS))
            print(f"{name}: {started:.2f} CPU s for the command with one image")


if __name__ == "__main__":
    main()
