"""``mpelu recipes`` and the option --recipe of ``mpelu train``."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mpelu.cli import main
from mpelu.recipes import catalog

MINE = """
from mpelu.recipes import Row
from mpelu.train.recipe import Recipe

PAPER = Recipe(
    model="plain9", width=4, activation="mpelu", alpha=1.0, limit=64, batch_size=32, epochs=2, lr=0.05, augment="none",
    model_options={"dropout": 0.1}, milestones=(0.5,),
)
ROW = Row(
    "mine", "small", PAPER, code={"nesterov": True, "epochs": 3}, cpu={"epochs": 1, "width": 2}, factors=("2 to 1",)
)

def made():
    return PAPER

def wrong():
    return 7

EMPTY = Row("empty", "nothing else", PAPER)
"""


@pytest.fixture(autouse=True)
def in_a_folder_with_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)


def mpelu(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as left:
        return int(left.code or 0)


def trained(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert mpelu("train", "--threads", "1", "--json", *words) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def chosen(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """Return the options with which a command would train."""
    assert mpelu("train", *words, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_row_is_trained_at_its_scale(capsys):
    record = trained(capsys, "--recipe", "mine.py:ROW", "--scale", "cpu")
    assert record["scale"] == "cpu"
    assert (record["config"]["epochs"], record["config"]["width"], record["config"]["limit"]) == (1, 2, None)
    record = trained(capsys, "--recipe", "mine.py:made")
    assert record["scale"] == "paper"
    assert (record["config"]["epochs"], record["config"]["width"], record["config"]["limit"]) == (2, 4, 64)
    assert record["config"]["milestones"] == [0.5]


def test_a_row_that_was_changed_does_not_claim_its_scale(capsys):
    record = trained(capsys, "--recipe", "mine.py:ROW", "--epochs", "1")
    assert record["config"]["epochs"] == 1
    assert record["scale"] == "cpu", "that of the device, as of any training"


def test_what_is_given_stands_in_the_place_of_the_row(capsys):
    row = ("--recipe", "mine.py:ROW")
    assert chosen(capsys, *row)["epochs"] == 2
    assert chosen(capsys, *row, "--epochs", "5")["epochs"] == 5
    assert chosen(capsys, *row, "--lr", "null")["lr"] is None
    assert chosen(capsys, *row)["alpha"] == 1.0
    assert chosen(capsys, *row, "--alpha", "null")["alpha"] is None, "the default, given explicitly"
    assert chosen(capsys, *row, "--activation", "mpelu", "--milestones", "[0.2]")["milestones"] == [0.2]
    options = chosen(capsys, *row, "--model_options.extra", "3")["model_options"]
    assert options == {"dropout": 0.1, "extra": 3}
    assert chosen(capsys, *row)["model_options"] == {"dropout": 0.1}, "the row itself is not changed"


def test_follow_code(capsys):
    row = ("--recipe", "mine.py:ROW", "--follow", "code")
    options = chosen(capsys, *row)
    assert (options["nesterov"], options["epochs"]) == (True, 3)
    assert chosen(capsys, *row, "--nesterov", "false")["nesterov"] is False
    options = chosen(capsys, *row, "--scale", "cpu")
    assert (options["nesterov"], options["epochs"]) == (True, 1)


def test_a_config_file_may_name_the_row_and_change_it(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: mine.py:ROW\nscale: cpu\nlr: 0.2\nnesterov: false\n")
    options = chosen(capsys, "--config", "mine.yaml")
    assert (options["epochs"], options["width"], options["lr"], options["data"]) == (1, 2, 0.2, "digits")
    assert chosen(capsys, "--config", "mine.yaml", "--lr", "0.3")["lr"] == 0.3
    assert chosen(capsys, "--recipe", "mine.py:ROW", "--config", "mine.yaml", "--scale", "paper")["epochs"] == 2
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(chosen(capsys, "--config", "mine.yaml")))
    assert chosen(capsys, "--config", "printed.yaml") == options


def test_limits_hold_for_other_data_only(capsys):
    row = ("--recipe", "nopre164-mpelu", "--scale", "cpu")
    assert chosen(capsys, *row)["limit"] is None
    options = chosen(capsys, *row, "--data", "some/folder")
    assert (options["data"], options["limit"], options["resize"]) == ("some/folder", 5000, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --scale cpu", "--scale must come with --recipe"),
        ("train --scale cpu --follow code", "--scale and --follow must come with --recipe"),
        ("train --recipe nopre164-mpellu", "no recipe 'nopre164-mpellu'; did you mean nopre164-mpelu?"),
        ("train --recipe mine.py:ROW --scale gpu", "--scale must be paper, cpu, got gpu"),
        ("train --recipe mine.py:EMPTY --follow code", "of empty, no released code is known that differs"),
        (
            "train --recipe mine.py:wrong",
            "mine.py:wrong must be a mpelu.recipes.Row or a Recipe, or return one, got int",
        ),
        ("train --recipe mine.py:missing", "mine.py has no recipe 'missing'; it has PAPER, ROW, made, wrong, EMPTY"),
        ("train --recipe nowhere.py:ROW", "there is no file nowhere.py"),
        ("train --recipe mine.py:ROW --epochs 0", "epochs must be at least 1, got 0"),
        ("recipes nin-mpel", "no recipe 'nin-mpel'; did you mean nin-mpelu?"),
    ],
)
def test_wrong_input_is_one_line(words, message, capsys):
    assert mpelu(*words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("runs").exists()


def test_list_of_recipes(capsys):
    assert mpelu("recipes") == 0
    names = [row.name for row in catalog.rows()]
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert mpelu("recipes", "--json") == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(listed) == names
    nopre = listed["nopre164-mpelu"]
    numbers = {(target["table"], target["column"]): target["number"] for target in nopre["targets"]}
    assert numbers["table11", "mean_err"] == "5.04"
    assert numbers["table12", "c10_median"] is None
    assert nopre["seconds"]["paper"]["expected"] > 86_400
    assert mpelu("recipes", "--markdown") == 0
    head, rule, *lines = capsys.readouterr().out.strip().splitlines()
    assert {line.count("|") for line in (head, rule, *lines)} == {7}
    assert len(lines) == len(names)


def test_one_recipe(capsys):
    assert mpelu("recipes", "nopre164-mpelu") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for wanted in (
        "│ nesterov │ False │ False │ True",
        "Table 11, nopre (Fig. 5d), mean_err: 5.04",
        "H200: not measured",
    ):
        assert wanted in printed
    assert mpelu("recipes", "mine.py:ROW") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "│ epochs │ 2 │ 1 │ 3" in printed
    assert "│ batch_norm" not in printed


def test_example_of_the_documentation_runs(capsys):
    text = (Path(catalog.__file__).parents[2] / "docs" / "recipes.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, "recipes.md", "exec"), {})
    assert "depth 164 to 29" in capsys.readouterr().out


def test_lists_without_torch():
    code = "import sys; from mpelu.cli import main; main(['recipes', '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
