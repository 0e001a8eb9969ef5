"""What is committed was made by commands: here it is made again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpelu.cli import main
from mpelu.report import loss_curves, standalone, summarize
from mpelu.train.records import find_results

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results" / "runs.jsonl"


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = [
    pytest.param(command, text, id=f"{document.name}: {command}")
    for document in DOCUMENTS
    for command, text in re.findall(
        r"<!-- results: (.*?) -->\n(.*?)<!-- end of results -->", document.read_text(), re.S
    )
]


@pytest.mark.parametrize(("command", "text"), SECTIONS)
def test_table_is_what_its_command_prints(command, text, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = command.split()
    if program == "mpelu":
        assert main(words) == 0
        printed = capsys.readouterr().out
    else:
        assert program == "python"
        printed = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout
    assert text.strip() == printed.strip()


def test_picture_of_the_readme_is_drawn_from_the_results():
    records = [record for record in find_results([RUNS]) if record["study"] == "demo"]
    assert (ROOT / "docs" / "pictures" / "train-loss.svg").read_text() == standalone(loss_curves(summarize(records)))


def test_every_measurement_has_its_provenance():
    for record in find_results([ROOT / "results" / "measurements.jsonl"]):
        assert record["kind"] == "measurement"
        assert record["environment"]["commit"]
        assert record["environment"]["torch"]
        assert record["data"] is None or len(record["data"]["sha256"]) == 64


def test_every_result_has_its_provenance():
    for record in find_results([RUNS]):
        assert record["environment"]["commit"]
        assert record["environment"]["torch"]
        assert record["data"]["name"]
        assert len(record["state_sha256"]) == 64
