"""What running a study costs beside its runs: the time of the processes, of the data and of the records.

Command: python benchmarks/bench_schedule.py [--jobs 40] [--seconds 1] [--workers 2] [--data PATH]

First jobs that only wait, so that every second beyond theirs is the study's own; then short trainings, whose records
say how long they trained. The overhead of n jobs is a start, once, and a cost for each job; both are found from two
lengths of study, and 200 jobs of 10 s are computed from them.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from mpelu.studies.jobs import Job, Measurement, Setting, Training, key
from mpelu.studies.reproduce import Plan, Request, open_store, run
from mpelu.studies.schedule import Wanted
from mpelu.train.recipe import Recipe

SHORT = Recipe(
    model="plain15",
    width=8,
    data="digits",
    augment="none",
    limit=640,
    epochs=2,
    batch_size=32,
    lr=0.02,
    schedule="cosine",
)


def wait(*, seed: int, data: str, seconds: float) -> dict[str, float]:
    time.sleep(seconds)
    return {"seconds": seconds}


def timed(jobs: list[Job], workers: int, data: str = "") -> tuple[float, float]:
    """Return the wall seconds of a study, and those that its records account for."""
    with tempfile.TemporaryDirectory() as folder:
        request = Request((), runs=Path(folder) / "runs", results=Path(folder), workers=workers, device="cpu")
        by_key = {key(job, data): job for job in jobs}
        plan = Plan((), Setting(), by_key, dict.fromkeys(by_key, 1.0), (Wanted("all", tuple(by_key)),))
        started = time.perf_counter()
        store = open_store(request, plan)
        run(plan, store, request)
        wall = time.perf_counter() - started
        assert len(store.records) == len(jobs)
        return wall, sum(record["wall_seconds"] for record in store.records.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--data", default="digits", help="Of the trainings.")
    options = parser.parse_args()

    overheads = []
    counts = (options.jobs // 4, options.jobs)
    for count in counts:
        waits = [Measurement("bench_schedule:wait", {"seconds": options.seconds}, seed) for seed in range(count)]
        wall, accounted = timed(list(waits), options.workers)
        overheads.append(wall - accounted / options.workers)
        print(f"{count} jobs of {options.seconds:g} s with {options.workers} workers: {wall:.2f} s,")
        print(f"  of which {overheads[-1]:.2f} s are the study's own")
    each = (overheads[1] - overheads[0]) / (counts[1] - counts[0])
    start = overheads[0] - each * counts[0]
    print(f"once {start:.2f} s, for each job {1000 * each:.1f} ms")
    ideal = 200 * 10.0 / options.workers
    print(f"200 jobs of 10 s, computed from that: {100 * (start + 200 * each) / ideal:.2f} % of the time")

    from mpelu.data import load

    digits = options.data == "digits"
    recipe = replace(SHORT, data=options.data, augment="none" if digits else "pad4")
    trainings = [Training(recipe, seed) for seed in range(options.trainings)]
    wall, accounted = timed(list(trainings), options.workers, load(options.data).name)
    overhead = wall - accounted / options.workers
    print(f"{options.trainings} trainings of {accounted / options.trainings:.2f} s on {options.data}: {wall:.2f} s,")
    print(f"  of which {overhead:.2f} s lie outside of the epochs: the start, building networks, checkpoints")


if __name__ == "__main__":
    main()
