"""Time and size of the report of a reproduction, for made-up records of 30 epochs each; the goals are 10 s and 3 MB.

The records are made up once for the studies of the paper, of the jobs that they have on two data sets, and once for a
study whose every claim, table and figure has runs. Measurements are those of results/measurements.jsonl.

python -m benchmarks.bench_report [RECORDS [PAGE.html]]
"""

import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpelu.report.reproduction_page import render_reproduction
from mpelu.studies import catalog
from mpelu.studies.findings import reproduction
from mpelu.studies.jobs import Setting, Training
from mpelu.studies.study import Claim, Exhibit
from tests.made_up import record, records, study

DATA = ("cifar10-jpeg75", "digits")
MEASUREMENTS = Path(__file__).parents[1] / "results" / "measurements.jsonl"


def of_the_studies(number: int) -> list[dict[str, Any]]:
    """Return made-up records of the first trainings that the studies of the paper ask for, on two data sets in turn."""
    items: list[Claim | Exhibit] = [*catalog.exhibits(), *catalog.claims()]
    asked: dict[str, Training] = {}
    for item, data in itertools.product(items, DATA):
        asked |= {job.key: job for job in item.jobs(Setting("cpu", data)) if isinstance(job, Training)}
    return [record(job.recipe, job.seed, job.recipe.data) for job in itertools.islice(asked.values(), number)]


def main(arguments: Sequence[str]) -> None:
    number = int(arguments[0]) if arguments else 1000
    measured = [json.loads(line) for line in MEASUREMENTS.read_text(encoding="utf-8").splitlines()]
    page = report("the studies of the paper", [*of_the_studies(number), *measured])
    if len(arguments) > 1:
        Path(arguments[1]).write_text(page, encoding="utf-8")
    sys.modules["mpelu.studies.made_up"] = study()
    catalog.STUDIES = ("made_up",)
    report("a made-up study", records(number))


def report(name: str, given: Sequence[dict[str, Any]]) -> str:
    """Print what it costs to judge records and to make the page, and return the page."""
    started = time.process_time()
    found = reproduction(given)
    judged = time.process_time()
    page = render_reproduction(found)
    ended = time.process_time()
    size = len(page.encode()) / 1e6
    print(f"{name}, {len(given)} records: {judged - started:.1f} CPU s to judge,", end=" ")
    print(f"{ended - judged:.1f} CPU s for the page, {size:.2f} MB")
    return page


if __name__ == "__main__":
    main(sys.argv[1:])
