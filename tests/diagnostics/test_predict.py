"""Predictions agree with what is measured in wide nets, within their standard errors; and the test can fail."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mpelu.diagnostics import Diagnosis, diagnose
from mpelu.diagnostics.spread import ROWS, expansion, matrix
from mpelu.moments import critical_point, moments
from mpelu.moments.elementwise import elementwise
from mpelu.nn import MPELU
from tests.cases import normal

WIDTH, DEPTH = 512, 20
ELEVEN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "lrelu(0.25)": lambda: nn.LeakyReLU(0.25),
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "mpelu(1,1)": lambda: MPELU(WIDTH, 1.0, 1.0),
    "mpelu(0.25,1)": lambda: MPELU(WIDTH, 0.25, 1.0),
}
over_eleven = pytest.mark.parametrize("name", ELEVEN)
SCALE_FREE = ("relu", "lrelu(0.25)", "prelu")


def wide(name: str, seed: int, depth: int = DEPTH) -> nn.Sequential:
    """Build a net at the edge of chaos, where second moments of every activation are stable."""
    stream = torch.Generator().manual_seed(seed)
    point = critical_point(ELEVEN[name]())
    layers: list[nn.Module] = []
    for place in range(depth):
        layer = nn.Linear(WIDTH, WIDTH)
        variance, shift = (point.weight_variance, point.bias_variance) if place else (point.second_moment, 0.0)
        with torch.no_grad():
            layer.weight.normal_(0, math.sqrt(variance / WIDTH), generator=stream)
            layer.bias.normal_(0, math.sqrt(shift), generator=stream)
        layers += [layer, ELEVEN[name]()]
    return nn.Sequential(*layers)


def deviations(found: Diagnosis) -> list[float]:
    return [
        record.predicted_second_moment.deviation(record.second_moment)
        for record in found.records
        if record.predicted_second_moment is not None
    ]


@over_eleven
@pytest.mark.parametrize("seed", [0, 1])
def test_second_moments_and_gradients_agree_within_four_standard_errors(name, seed):
    model, x = wide(name, seed), normal(32, WIDTH, seed=seed + 9, dtype=torch.float32)
    found = diagnose(model, x, jacobian=False)
    assert len(deviations(found)) == 2 * DEPTH + 1
    assert not found.notes
    assert max(map(abs, deviations(found))) <= 4
    for record in found.records[:-2]:
        if record.predicted_gradient_norm is not None:
            assert abs(record.predicted_gradient_norm.deviation(record.gradient_norm)) <= 4
        if record.predicted_correlation is not None:
            assert abs(record.predicted_correlation.deviation(record.correlation)) <= 4


@over_eleven
def test_standard_errors_are_no_larger_than_finite_width_makes_them(name):
    model, x = wide(name, 2), normal(32, WIDTH, dtype=torch.float32)
    for record in diagnose(model, x, jacobian=False).records:
        if record.predicted_second_moment is None:
            continue
        error = record.predicted_second_moment.error / record.predicted_second_moment.value
        # nothing draws back the second moment of a scale-free net: of ReLU each layer adds 5 / width
        bound = math.sqrt(math.expm1(5 * max(1, record.depth) / WIDTH))
        assert error <= 1.1 * bound
        assert name in SCALE_FREE or record.depth > 4 or error <= 0.15


def test_standard_errors_are_as_large_as_the_deviations_of_many_nets():
    found = []
    for seed in range(12):
        last = diagnose(wide("relu", seed, depth=6), normal(16, WIDTH, seed=seed, dtype=torch.float32), jacobian=False)
        found.append(deviations(last)[-1])
    spread = math.sqrt(sum(value**2 for value in found) / len(found))
    assert 0.5 < spread < 1.6  # of 12 normal ones, in 99 % of all cases


@over_eleven
def test_a_moment_that_is_off_by_a_fifth_is_found(name, monkeypatch):
    from mpelu.init import signal

    def wrong(*args: object, **options: object) -> object:
        found = moments(*args, **options)
        return type(found)(**{**vars(found), "second_moment": 1.2 * found.second_moment})

    monkeypatch.setattr(signal, "moments", wrong)
    model, x = wide(name, 0, depth=12), normal(32, WIDTH, dtype=torch.float32)
    assert max(map(abs, deviations(diagnose(model, x, jacobian=False)))) > 4


def test_rows_that_sum_to_0_and_biases_are_seen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    with torch.no_grad():
        for place in (0, 2, 4):
            weight = model[place].weight.normal_(0, 1 / 16)
            weight -= weight.mean(1, keepdim=True)
            model[place].bias.fill_(0.5)
    found = diagnose(model, normal(64, 256, dtype=torch.float32), jacobian=False)
    assert max(map(abs, deviations(found))) <= 4
    # a law for weights of mean 0 that do not see these sums would be off by E[f]^2 / E[f^2]
    assert found["2"].second_moment == pytest.approx(found["2"].predicted_second_moment.value, rel=0.1)


def test_a_chain_of_convolutions_a_residual_net_and_orthogonal_weights():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), Block(), Block(),
        nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 64), nn.Tanh(), nn.Linear(64, 64),
    )  # fmt: skip
    nn.init.orthogonal_(model[-1].weight)
    found = diagnose(model, normal(16, 3, 8, 8, dtype=torch.float32), jacobian=False)
    assert not found.notes
    assert len(deviations(found)) >= 12
    assert max(map(abs, deviations(found))) <= 4


def test_predictions_begin_anew_behind_what_is_not_understood():
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).sort(dim=1)[0])

    found = diagnose(Sorted(), normal(32, 64, dtype=torch.float32), jacobian=False)
    assert any("sort" in note for note in found.notes)
    assert found["first"].predicted_second_moment is not None
    assert found["last"].predicted_second_moment is not None


def test_spread_of_matrices_over_directions():
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, 200, generator=stream, dtype=torch.float64)
    rows = torch.randn(200_000, 200, generator=stream, dtype=torch.float64)
    squares = (rows @ weight.T).square().sum(1) / rows.square().sum(1)
    sampled = (squares.var() / squares.mean() ** 2).item()
    assert matrix(weight, None).forward == pytest.approx(sampled, rel=0.02)  # 1 / sqrt(10^5), and the kurtosis
    square = torch.linalg.qr(torch.randn(48, 48, generator=stream, dtype=torch.float64))[0]
    assert matrix(square, None).forward == pytest.approx(0.0, abs=1e-12)


@over_eleven
def test_expansions_hold_the_moments(name):
    activation = ELEVEN[name]()
    of = expansion(elementwise(activation), mean=0.3, variance=1.4)
    exact = moments(activation, mean=0.3, variance=1.4)
    assert of.value[0] == pytest.approx(exact.mean, abs=2e-3)
    assert of.square[0] == pytest.approx(exact.second_moment, rel=2e-3)
    assert of.slope[0] == pytest.approx(exact.slope_second_moment, rel=5e-3)  # kinks between two points
    assert of.square[2] / (math.sqrt(2) * 1.4) == pytest.approx(exact.growth, rel=5e-3)
