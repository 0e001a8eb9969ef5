import csv
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
import safetensors.torch
import torch

from mpelu.data.batches import epoch_order
from mpelu.errors import MpeluError, UsageError
from mpelu.train import checkpoint
from mpelu.train import run as run_module
from mpelu.train.evaluation import evaluate
from mpelu.train.loop import StoppedError
from mpelu.train.network import build
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run
from mpelu.train.supply import first_batch

HERE = Path(__file__).parent


def trained(recipe: Recipe, runs: Path, **options) -> dict:
    return run(prepare(recipe, seed=1, runs=runs), device="cpu", **options)


def stop_after(steps: int):
    """Return an on_step that ends the run as a crash would."""

    def on_step(step: int, _: torch.Tensor) -> None:
        if step + 1 == steps:
            raise RuntimeError("crash")

    return on_step


def test_finished_run_leaves_the_documented_files(small, tmp_path):
    record = trained(small, tmp_path)
    folder = prepare(small, seed=1, runs=tmp_path).folder
    assert folder.name == "seed1"
    assert folder.parent.name == f"plain9-mpelu-eq22-{record['hash']}"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "metrics.csv", "last.ckpt", "best.ckpt", "weights.safetensors", "log.txt",
        "result.json",
    }  # fmt: skip
    assert not [name for name in names if name.endswith((".part", ".new"))]
    assert json.loads((folder / "result.json").read_text()) == record
    assert record["outcome"] == "finished"
    assert record["config"]["data"] == record["data"]["name"] == "digits"
    assert record["steps"] == 9
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3]
    with (folder / "metrics.csv").open() as file:
        assert [float(row["train_loss"]) for row in csv.DictReader(file)] == [
            row["train_loss"] for row in record["history"]
        ]
    assert record["best"]["test_error_percent"] == min(row["test_error_percent"] for row in record["history"])
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    saved = checkpoint.load(folder / "last.ckpt")["model"]
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in weights)


def test_record_names_the_data_and_not_the_folder_it_lies_in(small, tmp_path):
    prepared = prepare(small, seed=1, runs=tmp_path)
    elsewhere = replace(prepared, recipe=replace(prepared.recipe, data="/a/folder/of/this/machine"))
    assert "/a/folder" not in json.dumps(run(elsewhere, device="cpu"))
    assert "/a/folder" in (prepared.folder / "config.yaml").read_text()  # it is what repeats the run here


def test_training_learns(tmp_path):
    """The whole path is right only if the loss falls far below chance, which is ln 10."""
    recipe = Recipe(model="plain9", data="digits", limit=500, epochs=8, batch_size=32, lr=0.05)
    record = trained(recipe, tmp_path)
    assert record["last"]["train_loss"] < 0.5 * math.log(10)
    assert record["last"]["test_error_percent"] < 40


def test_second_call_does_nothing(small, tmp_path):
    record = trained(small, tmp_path)
    steps = []
    assert trained(small, tmp_path, on_step=lambda step, _: steps.append(step)) == record
    assert steps == []


def test_same_seed_same_bits_and_global_random_state_untouched(small, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = trained(small, tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)
    second = trained(small, tmp_path / "b")
    other = run(prepare(small, seed=2, runs=tmp_path), device="cpu")
    assert first["state_sha256"] == second["state_sha256"] != other["state_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("places", ["steps", "saves"])
def test_killed_run_ends_with_the_same_bits(places, tmp_path):
    """SIGKILL after every step, and before every rename and fsync that a run makes."""
    script = HERE.parents[1] / "benchmarks" / "resume_exactness.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), places], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] == found["kills"] >= 9


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "garbage"])
def test_damaged_checkpoint_falls_back_to_the_one_before(small, tmp_path, damage):
    whole = trained(small, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        trained(small, tmp_path, on_step=stop_after(8))
    last = prepare(small, seed=1, runs=tmp_path).folder / "last.ckpt"
    _damage(last, damage)
    with pytest.warns(RuntimeWarning, match=r"last\.ckpt is .*going on from last\.previous\.ckpt"):
        record = trained(small, tmp_path)
    assert record["state_sha256"] == whole["state_sha256"]


def _damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"flip": content, "truncate": content[: len(content) // 2], "empty": b"", "garbage": b"x"}[kind])


def test_nothing_left_to_go_on_from_is_an_error(small, tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        trained(small, tmp_path, on_step=stop_after(8))
    folder = prepare(small, seed=1, runs=tmp_path).folder
    for name in ("last.ckpt", "last.previous.ckpt"):
        _damage(folder / name, "flip")
    with pytest.raises(checkpoint.CheckpointError, match=r"last\.ckpt is damaged.*last\.previous\.ckpt is damaged"):
        trained(small, tmp_path)


def test_checkpoint_of_another_run_is_refused(small, tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        trained(small, tmp_path, on_step=stop_after(5))
    other = replace(small, width=5)
    mine, theirs = (prepare(recipe, seed=1, runs=tmp_path).folder for recipe in (small, other))
    theirs.mkdir(parents=True)
    (theirs / "last.ckpt").write_bytes((mine / "last.ckpt").read_bytes())
    with pytest.raises(checkpoint.CheckpointError, match="belongs to recipe"):
        trained(other, tmp_path)


def test_other_number_of_threads_is_said(small, tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        trained(small, tmp_path, on_step=stop_after(5))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(RuntimeWarning, match="not be bit for bit"):
            trained(small, tmp_path)
    finally:
        torch.set_num_threads(threads)


def test_divergence_is_a_result(small, tmp_path):
    record = trained(replace(small, lr=1e30, batch_norm=None), tmp_path)
    assert record["outcome"] == "diverged"
    assert "before the optimizer used it" in record["reason"]
    assert record["steps"] < 9
    folder = prepare(replace(small, lr=1e30, batch_norm=None), seed=1, runs=tmp_path).folder
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert json.loads((folder / "result.json").read_text()) == record


def test_record_of_a_divergence_says_what_went_before(small, tmp_path):
    record = trained(replace(small, lr=1e30, batch_norm=None), tmp_path)
    found = record["diverged_at"]
    assert found["step"] == record["steps"] + 1
    assert found["train_loss_before"] is None or math.isfinite(found["train_loss_before"])
    assert 0 < found["max_abs_logit"] < math.inf
    json.dumps(record, allow_nan=False)
    assert "diverged_at" not in trained(small, tmp_path)


def test_largest_logit_of_each_epoch(small, tmp_path, monkeypatch):
    original = run_module.build
    largest: list[float] = []

    def note(net, _, logits):
        if net.training:
            largest.append(logits.abs().max().item())

    def build_and_note(*arguments, **options):
        net, plan = original(*arguments, **options)
        net.register_forward_hook(note)
        return net, plan

    monkeypatch.setattr(run_module, "build", build_and_note)
    with pytest.raises(RuntimeError, match="crash"):
        trained(small, tmp_path, on_step=stop_after(4))
    largest.clear()
    record = trained(small, tmp_path)
    found = [row["max_abs_logit"] for row in record["history"]]
    assert found[1:] == [max(largest[:3]), max(largest[3:])]  # the first epoch was before the crash


def test_run_that_an_older_version_began_is_continued(small, tmp_path):
    whole = trained(small, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        trained(small, tmp_path, on_step=stop_after(5))
    last = prepare(small, seed=1, runs=tmp_path).folder / "last.ckpt"
    state = checkpoint.load(last)
    del state["position"]["peak"], state["position"]["skipped"], state["position"]["history"][0]["max_abs_logit"]
    checkpoint.save(last, state, keep_previous=False)
    record = trained(small, tmp_path)
    assert record["state_sha256"] == whole["state_sha256"]
    assert "max_abs_logit" not in record["history"][0]
    assert record["history"][2]["max_abs_logit"] == whole["history"][2]["max_abs_logit"]


def test_scale_is_that_of_the_study(small, tmp_path):
    assert trained(small, tmp_path / "a")["scale"] == "cpu"
    assert trained(small, tmp_path / "b", scale="paper")["scale"] == "paper"


def test_lsuv_starts_from_the_first_batch_and_repeats_bit_for_bit(small, tmp_path):
    recipe = replace(small, init="lsuv", batch_norm=None)
    prepared = prepare(recipe, seed=1, runs=tmp_path)
    net, plan = build(prepared.recipe, prepared.dataset, seed=1)
    seen: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: seen.append(output.square().mean().item()))
        for module in net.modules()
        if getattr(module, "weight", None) is not None
    ]
    assert plan is not None
    net.eval()  # the second moments of the last layers depend on dropout
    with torch.no_grad():
        net(first_batch(prepared.recipe, prepared.dataset, seed=1))
    assert len(hooks) == len(seen) == 9
    assert seen[:6] == pytest.approx([1.0] * 6, rel=1e-4)
    records = [trained(recipe, tmp_path / name) for name in ("a", "b")]
    assert records[0]["outcome"] == "finished"
    assert records[0]["state_sha256"] == records[1]["state_sha256"] != trained(small, tmp_path)["state_sha256"]
    with pytest.raises(RuntimeError, match="crash"):
        trained(recipe, tmp_path / "c", on_step=stop_after(5))
    assert trained(recipe, tmp_path / "c")["state_sha256"] == records[0]["state_sha256"]


def test_gradient_that_is_not_finite_stops_before_the_step(small, tmp_path, monkeypatch):
    original = run_module.build

    def build_with_bad_gradient(*arguments, **options):
        net, plan = original(*arguments, **options)
        net.fc1.weight.register_hook(lambda gradient: gradient * math.nan)
        return net, plan

    monkeypatch.setattr(run_module, "build", build_with_bad_gradient)
    prepared = prepare(small, seed=1, runs=tmp_path)
    before = original(prepared.recipe, prepared.dataset, seed=1)[0].state_dict()
    record = run(prepared, device="cpu")
    assert record["reason"] == ("the gradient of fc1.weight is not finite at step 1, before the optimizer used it")
    weights = safetensors.torch.load_file(prepared.folder / "weights.safetensors")
    parameters = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(weights[name], before[name]) for name in parameters)


def test_stopping_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(StoppedError(15, "stopped in epoch 1")))
    assert (error.signal_number, str(error)) == (15, "stopped in epoch 1")


def test_signal_after_the_last_step_ends_the_process_when_the_run_is_finished(small, tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        record = trained(
            small, tmp_path, on_epoch=lambda row: row["epoch"] == 3 and signal.raise_signal(signal.SIGTERM)
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert record["outcome"] == "finished"
    assert received == [signal.SIGTERM]


def test_two_runs_in_one_folder_are_refused(small, tmp_path):
    folder = prepare(small, seed=1, runs=tmp_path).folder
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / "lock"), pytest.raises(MpeluError, match="another process trains in"):
        trained(small, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_one_error_and_keeps_what_was_there(small, small_disk):
    """After the first epoch nothing is left for the second; then space is made and the run goes on."""
    ballast = small_disk / "ballast"
    saved = []

    def fill(row: dict) -> None:
        saved.append(row["epoch"])
        free = os.statvfs(small_disk)
        ballast.write_bytes(b"x" * (free.f_bavail * free.f_bsize - 4096))

    with pytest.raises(MpeluError, match=r"cannot write .* bytes\): No space left on device; what was there"):
        trained(small, small_disk, on_epoch=fill)
    assert saved == [1]
    folder = prepare(small, seed=1, runs=small_disk).folder
    assert checkpoint.load(folder / "last.ckpt")["epoch"] == 1
    assert not list(folder.glob(".*.part"))
    ballast.unlink()
    again = trained(small, small_disk)
    assert again["outcome"] == "finished"


def test_folder_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MpeluError, match=r"cannot write to .*choose another folder with --runs"):
        trained(small, tmp_path / "file")


def test_read_only_folder(small, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True).returncode:
        folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(MpeluError, match=r"cannot write to .*choose another folder with --runs"):
            trained(small, folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_batch_larger_than_the_data(small, tmp_path):
    with pytest.raises(UsageError, match=r"at most the number of training images \(96\), got 128"):
        prepare(replace(small, batch_size=128), seed=0, runs=tmp_path)
    assert list(tmp_path.glob("train")) == []


def test_network_that_cannot_be_built_leaves_nothing(small, tmp_path):
    with pytest.raises(UsageError, match="has no option"):
        prepare(replace(small, model="nopre11"), seed=0, runs=tmp_path)
    assert list(tmp_path.glob("train")) == []


def test_beta_stays_positive(small, tmp_path):
    """A decay that would push beta through zero in a few steps is met by the projection."""
    record = trained(replace(small, alpha_beta_weight_decay=2000.0, weight_decay=0.01), tmp_path)
    folder = prepare(replace(small, alpha_beta_weight_decay=2000.0, weight_decay=0.01), seed=1, runs=tmp_path).folder
    betas = [
        tensor for name, tensor in safetensors.torch.load_file(folder / "weights.safetensors").items()
        if name.endswith(".beta")
    ]  # fmt: skip
    assert record["outcome"] == "finished"
    assert betas
    assert all((beta > 0).all() for beta in betas)


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"channels_last": False}, {"clip_norm": 0.1}], ids=str)
def test_options_change_the_numbers_and_train(small, tmp_path, change):
    assert trained(replace(small, **change), tmp_path)["outcome"] == "finished"
    assert prepare(small, seed=1, runs=tmp_path).hash != prepare(replace(small, **change), seed=1, runs=tmp_path).hash


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")  # dynamo's own
def test_compiled_network_trains_to_nearly_the_same_loss(small, tmp_path):
    eager = trained(replace(small, dropout=None, epochs=1), tmp_path)
    compiled = trained(replace(small, dropout=None, epochs=1, compile=True), tmp_path)
    # float32 sums in another order, over 3 steps
    assert compiled["last"]["train_loss"] == pytest.approx(eager["last"]["train_loss"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_see_the_same_images_and_agree_bit_for_bit(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(HERE / "two_processes.py"),
    ]  # fmt: skip
    records = []
    for name in ("a", "b"):
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for rank in (0, 1):
            left = json.loads((tmp_path / name / f"left{rank}.json").read_text())
            assert left == {"joined": False, "threads": []}  # a thread that outlives the interpreter may abort it
        (result,) = (tmp_path / name).rglob("result.json")
        records.append(json.loads(result.read_text()))
    assert records[0]["state_sha256"] == records[1]["state_sha256"]
    assert records[0]["environment"]["processes"] == 2
    seen = [json.loads((tmp_path / "a" / f"seen{rank}.json").read_text()) for rank in (0, 1)]
    expected = [
        batch.tolist() for epoch in (0, 1) for batch in epoch_order(100, seed=3, epoch=epoch).split(32)
    ]  # what one process sees: the test below holds it to that
    assert [first + second for first, second in zip(*seen, strict=True)] == expected
    alone = subprocess.run([sys.executable, *command[-1:], str(tmp_path / "c")], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    assert json.loads((tmp_path / "c" / "seen0.json").read_text()) == expected


def test_evaluation_finds_the_recorded_error(small, tmp_path):
    record = trained(small, tmp_path)
    folder = prepare(small, seed=1, runs=tmp_path).folder
    last, best = (evaluate(folder, weights=weights) for weights in ("last", "best"))
    assert last.test_error_percent == record["last"]["test_error_percent"]
    assert last.test_loss == pytest.approx(record["last"]["test_loss"], rel=1e-5)
    assert (last.epoch, best.epoch) == (3, record["best"]["epoch"])
    assert best.test_error_percent == record["best"]["test_error_percent"]


@pytest.mark.parametrize("activation", ["elu", "relu", "prelu", "mpelu"])
def test_tailored_run_continues_and_is_tested_as_it_was_trained(small, tmp_path, activation):
    """Tailoring changes modules (ELU is wrapped, ReLU becomes leaky): who loads the weights has to change them too."""
    recipe = replace(small, activation=activation, init="tailored", batch_norm=False, dropout=None, epochs=2)
    folder = prepare(recipe, seed=0, runs=tmp_path).folder
    record = run(prepare(recipe, seed=0, runs=tmp_path), device="cpu")
    assert record["outcome"] == "finished"
    assert evaluate(folder).test_error_percent == pytest.approx(record["last"]["test_error_percent"])

    def stop(step: int, _: object) -> None:
        if step == 4:
            raise StoppedError(signal.SIGTERM, "stopped")

    with pytest.raises(StoppedError):
        run(prepare(recipe, seed=0, runs=tmp_path / "killed"), device="cpu", on_step=stop)
    again = run(prepare(recipe, seed=0, runs=tmp_path / "killed"), device="cpu")
    assert again["state_sha256"] == record["state_sha256"]


def test_tailored_rates_reach_the_optimizer(small, tmp_path):
    recipe = replace(small, model="plain100", init="tailored", batch_norm=False)
    prepared = prepare(recipe, seed=0, runs=tmp_path)
    net, plan = build(prepared.recipe, prepared.dataset, seed=0)
    assert plan is not None
    assert set(plan.lr_multipliers) == {name for name, _ in net.named_parameters() if name.endswith("beta")}
