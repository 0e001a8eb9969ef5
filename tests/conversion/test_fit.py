import pytest
import torch

from mpelu.conversion.fit import Inputs, assumed, errors, mpelu, nearest, observed
from tests.cases import normal, over_shapes, plain_formula


def inputs(count=512, scale=2.0):
    return observed(scale * normal(count * 20))


@over_shapes
def test_the_formula_is_that_of_mpelu(alpha, beta):
    points = torch.linspace(-3, 3, 61, dtype=torch.float64)
    found = mpelu(points, torch.tensor([alpha]), torch.tensor([beta], dtype=torch.float64))
    torch.testing.assert_close(found[:, 0], plain_formula(points, alpha, beta), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0.25, 1.0), (-0.5, 2.0), (3.0, 0.3), (25.6302, 0.02), (1.0, 40.0)])
def test_an_mpelu_is_found_again(alpha, beta):
    given = inputs()
    target = plain_formula(given.points, alpha, beta)[:, None]
    found = nearest(target, given, smallest_beta=0.01)
    # a sum of squares near its minimum is flat: its place is known to about the root of epsilon
    assert found[0].tolist() == pytest.approx([alpha], rel=1e-5)
    assert found[1].tolist() == pytest.approx([beta], rel=1e-5)
    assert errors(mpelu(given.points, *found), target, given)[0] <= 1e-7 * abs(alpha)


def loss(target, given, alpha, beta):
    below = given.points < 0
    gap = (plain_formula(given.points, alpha, beta) - target)[below]
    return (gap.square() * given.weights[below]).sum()


@pytest.mark.parametrize(
    "function",
    [torch.tanh, torch.nn.functional.gelu, torch.nn.functional.silu, lambda x: 0.3 * x, torch.sin],
    ids=["tanh", "gelu", "silu", "line", "sin"],
)
def test_no_other_mpelu_is_nearer(function):
    given = inputs()
    target = function(given.points)
    alpha, beta = (float(part) for part in nearest(target[:, None], given, smallest_beta=0.01))
    best = loss(target, given, alpha, beta)
    for other_beta in torch.logspace(-2, 2, 80, dtype=torch.float64).tolist():
        for factor in torch.linspace(-1, 3, 41, dtype=torch.float64).tolist():
            assert best <= loss(target, given, factor * alpha, other_beta) * (1 + 1e-9)


def test_channels_are_matched_one_by_one():
    given = inputs()
    slopes = torch.tensor([0.25, 0.0, -0.5, 0.25], dtype=torch.float64)
    target = torch.where(given.points[:, None] > 0, given.points[:, None], given.points[:, None] * slopes)
    alpha, beta = nearest(target, given, smallest_beta=0.01)
    for channel in range(4):
        one = nearest(target[:, channel : channel + 1], given, smallest_beta=0.01)
        torch.testing.assert_close(alpha[channel : channel + 1], one[0])
        torch.testing.assert_close(beta[channel : channel + 1], one[1])
    assert alpha[1] == 0
    assert alpha[0] == alpha[3]


def test_what_occurs_often_counts_more():
    points = torch.tensor([-1.0, -0.1], dtype=torch.float64)
    target = torch.tanh(points)[:, None]
    for heavy in (0, 1):
        weights = torch.full((2,), 1e-6, dtype=torch.float64)
        weights[heavy] = 1.0
        given = Inputs(points, weights / weights.sum(), measured=True)
        gap = (mpelu(points, *nearest(target, given, smallest_beta=0.01, beta=1.0)) - target).abs()
        assert gap[heavy] < 1e-4 < gap[1 - heavy]


def test_a_histogram_keeps_range_and_share():
    entries = torch.cat([torch.full((30,), -2.0), torch.full((10,), 5.0), torch.tensor([float("nan"), float("inf")])])
    given = observed(entries)
    assert given.measured
    assert given.points.tolist() == [-2.0, 5.0]
    assert given.weights.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    "entries", [[1.0, 2.0], [], [-1.0, -1.0], [float("nan")]], ids=["positive", "no", "one", "nan"]
)
def test_what_says_nothing_about_the_negative_side_is_replaced(entries):
    assert not observed(torch.tensor(entries)).measured


def test_assumed_inputs_are_standard_normal():
    given = assumed()
    assert float(given.weights.sum()) == pytest.approx(1.0)
    assert float((given.weights * given.points).sum()) == pytest.approx(0.0, abs=1e-12)
    # the tails beyond 4 hold 0.1 % of the second moment
    assert float((given.weights * given.points.square()).sum()) == pytest.approx(1.0, abs=2e-3)
