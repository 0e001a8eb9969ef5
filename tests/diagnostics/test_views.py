"""The paper's own analyses: equations 14 and 23 to 28, Tables 7 and 8, and alpha and beta over epochs."""

import math
from functools import partial
from xml.etree import ElementTree as ET

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mpelu.functional
from mpelu.diagnostics import pictures
from mpelu.diagnostics.distribution import Distribution, distribution_table, distributions
from mpelu.diagnostics.linearization import (
    BOUNDS,
    mpelu_of,
    remainder,
    remainder_bound,
    residual_table,
    residuals,
    threshold,
)
from mpelu.diagnostics.page import distribution_view, learned_view, residual_view
from mpelu.diagnostics.pictures import distribution_figure, residual_figure
from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.models import create_model
from mpelu.nn import MPELU, SPELU

PARAMETERS = [(1.0, 1.0), (0.25, 1.0), (98.0, 0.01), (25.6302, 0.01), (3.0, 2.0), (-0.5, 1.0), (0.0, 1.0)]


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


# Equations 14 and 23 to 28


@pytest.mark.parametrize(("alpha", "beta"), PARAMETERS)
def test_remainder_is_what_the_line_leaves_out(alpha, beta):
    y = torch.tensor([-50.0, -3.0, -1.0, -0.3, -0.02, -1e-3, -1e-6, 0.0, 0.5], dtype=torch.float64)
    found = remainder(y, alpha, beta)
    for value, result in zip(y.tolist(), found.tolist(), strict=True):
        with mpmath.workdps(40):
            negative = mpmath.mpf(min(value, 0.0)) * mpmath.mpf(beta)
            exact = mpmath.mpf(alpha) * (mpmath.expm1(negative) - negative)
        # the series is cut where its next term is 1e-8 of the sum; the difference loses 4 of 16 digits
        assert result == pytest.approx(float(exact), rel=1e-8, abs=0.0)
        assert abs(result) <= remainder_bound(value, alpha, beta) * (1 + 1e-9)
    line = torch.where(y > 0, y, alpha * beta * y)
    function = mpelu.functional.mpelu(y, *torch.tensor([alpha, beta], dtype=torch.float64))
    torch.testing.assert_close(line + found, function, rtol=1e-12, atol=1e-12)


def test_bounds_and_shares_are_those_of_the_paper():
    """Section 4.4 for alpha = beta = 1 and y from N(0, 1); where the paper prints 55.57 %, Phi(0.1414) is 55.62 %."""
    assert [remainder_bound(-sigma, 1.0, 1.0) for sigma in (3.0, 2.0, 1.0)] == [4.5, 2.0, 0.5]
    limits = [threshold(bound) for bound in BOUNDS]
    assert limits == pytest.approx([-0.1414, -1.0, -2.0, -3.0], abs=5e-5)
    shares = [100 * normal_cdf(-limit) for limit in limits]
    assert shares == pytest.approx([55.62, 84.135, 97.725, 99.865], abs=5e-3)


@pytest.mark.parametrize(("alpha", "beta"), PARAMETERS[:-1])
@pytest.mark.parametrize("bound", BOUNDS)
def test_threshold_is_where_the_bound_is_met(alpha, beta, bound):
    assert remainder_bound(threshold(bound, alpha, beta), alpha, beta) == pytest.approx(bound)
    assert threshold(bound, 0.0, beta) == -math.inf


class Given(nn.Module):
    """An activation as a model of its own, so that its inputs are known."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(("alpha", "beta"), PARAMETERS[:-1])
@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_residual_of_a_gaussian_is_the_analytic_one(alpha, beta, sigma):
    samples = 200_000
    y = sigma * torch.randn(samples, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = MPELU(1, alpha, beta).double()
    (found,) = residuals(model, y, bound=0.5)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta))
    assert found.bounds == pytest.approx([remainder_bound(-k * found.sigma, alpha, beta) for k in (3, 2, 1)])
    expected = normal_cdf(-threshold(0.5, alpha, beta) / sigma)
    standard_error = math.sqrt(expected * (1 - expected) / samples) + 1 / samples
    assert abs(found.promised - expected) <= 4 * standard_error
    assert found.below >= found.promised  # a bound promises less than is true
    assert sum(found.histogram) == pytest.approx(1.0)
    assert found.mean <= found.largest <= remainder_bound(y.min().item(), alpha, beta)
    if (alpha, beta, sigma) == (1.0, 1.0, 1.0):  # E[f^2] and its linear value, from the table of exact moments
        assert found.energy == pytest.approx(0.6449, abs=4 * 1.0 / math.sqrt(samples))


def test_each_channel_has_its_own_parameters():
    model = MPELU(2)
    with torch.no_grad():
        model.alpha.copy_(torch.tensor([1.0, 0.0]))
    y = torch.full((3, 2, 4), -1.0)
    (found,) = residuals(model, y)
    exact = math.exp(-1.0)
    assert found.largest == pytest.approx(exact, rel=1e-6)  # alpha is a float32
    assert found.mean == pytest.approx(exact / 2, rel=1e-6)
    assert found.below == found.promised == 0.5
    assert found.histogram == (0.5, 0.5, 0.0, 0.0, 0.0)
    assert found.alpha == 0.5


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (MPELU(3, 0.25, 1.0), (0.25, 1.0)),
        (MPELU(3, 98.0, 0.01), (98.0, 0.01)),
        (SPELU(3, 2.0), (2.0, 1.0)),
        (nn.ELU(0.5), (0.5, 1.0)),
        (F.elu, (1.0, 1.0)),
        (nn.CELU(2.0), (2.0, 0.5)),
        (partial(mpelu.functional.mpelu, alpha=torch.tensor(3.0), beta=torch.tensor(2.0)), (3.0, 2.0)),
        (nn.ReLU(), None),
        (nn.LeakyReLU(0.1), None),
        (nn.PReLU(3), None),
        (nn.SELU(), None),
        (nn.GELU(), None),
        (nn.Tanh(), None),
        (nn.Softplus(), None),
    ],
    ids=[
        "mpelu", "near linear", "spelu", "elu", "functional elu", "celu", "functional mpelu", "relu", "leaky", "prelu",
        "selu", "gelu", "tanh", "softplus",
    ],
)  # fmt: skip
def test_an_mpelu_is_known_by_its_values(function, expected):
    graph = read(Given(function), torch.zeros(2, 3))
    (node,) = [node for node in graph.nodes if node.kind == "activation"]
    found = mpelu_of(node)
    if expected is None:
        assert found is None
    else:
        assert [values.mean().item() for values in found] == pytest.approx(expected, rel=1e-6)


def test_a_model_without_an_mpelu_has_no_residual():
    with pytest.raises(UsageError, match="no activation of Sequential is an MPELU or ELU"):
        residuals(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(4, 3))
    with pytest.raises(UsageError, match="edges must rise from 0"):
        residuals(nn.ELU(), torch.randn(4, 3), edges=(0.1, 1.0))


def test_activations_of_a_network_are_measured_at_what_they_get():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ELU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    images = torch.randn(32, 3, 8, 8)
    (found,) = residuals(model, images)
    assert found.sigma == pytest.approx(1.0, abs=1e-4)  # what batch normalization gives
    assert "elu" in found.layer or found.layer == "2"
    y = model[1](model[0](images)).double()
    exact = torch.where(y > 0, 0.0, torch.expm1(y) - y)
    assert found.mean == pytest.approx(exact.mean().item(), rel=1e-4)  # float32 sums in batch normalization


# Tables 7 and 8


def test_wide_layers_are_as_gaussian_as_they_are_said_to_be():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    nn.init.normal_(model[0].weight, std=2.0 / math.sqrt(512))
    (found,) = distributions(model, torch.randn(64, 512))
    samples = 64 * 512
    for share, normal in zip(found.above, found.gaussian, strict=True):
        assert abs(share - normal) <= 6 / math.sqrt(samples)  # entries of one row share their input: two errors more
    assert found.variance == pytest.approx(4.0, rel=0.05)


def test_distribution_is_what_a_plain_reference_counts():
    torch.manual_seed(0)
    model = create_model("plain15", in_channels=3, width=4)
    images, outputs = torch.randn(4, 3, 16, 16), {}
    for name, module in model.named_modules():
        if hasattr(module, "weight"):
            module.register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output}))
    found = distributions(model, images, thresholds=(0.0, -0.1))
    model(images)
    assert [each.number for each in found] == list(range(1, 16))
    for each in found:
        y = outputs[each.layer].double().flatten()
        assert each.mean == pytest.approx(y.mean().item(), rel=1e-5, abs=1e-9)
        assert each.variance == pytest.approx(((y - y.mean()) ** 2).mean().item(), rel=1e-5)
        assert each.above == pytest.approx([(y > 0.0).double().mean().item(), (y > -0.1).double().mean().item()])


def test_layers_are_chosen_by_number_or_name():
    model, images = create_model("plain30"), torch.randn(4, 1, 16, 16)
    chosen = distributions(model, images, layers=(1, 7, 14, 20, 27))
    assert [each.layer for each in chosen] == ["conv1", "conv7", "conv14", "conv20", "conv27"]
    assert chosen == tuple(each for each in distributions(model, images) if each.number in (1, 7, 14, 20, 27))
    assert [each.number for each in distributions(model, images, layers=["fc1"])] == [28]
    with pytest.raises(UsageError, match=r"no weight 31, conv99; there are 30: conv1, .*fc3"):
        distributions(model, images, layers=(1, 31, "conv99"))


def test_a_constant_output_is_no_error():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, -2.5)
    (found,) = distributions(model, torch.randn(4, 3))
    assert found.above == found.gaussian == (0.0, 0.0, 0.0, 1.0)


def test_nothing_about_the_model_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ELU(), nn.Dropout(0.5)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    residuals(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    distributions(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# How they are shown


def test_views_are_shown_as_figures_and_text():
    model, images = create_model("plain15", alpha=1.0), torch.randn(4, 1, 16, 16)
    statistics, residual = distributions(model, images), residuals(model, images)
    for svg in (distribution_figure(statistics), residual_figure(residual)):
        ET.fromstring(svg)
    assert "conv12" in distribution_view(statistics).table
    assert "fc_act2" in residual_view(residual).table
    for shown in (distribution_table(statistics, 80), residual_table(residual, 80)):
        assert all(len(line) <= 80 for line in shown.splitlines())
    line = Distribution("conv1", 1, 0.0, 1.0, (0.0,), (0.25,))
    assert "25.0 (50.0)" in distribution_table([line])


def test_layers_that_were_chosen_stand_at_their_numbers(monkeypatch):
    found = [Distribution(f"conv{number}", number, 0.0, 1.0, (0.0, 1.0), (0.5, 0.2)) for number in (1, 7, 27)]
    drawn = []
    monkeypatch.setattr(pictures, "svg_text", lambda figure, **_: drawn.append(figure) or "<svg/>")
    distribution_figure(found)
    lines = drawn[0].axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1, 7, 27], [1, 7, 27]]


def test_learned_parameters_are_shown_at_the_first_and_the_last_step():
    def step(number: int, alpha: float) -> dict:
        layers = [
            {"name": f"act{index}", "kind": "activation", "alpha": alpha + index, "beta": 1.0} for index in range(3)
        ]
        return {"step": number, "epoch": None, "records": [*layers, {"name": "conv", "kind": "weight"}]}

    view = learned_view([step(0, 0.25), step(100, 0.5), step(200, 0.75)])
    assert view.table.splitlines()[1].split() == ["act0", "0.25", "0.75", "1", "1"]
    assert len(view.figures) == 2
    assert "step 100" in view.figures[0]
