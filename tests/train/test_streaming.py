"""Training from photographs that are decoded while it runs."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpelu.cli import main
from mpelu.data import open_photographs
from mpelu.errors import DataError, UsageError
from mpelu.train.evaluation import evaluate, load_trained
from mpelu.train.loop import StoppedError
from mpelu.train.run import prepare, run
from mpelu.train.supply import data_of, examples_of, first_batch
from tests.train import photographs

IMAGES = 2 * photographs.TRAIN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photographs.write(tmp_path / "photographs")


def trained(recipe, runs: Path, **options) -> dict:
    return run(prepare(recipe, seed=1, runs=runs), device="cpu", **options)


def crash_after(steps: int):
    def on_step(step: int, _: torch.Tensor) -> None:
        if step + 1 == steps:
            raise RuntimeError("crash")

    return on_step


def test_streamed_run_is_tested_as_it_was_trained(folder, tmp_path):
    recipe = photographs.recipe(folder, center="image", pixel_scale="raw", lr=1e-4)
    record = trained(recipe, tmp_path)
    assert (record["outcome"], record["steps"]) == ("finished", 2 * IMAGES / 4)
    assert record["data"]["train_images"] == IMAGES
    assert record["config"]["augment"] == "none"
    run_folder = prepare(recipe, seed=1, runs=tmp_path).folder
    found = evaluate(run_folder, workers=1)
    assert (found.images, found.test_error_percent) == (6, record["last"]["test_error_percent"])
    assert found.test_loss == pytest.approx(record["last"]["test_loss"], rel=1e-5)
    assert evaluate(run_folder, data=str(folder)).test_loss == pytest.approx(found.test_loss, rel=1e-6)


def test_streamed_training_learns(folder, tmp_path):
    record = trained(photographs.recipe(folder, epochs=6), tmp_path)
    assert record["last"]["train_loss"] < 0.5 * np.log(2)
    assert record["last"]["test_error_percent"] == 0


@pytest.mark.parametrize("steps", [2, 6])
def test_stopped_within_an_epoch_ends_with_the_same_bits(folder, tmp_path, steps):
    recipe = photographs.recipe(folder)
    whole = trained(recipe, tmp_path / "whole")

    def stop(step: int, _: torch.Tensor) -> None:
        if step + 1 == steps:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError):
        trained(recipe, tmp_path / "stopped", on_step=stop)
    seen: list[int] = []
    again = trained(recipe, tmp_path / "stopped", on_step=lambda step, _: seen.append(step))
    assert seen == list(range(steps, 8))
    assert again["state_sha256"] == whole["state_sha256"]
    assert [row["train_loss"] for row in again["history"]] == [row["train_loss"] for row in whole["history"]]


def test_killed_run_with_workers_ends_with_the_same_bits(folder, tmp_path):
    recipe = photographs.recipe(folder)
    whole = trained(recipe, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        trained(recipe, tmp_path / "killed", workers=2, on_step=crash_after(7))
    assert trained(recipe, tmp_path / "killed", workers=1)["state_sha256"] == whole["state_sha256"]


def test_workers_leave_an_interrupt_to_the_process_that_trains(folder, tmp_path):
    """A terminal sends Ctrl-C to all of them, and the one that trains has to finish its step and save."""

    def interrupt_workers(step: int, _: torch.Tensor) -> None:
        children = multiprocessing.active_children()
        assert children
        for child in children:
            os.kill(child.pid, signal.SIGINT)

    record = trained(photographs.recipe(folder, batch_size=1, epochs=1), tmp_path, workers=1, on_step=interrupt_workers)
    assert (record["outcome"], record["steps"]) == ("finished", IMAGES)


def test_what_the_network_is_shown(folder, tmp_path):
    data = data_of(photographs.recipe(folder, center="image", pixel_scale="raw"))
    assert data.image_shape == (3, 224, 224)
    images = first_batch(prepare(photographs.recipe(folder), seed=1, runs=tmp_path).recipe, data, seed=1)
    assert images.shape == (4, 3, 224, 224)
    assert 20 < images.abs().mean() < 100  # of 0 to 255, dark and bright about their mean
    unit = data_of(photographs.recipe(folder))
    scaled = first_batch(prepare(photographs.recipe(folder), seed=1, runs=tmp_path).recipe, unit, seed=1)
    assert 0.5 < scaled.std() < 2
    plain = data_of(photographs.recipe(folder, center="none", pixel_scale="raw"))
    pixels = first_batch(prepare(photographs.recipe(folder), seed=1, runs=tmp_path).recipe, plain, seed=1)
    assert torch.equal(pixels, pixels.round())
    assert pixels.min() >= 0


def test_examples_of_a_streamed_run(folder, tmp_path):
    recipe = photographs.recipe(folder, epochs=1)
    trained(recipe, tmp_path)
    found = load_trained(prepare(recipe, seed=1, runs=tmp_path).folder)
    images, labels = examples_of(found.recipe, found.dataset, 10)
    assert images.shape == (10, 3, 224, 224)
    assert torch.equal(labels, open_photographs(folder).train.labels[:10])


def test_command_line(folder, tmp_path, capsys):
    options = {
        "model": f"{photographs.__file__}:build", "data": folder, "stream": "squash", "damaged": "skip", "epochs": 1,
        "batch-size": 8, "workers": 1, "runs": tmp_path, "center": "image", "pixel-scale": "raw", "lr": 1e-4,
    }  # fmt: skip
    assert main(["train", "--json", *(f"--{name}={value}" for name, value in options.items())]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["history"][0]["skipped_train_images"] == 0
    photographs.spoil(folder, "val/dark/1.png")  # of the same size, so that it is the same data
    assert main(["evaluate", "--workers", "1", result["folder"]]) == 0
    assert "5 images of photographs (1 more cannot be read)" in capsys.readouterr().out
    assert main(["diagnose", "--batch", "4", result["folder"]]) == 0
    assert main(["evaluate", result["folder"], "--data", str(tmp_path / "none")]) == 1


def test_lsuv_looks_at_the_first_batch_of_a_stream(folder, tmp_path):
    recipe = photographs.recipe(folder, init="lsuv", epochs=1)
    records = [trained(recipe, tmp_path / name, workers=workers) for name, workers in (("a", 0), ("b", 1))]
    assert records[0]["state_sha256"] == records[1]["state_sha256"]


def test_damaged_image_is_named(folder, tmp_path):
    photographs.spoil(folder, "train/bright/3.png")
    with pytest.raises(DataError, match=r"train/bright/3\.png: the bytes are not a whole image"):
        trained(photographs.recipe(folder), tmp_path)


def test_damaged_images_are_skipped_and_counted(folder, tmp_path):
    photographs.spoil(folder, "train/bright/3.png", "train/dark/0.png", "val/dark/1.png")
    recipe = photographs.recipe(folder, damaged="skip")
    record = trained(recipe, tmp_path)
    for row in record["history"]:
        assert (row["skipped_train_images"], row["skipped_test_images"]) == (2, 1)
    assert record["skipped_images"] == {"train": 2, "test": 1}
    found = evaluate(prepare(recipe, seed=1, runs=tmp_path).folder)
    assert (found.images, found.skipped_images) == (5, 1)
    assert found.test_error_percent == record["last"]["test_error_percent"]
    with pytest.raises(RuntimeError, match="crash"):
        trained(recipe, tmp_path / "killed", on_step=crash_after(7))
    again = trained(recipe, tmp_path / "killed")
    assert again["state_sha256"] == record["state_sha256"]
    assert again["skipped_images"] == record["skipped_images"]


def test_step_without_a_good_image(folder, tmp_path):
    photographs.spoil(folder, "train/bright/3.png")
    record = trained(photographs.recipe(folder, damaged="skip", batch_size=1, epochs=1, lr=1e-4), tmp_path)
    assert (record["outcome"], record["steps"]) == ("finished", IMAGES)
    assert record["last"]["skipped_train_images"] == 1


def test_no_good_image_at_all(folder, tmp_path):
    photographs.spoil(folder, *(f"val/{name}/{number}.png" for name in ("dark", "bright") for number in range(3)))
    with pytest.raises(DataError, match="none of 6 test images can be read"):
        trained(photographs.recipe(folder, damaged="skip", epochs=1), tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preprocess": "gcn_zca"}, "stream squash .* leave out preprocess gcn_zca, or stream"),
        ({"resize": 32, "augment": "pad4"}, "stream squash .* leave out resize 32 and augment pad4, or stream"),
        ({"stream": "short", "center": "image"}, "stream short .* center channel"),
        ({"data": "digits"}, "digits is held in memory and is not streamed"),
        ({"limit": 1000}, "from 1 to 16"),
        ({"batch_size": 17}, r"at most the number of training images \(16\)"),
    ],
    ids=str,
)
def test_recipes_that_contradict_themselves(folder, tmp_path, options, named):
    with pytest.raises(UsageError, match=named):
        prepare(photographs.recipe(folder, **options), seed=0, runs=tmp_path)
    assert not list(tmp_path.glob("train"))


def test_workers_below_zero(folder, tmp_path):
    with pytest.raises(UsageError, match="at least 0 workers"):
        trained(replace(photographs.recipe(folder), center="none", pixel_scale="raw"), tmp_path, workers=-1)


@pytest.mark.slow
def test_two_processes_train_on_one_stream(folder, tmp_path):
    """All of one process's share of some step is damaged: nobody waits for it, and together they see what one sees."""
    photographs.spoil(folder, "train/bright/3.png", "train/dark/0.png", "val/dark/1.png")
    options = {"batch_size": 2, "damaged": "skip"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [photographs.__file__, str(folder), str(tmp_path / "pair"), json.dumps(options)]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "pair").rglob("result.json")
    record = json.loads(result.read_text())
    assert (record["outcome"], record["environment"]["processes"]) == ("finished", 2)
    assert record["skipped_images"] == {"train": 2, "test": 1}
    alone: list[list[int]] = []
    prepared = prepare(photographs.recipe(folder, **options), seed=3, runs=tmp_path)
    run(prepared, device="cpu", on_step=lambda _, indices: alone.append(indices.tolist()))
    seen = [json.loads((tmp_path / "pair" / f"seen{rank}.json").read_text()) for rank in (0, 1)]
    assert [first + second for first, second in zip(*seen, strict=True)] == alone
    assert any(not first or not second for first, second in zip(*seen, strict=True))
