import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpelu.cli import main

SMALL = [
    "train", "--model", "plain9", "--width", "4", "--limit", "96", "--batch-size", "32", "--epochs", "2",
    "--lr", "0.05", "--threads", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPELU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def mpelu(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train --lrr 3", 2, r"--lrr.*did you mean --lr\?"),
        ("train --weight-deacy 3", 2, r"did you mean --weight-decay\?"),
        ("trian", 2, r"did you mean train\?"),
        ("train --lr abc", 2, "--lr must be float, got abc"),
        ("train --epochs 1.5", 2, "--epochs must be int, got 1.5"),
        ("train --lr -1", 2, "lr must be > 0, got -1.0"),
        ("train --init xavie", 2, r"--init must be eq22, .*, got xavie; did you mean xavier\?"),
        ("train --model nopra29", 2, r"unknown model 'nopra29'; did you mean nopre29\?"),
        ("train --model nopre30", 2, r"9n \+ 2 .* got 30; the nearest are 29 and 38"),
        (
            "train --activation gelu",
            2,
            "unknown activation 'gelu'; known: relu, lrelu, prelu, elu, spelu, mpelu, srelu",
        ),
        ("train --activation relu --alpha 1", 2, "'relu' has no alpha"),
        ("train --data cifar11", 2, r"unknown data set 'cifar11'.*did you mean 'cifar10'\?"),
        ("train --data ./nowhere", 1, "no folder"),
        ("train --data cifar10", 1, "Hub"),
        ("train --batch-size 5000", 2, "at most the number of training images"),
        ("train --limit 5000", 2, "from 1 to 1500"),
        ("train --device tpu", 2, "--device must be auto, cpu or cuda, got 'tpu'"),
        ("train --threads 0", 2, "--threads must be at least 1, got 0"),
        ("train --config nowhere.yaml", 2, "--config '.*nowhere.yaml' does not exist"),
        ("reproduce", 2, "'mpelu reproduce' needs NAMES, which was not given .see 'mpelu reproduce --help'"),
        ("evaluate nowhere", 1, "nowhere is not a run folder"),
        ("report nowhere", 1, "no folder nowhere"),
        ("data check", 2, "needs a name or a folder"),
        ("data check ./nowhere", 1, "no folder"),
        ("init nopre30", 2, "the nearest are 29 and 38"),
        ("init plain15 --method lsuw", 2, "method must be one of .*lsuv, .*got 'lsuw'"),
        ("init plain15 --shape 3,x", 2, "--shape must be positive whole numbers with commas, .* got '3,x'"),
        ("init torch.nn:Identity", 2, "torch.nn:Identity needs --shape"),
        ("init nowhere.py:build --shape 3,8,8", 2, "there is no file nowhere.py"),
        ("init torch.nn:no_such --shape 3,8,8", 2, "torch.nn has no function 'no_such'"),
        ("demo --seeds 0", 2, "at least 1"),
        ("demo --depth 45", 2, "--depth must be 30, or 60 to 200 in steps of 10, got 45"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_do(words, code, message, capsys, tmp_path):
    assert mpelu(*words.split()) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("mpelu: error: ")

    assert re.search(message, line), line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", r"records.jsonl, record 1: wanted an object .*, got \[1, 2\]"),
        ("{}", "must have schema 1, got None"),
        ('{"schema": 1, "kind": "measurement"}', "lacks function, options"),
        ('{"schema": 1', "is not a file of JSON lines"),
        ("", "no finished run in records.jsonl"),
    ],
)
def test_damaged_records_are_one_line(line, message, capsys):
    Path("records.jsonl").write_text(f"{line}\n")
    assert mpelu("report", "records.jsonl") == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search(message, told), told


def test_a_terminal_without_utf_8_gets_question_marks():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "mpelu", "recipes", "--markdown"], capture_output=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "mpelu", "recipes", "--json"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_traceback_only_with_verbose(capsys):
    assert mpelu("report", "nowhere", "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_unknown_key_in_a_config_file(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("lrr: 0.1\n")
    assert mpelu("train", "--config", "recipe.yaml") == 2
    assert "lrr" in capsys.readouterr().err


def test_damaged_parquet_is_named(capsys, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("train-0.parquet", "test-0.parquet"):
        (folder / name).write_bytes(b"PAR1 and then nothing")
    assert mpelu("train", "--data", str(folder)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "train-0.parquet" in line
    assert not (tmp_path / "runs").exists()


def parquet(folder: Path, images: list[bytes]) -> None:
    """Write a data set of two classes whose training images are the given files."""
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"bytes": image, "path": None} for image in images]
        labels = [index % 2 for index in range(len(images))]
        pq.write_table(pa.table({"img": rows, "label": labels}), folder / f"{split}-0.parquet")


def encoded(pixels: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"no image at all", "row 3"),
        (encoded(np.full((16, 16), np.nan, np.float32), "TIFF"), "row 3"),
        (encoded(np.zeros((8, 8, 3), np.uint8), "PNG"), "row 3"),
    ],
    ids=["not an image", "nan pixels", "another size"],
)
def test_bad_image_is_named_with_its_row(bad, message, capsys, tmp_path):
    good = [encoded(np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8), "PNG") for index in range(6)]
    parquet(tmp_path / "images", [*good[:3], bad, *good[3:]])
    assert mpelu("train", "--model", "plain9", "--data", str(tmp_path / "images"), "--batch-size", "2") == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert "train-0.parquet" in line
    assert message in line
    assert printed.out == ""
    assert not (tmp_path / "runs").exists()
    assert mpelu("data", "check", str(tmp_path / "images")) == 1
    assert message in capsys.readouterr().out


def test_flipped_bit_in_a_checkpoint_is_refused(capsys):
    assert mpelu(*SMALL, "--json") == 0
    folder = Path(json.loads(capsys.readouterr().out.splitlines()[-1])["folder"])
    content = bytearray((folder / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "last.ckpt").write_bytes(content)
    assert mpelu("evaluate", str(folder)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"last\.ckpt is damaged", line)


def test_full_disk_is_one_line(capsys, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        assert mpelu(*SMALL, "--runs", str(disk)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"cannot write .* \([\d,]+ bytes\): No space left on device", line)
        assert not list(disk.rglob("*.part"))
        assert not list(disk.rglob("result.json"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_train_evaluate_report(capsys, tmp_path):
    assert mpelu(*SMALL) == 0
    first = capsys.readouterr().out.splitlines()
    folder = first[0].removeprefix("run folder: ")
    assert first[1].startswith("epoch 1/2")
    assert "images/s" in first[-1]
    assert mpelu(*SMALL) == 0
    assert capsys.readouterr().out.splitlines() == [f"already finished: {folder}", first[-1]]
    assert mpelu("evaluate", folder, "--json") == 0
    evaluation = json.loads(capsys.readouterr().out)
    record = json.loads((Path(folder) / "result.json").read_text())
    assert evaluation["test_error_percent"] == record["last"]["test_error_percent"]
    assert mpelu("evaluate", folder, "--weights", "worst") == 2
    capsys.readouterr()
    assert mpelu("report", "runs", "--markdown", "--out", "page.html") == 0
    assert "plain9-mpelu-eq22" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert mpelu("report", "runs", "--out", "nowhere/page.html") == 1


def test_json_lines(capsys):
    assert mpelu(*SMALL, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["epoch", "epoch", "result"]
    assert lines[-1]["history"] == [{k: v for k, v in line.items() if k != "event"} for line in lines[:2]]


def test_config_file_of_a_run_repeats_it(capsys, tmp_path):
    assert mpelu(*SMALL, "--runs", "a") == 0
    (config,) = (tmp_path / "a").rglob("config.yaml")
    assert mpelu("train", "--config", str(config), "--threads", "1", "--runs", "b") == 0
    states = [
        json.loads(next((tmp_path / name).rglob("result.json")).read_text())["state_sha256"] for name in ("a", "b")
    ]
    assert states[0] == states[1]


def test_evaluating_the_checkpoint_of_another_model_is_refused(capsys, tmp_path):
    assert mpelu(*SMALL, "--json") == 0
    assert mpelu(*SMALL, "--width", "5", "--json") == 0
    one, other = (json.loads(line)["folder"] for line in capsys.readouterr().out.splitlines()[2::3])
    Path(one, "last.ckpt").write_bytes(Path(other, "last.ckpt").read_bytes())
    assert mpelu("evaluate", one) == 1
    assert "belongs to recipe" in capsys.readouterr().err
    assert mpelu("evaluate", str(tmp_path / "runs")) == 1


def test_evaluating_on_data_that_does_not_fit(capsys, tmp_path):
    assert mpelu(*SMALL, "--json") == 0
    folder = json.loads(capsys.readouterr().out.splitlines()[-1])["folder"]
    official = tmp_path / "cifar-10-batches-bin"
    official.mkdir()
    (official / "batches.meta.txt").write_text("\n".join(f"class{index}" for index in range(10)))
    row = np.zeros((10_000, 3073), dtype=np.uint8)
    row[:, 0] = np.arange(10_000) % 10
    row[:, 1:] = np.arange(3072) % 251
    for name in (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"):
        (official / name).write_bytes(row.tobytes())
    assert mpelu("evaluate", folder, "--data", str(official)) == 2
    assert "the net was trained on digits" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_the_same_command_continues(number, code, tmp_path, capsys):
    command = [sys.executable, "-m", "mpelu", *SMALL, "--epochs", "40", "--runs", str(tmp_path / "stopped")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            process.send_signal(number)
            process.send_signal(signal.SIGTERM)  # what follows the first signal must not cut the saving short
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "run the same command to continue" in errors
    assert not list((tmp_path / "stopped").rglob("result.json"))
    assert mpelu(*SMALL, "--epochs", "40", "--runs", str(tmp_path / "stopped")) == 0
    assert mpelu(*SMALL, "--epochs", "40", "--runs", str(tmp_path / "whole")) == 0
    states = [
        json.loads(next((tmp_path / name).rglob("result.json")).read_text())["state_sha256"]
        for name in ("stopped", "whole")
    ]
    assert states[0] == states[1]


def test_lists_for_programs(capsys):
    assert mpelu("models", "--json") == 0
    models = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert models["nopre164"]["parameters"] == 1_696_250
    assert mpelu("data", "list", "--json") == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {"digits", "cifar10", "cifar100", "imagenet"}
    assert mpelu("data", "check", "digits", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (sum(report["train"]), sum(report["test"])) == (1500, 297)
    assert mpelu("init", "plain15", "--activation", "elu", "--json") == 0
    weights = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["parameter"].endswith("weight")]
    assert [row["fed_by"] for row in weights[:2]] == ["input", "act1"]


def test_plan_of_a_factory_of_the_user(capsys, tmp_path):
    file = tmp_path / "my_net.py"
    file.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 2))\n"
    )
    for method in ("auto", "tailored", "second_moment"):
        assert mpelu("init", f"{file}:build", "--shape", "3,8,8", "--method", method) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:2] == ["weight", "layer"]
        assert lines[1].split()[:2] == ["0", "Conv"]


def test_help_of_every_command_names_its_options(capsys):
    with contextlib.suppress(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("demo", "train", "evaluate", "report", "models", "init", "data", "bench"):
        assert command in text
        assert mpelu(command, "--help") == 0
        assert "--verbose" in capsys.readouterr().out


def test_command_line_starts_without_torch():
    code = "import sys, mpelu.cli; mpelu.cli.parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
