"""Which activations converge in 30 layers without normalization, from which fan, and how ReLU fails (claims 26, 28).

Source:   Li et al., arXiv:1606.00305, section 4.3; README of the authors' code.
Command:  mpelu reproduce claim26, mpelu reproduce claim28

Two things that the paper holds fixed are varied besides. The learning rate: narrow nets bear a greater one, so that
what diverges in the paper may only do so here at 2 or 4 times 0.01. And how the input and the last layers are scaled:
raw pixels or unit variance; fully connected layers with the released standard deviations, which ReLU has others of, or
with the same for all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

from mpelu.recipes import imagenet30
from mpelu.recipes.imagenet30 import FANS, LABELS, Fan, connected_std, entering_std, narrow_std, released_std
from mpelu.report.finding import Finding, Interval
from mpelu.report.summary import Record, finite
from mpelu.studies.by_name import recipe_at
from mpelu.studies.fate import LEARNS, Part, conclude, fate, learns, share, share_of
from mpelu.studies.jobs import Setting, Training, of_each_seed
from mpelu.studies.statistic import share_difference
from mpelu.studies.study import Claim, Exhibit, Results

SEEDS = 3
EPOCHS = 4
"""At scale cpu, for what shows itself early; with the digits, which are fewer, 8."""
ROWS = {row.name: row for row in imagenet30.ROWS}
SHORTER = "; ".join(imagenet30.FACTORS).replace("down to 8", f"down to {EPOCHS} (8 of the digits)")
OVERFLOW = 88.7
"""exp of more than this is not a float32."""

Variant: TypeAlias = Literal["raw", "unit variance", "equal std"]


def epochs_of(setting: Setting) -> int:
    """Return how many epochs the short trainings have at scale cpu."""
    return 2 * EPOCHS if setting.data == "digits" else EPOCHS


@dataclass(frozen=True)
class Cell:
    """One case of the comparison of fans.

    Attributes:
        activation: A key of :data:`mpelu.recipes.imagenet30.LABELS`.
        fan: Of Eq. 22.
        rate: Times the paper's learning rate.
        variant: ``raw`` pixels as in the paper; ``unit variance``; or ``equal std``, raw with the same standard
            deviations of fully connected layers for all activations.
    """

    activation: str
    fan: Fan
    rate: float = 1.0
    variant: Variant = "raw"

    @property
    def label(self) -> str:
        rate = "" if self.rate == 1 else f", lr x {self.rate:g}"
        return f"{LABELS[self.activation]} {self.fan}{rate}{'' if self.variant == 'raw' else f', {self.variant}'}"

    def trainings(self, setting: Setting) -> tuple[Training, ...]:
        """Return one training for each seed."""
        return _trainings(self, setting)


@cache
def _trainings(cell: Cell, setting: Setting) -> tuple[Training, ...]:
    stds_of = "elu" if cell.variant == "equal std" else cell.activation
    row = ROWS[imagenet30.name_of(cell.activation, fan=cell.fan)]
    recipe = recipe_at(row, setting, follow="code")
    if setting.scale == "paper":
        recipe = replace(recipe, layer_std=released_std(cell.activation, fan=cell.fan) | connected_std(stds_of))
    else:
        fan_in = 9 if setting.data == "digits" else 27
        entering = {"conv1.weight": entering_std(cell.activation, fan=cell.fan, fan_in=fan_in)}
        recipe = replace(recipe, layer_std=entering | narrow_std(stds_of), epochs=epochs_of(setting))
    if cell.variant == "unit variance":
        recipe = replace(recipe, center="channel", pixel_scale="std")
    assert recipe.lr is not None
    recipe = replace(recipe, lr=recipe.lr * cell.rate)
    return of_each_seed(recipe, setting, SEEDS)


PAPER_CELLS = tuple(Cell(activation, fan) for activation in ("relu", "prelu", "elu", "mpelu") for fan in FANS)
RATES = (2.0, 4.0)
LRS = (1.0, *RATES)
"""Times the learning rate of the paper."""
FASTER = tuple(replace(cell, rate=rate) for rate in RATES for cell in PAPER_CELLS)
UNIT = tuple(replace(cell, variant="unit variance") for cell in PAPER_CELLS)
EQUAL = tuple(replace(cell, variant="equal std") for cell in PAPER_CELLS if cell.activation == "relu")
CONDITIONS = {
    "lr 0.01": PAPER_CELLS,
    "lr x 2": FASTER[: len(PAPER_CELLS)],
    "lr x 4": FASTER[len(PAPER_CELLS) :],
    "unit variance": UNIT,
    "equal std": EQUAL,
}
CELLS = tuple(cell for cells in CONDITIONS.values() for cell in cells)
STATEMENT_26 = (
    "In 30 layers without BN, ReLU fails with fan_in, fan_out and average, PReLU converges with fan_out only, and ELU "
    "and MPELU converge with all three"
)
DIFFERS_26 = (
    f"{SHORTER}; the first convolution is scaled so that its output is as large "
    "as in the paper's net for each fan, and the fully connected layers have the gains of the released files; a narrow "
    "net bears a greater learning rate, so that one which fails in the paper may learn here at the same rate"
)
DIFFERS_28 = (
    f"{DIFFERS_26}; torch takes the largest logit off before exp, so that its softmax does not overflow as the paper's "
    "may: what is looked at is how large logits become, not what breaks first"
)


def converges_in_paper(cell: Cell) -> bool:
    """True where the paper says that a net converges."""
    return cell.activation in ("elu", "mpelu") or (cell.activation == "prelu" and cell.fan == "fan_out")


def _as_claimed(results: Results, cells: Sequence[Cell], quantity: str) -> Interval | None:
    """Return the share of runs that converge where the paper says so, and do not elsewhere."""
    found = [(cell, results.present(cell.trainings(results.setting))) for cell in cells]
    if not all(records for _, records in found):
        return None
    return share_of(
        quantity, [learns(record) == converges_in_paper(cell) for cell, records in found for record in records]
    )


def judge_26(results: Results) -> Finding:
    """Most runs of ReLU, of PReLU and of the exponential units must do what the paper says of them."""
    of = {
        "ReLU": [cell for cell in PAPER_CELLS if cell.activation == "relu"],
        "PReLU": [cell for cell in PAPER_CELLS if cell.activation == "prelu"],
        "ELU and MPELU": [cell for cell in PAPER_CELLS if cell.activation in ("elu", "mpelu")],
    }
    parts = [
        Part(_as_claimed(results, cells, f"{name} runs that end as claimed"), "above") for name, cells in of.items()
    ]
    failing = [cell for cell in of["PReLU"] if not converges_in_paper(cell)]
    parts.append(Part(_as_claimed(results, failing, "PReLU runs from fan_in and average that fail"), "above"))
    beside = [
        *(
            _as_claimed(results, cells, f"runs that end as claimed, {name}")
            for name, cells in CONDITIONS.items()
            if cells != PAPER_CELLS
        ),
        *(share(results, f"runs that learn, {cell.label}", [cell.trainings(results.setting)]) for cell in CELLS),
    ]
    told = [f"{name}: {text}" for name, cells in CONDITIONS.items() if (text := _usual(results, cells))]
    note = f"{LEARNS}. What most runs do with {', '.join(FANS)}: {'; '.join(told)}" if told else ""
    return conclude(
        26, STATEMENT_26, results, jobs_26(results.setting), parts, beside=beside, note=note, differs=DIFFERS_26
    )


def _usual(results: Results, cells: Sequence[Cell]) -> str:
    """Say what most runs of each activation do, one word for each fan, e.g. "ReLU diverged/flat/flat"."""
    words: dict[str, list[str]] = {}
    for cell in cells:
        records = results.present(cell.trainings(results.setting))
        usual: list[str] = [name for name, _ in Counter(map(fate, records)).most_common(1)] or ["not run"]
        words.setdefault(LABELS[cell.activation], []).extend(usual)
    ran = {label: found for label, found in words.items() if set(found) != {"not run"}}
    return ", ".join(f"{label} {'/'.join(found)}" for label, found in ran.items())


def jobs_26(setting: Setting) -> tuple[Training, ...]:
    """Return all cases of the comparison of fans."""
    return tuple(job for cell in CELLS for job in cell.trainings(setting))


STATEMENT_28 = (
    "ReLU nets diverge because activations at the top grow until the softmax overflows; MPELU, which saturates on the "
    "left, prevents it"
)
CELLS_28 = tuple(cell for cell in (*PAPER_CELLS, *FASTER) if cell.activation in ("relu", "mpelu"))


def largest_logit(record: Record) -> float | None:
    """Return the largest finite |logit| that a training met, None if the record does not hold it."""
    seen = [row.get("max_abs_logit") for row in (*record["history"], record.get("diverged_at") or {})]
    return max((number for value in seen if (number := finite(value)) is not None), default=None)


def judge_28(results: Results) -> Finding:
    """Where ReLU diverges, logits must have overflowed, and MPELU must not diverge, nor as often at such rates."""
    setting = results.setting
    relu = [cell for cell in CELLS_28 if cell.activation == "relu"]
    pairs = [pair for cell in relu for pair in _pairs(results, cell) if _diverged(pair[0])]
    diverging = [
        share(
            results,
            f"ReLU runs that diverge, lr x {rate:g}",
            [cell.trainings(setting) for cell in relu if cell.rate == rate],
            _diverged,
        )
        for rate in LRS
    ]
    sizes = [size for one, _ in pairs if (size := largest_logit(one)) is not None]
    parts, beside = [Part(diverging[0], "above")], diverging[1:]
    if any(found is not None and found.estimate > 0 for found in diverging):
        beyond = share_of(f"diverged ReLU runs with a logit beyond {OVERFLOW}", [size > OVERFLOW for size in sizes])
        ended = share_of("MPELU runs that do not diverge there", [not _diverged(other) for _, other in pairs])
        parts = [Part(beyond, "above"), Part(ended, "above"), Part(_oftener(results, relu), "above")]
        beside = diverging
    told = [f"{_times_diverged(results, rate)} at {rate:g} times the paper's learning rate" for rate in LRS]
    note = f"Diverged: {'; '.join(told)}"
    note += f". The largest finite logits of ReLU runs that did: {min(sizes):.3g} to {max(sizes):.3g}" if sizes else ""
    return conclude(28, STATEMENT_28, results, jobs_28(setting), parts, beside=beside, note=note, differs=DIFFERS_28)


def _diverged(record: Record) -> bool:
    return fate(record) == "diverged"


def _pairs(results: Results, cell: Cell) -> list[tuple[Record, Record]]:
    """Return the runs of a ReLU net, each with the run of MPELU that has the same seed."""
    twins = replace(cell, activation="mpelu").trainings(results.setting)
    jobs = zip(cell.trainings(results.setting), twins, strict=True)
    return [(one, other) for a, b in jobs if (one := results.of(a)) and (other := results.of(b))]


def _oftener(results: Results, relu: Sequence[Cell]) -> Interval | None:
    """Return by how much oftener ReLU diverges than MPELU, at those learning rates at which a ReLU run does."""
    by_rate = {rate: [pair for cell in relu if cell.rate == rate for pair in _pairs(results, cell)] for rate in LRS}
    there = [pair for pairs in by_rate.values() if any(_diverged(one) for one, _ in pairs) for pair in pairs]
    quantity = "share of ReLU runs that diverge minus that of MPELU, at the learning rates where one of ReLU does"
    return share_difference(quantity, [_diverged(one) for one, _ in there], [_diverged(other) for _, other in there])


def _times_diverged(results: Results, rate: float) -> str:
    """Say how many runs diverged at a learning rate, e.g. "ReLU 1 of 9, MPELU 4 of 9"."""
    said = []
    for activation, name in (("relu", "ReLU"), ("mpelu", "MPELU")):
        cells = [cell for cell in CELLS_28 if (cell.activation, cell.rate) == (activation, rate)]
        records = [record for cell in cells for record in results.present(cell.trainings(results.setting))]
        said.append(f"{name} {sum(map(_diverged, records))} of {len(records)}")
    return ", ".join(said)


def jobs_28(setting: Setting) -> tuple[Training, ...]:
    """Return the runs of ReLU and MPELU at all learning rates, which are among those of the comparison of fans."""
    return tuple(job for cell in CELLS_28 for job in cell.trainings(setting))


CLAIMS = (
    Claim(26, STATEMENT_26, jobs_26, judge_26),
    Claim(28, STATEMENT_28, jobs_28, judge_28),
)
EXHIBITS: tuple[Exhibit, ...] = ()
