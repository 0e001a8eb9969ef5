import json
import multiprocessing

import pytest

from mpelu.errors import DataError
from mpelu.studies.jobs import Measurement, key
from mpelu.studies.store import Store


def record(seed: int) -> dict:
    return {
        "schema": 1, "kind": "measurement", "study": "reproduce", "function": "a:b", "options": {}, "seed": seed,
        "version": 1, "hash": "0", "data": None, "outcome": "finished", "values": {"x": seed}, "wall_seconds": 0.0,
        "environment": {},
    }  # fmt: skip


def training(seed: int) -> dict:
    return {"schema": 1, "study": "reproduce", "config": {"model": "nin"}, "seed": seed, "data": {"name": "digits"}}


def test_records_are_found_by_the_key_of_their_job(tmp_path):
    store = Store(tmp_path / "results")
    assert not store.records
    assert not (tmp_path / "results").exists()
    assert store.append([record(3)]) == 1
    assert Store(tmp_path / "results").records[key(Measurement("a:b", seed=3))]["values"] == {"x": 3}


def test_each_record_is_appended_once_by_whichever_store(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    assert first.append([record(0), record(1), record(0)]) == 2
    assert second.append([record(1), record(2)]) == 1
    assert first.append([record(2)]) == 0
    lines = (tmp_path / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2]
    assert len(first.records) == len(second.records) == 3


def test_trainings_and_measurements_have_files_of_their_own(tmp_path):
    Store(tmp_path).append([record(0), training(0), training(1)])
    assert len((tmp_path / "measurements.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2
    assert len(Store(tmp_path).records) == 3


def test_runs_of_other_studies_are_passed_over(tmp_path):
    other = training(0) | {"study": "demo"}
    (tmp_path / "runs.jsonl").write_text(json.dumps(other) + "\n")
    store = Store(tmp_path)
    assert not store.records
    store.append([training(0)])
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["study"] for line in lines] == ["demo", "reproduce"]


def test_line_that_a_kill_cut_off_is_dropped_and_the_others_stay(tmp_path):
    Store(tmp_path).append([record(0)])
    file = tmp_path / "measurements.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2])
    store = Store(tmp_path)
    assert len(store.records) == 1
    store.append([record(1)])
    assert [json.loads(line)["seed"] for line in file.read_text().splitlines()] == [0, 1]


def test_last_line_without_its_end_is_kept_if_it_is_whole(tmp_path):
    Store(tmp_path).append([record(0), record(1)])
    file = tmp_path / "measurements.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    store = Store(tmp_path)
    assert len(store.records) == 2
    store.append([record(2)])
    assert [json.loads(line)["seed"] for line in file.read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize("text", ["no JSON\n", "[]\n", '{"schema": 2}\n'])
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / "runs.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"runs\.jsonl"):
        Store(tmp_path)


def append(folder, seeds):
    store = Store(folder)
    for seed in seeds:
        store.append([record(seed)])


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    spawn = multiprocessing.get_context("fork")  # nothing here has threads
    processes = [spawn.Process(target=append, args=(tmp_path, range(start, 60, 2))) for start in (0, 1, 0)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = (tmp_path / "measurements.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["seed"] for line in lines) == list(range(60))
