import heapq
import math
from itertools import pairwise

import pytest

from mpelu.errors import UsageError
from mpelu.studies.schedule import Schedule, Wanted, choose, in_shard, parse_duration, parse_shard

KEYS = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(1, 201)]


def items(count: int, size: int) -> list[Wanted]:
    """Return items of ``size`` jobs each; neighbours share one."""
    return [
        Wanted(f"claim{index}", tuple(KEYS[(index * (size - 1) + place) % 200] for place in range(size)))
        for index in range(count)
    ]


def simulate(schedule: Schedule, took: dict[str, float], *, workers: int, budget: float = math.inf):
    """Run a schedule by a clock that jumps to the next end of a job; return each job's start and the last end."""
    now, running, started = 0.0, [], {}
    while True:
        while len(running) < workers and (key := schedule.take(now, budget - now)) is not None:
            assert key not in started
            started[key] = now
            heapq.heappush(running, (now + took[key], key))
        if not running:
            return started, now
        now, key = heapq.heappop(running)
        schedule.ended(key, took[key], 1.0)


def test_every_job_is_given_out_once():
    wanted = items(20, 6)
    keys = {key for item in wanted for key in item.keys}
    done = set(sorted(keys)[:10])
    seconds = dict.fromkeys(keys, 5.0)
    started, _ = simulate(Schedule(wanted, seconds, done), seconds, workers=3)
    assert started.keys() == keys - done


def test_claims_are_completed_one_after_the_other_and_the_cheapest_first():
    wanted = [Wanted("dear", ("a", "b")), Wanted("cheap", ("c", "d")), Wanted("there", ("e",))]
    seconds = {"a": 9.0, "b": 20.0, "c": 1.0, "d": 2.0, "e": 1.0}
    started, _ = simulate(Schedule(wanted, seconds, {"e"}), seconds, workers=1)
    assert list(started) == ["d", "c", "b", "a"]  # of one claim, the longest first


def test_shared_jobs_are_paid_once():
    wanted = [Wanted("one", ("a", "b")), Wanted("two", ("a", "c")), Wanted("three", ("d",))]
    seconds = {"a": 10.0, "b": 1.0, "c": 2.0, "d": 5.0}
    fits, rest = choose(wanted, "abcd", seconds, capacity=13.0)
    assert [item.name for item in fits] == ["three"]
    fits, rest = choose(wanted, "abcd", seconds, capacity=18.0)
    assert [item.name for item in fits] == ["three", "one", "two"]
    assert rest == []


def test_what_holds_a_job_that_is_too_long_is_left_out():
    wanted = [Wanted("one", ("a", "b")), Wanted("two", ("b",))]
    fits, rest = choose(wanted, "ab", {"a": 30.0, "b": 1.0}, capacity=100.0, longest=20.0)
    assert [item.name for item in fits] == ["two"]
    assert [item.name for item in rest] == ["one"]


def test_what_has_its_records_costs_nothing():
    wanted = [Wanted("one", ("a",)), Wanted("two", ("b",))]
    assert choose(wanted, "a", {"a": 1.0, "b": 99.0}, capacity=0.0) == ([wanted[1]], [wanted[0]])


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("slower", [0.3, 1.0, 2.5])
def test_budget_is_used_and_kept(workers, slower):
    """However far the expectation is off: 3600 s are over before 10 % more, and not before 90 %."""
    wanted = items(40, 6)
    keys = {key for item in wanted for key in item.keys}
    expected = {key: 60.0 + int(key, 16) % 300 for key in keys}
    took = {key: seconds * slower for key, seconds in expected.items()}
    assert sum(took.values()) > 3600 * workers * 1.2 or slower < 1  # there is enough work
    schedule = Schedule(wanted, expected, workers=workers)
    started, end = simulate(schedule, took, workers=workers, budget=3600.0)
    assert end <= 3960
    if schedule.waiting:
        assert end >= 3240
        assert sum(took[key] for key in started) >= 0.85 * 3600 * workers
    else:
        assert sum(took.values()) <= 3600 * workers


def test_most_claims_that_fit_are_complete():
    wanted = items(10, 5)
    seconds = {key: 100.0 for item in wanted for key in item.keys}
    schedule = Schedule(wanted, seconds, workers=2)
    started, _ = simulate(schedule, seconds, workers=2, budget=1000.0)
    assert len(started) == 20
    complete = [item for item in wanted if started.keys() >= set(item.keys)]
    assert len(complete) >= 4  # of five jobs, neighbours share one: 17 for four, 21 for five


def test_budget_that_is_too_short_for_any_job_starts_none():
    schedule = Schedule([Wanted("one", ("a",))], {"a": 10.0})
    assert schedule.take(0.0, 9.0) is None
    assert schedule.take(0.0, 11.0) == "a"


def test_a_slow_machine_is_noticed_by_kind():
    wanted = [Wanted("all", ("a", "b", "c"))]
    seconds = dict.fromkeys("abc", 100.0)
    schedule = Schedule(wanted, seconds, kinds={"a": "training", "b": "training", "c": "measurement"})
    schedule.take()
    schedule.ended("a", 300.0, 1.0)
    assert 200 < schedule.seconds("b") < 300
    assert schedule.seconds("c") == 100
    half = Schedule(wanted, seconds)
    half.take()
    half.ended("a", 150.0, 0.5)  # continued in the middle
    assert half.seconds("b") == pytest.approx(100.0 * 180 / 80)


def test_time_to_go_shrinks_to_nothing():
    wanted = items(3, 4)
    seconds = {key: 10.0 for item in wanted for key in item.keys}
    schedule = Schedule(wanted, seconds, workers=2)
    left = [schedule.seconds_to_go()]
    while (key := schedule.take()) is not None:
        schedule.ended(key, 10.0, 1.0)
        left.append(schedule.seconds_to_go())
    assert left[0] == pytest.approx(len(seconds) * 10.0 / 2)
    assert all(before > after for before, after in pairwise(left))
    assert left[-1] == 0


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_and_cover_everything(count):
    shards = [{key for key in KEYS if in_shard(key, (index, count))} for index in range(1, count + 1)]
    assert set().union(*shards) == set(KEYS)
    assert sum(map(len, shards)) == len(KEYS)
    assert all(shards)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("60m", 3600), ("1.5h", 5400), ("2d", 172800)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "60", "m", "-1h", "0m", "1w", "1h30m"])
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="a duration must be"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2"])
def test_what_is_no_shard(text):
    with pytest.raises(UsageError, match="i/n"):
        parse_shard(text)
