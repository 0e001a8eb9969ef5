import ast
import json
import math
from pathlib import Path

import pytest

import mpelu.report.summary as summary_module
from mpelu.errors import DataError
from mpelu.report.summary import Spread, labels, spread, summarize


def test_mean_and_sample_deviation_are_those_computed_by_hand(make_record):
    records = [
        make_record(seed=seed, errors=(9.0, best, last)) for seed, (best, last) in enumerate([(1, 2), (2, 4), (3, 9)])
    ]
    (summary,) = summarize(records)
    # last: mean 15 / 3 = 5, squared deviations 9 + 1 + 16 = 26, divided by n - 1 = 2
    assert summary.last_epoch == Spread(best=2.0, mean=5.0, sd=math.sqrt(13.0), n=3)
    assert summary.best_epoch == Spread(best=1.0, mean=2.0, sd=1.0, n=3)


def test_train_loss_and_speed_are_medians_over_the_finished_runs(make_record):
    finished = [make_record(seed=seed, losses=(2.0, 1.0, loss)) for seed, loss in enumerate([0.1, 0.2, 9.0])]
    for record, seconds, rate in zip(finished, (10.0, 11.0, 90.0), (500.0, 400.0, 1.0), strict=True):
        record |= {"wall_seconds": seconds, "images_per_second": rate}
    stopped = make_record(seed=3, diverged="loss is nan at step 12") | {"wall_seconds": 0.1}
    (summary,) = summarize([*finished, stopped])
    assert (summary.train_loss, summary.wall_seconds, summary.images_per_second) == (0.2, 11.0, 400.0)


def test_one_seed_has_no_deviation(make_record):
    (summary,) = summarize([make_record()])
    assert summary.last_epoch == Spread(best=12.0, mean=12.0, sd=None, n=1)
    assert summary.best_epoch == Spread(best=10.0, mean=10.0, sd=None, n=1)


def test_no_value_has_no_spread():
    assert spread([]) is None


def test_a_diverged_run_enters_no_mean_and_is_listed(make_record):
    stopped = make_record(seed=1, errors=(90.0, None), losses=(2.3, None), diverged="loss is nan at step 71")
    (summary,) = summarize([stopped, make_record(seed=0)])
    assert summary.last_epoch == Spread(best=12.0, mean=12.0, sd=None, n=1)
    assert [(one.seed, one.steps, one.reason) for one in summary.diverged] == [(1, 94, "loss is nan at step 71")]
    assert [run["seed"] for run in summary.runs] == [0, 1]


def test_a_recipe_that_only_diverges_has_no_errors(make_record):
    stopped = make_record(errors=(), losses=(), diverged="loss is inf at step 2")
    (summary,) = summarize([stopped])
    assert (summary.last_epoch, summary.best_epoch, summary.train_loss, summary.wall_seconds) == (None,) * 4


def test_a_run_of_no_epochs_has_no_errors(make_record):
    (summary,) = summarize([make_record(errors=(), losses=())])
    assert (summary.last_epoch, summary.best_epoch, summary.train_loss) == (None, None, None)


@pytest.mark.parametrize(
    "other", [{"data": "cifar10"}, {"scale": "gpu"}, {"run_hash": "ffffffff"}], ids=["data", "scale", "hash"]
)
def test_groups_never_mix(make_record, other):
    summaries = summarize([make_record(seed=0), make_record(seed=0, **other), make_record(seed=1)])
    assert [summary.last_epoch.n for summary in summaries] == [2, 1]
    assert len(set(labels(summaries))) == 2


def test_other_bytes_under_the_same_name_are_another_data_set(make_record):
    other = make_record(seed=1)
    other["data"] = other["data"] | {"sha256": "f" * 64}
    summaries = summarize([make_record(seed=0), other])
    assert labels(summaries)[1] == "plain30-mpelu-eq22 (data ffffffff)"


def test_labels_add_only_what_tells_two_groups_apart(make_record):
    summaries = summarize([make_record("a"), make_record("a", data="cifar10", run_hash="ffffffff"), make_record("b")])
    assert labels(summaries) == ("a (digits)", "a (cifar10)", "b")


def test_recipes_keep_the_order_of_their_first_record(make_record):
    summaries = summarize([make_record("z"), make_record("a"), make_record("z", seed=1)])
    assert [summary.recipe for summary in summaries] == ["z", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "must have schema 1, got 2"),
        ({"outcome": "running"}, "finished or diverged, got 'running'"),
    ],
)
def test_a_record_that_is_not_understood_is_refused(make_record, change, message):
    with pytest.raises(DataError, match=message):
        summarize([make_record() | change])


def test_all_missing_keys_are_named(make_record):
    record = make_record()
    del record["history"], record["hash"]
    with pytest.raises(DataError, match="lacks hash, history"):
        summarize([record])


def test_a_repeated_seed_is_refused(make_record):
    with pytest.raises(DataError, match=r"each seed .* must occur once, got seed 0 more than once"):
        summarize([make_record(seed=0), make_record(seed=0)])


def test_no_record_is_refused():
    with pytest.raises(DataError, match="got none"):
        summarize([])


def test_records_survive_json(make_record):
    record = make_record(errors=(90.0, None), losses=(2.3, None), diverged="loss is nan at step 71")
    assert summarize([json.loads(json.dumps(record))]) == summarize([record])


def test_the_report_reads_records_and_imports_neither_models_nor_torch():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(summary_module.__file__).parent.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name.startswith("mpelu") and not name.startswith("mpelu.report")} == {
        "mpelu.errors"
    }
    assert not {name for name in names if name.split(".")[0] == "torch"}
