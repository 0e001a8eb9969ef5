"""Run under torchrun: trains recipes one after the other, and can end as hosts do.

usage: torchrun ... several.py FOLDER LIST-OF-OPTIONS-AS-JSON [kill STEP | stop STEP]

kill: in its first life, the second process is killed after that step. stop: the first one is asked to stop after it.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mpelu.train.loop import StoppedError
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run

BASE = Recipe(model="plain9", width=4, batch_norm=True, dropout=0.3, limit=96, epochs=2, batch_size=32, lr=0.05)


def main() -> None:
    torch.set_num_threads(1)
    recipes = [replace(BASE, **options) for options in json.loads(sys.argv[2])]
    way, last = (*sys.argv[3:], "", "-1")[:2]
    rank, lives = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def on_step(step: int, _: object) -> None:
        if step + 1 != int(last):
            return
        if way == "kill" and rank == "1" and lives == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "stop" and rank == "0":
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        for number, recipe in enumerate(recipes):
            prepared = prepare(recipe, seed=3, runs=Path(sys.argv[1]) / str(number))
            run(prepared, device="cpu", on_step=on_step)
    except StoppedError:
        sys.exit(3)


if __name__ == "__main__":
    main()
