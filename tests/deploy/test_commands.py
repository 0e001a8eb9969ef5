"""The commands predict, export and evaluate, as they are typed."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest

from mpelu.cli import main


@pytest.fixture
def threads():
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_predict_prints_a_table(kept, pictures, capsys):
    assert main(["predict", str(kept), str(pictures), "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count(".png") == 10
    assert "1." in out
    assert "2." in out
    assert "3." not in out.splitlines()[1]
    assert "%" in out


def test_predict_prints_json_lines(kept, pictures, capsys):
    assert main(["predict", str(kept), str(pictures / "[01].png"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(pictures / "0.png"), str(pictures / "1.png")]
    assert all(len(row["top"]) == 5 for row in rows)
    assert set(rows[0]["top"][0]) == {"label", "index", "probability"}


def test_predict_names_what_is_damaged_and_goes_on(kept, pictures, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    assert main(["predict", str(kept), str(bad), str(pictures / "0.png"), "--json"]) == 1
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert first == {"image": str(bad), "error": "the bytes are not a whole image (no known format)"}
    assert second["top"]
    assert f"mpelu: {bad}: the bytes are not a whole image" in err
    assert "1 image could not be read" in err
    assert main(["predict", str(kept), str(bad)]) == 1


def test_predict_reads_stdin(kept, pictures, capsys, monkeypatch):
    content = (pictures / "3.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert main(["predict", str(kept), "-", "--json"]) == 0
    of_bytes = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{pictures / '3.png'}\n"))
    assert main(["predict", str(kept), "--list", "-", "--json"]) == 0
    of_list = json.loads(capsys.readouterr().out)
    assert of_bytes["image"] == "-"
    assert of_bytes["top"] == of_list["top"]


def test_predict_without_images(kept, capsys):
    assert main(["predict", str(kept)]) == 2
    assert "give images, folders or patterns" in capsys.readouterr().err


def test_what_is_no_network_or_no_list_is_named(trained, kept, capsys, tmp_path):
    file = tmp_path / "net.onnx"
    file.write_bytes(b"\xff\xfe")
    before = sorted(trained.iterdir())
    for words, code, message in (
        (["predict", str(file), "x.png"], 1, "net.onnx is a file; give the folder of a run"),
        (["evaluate", str(file)], 1, "net.onnx is a file; give the folder of a run"),
        (["evaluate", str(kept), "--workers", "-1"], 2, "--workers must be at least 0"),
        (["predict", str(kept), "--list", str(file)], 1, r"cannot read --list .*net.onnx \(it is no text\)"),
        (["predict", str(kept), "--list", str(tmp_path / "no")], 1, r"--list .*no \(No such file or directory\)"),
        (["export", str(trained), "--out", str(trained)], 2, "is the folder of a run"),
    ):
        assert main(words) == code
        assert re.fullmatch(f"mpelu: error: .*{message}.*\n", capsys.readouterr().err)
    assert sorted(trained.iterdir()) == before


def test_export_says_what_it_checked(trained, tmp_path, capsys, threads):
    out = tmp_path / "net"
    assert main(["export", str(trained), "--out", str(out)]) == 0
    assert "compared with the folder, read back: outputs differ by at most 0" in capsys.readouterr().out
    assert main(["export", str(out), "--format", "program", "--out", str(tmp_path / "net.pt2"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["format"] == "program"
    assert row["bytes"] == (tmp_path / "net.pt2").stat().st_size
    assert row["fold"] is None


def test_export_folds(tailored, tmp_path, capsys, threads):
    assert main(["export", str(tailored), "--fold", "--out", str(tmp_path / "net")]) == 0
    out = capsys.readouterr().out
    assert "folded into" in out
    (change,) = re.findall(r"folding changed the outputs by at most (\S+)", out)
    assert 0 < float(change) < 1e-3


def test_export_needs_a_place(trained, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(trained)])
    assert "'mpelu export' needs --out, which was not given" in capsys.readouterr().err


def test_evaluate_takes_an_export(trained, kept, capsys):
    assert main(["evaluate", str(trained), "--json"]) == 0
    of_run = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(kept), "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_error_percent"] == of_run["test_error_percent"]


def test_a_network_of_ones_own(runs, digits, pictures, tmp_path, capsys, monkeypatch):
    from mpelu.train.recipe import Recipe
    from mpelu.train.run import prepare, run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes))\n"
    )
    recipe = Recipe(model="own_net.py:build", init="default", epochs=1, batch_size=64, limit=128)
    prepared = prepare(recipe, seed=0, runs=runs, dataset=digits)
    run(prepared, device="cpu")
    assert main(["export", str(prepared.folder), "--out", "net"]) == 0
    assert "compared with the weights, read back" in capsys.readouterr().out
    images = [str(pictures / "0.png"), "--json"]
    assert main(["predict", "net", *images]) == 2
    assert "code is not run unasked" in capsys.readouterr().err
    assert main(["predict", "net", *images, "--model", "own_net.py:build"]) == 0
    of_export = capsys.readouterr().out
    assert main(["predict", str(prepared.folder), *images]) == 0
    assert capsys.readouterr().out == of_export
    assert main(["evaluate", "net", "--data", "digits", "--model", "own_net.py:build"]) == 0
    assert "test error" in capsys.readouterr().out
