"""Time the training steps of the recipes on one core of this machine:

    python benchmarks/time_steps.py

It brings ``mpelu/recipes/steps.csv`` up to date: a line for each kind of step that a recipe has at scale paper, and at
scale cpu on the digits and on images like those of CIFAR-10; of lines that no recipe needs, those with a time stay. A
step is forward pass, backward pass and SGD on random images. Its time is CPU time of the calling thread, the median of
a few steps after one that is not counted; one of more than a second is timed once. The shortest come first. Of steps
that should take longer than ``--longest`` seconds or do not fit into ``--budget``, only the multiply-adds are counted.
What has a time already is left out, unless ``--again`` is given. ``--only`` takes the recipes whose names begin so.
"""

import argparse
import csv
import dataclasses
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does

import torch
import torch.nn.functional as F

from mpelu.models import build_model
from mpelu.optim import keep_beta_positive, param_groups
from mpelu.recipes import duration, rows
from mpelu.recipes.duration import Key, Step
from mpelu.train.environment import processor
from mpelu.train.recipe import Recipe

RATE = 30e9
"""Multiply-adds per second of one core, to guess which steps are too long; NIN and nopre29 have 26e9 and 38e9."""
STEPS = 5
ENOUGH_SECONDS = 1.0
"""A step so long is timed once."""


def timed(recipe: Recipe, batch: int) -> float:
    """Return the CPU seconds of a training step."""
    images = duration.images_of(recipe)
    torch.manual_seed(0)
    net = build_model(
        recipe.model,
        num_classes=images.classes,
        in_channels=images.channels,
        input_size=images.size,
        activation=recipe.activation,
        options=duration.network_options(recipe),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    optimizer = torch.optim.SGD(param_groups(net, 1e-4, 1e-4), lr=1e-4, momentum=0.9, nesterov=recipe.nesterov)
    keep_beta_positive(optimizer, net)
    inputs = torch.randn(batch, images.channels, images.size, images.size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(images.classes, (batch,))
    seconds: list[float] = []
    while len(seconds) <= STEPS and (len(seconds) < 2 or seconds[-1] < ENOUGH_SECONDS):
        start = time.thread_time()
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds[1:])


def wanted(only: str) -> dict[Key, tuple[Recipe, Step]]:
    """Return a recipe for each kind of step: at scale paper, and at scale cpu on the digits and on CIFAR-10."""
    recipes = [
        recipe
        for row in rows()
        if row.name.startswith(only)
        for recipe in (row.paper, row.recipe("cpu"), row.recipe("cpu", data="cifar10"))
    ]
    return {(step := duration.step_of(recipe)).key: (recipe, step) for recipe in recipes}


def write(path: Path, steps: Iterable[Step]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in dataclasses.fields(Step)]
        writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        for step in steps:
            seconds = "" if step.seconds is None else f"{step.seconds:.4g}"
            writer.writerow(dataclasses.asdict(step) | {"seconds": seconds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=duration.TABLE, help="The table to bring up to date.")
    parser.add_argument("--longest", type=float, default=10.0, help="Seconds of the longest step to time.")
    parser.add_argument("--budget", type=float, default=300.0, help="CPU seconds after which no further step is timed.")
    parser.add_argument("--only", default="", help="Beginning of the names of recipes.")
    parser.add_argument("--again", action="store_true", help="Time again what is in the table.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = wanted(options.only)
    known = {
        key: step for key, step in duration.read(options.table).items() if options.only or key in steps or step.seconds
    }
    for key, (recipe, step) in sorted(steps.items(), key=lambda item: item[1][1].work):
        if key in known and known[key].seconds is not None and not options.again:
            continue
        guess = 3 * step.work / RATE
        repeated = 2 if guess > ENOUGH_SECONDS else STEPS + 1
        if guess < options.longest and time.process_time() + repeated * guess < options.budget:
            seconds = timed(recipe, step.batch)
            step = dataclasses.replace(step, seconds=seconds, machine=processor(), torch=torch.__version__)
        known[key] = step
        write(options.table, sorted(known.values(), key=lambda step: step.key))
        print(step, flush=True)


if __name__ == "__main__":
    main()
