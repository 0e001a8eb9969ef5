import pytest

from mpelu.errors import UsageError
from mpelu.train.evaluation import evaluate
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run

CODE = """
from torch import nn

def build(num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
"""


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "net.py"
    found.write_text(CODE)
    return found


def recipe(file, function="build", **changes):
    return Recipe(model=f"{file}:{function}", data="digits", limit=96, epochs=1, batch_size=32, init="auto", **changes)


def test_a_network_of_ones_own_is_trained_and_evaluated(file, tmp_path):
    prepared = prepare(recipe(file, model_options={"width": 6}), seed=0, runs=tmp_path)
    record = run(prepared, device="cpu")
    assert record["outcome"] == "finished"
    assert record["model"]["parameters"] == 6 * 9 + 6 + 2 * 6 + 6 * 10 + 10
    assert record["config"]["activation"] == "as built"
    found = evaluate(prepared.folder)
    assert found.test_error_percent == record["last"]["test_error_percent"]


def test_a_network_whose_code_has_changed_is_another_run(file, tmp_path):
    before = prepare(recipe(file), seed=0, runs=tmp_path).folder
    assert prepare(recipe(file), seed=0, runs=tmp_path).folder == before
    file.write_text(CODE.replace("GELU", "ELU"))
    assert prepare(recipe(file), seed=0, runs=tmp_path).folder != before


def test_a_network_with_other_outputs_is_refused(file, tmp_path):
    with pytest.raises(UsageError, match=r"narrow must return one tensor with a number for each of the 10 classes"):
        prepare(recipe(file, "narrow"), seed=0, runs=tmp_path)
