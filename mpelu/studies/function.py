"""The function itself: what it becomes, how smooth and convex it is, what it costs, what it makes of a Gaussian.

Source:   Li et al., arXiv:1606.00305, sections 3.1 and 4.4, Table 4, Figure 1, and what is said of the nets' sizes.
Command:  mpelu reproduce claim1 (to claim7, claim30, claim51), table4, figure1
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mpelu.report.finding import Interval
from mpelu.report.grid import Grid, Picture
from mpelu.report.paper import printed
from mpelu.report.summary import Record, spread
from mpelu.studies.demo import BASE
from mpelu.studies.jobs import Job, Measurement, Setting, Training, key_of
from mpelu.studies.measured import QUIET, Conclusion, claim, holds, seconds_in_turns, there
from mpelu.studies.statistic import (
    all_of,
    compared,
    computed,
    outcome_of,
    paired_difference,
    ratio,
    share_difference,
)
from mpelu.studies.study import Exhibit, Results

HERE = "mpelu.studies.function"
STARTS: tuple[tuple[float, float], ...] = (
    (0.0, 1.0),
    (0.25, 1.0),
    (1.0, 1.0),
    (25.6302, 0.01),
    (98.0, 0.01),
    (3.0, 1.0),
)
"""The pairs alpha, beta that the paper names: starts of its nets and, last, the one that Figure 1 alone shows."""
CLOSE = 0.05
"""An approximation has a relative error of at most this; an identity of at most a fifth of it."""
SLIGHTLY = 1.25
"""Slightly slower is less than this many times as slow."""
NEGLIGIBLE_PERCENT = 2.0
UNITS = {"relu": "ReLU", "prelu": "PReLU", "elu": "ELU", "mpelu": "MPELU"}


def special_cases(*, seed: int, data: str) -> dict[str, Any]:  # noqa: ARG001
    """Compare MPELU with ReLU (alpha = 0) and with ELU (alpha = beta = 1).

    Over every float32 whose lower 16 bits are 0 (all exponents, subnormal numbers and infinities included) and a
    million values from -20 to 20. NaN is compared too.

    Returns:
        ``points``; ``relu_differs``, how many values differ for beta 1 or 0.01; ``elu_ulps`` and ``torch_ulps``, the
        greatest error of MPELU and of torch's ELU in units of the last place of the exact value; ``elu_relative``, the
        greatest relative difference of both in float64.
    """
    import torch
    from torch.nn import functional as F

    from mpelu.functional import mpelu

    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    x = torch.cat((patterns, torch.linspace(-20.0, 20.0, 1_000_001)))
    relu = F.relu(x)
    differs = sum(
        int((~torch.isclose(mpelu(x, 0.0, beta), relu, rtol=0.0, atol=0.0, equal_nan=True)).sum())
        for beta in (1.0, 0.01)
    )
    x = x[~x.isnan()]
    wide = x.double()
    exact = torch.where(wide > 0, wide, torch.expm1(wide.clamp(max=0.0)))
    ours, theirs = mpelu(wide, 1.0, 1.0), F.elu(wide)
    apart = (ours - theirs).abs() / theirs.abs()
    return {
        "points": len(patterns) + 1_000_001,
        "relu_differs": differs,
        "elu_ulps": _units_of_the_last_place(mpelu(x, 1.0, 1.0), exact),
        "torch_ulps": _units_of_the_last_place(F.elu(x), exact),
        "elu_relative": float(apart[apart.isfinite()].max()),
    }


def _units_of_the_last_place(found: Any, exact: Any) -> float:
    """Return the greatest error of float32 values in units of the last place of the exact ones, float64."""
    import torch

    rounded = exact.float().abs()
    unit = (torch.nextafter(rounded, torch.tensor(torch.inf)) - rounded).double()
    error = (found.double() - exact).abs() / unit
    return float(error[exact.isfinite() & unit.isfinite()].max())


def imitation(
    *,
    seed: int,  # noqa: ARG001
    data: str,  # noqa: ARG001
    alpha: float,
    beta: float,
    slope: float,
    units: int = 1,
) -> dict[str, Any]:
    """Compare the negative side of MPELU with a line.

    Args:
        seed: Not used, nor is ``data``.
        data: Not used.
        alpha: Of MPELU.
        beta: Of MPELU.
        slope: Of the line.
        units: How many of them in a row ``through`` is for.

    Returns:
        Relative errors: ``largest`` and ``least`` for y in [-r, 0), by r; ``at_5``, with its sign, at y = -5.
        ``leaves``, by error, the y below which the error is greater. ``through``, what y = -1 becomes in the end.
    """
    import torch

    from mpelu.functional import mpelu

    def error(y: Any) -> Any:
        return mpelu(y, alpha, beta) / (slope * y) - 1.0

    largest, least, points = {}, {}, 100_000
    for reach in (1, 3, 10, 30):
        errors = error(-reach * torch.arange(1, points + 1, dtype=torch.float64) / points).abs()
        largest[str(reach)], least[str(reach)] = float(errors.max()), float(errors.min())
    far = -torch.arange(1, points + 1, dtype=torch.float64) / 1000
    leaves = {}
    for limit in (0.05, 0.1):
        beyond = far[error(far).abs() > limit]
        leaves[str(limit)] = float(beyond[0]) if len(beyond) else float(far[-1])
    y = torch.tensor([-1.0], dtype=torch.float64)
    for _ in range(units):
        y = mpelu(y, alpha, beta)
    at_5 = float(error(torch.tensor([-5.0], dtype=torch.float64)))
    return {
        "points": points,
        "largest": largest,
        "least": least,
        "leaves": leaves,
        "at_5": at_5,
        "through": float(y),
    }


def one_sided_slopes(*, seed: int, data: str, pairs: Sequence[Sequence[float]]) -> dict[str, Any]:  # noqa: ARG001
    """Return difference quotients of MPELU left and right of 0, in float64, for pairs of alpha and beta."""
    import torch

    from mpelu.functional import mpelu

    step = 1e-7
    y = torch.tensor([-step, 0.0, step], dtype=torch.float64)
    slopes = []
    for alpha, beta in pairs:
        left, middle, right = mpelu(y, alpha, beta).tolist()
        slopes.append({"left": (middle - left) / step, "right": (right - middle) / step})
    return {"pairs": [list(pair) for pair in pairs], "slopes": slopes}


def convexity(*, seed: int, data: str, pairs: Sequence[Sequence[float]], sweep: int = 400) -> dict[str, Any]:  # noqa: ARG001
    """Find out on a grid for which alpha and beta MPELU is convex: no second difference is negative.

    Returns:
        ``convex`` for each pair; ``agree``, in how many of ``sweep`` random pairs (alpha from -1 to 4, beta from 0.01
        to 4) the grid says what 0 <= alpha and alpha beta <= 1 says.
    """
    import torch

    from mpelu.functional import mpelu

    y = torch.linspace(-5.0, 5.0, 2001, dtype=torch.float64)
    y[1000] = 0.0

    def is_convex(alpha: float, beta: float) -> bool:
        f = mpelu(y, alpha, beta)
        return bool((f[2:] - 2 * f[1:-1] + f[:-2]).min() >= -1e-12)  # rounding leaves 1e-15

    draw = torch.Generator().manual_seed(seed)
    random = torch.rand(sweep, 2, generator=draw, dtype=torch.float64) * torch.tensor([5.0, 3.99]).double()
    drawn = [(alpha - 1.0, beta + 0.01) for alpha, beta in random.tolist()]
    agree = sum(is_convex(alpha, beta) == (alpha >= 0 and alpha * beta <= 1) for alpha, beta in drawn)
    return {"convex": [is_convex(*pair) for pair in pairs], "agree": agree, "sweep": sweep}


def unit_seconds(*, seed: int, data: str, shape: Sequence[int], rounds: int) -> dict[str, Any]:  # noqa: ARG001
    """Time one forward and one backward pass of each unit on one core; they take turns.

    Returns:
        ``seconds``, by unit, for each round. ``reference`` is MPELU as the definition computes it, ``naive`` as one
        would write it down.
    """
    from functools import partial

    import torch

    from mpelu.bench.activation import PROVIDERS, step

    draw = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(tuple(shape), generator=draw) for _ in range(2))
    x.requires_grad_()
    units = {name: PROVIDERS[name](shape[1], x.dtype) for name in (*UNITS, "reference", "naive")}
    return seconds_in_turns({name: partial(step, unit, x, grad) for name, unit in units.items()}, rounds)


def step_seconds(
    *,
    seed: int,
    data: str,  # noqa: ARG001
    model: str,
    options: Mapping[str, Any],
    size: int,
    batch: int,
    rounds: int,
) -> dict[str, Any]:
    """Time a training step of a net with each unit on one core, with random images; they take turns.

    Returns:
        ``seconds``, by unit, for each round.
    """
    from functools import partial

    import torch

    from mpelu.bench.model import step
    from mpelu.models import create_model

    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=draw).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=draw)
    nets = {
        name: create_model(model, 10, activation=name, in_channels=3, **options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name in UNITS
    }
    steps = {
        name: partial(step, net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9), images, labels)
        for name, net in nets.items()
    }
    return seconds_in_turns(steps, rounds)


PAPER_FAMILIES = (
    "nin", "imagenet", "resnet", "nonbottleneck", "preact", "nopre", "fig5a", "fig5b", "fig5c", "fig5e",
)  # fmt: skip


def extra_parameters(*, seed: int, data: str) -> dict[str, Any]:  # noqa: ARG001
    """Count the parameters of the paper's nets with MPELU and with ReLU, and the channels of their activations.

    Returns:
        By name of the net: ``mpelu``, ``relu`` and ``channels``.
    """
    import torch

    from mpelu.models import FAMILIES, create_model
    from mpelu.nn import MPELU

    found = {}
    for family in PAPER_FAMILIES:
        for depth in FAMILIES[family].depths or ("",):
            name = f"{family}{depth}"
            with torch.device("meta"):
                net, plain = (create_model(name, activation=activation) for activation in ("mpelu", "relu"))
            found[name] = {
                "mpelu": sum(parameter.numel() for parameter in net.parameters()),
                "relu": sum(parameter.numel() for parameter in plain.parameters()),
                "channels": sum(unit.alpha.numel() for unit in net.modules() if isinstance(unit, MPELU)),
            }
    return found


def gaussian_shares(*, seed: int, data: str, bounds: Sequence[float]) -> dict[str, Any]:  # noqa: ARG001
    """Return the share of N(0, 1) above the y at which Eq. 27 promises a residual below each bound, for (1, 1)."""
    import math

    from mpelu.diagnostics.linearization import threshold

    return {"percent": [100 * 0.5 * math.erfc(threshold(bound) / math.sqrt(2.0)) for bound in bounds]}


def _single(
    function: str, *, seconds: float = 2.0, data: str = "", version: int = 1, **options: Any
) -> tuple[Measurement, ...]:
    return (Measurement(f"{HERE}:{function}", options, data=data, seconds=seconds, version=version),)


def _values(records: Sequence[Record]) -> Any:
    return records[0]["values"]


def _special_cases(records: Sequence[Record]) -> Conclusion:
    found = _values(records)
    differs = computed("values at which MPELU (0, beta) is not ReLU", found["relu_differs"], n=2 * found["points"])
    places = computed(
        "greatest error of MPELU (1, 1) against ELU", found["elu_ulps"], n=found["points"], unit="ulp", bound=2.0
    )
    return Conclusion(
        all_of([holds(found["relu_differs"] == 0), holds(found["elu_ulps"] <= 2.0 and found["elu_relative"] < 1e-14)]),
        f"With alpha = 0, {found['relu_differs']} of {2 * found['points']:,} float32 values differ from ReLU. With "
        f"alpha = beta = 1 the greatest rounding error is {found['elu_ulps']:.2f} units of the last place "
        f"(torch's ELU: {found['torch_ulps']:.2f}), and in float64 both agree to {found['elu_relative']:.0e}. "
        "Held to be exact: no value of ReLU differs, and ELU is met within 2 units of the last place.",
        (differs, places),
    )


def _imitates_prelu(records: Sequence[Record]) -> Conclusion:
    found = _values(records)
    percent = 100 * found["largest"]["10"]
    error = computed("greatest relative error on [-10, 0)", percent, n=found["points"], unit="%", bound=100 * CLOSE)
    meets = computed("relative error at y = -5", 100 * found["at_5"], n=1, unit="%")
    return Conclusion(
        all_of([outcome_of(error, "below"), holds(abs(found["at_5"]) < 1e-4)]),
        f"At y = -5 the two are equal (relative error {abs(found['at_5']):.0e}), on [-10, 0) they are at most "
        f"{percent:.2f} % apart, most of all next to 0, where the slope is 0.2563. Beyond that the exponential bends "
        f"away: the error is above 5 % below y = {found['leaves']['0.05']:.1f} and above 10 % below "
        f"{found['leaves']['0.1']:.1f}. Held to approximate: at most 5 % on [-10, 0).",
        (error, meets),
    )


def _identity(records: Sequence[Record]) -> Conclusion:
    found = _values(records)
    limit = 100 * CLOSE / 5
    largest, least = 100 * found["largest"]["3"], 100 * found["least"]["3"]
    error = computed("greatest relative error on [-3, 0)", largest, n=found["points"], unit="%", bound=limit)
    return Conclusion(
        outcome_of(error, "below"),
        f"The negative side is a line of slope 0.98 that bends: on [-3, 0) its relative error is {least:.2f} % to "
        f"{largest:.2f} %, on [-10, 0) up to {100 * found['largest']['10']:.2f} %. Through the 54 units of a net of "
        f"110 layers y = -1 becomes {found['through']:.3f}. Held to be an identity: at most {limit:g} % on [-3, 0).",
        (error,),
    )


def _differentiable(records: Sequence[Record]) -> Conclusion:
    found = _values(records)
    jumps = [each["right"] - each["left"] for each in found["slopes"]]
    smooth = [pair for pair, jump in zip(found["pairs"], jumps, strict=True) if abs(jump) < 1e-5]
    worst = max(jumps, key=abs)
    jump = computed("greatest jump of the slope at 0", worst, n=len(jumps), error=1e-5)
    named = "; ".join(
        f"({alpha:g}, {beta:g}): {each['left']:.3g} and {each['right']:.3g}"
        for (alpha, beta), each in zip(found["pairs"], found["slopes"], strict=True)
    )
    return Conclusion(
        holds(len(smooth) == len(jumps)),
        f"Slopes left and right of 0 by (alpha, beta): {named}. They agree only where alpha beta = 1, which is "
        f"{len(smooth)} of the {len(jumps)} pairs that the paper names.",
        (jump,),
    )


CONVEX_BASE = replace(BASE, model="plain20", activation="mpelu", alpha=3.0, beta=1.0)


def _convexity_jobs(setting: Setting) -> tuple[Job, ...]:
    seeds = range(setting.seeds or 5)
    return (
        *_single("convexity", pairs=[list(pair) for pair in STARTS]),
        *(Training(replace(CONVEX_BASE, init=init), seed) for init in ("eq22", "msra") for seed in seeds),
    )


def _convexity(records: Sequence[Record]) -> Conclusion:
    measured = [record for record in records if record.get("kind") == "measurement"]
    if not measured:
        return Conclusion("not run", "Not yet computed.", ())
    found = _values(measured)
    convex = [pair for pair, is_convex in zip(STARTS, found["convex"], strict=True) if is_convex]
    named = ", ".join(f"({alpha:g}, {beta:g})" for alpha, beta in convex)
    starts = STARTS[:-1]
    others = sum(pair not in convex for pair in starts)
    share = computed(
        "pairs that nets of the paper start from for which MPELU is not convex", others, n=len(starts), bound=1.0
    )
    learned, told = _learned(records)
    return Conclusion(
        holds(others >= 1),
        f"On a grid MPELU is convex for {named}, and is {'' if STARTS[-1] in convex else 'not '}for (3, 1), which "
        f"Figure 1 alone shows. It is convex just where 0 <= alpha and alpha beta <= 1, as {found['agree']} of "
        f"{found['sweep']} random pairs confirm: some of the family are not, and training may lead there. Held to be "
        f"not convex: for one pair or more that a net of the paper starts from, which is computed. {told}".rstrip(),
        there((share, learned)),
    )


def _learned(records: Sequence[Record]) -> tuple[Any, str]:
    """Compare the last training losses of nets that start at (3, 1), from Eq. 22 and from MSRA."""
    runs = {
        init: {
            record["seed"]: record
            for record in records
            if record.get("kind") != "measurement" and record["config"]["init"] == init
        }
        for init in ("eq22", "msra")
    }
    seeds = sorted(runs["eq22"].keys() & runs["msra"].keys())
    if not seeds:
        return None, ""
    finished = {init: [found[seed]["outcome"] == "finished" for seed in seeds] for init, found in runs.items()}
    both = [seed for index, seed in enumerate(seeds) if finished["eq22"][index] and finished["msra"][index]]
    if len(both) < len(seeds):
        interval = share_difference("runs from (3, 1) that end, Eq. 22 minus MSRA", finished["eq22"], finished["msra"])
    else:
        errors = {init: [runs[init][seed]["last"]["test_error_percent"] for seed in both] for init in runs}
        interval = paired_difference("test error from (3, 1), Eq. 22 minus MSRA", errors["eq22"], errors["msra"])
    ends = {init: _ends(list(found.values())) for init, found in runs.items()}
    told = (
        "Beside it, without a part in the verdict, a plain net of 20 layers that starts at (3, 1), on digits: from "
        f"Eq. 22 {ends['eq22']}; from MSRA {ends['msra']}."
    )
    better = len(both) == len(seeds) and outcome_of(interval, "below") == "confirmed"
    return interval, f"{told} So Eq. 22 does serve one that is not convex." if better else told


def _ends(records: Sequence[Record]) -> str:
    errors = [record["last"]["test_error_percent"] for record in records if record["outcome"] == "finished"]
    broken = len(records) - len(errors)
    if not errors:
        return f"{broken} of {len(records)} diverged"
    mean = f"{statistics.fmean(errors):.1f} % test error, n = {len(errors)}"
    return f"{mean}, {broken} diverged" if broken else mean


UNIT_SHAPE = {"cpu": (16, 64, 56, 56), "paper": (64, 64, 112, 112)}


def _timing_jobs(setting: Setting) -> tuple[Measurement, ...]:
    seconds = {"cpu": 12.0, "paper": 200.0}[setting.scale]
    return _single("unit_seconds", shape=list(UNIT_SHAPE[setting.scale]), rounds=15, seconds=seconds, version=QUIET)


def _times(quantity: str, seconds: Sequence[float], others: Sequence[float]) -> Interval:
    found = ratio(quantity, seconds, others)
    assert found is not None  # a round counts, and there are many
    return found


def _speed(records: Sequence[Record]) -> Conclusion:
    seconds = _values(records)["seconds"]
    kernel, reference, naive = (
        compared(_times(f"seconds of {named} over PReLU", seconds[name], seconds["prelu"]), SLIGHTLY)
        for name, named in (
            ("mpelu", "MPELU"),
            ("reference", "the definition without a kernel"),
            ("naive", "MPELU as one writes it down"),
        )
    )
    beside_elu = _times("seconds of MPELU over ELU", seconds["mpelu"], seconds["elu"])
    milliseconds = ", ".join(f"{label} {1e3 * statistics.median(seconds[name]):.1f}" for name, label in UNITS.items())
    return Conclusion(
        outcome_of(kernel, "below"),
        f"One forward and one backward pass of MPELU take {kernel.estimate:.2f} times what PReLU's take; the "
        f"definition, operator by operator, takes {reference.estimate:.2f} times, and MPELU as one writes it down "
        f"{naive.estimate:.2f} times. ELU's take {1 / beside_elu.estimate:.2f} times what MPELU's take. Medians in ms: "
        f"{milliseconds}. Held to be slightly slower: less than {SLIGHTLY:g} times, with the kernel of this library.",
        (kernel, reference, naive, beside_elu),
    )


def _speed_differs(setting: Setting) -> str:
    shape = " x ".join(map(str, UNIT_SHAPE[setting.scale]))
    return f"One core of a CPU, a single unit of shape {shape} in float32; the paper timed a net in Caffe on a Titan X."


def _few_parameters(records: Sequence[Record]) -> Conclusion:
    found = _values(records)
    extra = {name: net["mpelu"] - net["relu"] for name, net in found.items()}
    percent = {name: 100 * extra[name] / found[name]["relu"] for name in found}
    most = max(percent, key=percent.__getitem__)
    two = computed(
        "most extra parameters for each channel",
        max(extra[name] / found[name]["channels"] for name in found),
        n=len(found),
        bound=2.0,
    )
    share = computed("largest share", percent[most], n=len(found), unit="%", bound=NEGLIGIBLE_PERCENT)
    return Conclusion(
        all_of([holds(two.estimate <= 2.0), outcome_of(share, "below")]),
        f"In all {len(found)} nets MPELU has {two.estimate:g} parameters for each channel of an activation. That is "
        f"{percent['nin']:.2f} % in NIN, {percent['nopre164']:.2f} % in nopre164 and at most {percent[most]:.2f} % "
        f"({most}). Held to be negligible: below {NEGLIGIBLE_PERCENT:g} %.",
        (two, share),
    )


PRINTED_SHARES = {4.5: "99.865", 2.0: "97.725", 0.5: "84.135", 0.01: "55.57"}


def _shares(records: Sequence[Record]) -> Conclusion:
    exact = dict(zip(PRINTED_SHARES, _values(records)["percent"], strict=True))
    intervals = []
    right = []
    for bound, text in PRINTED_SHARES.items():
        unit = 10.0 ** -len(text.partition(".")[2])
        right.append(abs(exact[bound] - float(text)) <= unit)
        quantity = f"inputs with a residual below {bound:g}"
        intervals.append(computed(quantity, exact[bound], n=1, unit="%", error=1e-9, bound=float(text)))
    wrong = [
        f"{text} should be {exact[bound]:.2f}"
        for (bound, text), is_right in zip(PRINTED_SHARES.items(), right, strict=True)
        if not is_right
    ]
    return Conclusion(
        holds(all(right)),
        f"{sum(right)} of the {len(right)} percentages are right to a unit of the last digit; "
        f"{'; '.join(wrong) or 'none is wrong'}. 55.57 is what a table of two digits gives at y = -0.14 in the place "
        "of -0.1414; the conclusion that the paper draws from it is not touched.",
        tuple(intervals),
    )


def _sizes(records: Sequence[Record]) -> Conclusion:
    found = _values(records)
    intervals = tuple(
        computed(
            f"parameters of nopre{depth} with MPELU less those of preact{depth} with ReLU",
            found[f"nopre{depth}"]["mpelu"] - found[f"preact{depth}"]["relu"],
            n=1,
        )
        for depth in (164, 1001)
    )
    told = "; ".join(
        f"{depth} layers: {found[f'nopre{depth}']['mpelu']:,} against {found[f'preact{depth}']['relu']:,}"
        for depth in (164, 1001)
    )
    return Conclusion(
        all_of([outcome_of(interval, "below") for interval in intervals]),
        f"{told}. The parameters of MPELU are fewer than those of the normalizations that are left out.",
        intervals,
    )


CLAIMS = (
    claim(
        1,
        "MPELU with alpha = 0 is ReLU, with alpha = beta = 1 it is ELU, exactly.",
        lambda _: _single("special_cases"),
        _special_cases,
        has_scale=False,
    ),
    claim(
        2,
        "MPELU (25.6302, 0.01) approximates PReLU with slope 0.25.",
        lambda _: _single("imitation", alpha=25.6302, beta=0.01, slope=0.25),
        _imitates_prelu,
        has_scale=False,
    ),
    claim(
        3,
        "MPELU (98, 0.01) behind the addition makes shortcut and unit together an identity.",
        lambda _: _single("imitation", alpha=98.0, beta=0.01, slope=1.0, units=54),
        _identity,
        has_scale=False,
    ),
    claim(
        4,
        "MPELU is differentiable everywhere.",
        lambda _: _single("one_sided_slopes", pairs=[list(pair) for pair in STARTS]),
        _differentiable,
        has_scale=False,
    ),
    claim(
        5,
        "MPELU is not convex, so that Eq. 22 covers activations that are not convex.",
        _convexity_jobs,
        _convexity,
        differs=lambda _: (
            "the paper trains no net from (3, 1); ours, at scale cpu, is a plain net of 20 layers and width 16, 10 "
            "epochs on digits"
        ),
        has_scale=False,
    ),
    claim(
        6,
        "MPELU runs only slightly slower than PReLU.",
        _timing_jobs,
        _speed,
        differs=_speed_differs,
    ),
    claim(
        7,
        "MPELU has at most two extra parameters for each channel, which is negligible.",
        lambda _: _single("extra_parameters", seconds=10.0),
        _few_parameters,
        has_scale=False,
    ),
    claim(
        30,
        "Of Gaussian inputs 99.865, 97.725, 84.135 and 55.57 % have residuals below 4.5, 2, 0.5 and 0.01.",
        lambda _: _single("gaussian_shares", bounds=list(PRINTED_SHARES)),
        _shares,
        has_scale=False,
    ),
    claim(
        51,
        "The nopre nets with MPELU are no larger than the pre-activation nets with ReLU.",
        lambda _: _single("extra_parameters", seconds=10.0),
        _sizes,
        has_scale=False,
    ),
)

ROUNDS = 12
NETS: dict[str, dict[str, Any]] = {
    "cpu": {
        "model": "plain15",
        "options": {"width": 32, "input_size": 32, "batch_norm": True},
        "size": 32,
        "batch": 32,
    },
    "paper": {"model": "imagenet15", "options": {}, "size": 224, "batch": 64},
}


def _table4_jobs(setting: Setting) -> tuple[Measurement, ...]:
    seconds = {"cpu": 25.0, "paper": 1500.0}[setting.scale]
    return _single("step_seconds", rounds=ROUNDS, seconds=seconds, version=QUIET, **NETS[setting.scale])


def _table4(results: Results) -> Grid:
    records = results.present(_table4_jobs(results.setting))
    cells = []
    for name, label in UNITS.items():
        cell = printed("table04", {"activation": label}, "seconds_per_iteration")
        if records:
            ours = spread(_values(records)["seconds"][name])
            cell = replace(cell, ours=ours, digits=3, runs=(key_of(records[0]),))
        cells.append(cell)
    net = NETS[results.setting.scale]
    return Grid(
        name="table4",
        title="Seconds of a training step of a 15-layer net with BN",
        columns=("", *UNITS.values()),
        rows=(("seconds an iteration", *cells),),
        scale=results.setting.scale,
        data="",
        notes=(
            f"Ours: {net['model']}, {net['size']} pixels, {net['batch']} images of noise in a step, one core of a CPU.",
            f"They take turns, {ROUNDS} steps each.",
            "The paper: batch 64, Caffe on a Titan X, mean over 600,000 iterations; its text has no numbers.",
        ),
    )


PANELS: dict[str, dict[str, tuple[float, float] | str]] = {
    "(a) MPELU beside other units": {
        "ReLU": "relu",
        "PReLU, slope 0.25": "prelu",
        "ELU, alpha 1": "elu",
        "MPELU (3, 1)": (3.0, 1.0),
    },
    "(b) what MPELU becomes": {
        "MPELU (0, 1), which is ReLU": (0.0, 1.0),
        "MPELU (25.6302, 0.01), near PReLU": (25.6302, 0.01),
        "MPELU (1, 1), which is ELU": (1.0, 1.0),
    },
}
"""The curves of Figure 1: pairs (alpha, beta), or units of torch."""


def _figure1(_: Results) -> Picture:
    import torch
    from torch.nn import functional as F

    from mpelu.functional import mpelu
    from mpelu.report.shapes import shapes_figure

    y = torch.linspace(-5.0, 3.0, 161, dtype=torch.float64)
    others = {"relu": F.relu(y), "prelu": F.leaky_relu(y, 0.25), "elu": F.elu(y)}
    panels = {
        title: {
            label: (others[unit] if isinstance(unit, str) else mpelu(y, *unit)).tolist()
            for label, unit in curves.items()
        }
        for title, curves in PANELS.items()
    }
    return Picture(
        name="figure1",
        title="Shapes of activations",
        svg=shapes_figure(y.tolist(), panels, name="figure1"),
        caption=(
            "Eq. 3, as the library computes it, for the pairs (alpha, beta) that the text names. (a) PReLU with slope "
            "0.25, ELU with alpha 1, MPELU (3, 1). (b) MPELU as ReLU, as nearly PReLU, and as ELU."
        ),
        scale="any",
        data="",
    )


EXHIBITS = (
    Exhibit("table4", "Seconds of a training step of a 15-layer net", _table4_jobs, _table4),
    Exhibit("figure1", "Shapes of activations", lambda _: (), _figure1),
)
