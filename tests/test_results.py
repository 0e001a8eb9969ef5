"""What is committed was made by commands: here it is made again."""

import re
from pathlib import Path

import pytest

from mpelu.cli import main
from mpelu.report import loss_curves, standalone, summarize
from mpelu.train.records import find_results

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results" / "runs.jsonl"


def test_readme_table_is_what_its_command_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    sections = re.findall(
        r"<!-- results: mpelu (.*?) -->\n(.*?)<!-- end of results -->", (ROOT / "README.md").read_text(), re.S
    )
    assert sections
    for command, text in sections:
        assert main(command.split()) == 0
        assert text.strip() == capsys.readouterr().out.strip()


def test_picture_of_the_readme_is_drawn_from_the_results():
    records = [record for record in find_results([RUNS]) if record["study"] == "demo"]
    assert (ROOT / "docs" / "pictures" / "train-loss.svg").read_text() == standalone(loss_curves(summarize(records)))


def test_every_result_has_its_provenance():
    for record in find_results([RUNS]):
        assert record["environment"]["commit"]
        assert record["environment"]["torch"]
        assert record["data"]["name"]
        assert len(record["state_sha256"]) == 64
