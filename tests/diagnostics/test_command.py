"""``mpelu diagnose``, and what ``mpelu train --watch`` leaves for ``mpelu report``."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpelu.cli import main
from mpelu.diagnostics import Diagnosis, diagnose
from mpelu.models import create_model
from mpelu.report.signal import read_signal
from mpelu.train.evaluation import load_trained
from mpelu.train.learned import learned

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 10))

def broken():
    model = build()
    nn.init.constant_(model[3].weight, float("nan"))
    return model
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPELU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "net.py").write_text(FACTORY)


def mpelu(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as left:
        return int(left.code or 0)


def typed(line: str, *more: str) -> int:
    return mpelu(*line.split(), *more)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("diagnose", 2, "needs MODEL, which was not given"),
        ("diagnose plian30", 2, r"unknown model 'plian30'; did you mean plain30\?"),
        ("diagnose net.py:build", 2, "net.py:build needs --shape"),
        ("diagnose net.py:build --shape 3,x", 2, "--shape must be positive whole numbers"),
        ("diagnose net.py:nothing --shape 3,4,4", 2, "has no function 'nothing'; it has"),
        ("diagnose plain30 --batch 1", 2, "--batch must be at least 2"),
        ("diagnose plain30 --views table7", 2, "unknown view table7; known: distribution, residual, learned"),
        ("diagnose plain30 --views learned", 2, "needs the folder of a run"),
        ("diagnose plain30 --init xaver", 2, "xaver"),
        ("diagnose plain30 --viewz residual", 2, r"did you mean --views\?"),
        ("diagnose plain30 --compare nowhere.json", 2, "--compare needs the file of a diagnosis"),
        ("diagnose plain30 --compare net.py", 1, "this is no JSON"),
        ("diagnose plain30 --out nowhere/page.html", 1, "no folder nowhere"),
        ("diagnose .", 1, "is not a run folder"),
        ("train --watch 0", 2, "--watch must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(words, code, message, capsys):
    assert typed(words) == code
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("mpelu: ")


def test_json_is_the_diagnosis_itself(capsys):
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert typed("diagnose plain15 --shape 1,16,16 --batch 8 --seed 3 --lr 0.1 --json") == 0
    assert torch.equal(torch.get_rng_state(), state)
    found = Diagnosis.from_json(capsys.readouterr().out)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = create_model("plain15")
        example = torch.randn(8, 1, 16, 16)
    expected = diagnose(model, example, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), seed=3)
    assert found == expected
    assert found["conv1"].update_ratio > 0


def test_check_says_by_the_exit_code_whether_the_network_is_healthy(capsys):
    assert typed("diagnose net.py:build --shape 3,4,4 --init auto --check") == 0
    assert "Sequential: healthy." in capsys.readouterr().out
    assert typed("diagnose net.py:broken --shape 3,4,4") == 0
    assert typed("diagnose net.py:broken --shape 3,4,4 --check") == 1
    assert "Sequential: non-finite." in capsys.readouterr().out


def test_before_and_after_in_text_figure_and_page(tmp_path, capsys):
    assert typed("diagnose plain30 --batch 8 --json") == 0
    (tmp_path / "before.json").write_text(capsys.readouterr().out)
    words = "diagnose plain30 --batch 8 --init auto --compare before.json --svg signal.svg --out page.html"
    assert typed(words) == 0
    captured = capsys.readouterr()
    assert captured.err == "signal.svg written\npage.html written\n"
    assert captured.out.startswith("before:\n")
    assert "\nafter:\n" in captured.out
    svg, page = (tmp_path / "signal.svg").read_text(), (tmp_path / "page.html").read_text()
    assert ">before</text>" in svg
    assert ">after</text>" in svg
    assert "Before and after" in page


def test_views_of_a_network(capsys):
    words = "diagnose plain30 --batch 4 --alpha 1 --init eq22 --views distribution residual --layers 1,7,14,20,27"
    assert typed(words, "--out", "page.html") == 0
    text = capsys.readouterr().out
    _, distribution, residual = re.split(r"Pre-activations by layer\n|Residual of the linearization\n", text)
    rows = [line.split()[0] for line in distribution.strip().splitlines()[2:]]
    assert rows == ["conv1", "conv7", "conv14", "conv20", "conv27"]
    assert len(residual.strip().splitlines()) == 2 + 29
    assert Path("page.html").read_text().count("<figure") == 3


@pytest.fixture
def run_folder(capsys) -> Path:
    words = (
        "train --model plain9 --width 4 --limit 96 --batch-size 32 --epochs 2 --lr 0.05 --threads 1 --watch 2 --json"
    )
    assert typed(words) == 0
    return Path(json.loads(capsys.readouterr().out.splitlines()[-1])["folder"])


def test_a_run_is_diagnosed_with_its_own_weights_and_images(run_folder, capsys):
    assert mpelu("diagnose", str(run_folder), "--json", "--batch", "8") == 0
    found = Diagnosis.from_json(capsys.readouterr().out)
    net = load_trained(run_folder).net
    assert found["conv1"].weight_norm == pytest.approx(net.conv1.weight.norm().item(), rel=1e-5)
    assert found.examples == 8
    assert found.loss is not None
    assert found.loss < 4.0  # cross entropy with the labels, near ln 10
    assert mpelu("diagnose", str(run_folder), "--weights", "best", "--views", "learned", "--out", "page.html") == 0
    captured = capsys.readouterr()
    assert "Learned alpha and beta\nactivation" in captured.out
    assert "plain9 after" in Path("page.html").read_text()
    assert mpelu("diagnose", str(run_folder), "--weights", "middle") == 2


def test_learned_parameters_come_from_what_was_watched_or_from_checkpoints(run_folder):
    watched = learned(run_folder)
    assert [step["epoch"] for step in watched] == [0.0, 0.666667, 1.33333]
    (run_folder / "signal.jsonl").unlink()
    kept = learned(run_folder)
    assert [step["epoch"] for step in kept] == [0.0, 1.0, 2.0]
    names = [record["name"] for record in watched[0]["records"] if record["kind"] == "activation"]
    assert [record["name"] for record in kept[0]["records"]] == names
    assert all((record["alpha"], record["beta"]) == (0.25, 1.0) for record in kept[0]["records"])
    last = load_trained(run_folder).net
    assert kept[-1]["records"][0]["alpha"] == pytest.approx(last.act1.alpha.mean().item(), rel=1e-6)


def test_a_report_shows_what_was_watched(run_folder, capsys):
    Path("figures").mkdir()
    assert mpelu("report", "--out", "report.html", "--figures", "figures") == 0
    text = capsys.readouterr().out
    assert "Signal in training" in text
    assert len(read_signal(run_folder / "signal.jsonl")) == 3
    page = Path("report.html").read_text()
    for title in ("Second moment", "Gradient norm", "Alpha", "Beta"):
        assert re.search(rf"<title [^>]*>{title}[^<]* by layer over time</title>", page)
    assert {path.name.split("-seed0-")[-1] for path in Path("figures").iterdir()} >= {
        "second-moment.svg", "gradient-norm.svg", "alpha.svg", "beta.svg", "train-loss.svg",
    }  # fmt: skip


def test_help_needs_no_torch():
    code = "import sys; from mpelu.cli import main\ntry: main(['diagnose', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--check" in done.stdout
