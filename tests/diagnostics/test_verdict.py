"""Verdicts on nets that are healthy, and on nets with a fault planted in them; see ``faults.py``."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpelu
from mpelu.diagnostics import STATES, Diagnosis, diagnose
from mpelu.diagnostics.verdict import judge
from mpelu.graph import read
from tests.cases import normal
from tests.diagnostics.faults import (
    FAULTY,
    HEALTHY,
    Built,
    Case,
    Detach,
    data,
    initialized,
    inner,
    mlp,
    pixels,
    planted,
    scaled,
    tailored,
)

SEED = 0
"""Weights, data and the place of each fault follow from it."""


def diagnosed(built: Built) -> Diagnosis:
    # no verdict depends on predictions or singular values, which take as long as all the rest
    return diagnose(built.model, built.example, optimizer=built.optimizer, predict=False, jacobian=False)


def follow(advice: str, built: Built) -> Built:
    """Run the advice as a reader would, and return the net with what it may have put in place of the example."""
    names: dict[str, Any] = {"torch": torch, "mpelu": mpelu, **vars(built)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        exec(advice, names)
    return replace(built, example=names["example"])


@pytest.mark.parametrize("case", HEALTHY, ids=repr)
def test_no_false_alarm(case: Case) -> None:
    verdict = diagnosed(case.build(SEED)).verdict
    assert (verdict.state, verdict.findings) == ("healthy", ()), verdict.summary


@pytest.mark.parametrize("case", FAULTY, ids=repr)
def test_the_fault_is_found_where_it_was_planted_and_the_advice_mends_it(case: Case) -> None:
    built = case.build(SEED)
    verdict = diagnosed(built).verdict
    assert verdict.state == case.state, verdict.summary
    worst = verdict.findings[0]
    assert case.cause in worst.cause
    assert worst.layer == built.layer or not built.layer
    assert worst.advice
    assert worst.effect
    assert worst.layer in verdict.summary
    if case.call:
        mended = diagnosed(follow(worst.advice, built)).verdict
        assert mended.state == "healthy", mended.summary


def test_normalization_that_shrinks_is_not_said_to_grow() -> None:
    torch.manual_seed(SEED)
    model = nn.Sequential(
        *(layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())), nn.Linear(64, 4)
    ).eval()
    verdict = mpelu.diagnose(model, torch.randn(32, 64), training=False).verdict
    assert verdict.state == "vanishing"
    assert "the gradient shrinks in each of them" in verdict.findings[0].cause
    assert "grows" not in verdict.findings[0].cause


@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("unit", ["relu", "tanh"])
def test_rate_of_a_wrong_gain(unit: str, factor: float) -> None:
    """A gain off by a factor multiplies the second moment of scale-invariant units by its square in each layer.

    Behind tanh the signal finds another size, but where it becomes small the gradient keeps the factor.
    """
    built = tailored(lambda seed: mlp(unit, 60, seed))(SEED)
    with torch.no_grad():
        for layer in built.model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(factor)
    rate = diagnosed(built).verdict.findings[0].per_layer
    assert rate is not None
    if unit == "relu":
        # either of the two numbers is reported: of the second moment, or of the norm of the gradient
        assert min(abs(rate / factor**2 - 1), abs(rate / factor - 1)) < 0.02
    elif factor < 1:
        assert abs(rate / factor - 1) < 0.02
    else:
        assert 1 < rate < factor


@pytest.mark.parametrize("place", [0, 1, 14, 28, 29])
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_scaled_layer_at_every_depth(place: int, factor: float) -> None:
    built = tailored(lambda seed: mlp("gelu", 30, seed))(SEED)
    name = str(2 * place)
    with torch.no_grad():
        built.model.get_submodule(name).weight.mul_(factor)
    verdict = diagnosed(built).verdict
    if place == 29 and factor < 1:  # outputs near 0 are how many heads are meant to start
        assert verdict.state == "healthy"
    else:
        assert [finding.layer for finding in verdict.findings] == [name]


def test_twice_as_large_is_no_fault() -> None:
    built = planted(tailored(lambda seed: mlp("gelu", 30, seed)), scaled(2.0))(SEED)
    assert diagnosed(built).verdict.state == "healthy"


def test_scale_in_front_of_a_normalization_is_no_fault() -> None:
    built = Built(mlp("relu", 12, SEED, norm=True), data(SEED))
    with torch.no_grad():
        built.model.get_submodule("6").weight.mul_(10.0)
    assert diagnosed(built).verdict.state == "healthy"


def test_several_faults_are_all_named_the_worst_first() -> None:
    built = tailored(lambda seed: mlp("gelu", 30, seed))(SEED)
    with torch.no_grad():
        built.model.get_submodule("10").weight.mul_(10.0)
        built.model.get_submodule("20").weight.mul_(0.1)
    built.model.get_submodule("30").requires_grad_(False)
    verdict = diagnosed(built).verdict
    found = {finding.layer: finding.state for finding in verdict.findings}
    assert found == {"10": "exploding", "20": "vanishing", "30": "dead gradient"}
    ranks = [STATES.index(finding.state) for finding in verdict.findings]
    assert ranks == sorted(ranks, reverse=True)
    assert verdict.state == verdict.findings[0].state


def test_non_finite_numbers_hide_everything_else() -> None:
    built = planted(tailored(lambda seed: mlp("gelu", 30, seed)), scaled(10.0))(SEED)
    with torch.no_grad():
        built.model.get_submodule("20").bias[3] = float("nan")
    verdict = diagnosed(built).verdict
    assert [(finding.state, finding.layer) for finding in verdict.findings] == [("non-finite", "20")]
    assert "20.bias" in verdict.findings[0].cause


def test_overflow_is_told_from_a_parameter() -> None:
    built = Built(mlp("relu", 6, SEED), data(SEED) * 1e30)
    with torch.no_grad():
        built.model.get_submodule("4").weight.fill_(1e20)
    verdict = diagnosed(built).verdict
    assert (verdict.state, verdict.findings[0].layer) == ("non-finite", "4")
    assert "overflow" in verdict.findings[0].cause


def test_loss_that_is_not_finite() -> None:
    model, x = mlp("relu", 3, SEED), data(SEED)
    verdict = diagnose(model, x, loss=lambda y: y.sum() * float("inf")).verdict
    assert verdict.state == "non-finite"
    assert "loss" in verdict.findings[0].cause


@pytest.mark.parametrize("form", ["positional", "keyword", "batch of one", "only zeros"])
def test_examples_of_every_form(form: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(32, 16), nn.Linear(32, 16)
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(16, 4))

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.head(self.left(first) + self.right(second))

    examples: dict[str, Any] = {
        "positional": (data(1), pixels(2)),
        "keyword": {"first": data(1), "second": pixels(2)},
        "batch of one": (data(1)[:1], pixels(2)[:1]),
        "only zeros": (data(1), torch.zeros(16, 32)),
    }
    torch.manual_seed(SEED)
    built = Built(Two(), examples[form])
    verdict = diagnosed(built).verdict
    name = "second" if form == "keyword" else "input_2"
    assert [finding.layer for finding in verdict.findings] == [name]
    assert "input scale" in verdict.findings[0].cause
    assert diagnosed(follow(verdict.findings[0].advice, built)).verdict.state == "healthy"


def test_gradient_that_is_cut_in_a_net_with_batch_normalization() -> None:
    layers = list(mlp("relu", 8, SEED, norm=True))
    built = Built(nn.Sequential(*layers[:9], Detach(), *layers[9:]), data(SEED))
    verdict = diagnosed(built).verdict
    assert [(finding.state, finding.layer) for finding in verdict.findings] == [("dead gradient", "6")]


def test_frozen_model() -> None:
    built = Built(mlp("relu", 4, SEED).requires_grad_(False), data(SEED))
    verdict = diagnosed(built).verdict
    assert [finding.state for finding in verdict.findings] == ["dead gradient"]
    assert diagnosed(follow(verdict.findings[0].advice, built)).verdict.state == "healthy"


@pytest.mark.parametrize("example", [torch.zeros(4, 3), torch.arange(8).reshape(2, 4)], ids=["numbers", "words"])
def test_net_without_weights_of_its_own(example: Tensor) -> None:
    model = nn.Embedding(10, 4) if not example.is_floating_point() else nn.ReLU()
    assert diagnose(model, example).verdict.state == "healthy"


def test_computed_weights_are_seen() -> None:
    built = initialized(lambda seed: mlp("gelu", 12, seed))(SEED)
    for layer in built.model:
        if isinstance(layer, nn.Linear):
            nn.utils.parametrizations.weight_norm(layer)
    name, module = inner(built.model, SEED)
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(10.0)
    verdict = diagnosed(built).verdict
    assert [finding.layer for finding in verdict.findings] == [name]
    assert diagnosed(follow(verdict.findings[0].advice, built)).verdict.state == "healthy"


@pytest.mark.parametrize("function", [F.relu, F.selu], ids=["relu", "selu"])
def test_activations_that_are_function_calls_are_converted_first(function: Callable[[Tensor], Tensor]) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(nn.Linear(32, 32) for _ in range(40)), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = function(layer(x))
            return self.head(x)

    built = Built(Calls(), data(SEED))
    verdict = diagnosed(built).verdict
    assert verdict.state == "vanishing"
    assert diagnosed(follow(verdict.findings[0].advice, built)).verdict.state == "healthy"


def test_bias_that_is_missing_is_told_from_a_wrong_gain() -> None:
    """The same drift, from weights that are too small and from biases that are missing."""
    built = initialized(lambda seed: mlp("tanh", 100, seed))(SEED)
    with torch.no_grad():
        for layer in built.model:
            if isinstance(layer, nn.Linear):
                layer.bias.zero_()
    assert "missing bias variance" in diagnosed(built).verdict.findings[0].cause
    with torch.no_grad():
        for layer in built.model:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(normal(*layer.weight.shape, seed=len(layer.weight)) * math.sqrt(4.0 / 32))
    assert "wrong gain" in diagnosed(built).verdict.findings[0].cause


def test_judging_changes_nothing() -> None:
    built = planted(tailored(lambda seed: mlp("gelu", 30, seed)), scaled(10.0))(SEED)
    records = diagnosed(built).records
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    state = torch.random.get_rng_state()
    graph = read(built.model, built.example)
    first = judge(records, loss=0.0, graph=graph, model=built.model, example=built.example)
    again = judge(records, loss=0.0, graph=graph, model=built.model, example=built.example)
    assert first == again
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in built.model.state_dict().items())
