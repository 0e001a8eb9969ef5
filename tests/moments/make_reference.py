"""Write reference.csv beside this file: ``python tests/moments/make_reference.py``, about 15 minutes on two cores."""

import csv
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mpmath as mp

from tests.moments.references import COLUMNS, PLACES, known_moments, references

FILE = Path(__file__).with_name("reference.csv")


def row(job: tuple[str, float, float]) -> list[str]:
    name, mean, variance = job
    known = known_moments(references()[name], mean, variance)
    numbers = [mp.nstr(number, 25) for number in known.values] + [mp.nstr(number, 3) for number in known.sizes]
    return [name, repr(mean), repr(variance), *numbers]


def main() -> None:
    jobs = [(name, *place) for name in references() for place in PLACES]
    with ProcessPoolExecutor(2) as pool, FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["activation", "at_mean", "at_variance", *COLUMNS, *(f"size_{column}" for column in COLUMNS)])
        writer.writerows(pool.map(row, jobs))


if __name__ == "__main__":
    main()
