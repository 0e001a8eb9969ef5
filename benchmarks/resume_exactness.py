"""Kill a run in many places, continue it, and compare the end states bit by bit.

    python benchmarks/resume_exactness.py FOLDER random   # 20 random steps of a residual net: the figure of the README
    python benchmarks/resume_exactness.py FOLDER steps    # after each step of a small plain net
    python benchmarks/resume_exactness.py FOLDER saves    # before each fsync and each rename of that run

Each kill is SIGKILL. What is compared is the sha256 over all weights, buffers and optimizer state. Prints one JSON
object; exits with 1 if any state differs. Processes are forked, so that torch is imported once.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run

PLAIN = Recipe(
    model="plain9",
    width=4,
    batch_norm=True,
    dropout=0.3,
    data="digits",
    limit=96,
    augment="pad4",
    epochs=3,
    batch_size=32,
    lr=0.05,
)
RESIDUAL = Recipe(model="nopre11", data="digits", limit=320, augment="pad4", epochs=4, batch_size=32, lr=0.05)
KILLS = 20


def forked(recipe: Recipe, folder: Path, *, kill_at_step: int = 0, kill_at_call: int = 0) -> int:
    """Train in a child process and return its exit status; it kills itself where it was told to."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return call

    def on_step(step: int, _: torch.Tensor) -> None:
        if step + 1 == kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    run(prepare(recipe, seed=5, runs=folder), device="cpu", on_step=on_step)
    (folder / "calls").write_text(str(calls))
    os._exit(0)


def record(folder: Path) -> dict[str, Any]:
    (result,) = folder.rglob("result.json")
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def main() -> int:
    torch.set_num_threads(1)
    root, places = Path(sys.argv[1]), sys.argv[2]
    recipe = RESIDUAL if places == "random" else PLAIN
    whole = root / "whole"
    assert forked(recipe, whole) == 0
    steps, calls = record(whole)["steps"], int((whole / "calls").read_text())
    kills = {
        "random": [{"kill_at_step": step} for step in random.Random(0).sample(range(1, steps + 1), min(KILLS, steps))],
        "steps": [{"kill_at_step": step} for step in range(1, steps + 1)],
        "saves": [{"kill_at_call": call} for call in range(1, calls + 1)],
    }[places]
    states = []
    for index, kill in enumerate(kills):
        folder = root / str(index)
        assert os.WTERMSIG(forked(recipe, folder, **kill)) == signal.SIGKILL, kill
        assert forked(recipe, folder) == 0, kill
        states.append(record(folder)["state_sha256"])
    expected = record(whole)["state_sha256"]
    same = sum(state == expected for state in states)
    print(json.dumps({"places": places, "kills": len(kills), "same": same, "state_sha256": expected}))
    return 0 if same == len(kills) else 1


if __name__ == "__main__":
    sys.exit(main())
