import pytest

from mpelu.report.provenance import SHOWN_LETTERS, error_text, own_settings, trace, values_text


def measurement(seed=0, **changes):
    return {
        "kind": "measurement", "function": "mpelu.studies.function:jump", "options": {"alpha": 1.0}, "hash": "00ff00ff",
        "version": 1, "seed": seed, "data": None, "outcome": "finished", "values": {"jump": 2.0}, "wall_seconds": 0.1,
        "environment": {"torch": "2.13.0", "started_utc": f"2026-01-0{seed + 1}"}, **changes,
    }  # fmt: skip


def test_seeds_of_a_recipe_are_one_source_in_the_order_of_seeds(make_record):
    records = {"b": make_record(seed=1), "a": make_record(seed=0), "c": make_record(seed=0, run_hash="other")}
    provenance = trace(records)
    assert [[run["seed"] for run in source.runs] for source in provenance.sources] == [[0, 1], [0]]
    assert provenance.behind(["a", "b", "unknown"]) == (provenance.sources[0],)
    assert provenance.behind(["c", "a"]) == (provenance.sources[1], provenance.sources[0])


def test_trainings_come_before_measurements(make_record):
    provenance = trace({"m0": measurement(0), "t": make_record(), "m1": measurement(1)})
    assert [source.kind for source in provenance.sources] == ["training", "measurement"]
    assert [run["seed"] for run in provenance.sources[1].runs] == [0, 1]
    assert provenance.sources[1].label == "jump (alpha 1.0)"


def test_anchors_are_distinct_even_where_hashes_are_not(make_record):
    provenance = trace({"a": make_record("one"), "b": make_record("two")})
    assert [source.anchor for source in provenance.sources] == ["run-1a2b3c4d", "run-1a2b3c4d-2"]


def test_namesakes_are_told_apart_by_what_is_unusual(make_record):
    records = {
        name: make_record(run_hash=name, config={"lr": lr, "alpha": alpha})
        for name, (lr, alpha) in {"a": (0.02, 1.0), "b": (0.02, 0.25), "c": (0.1, 1.0), "d": (0.02, 1.0)}.items()
    }
    labels = [source.label.removeprefix("plain30-mpelu-eq22") for source in trace(records).sources]
    assert labels == ["", " (alpha 0.25)", " (lr 0.1)", ""]


def test_settings_of_all_trainings_are_listed_apart(make_record):
    records = {name: make_record(run_hash=name, config={"lr": float(lr)}) for name, lr in {"a": 1, "b": 2}.items()}
    provenance = trace(records | {"m": measurement()})
    assert provenance.common["model"] == "plain30"
    assert "lr" not in provenance.common
    assert [own_settings(source, provenance.common) for source in provenance.sources] == [
        {"lr": "1.0"},
        {"lr": "2.0"},
        {"alpha": "1.0"},
    ]


def test_one_training_has_its_settings_itself(make_record):
    provenance = trace({"a": make_record()})
    assert provenance.common == {}
    assert own_settings(provenance.sources[0], provenance.common)["lr"] == "0.02"


def test_an_environment_is_listed_once_and_the_start_is_not_part_of_it(make_record):
    other = make_record(seed=1)
    other["environment"] = other["environment"] | {"started_utc": "later"}
    third = make_record(seed=2)
    third["environment"] = third["environment"] | {"threads": 2}
    provenance = trace({"a": make_record(), "b": other, "c": third})
    assert provenance.sources[0].environments == (0, 0, 1)
    assert [environment["threads"] for environment in provenance.environments] == ["1", "2"]


def test_data_sets_are_listed_once_with_what_is_known_of_them(make_record):
    training = make_record()
    measured = measurement(data={"name": "digits", "sha256": training["data"]["sha256"]})
    provenance = trace({"m": measured, "t": training})
    assert [dict(data) for data in provenance.data_sets] == [training["data"]]


def test_the_error_is_over_finished_runs_and_the_others_are_counted(make_record):
    records = {
        "a": make_record(seed=0, errors=(50.0, 10.0, 12.0)),
        "b": make_record(seed=1, errors=(50.0, 10.0, 14.0)),
        "c": make_record(seed=2, diverged="loss is nan at step 9"),
    }
    assert error_text(trace(records).sources[0]) == "13.00 ± 1.41 %, 1 of 3 diverged"
    assert error_text(trace({"c": records["c"]}).sources[0]) == "1 of 1 diverged"


@pytest.mark.parametrize(
    ("values", "text"),
    [({"a": 1.0 / 3, "b": [True, None]}, "a 0.333333, b [true, null]"), ([{"x": "y"}], "[{x y}]"), (7, "7")],
)
def test_returned_values_are_written_plainly(values, text):
    assert values_text(values) == text


def test_long_values_are_cut_and_say_so():
    text = values_text(list(range(1000)))
    assert len(text) == SHOWN_LETTERS + 2
    assert text.endswith(" …")
