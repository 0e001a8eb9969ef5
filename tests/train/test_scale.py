"""Several processes, several hosts, restarts, and steps in parts."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mpelu.errors import UsageError
from mpelu.train import run as run_module
from mpelu.train.batch_norm import synchronize_batch_norm
from mpelu.train.run import prepare, run
from tests.train.several import BASE

SCRIPT = str(Path(__file__).parent / "several.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    # else a restarted process can meet the address of one that is dead: pytorch/pytorch#135712
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.Popen(
        [*TORCHRUN, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def end(*agents: subprocess.Popen, code: int = 0) -> str:
    errors = [agent.communicate(timeout=240)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [code] * len(agents), "\n".join(errors)
    return "".join(errors)


def record_in(folder: Path) -> dict:
    (found,) = folder.rglob("result.json")
    return json.loads(found.read_text())


def one_host(folder: Path, options: list[dict], *more: str, restarts: int = 0) -> list[dict]:
    """Train with two processes of one host; returns a record for each of the options."""
    launch = ("--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), SCRIPT)
    end(start(*launch, str(folder), json.dumps(options), *more))
    return [record_in(folder / str(number)) for number in range(len(options))]


def two_hosts(folder: Path, *more: str, code: int = 0) -> dict | None:
    """Train with one process on each of two hosts, which have run folders of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    agents = []
    for rank in ("0", "1"):
        where = ("--nnodes", "2", "--node-rank", rank, "--nproc-per-node", "1", "--master-addr", "127.0.0.1")
        agents.append(start(*where, "--master-port", port, SCRIPT, str(folder / f"host{rank}"), "[{}]", *more))
    end(*agents, code=code)
    return record_in(folder) if not code else None


LIKE_ONE = {
    "batch norm": {"sync_batch_norm": True, "dropout": None},
    "parts": {"batch_norm": False, "accumulate": 2, "dropout": None},
}
"""With these, two processes train as one."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The records of two processes on one host that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPELU_CACHE", str(tmp_path_factory.mktemp("cache")))
        records = one_host(tmp_path_factory.mktemp("undisturbed"), [{}, *LIKE_ONE.values()])
    return dict(zip(["plain", *LIKE_ONE], records, strict=True))


@pytest.fixture
def together(undisturbed: dict[str, dict]) -> dict:
    return undisturbed["plain"]


@pytest.mark.slow
def test_two_hosts_stop_go_on_and_leave_the_record_of_one(together, tmp_path):
    """Their folders are apart: what is saved and continued is what the first process of all has."""
    assert two_hosts(tmp_path, "stop", "5", code=1) is None
    assert not list(tmp_path.rglob("result.json"))
    apart = two_hosts(tmp_path)
    assert apart["state_sha256"] == together["state_sha256"]
    assert [row["test_loss"] for row in apart["history"]] == [row["test_loss"] for row in together["history"]]
    assert apart["environment"]["processes"] == together["environment"]["processes"] == 2
    assert not list((tmp_path / "host1").rglob("*"))


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_the_run_ends_with_the_same_bits(together, tmp_path):
    (again,) = one_host(tmp_path, [{}], "kill", "5", restarts=1)
    assert again["state_sha256"] == together["state_sha256"]
    assert "continued at epoch 2, step 3" in next(tmp_path.rglob("log.txt")).read_text()


def test_parts_of_a_step_add_up_to_the_whole(small, tmp_path):
    """96 images in batches of 40: 16 in the last, in parts of 6, 5 and 5."""
    recipe = replace(small, batch_norm=False, dropout=None, batch_size=40, epochs=2)
    whole, parts = (
        run(prepare(replace(recipe, accumulate=count), seed=1, runs=tmp_path), device="cpu") for count in (1, 3)
    )
    assert parts["hash"] != whole["hash"]
    assert parts["steps"] == whole["steps"] == 6
    for one, other in zip(whole["history"], parts["history"], strict=True):
        # float32 sums in another order, over 6 steps
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert other["test_loss"] == pytest.approx(one["test_loss"], rel=1e-5)
        assert other["max_abs_logit"] == pytest.approx(one["max_abs_logit"], rel=1e-4)
        assert other["train_error_percent"] == one["train_error_percent"]


def test_parts_that_batch_norm_sees_by_themselves_are_another_training(small, tmp_path):
    whole, parts = (
        run(prepare(replace(small, accumulate=count), seed=1, runs=tmp_path), device="cpu") for count in (1, 2)
    )
    assert abs(parts["last"]["train_loss"] / whole["last"]["train_loss"] - 1) > 1e-3


def test_a_run_in_parts_that_crashed_ends_with_the_same_bits(small, tmp_path):
    recipe = replace(small, accumulate=2)

    def crash(step: int, _: torch.Tensor) -> None:
        if step == 4:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        run(prepare(recipe, seed=1, runs=tmp_path / "b"), device="cpu", on_step=crash)
    records = [run(prepare(recipe, seed=1, runs=tmp_path / name), device="cpu") for name in ("a", "b")]
    assert records[0]["state_sha256"] == records[1]["state_sha256"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"accumulate": 33}, {}, "last batch of an epoch has 32 of 96 images, too few for 1 processes of 33 parts"),
        ({"accumulate": 2}, {"watch_every": 1}, "accumulate is 2: leave out one of the two"),
        ({"sync_batch_norm": True, "compile": True}, {}, "sync_batch_norm is for networks that are not compiled"),
    ],
)
def test_what_does_not_go_together_is_refused(small, tmp_path, change, options, message):
    with pytest.raises(UsageError, match=message):
        run(prepare(replace(small, **change), seed=1, runs=tmp_path), device="cpu", **options)


def test_one_process_trains_the_same_with_synchronized_batch_norm(small, tmp_path):
    plain, synced = (
        run(prepare(replace(small, sync_batch_norm=given), seed=1, runs=tmp_path), device="cpu")
        for given in (False, True)
    )
    assert plain["state_sha256"] == synced["state_sha256"]
    assert plain["hash"] != synced["hash"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKE_ONE)
def test_two_processes_train_as_one(undisturbed, tmp_path, name):
    recipe = replace(BASE, **{**LIKE_ONE[name], "accumulate": 1})
    one = run(prepare(recipe, seed=3, runs=tmp_path), device="cpu")
    for row, other in zip(one["history"], undisturbed[name]["history"], strict=True):
        # float32 sums in another order, over 6 steps; with statistics of each process the losses differ by percents
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-4)
        assert other["test_loss"] == pytest.approx(row["test_loss"], rel=1e-3)


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_batch_norm_over_one_process_is_torchs(alone, affine, momentum, dtype):
    generator = torch.Generator().manual_seed(0)
    torchs = nn.BatchNorm2d(3, affine=affine, momentum=momentum)
    ours = nn.BatchNorm2d(3, affine=affine, momentum=momentum)
    if dtype == torch.float64:
        torchs, ours = torchs.double(), ours.double()
    synchronize_batch_norm(nn.Sequential(ours))
    tolerance = 1e-12 if dtype == torch.float64 else 2**-7  # float64 sums; one rounding to bfloat16 each
    for _ in range(2):
        x = (2 + torch.randn(4, 3, 5, 5, generator=generator)).to(dtype)
        weight = torch.randn(4, 3, 5, 5, generator=generator).to(dtype)
        results = []
        for norm in (torchs, ours):
            leaf = x.clone().requires_grad_()
            y = norm(leaf)
            (y * weight).sum().backward()
            results.append((y, leaf.grad))
        for wanted, found in zip(*results, strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for name, wanted in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], wanted, rtol=1e-5, atol=1e-6)
    torchs.eval(), ours.eval()
    ours.load_state_dict(torchs.state_dict())
    assert torch.equal(torchs(x), ours(x))


def test_a_process_that_would_train_something_else_says_so(small, tmp_path):
    class Other:
        is_global_zero, global_rank = False, 1

        def broadcast(self, mine: tuple) -> tuple:
            assert mine[1] is None
            return "01234567", None

    prepared = prepare(small, seed=1, runs=tmp_path)
    with pytest.raises(UsageError, match=f"process 1 is about to train {prepared.hash}, the first process 01234567"):
        run_module._finished(prepared, Other())
