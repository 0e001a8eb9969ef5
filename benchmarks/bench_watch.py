"""Time what ``mpelu.watch`` adds to training, and check that it changes no bit of it.

Usage: python benchmarks/bench_watch.py [--every 100] [--rounds 11] [--threads 1] [--only plain30]

In each round a step without a watch and a step that is recorded take turns; both are timed from before the forward pass
until the record is complete, in CPU time of the calling thread. A step between two records has one hook to call, which
is far less than two steps differ by chance: it is timed alone, on a model that does nothing. What a training pays is
the hook in each step and the record in one of ``every``.
"""

import argparse
import contextlib
import hashlib
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from mpelu.bench.timing import clock
from mpelu.diagnostics.watch import watch
from mpelu.models import create_model

NETWORKS = {"plain30": (64, (1, 28, 28)), "nopre29": (64, (3, 32, 32)), "nopre164": (16, (3, 32, 32))}
"""Batch size and shape of an image."""
STEPS = 6
"""Of the check that nothing changes."""


class Nothing(nn.Linear):
    """A layer that gives back what it gets."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Training:
    """A network with its optimizer and a batch of noise."""

    def __init__(self, name: str) -> None:
        batch, shape = NETWORKS[name]
        torch.manual_seed(0)
        self.model = create_model(name, in_channels=shape[0])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.images, self.labels = torch.randn(batch, *shape), torch.arange(batch) % 10

    def step(self) -> None:
        """Make one training step."""
        self.optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(self.model(self.images), self.labels))
        self.optimizer.step()

    def sha256(self) -> str:
        """Return a digest of all weights and buffers."""
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def seconds(training: Training, path: Path | None, optimizer: torch.optim.Optimizer | None) -> float:
    """Return the seconds of one step, which is recorded to ``path``, or of one without a watch."""
    if path is None:
        start = clock()
        training.step()
        return clock() - start
    with watch(training.model, path=path, optimizer=optimizer) as records:
        start = clock()
        training.step()
        records.flush()
        return clock() - start


def recorded_ratio(name: str, rounds: int, *, with_optimizer: bool) -> tuple[float, float]:
    """Return the seconds of a step, and by which part of them a recorded step is longer."""
    training = Training(name)
    optimizer = training.optimizer if with_optimizer else None
    alone, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = [None, Path(folder) / "signal.jsonl"]
        for number in range(rounds + 1):
            found = {path: seconds(training, path, optimizer) for path in (paths if number % 2 else paths[::-1])}
            if number:  # the first round is for warming up
                alone.append(found[None])
                ratios.append(found[paths[1]] / found[None] - 1.0)
    return statistics.median(alone), statistics.median(ratios)


def hook_seconds(calls: int = 20_000) -> float:
    """Return the seconds that a step between two records takes longer: the call of the hook on the model."""
    model, x = Nothing(), torch.zeros(1)
    times = []
    for watched in (False, True):
        with watch(model, every=10**9, start=1) if watched else contextlib.nullcontext():
            start = clock()
            for _ in range(calls):
                model(x)
            times.append((clock() - start) / calls)
    return times[1] - times[0]


def same_bits(name: str) -> bool:
    """Say whether a watch that records every step leaves weights and buffers as they are without."""
    digests = []
    for watched in (False, True):
        training = Training(name)
        with watch(training.model, 1 if watched else 10**9, optimizer=training.optimizer, start=0 if watched else 1):
            for _ in range(STEPS):
                training.step()
        digests.append(training.sha256())
    return digests[0] == digests[1]


def main() -> int:
    """Print a line for each network; exit code 1 if one trains differently."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--every", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=11)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--only", default=None, choices=list(NETWORKS))
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    changed, hook = 0, hook_seconds()
    print(f"a step between records: {1e6 * hook:.1f} us more")
    print("network    update ratio  step (ms)  recorded (% more)  of training (%)  same bits")
    for name in NETWORKS if options.only is None else [options.only]:
        same = same_bits(name)
        changed += not same
        for with_optimizer in (False, True):
            step, recorded = recorded_ratio(name, options.rounds, with_optimizer=with_optimizer)
            total = 100.0 * (hook / step + recorded / options.every)
            print(
                f"{name:10} {'yes' if with_optimizer else 'no':12}  {1e3 * step:9.1f}  {100 * recorded:17.1f}  "
                f"{total:15.2f}  {'yes' if same else 'NO'}",
                flush=True,
            )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
