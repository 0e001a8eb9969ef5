"""How deep ELU nets without normalization start: Eq. 22, LSUV, and gains that are exact (claims 31, 34).

Source:   Li et al., arXiv:1606.00305, section 4.3; README of the authors' code.
Command:  mpelu reproduce claim31, mpelu reproduce claim34

LSUV gives each layer unit variance, Eq. 22 less and less of it, and so smaller gradients. A tenth of the learning rate
tells a bad start from a step that is too large.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

from mpelu.recipes import imagenet30
from mpelu.report.finding import Finding, Interval
from mpelu.studies.by_name import recipe_at
from mpelu.studies.converging import SEEDS, SHORTER, epochs_of
from mpelu.studies.fate import LEARNS, Part, conclude, counts, difference, share
from mpelu.studies.jobs import Setting, Training, of_each_seed
from mpelu.studies.study import Claim, Exhibit, Results

DECISIVE_SEEDS = 6
"""Where one net decides: the interval of 5 of 5 still holds one half."""
ROWS = {row.name: row for row in imagenet30.ROWS}

Init: TypeAlias = Literal["eq22", "lsuv", "second_moment", "critical", "auto"]


@dataclass(frozen=True)
class Start:
    """One case of the comparison of initializations: an ELU net without BN.

    Attributes:
        depth: 30 or 52.
        init: As in a recipe.
        rate: Times the paper's learning rate.
        unit_variance: Whether pixels are divided by their standard deviation, as the exact gains expect.
    """

    depth: int
    init: Init
    rate: float = 1.0
    unit_variance: bool = False

    @property
    def label(self) -> str:
        rate = "" if self.rate == 1 else f", lr x {self.rate:g}"
        return f"{self.depth} layers, {STARTS[self.init]}{rate}{', unit variance' if self.unit_variance else ''}"

    def trainings(self, setting: Setting) -> tuple[Training, ...]:
        """Return one training for each seed: more of them where the verdict is on a single net."""
        return _trainings(self, setting)


@cache
def _trainings(start: Start, setting: Setting) -> tuple[Training, ...]:
    row = ROWS[f"imagenet{start.depth}-elu"]
    recipe = recipe_at(row, setting)
    if setting.scale == "cpu":
        recipe = replace(recipe, epochs=epochs_of(setting))
    if start.unit_variance:
        recipe = replace(recipe, center="channel", pixel_scale="std")
    assert recipe.lr is not None
    made = replace(recipe, init=start.init, lr=recipe.lr * start.rate)
    count = DECISIVE_SEEDS if start.rate == 1 and not start.unit_variance else SEEDS
    return of_each_seed(made, setting, count)


STARTS = {
    "eq22": "Eq. 22",
    "lsuv": "LSUV",
    "second_moment": "exact second moment",
    "critical": "critical",
    "auto": "auto",
}
DEPTHS = (30, 52)
LSUV = tuple(Start(depth, "lsuv") for depth in DEPTHS)
EQ22 = tuple(Start(depth, "eq22") for depth in DEPTHS)
SLOWER = tuple(replace(start, rate=0.1) for start in (*LSUV, *EQ22))
STATEMENT_31 = (
    "From LSUV, 30- and 52-layer ELU nets without BN explode within a few iterations; from Eq. 22 they converge"
)
STATEMENT_34 = "Eq. 22, which is of first order, works well in deep nets, although its residuals are not negligible"
DIFFERS_34 = (
    f"{SHORTER}; a narrow net bears a greater learning rate, so that one which fails in the paper may learn here at "
    "the same rate"
)
DIFFERS_31 = (
    f"{DIFFERS_34}; our LSUV scales all layers in one pass over the first batch, the published one repeats passes "
    "until each variance is within 0.02 of 1"
)
EXPLODE = "Exploding is held to be not learning, in whatever way"


def _learning(results: Results, start: Start) -> Interval | None:
    return share(results, f"runs that learn, {start.label}", [start.trainings(results.setting)])


def judge_31(results: Results) -> Finding:
    """At both depths most runs from LSUV must fail, and most from Eq. 22 must learn."""
    said = {start.label: counts(results, start.trainings(results.setting)) for start in LSUV}
    told = [f"{label}: {text}" for label, text in said.items() if text]
    return conclude(
        31,
        STATEMENT_31,
        results,
        jobs_31(results.setting),
        [
            *(Part(_learning(results, start), "below") for start in LSUV),
            *(Part(_learning(results, start), "above") for start in EQ22),
        ],
        beside=[_learning(results, start) for start in SLOWER],
        note=". ".join((LEARNS, EXPLODE, "; ".join([*told, *_slower_in_words(results)]))) if told else "",
        differs=DIFFERS_31,
    )


def _slower_in_words(results: Results) -> list[str]:
    said = [(start.label, counts(results, start.trainings(results.setting))) for start in SLOWER]
    return [f"{label}: {text}" for label, text in said if text]


def jobs_31(setting: Setting) -> tuple[Training, ...]:
    """Return both starts at both depths, and again at a tenth of the learning rate."""
    return tuple(job for start in (*LSUV, *EQ22, *SLOWER) for job in start.trainings(setting))


EXACT: tuple[Init, ...] = ("second_moment", "critical", "auto")
UNIT_STARTS = tuple(Start(depth, init, unit_variance=True) for depth in DEPTHS for init in ("eq22", *EXACT))


def judge_34(results: Results) -> Finding:
    """Most runs from Eq. 22 must learn at both depths; how exact gains compare is reported beside."""
    excess = [
        difference(
            results,
            f"Eq. 22 minus {STARTS[start.init]}, {start.depth} layers, unit variance",
            replace(start, init="eq22").trainings(results.setting),
            start.trainings(results.setting),
            "training loss",
        )
        for start in UNIT_STARTS
        if start.init != "eq22"
    ]
    said = [
        f"{found.quantity} {found.estimate:+.2f} ({found.low:+.2f} to {found.high:+.2f})" for found in excess if found
    ]
    return conclude(
        34,
        STATEMENT_34,
        results,
        jobs_34(results.setting),
        [Part(_learning(results, start), "above") for start in EQ22],
        beside=[*excess, *(_learning(results, start) for start in UNIT_STARTS)],
        note=". ".join(filter(None, (f"Held to work well: most runs learn. {LEARNS}", "; ".join(said)))),
        differs=DIFFERS_34,
    )


def jobs_34(setting: Setting) -> tuple[Training, ...]:
    """Return Eq. 22 on raw pixels, and beside exact gains on pixels of unit variance."""
    return tuple(job for start in (*EQ22, *UNIT_STARTS) for job in start.trainings(setting))


CLAIMS = (
    Claim(31, STATEMENT_31, jobs_31, judge_31),
    Claim(34, STATEMENT_34, jobs_34, judge_34),
)
EXHIBITS: tuple[Exhibit, ...] = ()
