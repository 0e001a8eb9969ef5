"""Which job runs next: the cheapest claims first, and with a budget only what fits into it."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mpelu.errors import UsageError

PRIOR_SECONDS = 30.0
"""So many seconds are taken to have gone as expected before anything was measured, lest one short job decides."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Wanted:
    """A claim, table or figure, and the keys of its jobs."""

    name: str
    keys: tuple[str, ...]


def choose(
    wanted: Iterable[Wanted],
    missing: Collection[str],
    seconds: Mapping[str, float],
    *,
    capacity: float = math.inf,
    longest: float = math.inf,
) -> tuple[list[Wanted], list[Wanted]]:
    """Return what fits, and what does not: always next what adds least to the jobs of those before it.

    Args:
        wanted: What is asked for.
        missing: Keys of the jobs that have to be run; others cost nothing.
        seconds: How long each job takes.
        capacity: Seconds that all jobs together may take.
        longest: Seconds that any one of them may take.

    Example:
        >>> items = Wanted("long", ("a",)), Wanted("many", ("b", "c")), Wanted("part", ("b",)), Wanted("there", ("d",))
        >>> cost = {"a": 50.0, "b": 10.0, "c": 15.0, "d": 10.0}
        >>> fits, rest = choose(items, "abc", cost, capacity=30.0)
        >>> [item.name for item in fits], [item.name for item in rest]
        (['there', 'part', 'many'], ['long'])
    """
    candidates, needed = list(wanted), set(missing)
    fits: list[Wanted] = []
    while candidates:
        costs = [sum(seconds[key] for key in needed.intersection(item.keys)) for item in candidates]
        index = min(range(len(costs)), key=costs.__getitem__)
        if costs[index] > capacity:
            break
        item = candidates.pop(index)
        if max((seconds[key] for key in needed.intersection(item.keys)), default=0.0) <= longest:
            fits.append(item)
            capacity -= costs[index]
            needed.difference_update(item.keys)
    names = {item.name for item in fits}
    return fits, [item for item in wanted if item.name not in names]


class Schedule:
    """Gives out keys of jobs, one at a time, and learns from those that finish how long they really take.

    Without a limit of time all jobs are given out, those of the cheapest claim first. With one, first the jobs of what
    fits into it, and then, so that no time is lost, single jobs of what does not. A job that would take longer than
    what is left is not given out.

    Args:
        wanted: What is asked for.
        seconds: How long each job is expected to take, by key.
        done: Keys of jobs that have a record.
        workers: So many jobs run at once.
        kinds: The kind of each job, by key; how far the expectation is off is measured for each kind by itself.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        seconds: Mapping[str, float],
        done: Collection[str] = (),
        *,
        workers: int = 1,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        self._wanted = tuple(wanted)
        self._expected = dict(seconds)
        self._kinds = kinds or dict.fromkeys(seconds, "")
        self._workers = workers
        self._waiting = {key for item in wanted for key in item.keys}.difference(done)
        self._running: dict[str, float] = {}  # when each was given out
        self._measured: dict[str, tuple[float, float]] = {}  # of each kind, seconds that were taken and expected

    @property
    def waiting(self) -> frozenset[str]:
        """Keys of the jobs that were not given out."""
        return frozenset(self._waiting)

    def seconds(self, key: str) -> float:
        """Return how long a job takes, by what was expected and by how the others went."""
        taken, expected = self._measured.get(self._kinds[key], (0.0, 0.0))
        return self._expected[key] * (PRIOR_SECONDS + taken) / (PRIOR_SECONDS + expected)

    def take(self, now: float = 0.0, seconds_left: float = math.inf) -> str | None:
        """Give out the key of the next job, None if none is left or none fits.

        Args:
            now: Seconds on any clock.
            seconds_left: Wall time that may still be used.
        """
        seconds = {key: self.seconds(key) for key in self._expected}
        for key in self._in_order(seconds, now, seconds_left):
            if seconds[key] <= seconds_left:
                self._waiting.remove(key)
                self._running[key] = now
                return key
        return None

    def _in_order(self, seconds: Mapping[str, float], now: float, seconds_left: float) -> Iterator[str]:
        under_way = sum(max(0.0, seconds[key] - (now - begun)) for key, begun in self._running.items())
        capacity = seconds_left * self._workers - under_way
        fits, rest = choose(self._wanted, self._waiting, seconds, capacity=capacity, longest=seconds_left)
        for item in [*fits, *rest]:
            yield from sorted(self._waiting.intersection(item.keys), key=lambda key: (-seconds[key], key))

    def ended(self, key: str, seconds: float = 0.0, share: float = 0.0) -> None:
        """Note that a job ended.

        Args:
            key: Of the job.
            seconds: How long it ran.
            share: The part of it that was run in these seconds: 1 for a whole job, 0 if nothing can be learned.
        """
        del self._running[key]
        if share > 0.0:
            taken, expected = self._measured.get(self._kinds[key], (0.0, 0.0))
            self._measured[self._kinds[key]] = taken + seconds, expected + share * self._expected[key]

    def seconds_to_go(self, now: float = 0.0) -> float:
        """Return the wall time that all jobs take which were not given out or have not ended."""
        under_way = sum(max(0.0, self.seconds(key) - (now - begun)) for key, begun in self._running.items())
        return (under_way + sum(self.seconds(key) for key in self._waiting)) / self._workers


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as 90s, 60m, 1.5h or 2d.

    Raises:
        UsageError: If it is not one.

    Example:
        >>> parse_duration("1.5h")
        5400.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None or float(found[1]) == 0.0:
        raise UsageError(f"a duration must be a number and s, m, h or d, e.g. 60m, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def parse_shard(text: str) -> tuple[int, int]:
    """Return i and n of i/n.

    Raises:
        UsageError: If i is not one of 1 to n.

    Example:
        >>> parse_shard("2/3")
        (2, 3)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"a shard must be i/n with i from 1 to n, e.g. 1/4, got {text!r}")
    return int(found[1]), int(found[2])


def in_shard(key: str, shard: tuple[int, int]) -> bool:
    """True if a job belongs to shard i of n; every job belongs to exactly one, on every machine to the same."""
    index, count = shard
    return int(key, 16) % count == index - 1
