import math

import pytest
import torch
from torch import nn

from mpelu.init import METHODS, centered_critical, gain, initialize, plan
from mpelu.init.rules import FEWEST_COLUMNS, ORTHOGONAL, PUBLISHED, REFINED
from mpelu.moments import moments
from mpelu.nn import MPELU
from tests.cases import normal, over_activations

X = torch.zeros(1, 16)


def stack(unit, *, bias: bool = True, width: int = 16) -> nn.Sequential:
    layers = [layer for _ in range(3) for layer in (nn.Linear(width, width, bias=bias), unit())]
    return nn.Sequential(*layers, nn.Linear(width, width, bias=bias))


def test_names():
    assert set(METHODS) >= {
        "auto",
        "critical",
        "second_moment",
        "eq22",
        "released",
        "msra",
        "xavier",
        "gaussian",
        "lsuv",
    }
    assert set(METHODS) > PUBLISHED | ORTHOGONAL | set(REFINED)
    assert (REFINED["auto"], REFINED["lsuv"]) == ("noise", "data")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_plans_a_stack(method):
    rows = plan(stack(nn.ReLU), normal(64, 16, dtype=torch.float32), method=method, seed=0).weights
    assert len(rows) == 4
    left = {row.parameter for row in rows if row.std is None}
    assert left == ({row.parameter for row in rows} if method == "released" else set())
    assert {row.fill for row in rows} == {
        "as it is" if method == "released" else "orthogonal" if method in ORTHOGONAL else "normal"
    }


@over_activations
def test_second_moment_divides_by_what_the_activation_keeps(case):
    rows = plan(stack(lambda: case.build(16)), X, method="second_moment", seed=0).weights
    assert rows[0].gain == pytest.approx(1.0)
    for row in rows[1:]:
        assert row.gain == pytest.approx(gain(case.build(16)), rel=1e-9)
        assert row.second_moment == pytest.approx(1.0, rel=1e-9)


@over_activations
def test_critical_keeps_the_gradient_and_makes_up_for_the_signal(case):
    init_plan = plan(stack(lambda: case.build(16)), X, method="critical", seed=0)
    rows = {row.parameter: row for row in init_plan.rows}
    point = centered_critical(case.build(16))
    for name in ("2", "4"):
        assert rows[f"{name}.weight"].gain == pytest.approx(point.gain, rel=1e-9)
        assert rows[f"{name}.weight"].centered
        assert rows[f"{name}.bias"].std == pytest.approx(math.sqrt(point.bias_variance), rel=1e-6, abs=1e-9)
        assert rows[f"{name}.weight"].second_moment == pytest.approx(1.0, rel=1e-9)
    for name in ("0", "6"):  # fed by the input; the head
        assert not rows[f"{name}.weight"].centered
        assert rows[f"{name}.bias"].std == 0.0


def test_centered_weights_have_rows_that_sum_to_zero_at_every_tap():
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.GELU())]
    model = nn.Sequential(*layers, nn.Conv2d(16, 4, 1))
    rows = initialize(model, torch.zeros(1, 16, 8, 8), method="critical", seed=0).weights
    assert [row.centered for row in rows] == [False, True, True, False]
    weight = model[2].weight.detach()
    assert weight.sum(1).abs().max() < 1e-5
    assert weight.square().mean().sqrt().item() == pytest.approx(rows[1].std, rel=1e-5)
    assert model[0].weight.sum(1).abs().max() > 0.01


def convolutions() -> nn.Sequential:
    layers = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(16, 16, 2), nn.Conv2d(16, 4, 1)
    return nn.Sequential(*[layer for conv in layers for layer in (conv, nn.GELU())][:-1])


@pytest.mark.parametrize(
    ("build", "example"),
    [
        (lambda: stack(nn.GELU, bias=False), X),
        (lambda: stack(nn.GELU, width=FEWEST_COLUMNS - 1), X[:, : FEWEST_COLUMNS - 1]),
        (convolutions, torch.zeros(1, 16, 8, 8)),
        (lambda: nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16), nn.LayerNorm(16)), X),
    ],
)
def test_critical_is_second_moment_where_biases_cannot_help(build, example):
    """No bias; too few columns; depthwise and transposed convolutions; a normalization behind."""
    init_plan = plan(build(), example, method="critical", seed=0)
    assert not any(row.centered for row in init_plan.weights)
    wanted = plan(build(), example, method="second_moment", distribution="orthogonal", seed=0)
    assert init_plan.rows == wanted.rows


def test_dropout_in_a_chain_scales_the_gradient_too():
    """Kept entries are 1 / (1 - p) as large, so that the squared gradient grows by 1 / (1 - p)."""
    model = nn.Sequential(
        nn.Linear(16, 16), nn.ELU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ELU(), nn.Dropout(0.5), nn.Linear(16, 4)
    )
    row = plan(model, X, method="critical", seed=0).weights[1]
    assert row.centered
    assert row.gain**2 * moments(nn.ELU()).slope_second_moment / 0.5 == pytest.approx(1.0, rel=1e-9)
    assert row.second_moment == pytest.approx(1.0, rel=1e-9)


def test_an_activation_without_gradient_falls_back():
    class Step(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sign(x)

    rows = plan(stack(Step), X, method="critical", seed=0).weights
    assert [row.gain for row in rows] == pytest.approx([1.0] * 4)
    assert not any(row.centered for row in rows)


def test_padding_and_strides_are_in_the_fan_of_second_moment_but_not_of_the_paper():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1))
    fans = {
        method: [row.fan for row in plan(model, torch.zeros(1, 4, 16, 16), method=method, seed=0).weights]
        for method in ("second_moment", "eq22")
    }
    assert fans["eq22"] == [36, 72]
    # (46 / 48)^2 of 36; behind it the border has less to give
    assert fans["second_moment"][0] == pytest.approx(36 * (46 / 48) ** 2)
    assert 0.9 * 72 < fans["second_moment"][1] < 72


def test_per_channel_activations_count_as_they_are():
    unit = MPELU(16)
    with torch.no_grad():
        unit.alpha.copy_(torch.linspace(0.0, 2.0, 16))
    row = plan(nn.Sequential(nn.Linear(16, 16), unit, nn.Linear(16, 4)), X, method="second_moment", seed=0).weights[1]
    kept = [moments(MPELU(1, alpha)).second_moment for alpha in torch.linspace(0.0, 2.0, 16).tolist()]
    assert row.gain == pytest.approx(math.sqrt(16 / sum(kept)), rel=1e-6)
