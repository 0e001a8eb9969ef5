import json

import pytest

from mpelu.errors import DataError, MpeluError
from mpelu.train.records import find_results, read_metrics, read_result, to_json


def test_values_that_are_not_finite_become_null():
    text = to_json({"loss": float("nan"), "rows": [{"loss": float("inf")}, {"loss": 1.5}]})
    assert json.loads(text) == {"loss": None, "rows": [{"loss": None}, {"loss": 1.5}]}


def test_results_are_found_below_folders_in_order(tmp_path):
    for name in ("b/seed0", "a/seed1", "a/seed0"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"schema": 1, "name": name}))
    assert [record["name"] for record in find_results([tmp_path])] == ["a/seed0", "a/seed1", "b/seed0"]


def test_records_are_read_back_from_json_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"schema": 1, "seed": 0}\n{"schema": 1, "seed": 1}\n')
    assert [record["seed"] for record in find_results([path])] == [0, 1]
    path.write_text("{")
    with pytest.raises(DataError, match=r"runs\.jsonl is not a file of JSON lines"):
        find_results([path])


def test_missing_and_damaged_records(tmp_path):
    with pytest.raises(DataError, match=r"holds no finished run \(result\.json is missing\)"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": 99}')
    with pytest.raises(DataError, match="is not a record of schema 1"):
        read_result(tmp_path)
    with pytest.raises(MpeluError, match="no folder"):
        find_results([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MpeluError, match="no finished run in"):
        find_results([tmp_path / "empty"])
    assert read_metrics(tmp_path) == []
