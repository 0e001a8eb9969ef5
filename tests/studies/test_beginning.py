import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from mpelu.recipes import row
from mpelu.studies import beginning
from mpelu.studies.beginning import failed, first_steps, measurements, unevenness
from mpelu.studies.jobs import Setting, key
from mpelu.studies.work import function_of
from mpelu.train.run import prepare, run
from tests.studies.by_error import measurement
from tests.studies.contests import CPU, steps

(JOB, *_) = measurements("nopre164-mpelu", CPU)


def record(losses, **options):
    return measurement(JOB, steps(losses, **options))


def test_a_net_fails_if_it_stays_at_guessing_or_leaves_the_numbers():
    guessing = math.log(10)
    assert not failed(record([2.5] * 20 + [2.0] * 10))
    assert failed(record([2.0] * 20 + [guessing] * 10)), "the last ten count"
    assert failed(record([2.0, 2.0], reason="the loss is not finite at step 3"))
    assert failed(record([2.0, None])), "JSON has no word for nan"
    assert failed(record([]))


def test_unevenness_is_in_powers_of_ten():
    assert unevenness(record([2.0] * 3, spread=1000.0)) == pytest.approx(3.0)
    assert unevenness(record([2.0] * 3, spread=0.01)) == pytest.approx(2.0)
    assert unevenness(record([2.0], spread=math.inf)) is None
    assert unevenness(record([2.0], spread=0.0)) is None
    assert unevenness(record([])) is None


def test_measurements_name_a_function_and_the_data_of_the_setting():
    assert function_of(JOB) is first_steps
    assert {job.data for job in measurements("nopre164-mpelu", CPU)} == {CPU.data}
    paper = measurements("nopre164-mpelu", Setting("paper", "elsewhere", 2))
    assert [(job.data, job.seed) for job in paper] == [("cifar10", 0), ("cifar10", 1)]
    assert len({key(job) for job in (*paper, *measurements("nopre164-mpelu", CPU))}) == 8


def install(monkeypatch, **changes):
    """Make a recipe of 320 digits and 11 layers the only one, and return it."""
    recipe = row("nopre164-mpelu").recipe("cpu")
    recipe = dataclasses.replace(recipe, model="nopre11", limit=320, epochs=1, **changes)
    only = SimpleNamespace(paper=recipe, recipe=lambda scale, data: dataclasses.replace(recipe, data=data))
    monkeypatch.setattr("mpelu.recipes.row", lambda _: only)
    return recipe


def test_first_steps_are_those_of_a_training(monkeypatch, tmp_path):
    recipe = install(monkeypatch)
    before = torch.random.get_rng_state()
    values = first_steps(seed=1, data="digits", row="small", scale="cpu", steps=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (values["classes"], values["reason"]) == (10, None)
    assert len(values["losses"]) == len(values["gradient_norms"]) == 3
    assert [len(norms) for norms in values["block_gradient_norms"]] == [3] * 3
    blocks = math.hypot(*values["block_gradient_norms"][0])
    assert 0 < blocks < values["gradient_norms"][0], "stem and classifier have gradients too"
    trained = run(prepare(recipe, seed=1, runs=tmp_path), device="cpu")
    images = [128, 128, 64]
    mean = sum(loss * count for loss, count in zip(values["losses"], images, strict=True)) / 320
    assert trained["steps"] == 3
    assert trained["last"]["train_loss"] == pytest.approx(mean, rel=1e-4)


def test_first_steps_end_where_the_numbers_do(monkeypatch):
    monkeypatch.setattr(beginning, "WATCHED", 1)
    install(monkeypatch, lr=1e30)
    values = first_steps(seed=0, data="digits", row="wild", scale="cpu", steps=6)
    assert values["reason"].endswith(f"at step {len(values['losses'])}")
    assert len(values["losses"]) < 6
    assert len(values["block_gradient_norms"]) == 1
    assert failed(measurement(JOB, values))
