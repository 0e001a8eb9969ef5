"""Closed forms and quadrature against moments from mpmath, 30 digits and more (reference.csv, make_reference.py)."""

import csv
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor, nn

from mpelu.moments import Moments, moments
from tests.moments.references import COLUMNS, PLACES, Reference, known_moments, references

FLOAT32_SLOPES = ("CELU", "Hardsigmoid")
"""torch 2.13 differentiates these in float64 with float32 constants inside, so that autograd's f' is off by 3e-8."""
NOT_ELEMENTWISE = {"GLU", "MultiheadAttention", "Softmax", "Softmin", "Softmax2d", "LogSoftmax"}
TUNABLE = {
    "CELU",
    "ELU",
    "Hardshrink",
    "Hardtanh",
    "LeakyReLU",
    "PReLU",
    "RReLU",
    "Softplus",
    "Softshrink",
    "Threshold",
}
SMALLEST = mp.mpf("1e-290")
"""Below it, products underflow: 0 is as right as any number."""


@cache
def rows() -> dict[str, list[dict[str, str]]]:
    found = defaultdict(list)
    with Path(__file__).with_name("reference.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["activation"]].append(row)
    return found


def relative_errors(got: Moments, row: dict[str, str]) -> dict[str, float]:
    """Relative to the value, or where that is smaller, to the mean of the absolute value: see Moments.error."""
    errors = {}
    for column in COLUMNS:
        known, size = mp.mpf(row[column]), mp.mpf(row[f"size_{column}"])
        size = max(size, abs(known), SMALLEST)
        errors[column] = float(abs(mp.mpf(getattr(got, column)) - known) / size)
    return errors


@dataclass(frozen=True)
class Unrecognized:
    """An activation that is not recognized, so that it has to be integrated."""

    activation: Any

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(x)


over_references = pytest.mark.parametrize("case", references().values(), ids=lambda case: case.name)


@over_references
def test_moments_agree(case):
    tried = 0
    for row in rows()[case.name]:
        got = moments(case.build(), mean=float(row["at_mean"]), variance=float(row["at_variance"]))
        # 1e-10 is what is promised for quadrature; a closed form says 1e-13
        limit = 1e-13 if got.method == "closed form" else 1e-10
        worst = max(relative_errors(got, row).values())
        assert worst <= limit, row
        assert worst <= got.error, row
        tried += 1
    assert tried == len(PLACES)


@over_references
def test_quadrature_agrees_with_unknown_kinks(case):
    activation = case.build()
    for row in rows()[case.name]:
        got = moments(
            Unrecognized(activation),
            mean=float(row["at_mean"]),
            variance=float(row["at_variance"]),
        )
        errors = relative_errors(got, row)
        if case.name.startswith(FLOAT32_SLOPES):
            errors = {name: errors[name] for name in ("mean", "second_moment", "growth")}
        assert got.method == "quadrature"
        assert max(errors.values()) <= got.error <= 1e-11, row


@over_references
def test_closed_forms_are_where_they_are_promised(case):
    without = ("GELU('tanh')", "Sigmoid", "SiLU", "Mish", "LogSigmoid", "Softplus", "Tanh", "Softsign", "Hardswish")
    functions = ("clamped_square", "sin", "distance", "sign", "steps", "bent")
    expected = "quadrature" if case.name.startswith(without) or case.name in functions else "closed form"
    assert moments(case.build()).method == expected


def test_every_elementwise_activation_of_torch_is_here():
    names = set(nn.modules.activation.__all__) - NOT_ELEMENTWISE
    assert len(names) > 20
    settings = defaultdict(set)
    for name in references():
        settings[name.partition("(")[0]].add(name)
    for name in names:
        assert len(settings[name]) >= (6 if name in TUNABLE else 1), name
    assert {"GELU()", "GELU('tanh')"} <= settings["GELU"]


@pytest.mark.parametrize(
    ("name", "place"),
    [("Mish()", 0), ("Threshold(0.3,-2.0)", 6), ("MPELU(98.0,0.01)", 9), ("CELU(0.2)", 8), ("steps", 7)],
)
def test_reference_file_is_what_mpmath_says(name, place):
    mean, variance = PLACES[place]
    row = rows()[name][place]
    assert (float(row["at_mean"]), float(row["at_variance"])) == (mean, variance)
    known = known_moments(references()[name], mean, variance)
    with mp.workdps(40):
        for column, value in zip(COLUMNS, known.values, strict=True):
            assert abs(mp.mpf(row[column]) - value) <= mp.mpf("1e-24") * abs(value)  # 25 digits are written


@over_references
def test_the_two_ways_of_writing_an_activation_agree(case: Reference):
    activation = case.build()
    with mp.workdps(30):
        points = [mp.mpf(k) / 7 + mp.mpf(1) / 1000 for k in range(-60, 61, 3)]
        x = torch.tensor([float(point) for point in points], dtype=torch.float64)
        for value, point in zip(activation(x).tolist(), x.tolist(), strict=True):
            known = float(case.value(mp.mpf(point)))
            # the cancellation in 1 + tanh, 1 + erf or x - tanh(x) is torch's
            assert value == pytest.approx(known, rel=1e-12, abs=1e-14)
