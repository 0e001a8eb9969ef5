"""The 30-layer nets of section 4.3 beside those of 15: which learn, what depth and BN do (claims 21 to 25, Table 5,
Figure 3).

Source:   Li et al., arXiv:1606.00305, section 4.3, Table 5 and Figure 3.
Command:  mpelu reproduce claim21, mpelu reproduce table5, mpelu reproduce figure3
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from mpelu.recipes import imagenet30
from mpelu.report.finding import Finding
from mpelu.report.grid import Cell, Grid, Picture
from mpelu.report.paper import lines, printed
from mpelu.report.summary import spread
from mpelu.studies.by_name import recipe_at
from mpelu.studies.fate import LEARNS, Part, conclude, counts, difference, differing, errors_of, share
from mpelu.studies.jobs import Setting, Training, key_of, of_each_seed
from mpelu.studies.study import Claim, Exhibit, Results
from mpelu.train.recipe import Recipe

ROWS = {row.name: row for row in imagenet30.ROWS}
NARROW = (
    "Gaussian(0.01) is a twelfth of Eq. 22's standard deviation in the convolutions of so narrow a net, and a third "
    "to a quarter of it in most of the paper's, so that without BN signals fade faster here"
)
DIFFERS = "; ".join(imagenet30.FACTORS)
DIFFERS_GAUSSIAN = "; ".join((*imagenet30.FACTORS[:-1], NARROW, imagenet30.FACTORS[-1]))


@dataclass(frozen=True)
class Net:
    """One of the nets that are compared.

    Attributes:
        activation: ``elu``, or ``mpelu`` with alpha = beta = 1 and no decay of either.
        init: ``gaussian`` or ``eq22``.
        batch_norm: Whether there is BN.
        depth: 15 or 30.
        growing: At the paper's scale, whether maps grow behind the twelfth convolution, as in the released files.
    """

    activation: str
    init: str = "eq22"
    batch_norm: bool = False
    depth: int = 30
    growing: bool = True

    @property
    def label(self) -> str:
        norm = "with BN" if self.batch_norm else "without BN"
        size = " and maps of one size" if not self.growing else ""
        start = "Eq. 22" if self.init == "eq22" else "Gaussian"
        return f"{self.depth}-layer {self.activation.upper()} {norm} from {start}{size}"


def recipe(net: Net, setting: Setting) -> Recipe:
    """Return the recipe of a net: that of the 30-layer row, at another depth or with maps of one size where asked."""
    row = ROWS[imagenet30.name_of(net.activation, init=net.init, batch_norm=net.batch_norm)]
    found = recipe_at(row, setting)
    if setting.scale == "paper" and not net.growing:
        found = replace(found, model_options={"growing": False})
    return replace(found, model=found.model.replace("30", str(net.depth)))


@cache
def trainings(net: Net, setting: Setting) -> tuple[Training, ...]:
    """Return one training of a net for each seed."""
    return of_each_seed(recipe(net, setting), setting)


def _all(nets: Sequence[Net]) -> Callable[[Setting], tuple[Training, ...]]:
    """Return what has to be run for some nets, which are different ones."""
    return lambda setting: tuple(job for net in nets for job in trainings(net, setting))


def _excess(results: Results, one: Net, other: Net, number: str = "test error") -> Part:
    """Return the claim that one net has the greater number."""
    named = f"{one.label} minus {other.label}"
    runs = trainings(one, results.setting), trainings(other, results.setting)
    return Part(difference(results, named, *runs, number), "above")


WITHOUT = {activation: Net(activation) for activation in ("elu", "mpelu")}
FROM_GAUSSIAN = {activation: Net(activation, "gaussian") for activation in ("elu", "mpelu")}
WITH_BN = {
    (activation, init): Net(activation, init, batch_norm=True)
    for activation in ("elu", "mpelu")
    for init in ("gaussian", "eq22")
}
TABLE_5 = (*FROM_GAUSSIAN.values(), *WITHOUT.values(), *WITH_BN.values())


def _at_15(net: Net) -> Net:
    return replace(net, depth=15)


STARTS = (*FROM_GAUSSIAN.values(), *WITHOUT.values())
STATEMENT_21 = (
    "30-layer nets without BN, with ELU or MPELU (1, 1), do not learn from Gaussian(0.01) weights and do from Eq. 22"
)


def judge_21(results: Results) -> Finding:
    """Most runs from Gaussian weights must fail to learn, and most from Eq. 22 must learn."""
    groups = {net: trainings(net, results.setting) for net in STARTS}
    gaussian = [groups[net] for net in FROM_GAUSSIAN.values()]
    eq22 = [groups[net] for net in WITHOUT.values()]
    return conclude(
        21,
        STATEMENT_21,
        results,
        _all(STARTS)(results.setting),
        (
            Part(share(results, "runs from Gaussian(0.01) that learn", gaussian), "below"),
            Part(share(results, "runs from Eq. 22 that learn", eq22), "above"),
        ),
        beside=[share(results, f"runs that learn, {net.label}", [group]) for net, group in groups.items()],
        note=LEARNS,
        differs=DIFFERS_GAUSSIAN,
    )


STATEMENT_22 = "Without BN and from Eq. 22, the 30-layer nets have lower test errors than 15-layer ones: depth helps"
DEPTHS = tuple(net for found in WITHOUT.values() for net in (found, _at_15(found)))


def judge_22(results: Results) -> Finding:
    """The 15-layer net must have the greater error, with ELU and with MPELU."""
    return conclude(
        22,
        STATEMENT_22,
        results,
        _all(DEPTHS)(results.setting),
        [_excess(results, _at_15(net), net) for net in WITHOUT.values()],
        differs=DIFFERS,
    )


STATEMENT_23 = "With BN too, Eq. 22 gives lower test errors than Gaussian(0.01), at 30 and at 15 layers"
PAIRS_23 = tuple(
    (deep(WITH_BN[activation, "gaussian"]), deep(WITH_BN[activation, "eq22"]))
    for activation, deep in (("mpelu", lambda net: net), ("mpelu", _at_15), ("elu", lambda net: net))
)


def judge_23(results: Results) -> Finding:
    """Gaussian must have the greater error in each pair that the paper speaks of."""
    return conclude(
        23,
        STATEMENT_23,
        results,
        _all([net for pair in PAIRS_23 for net in pair])(results.setting),
        [_excess(results, gaussian, eq22) for gaussian, eq22 in PAIRS_23],
        differs=DIFFERS_GAUSSIAN,
    )


STATEMENT_24 = "At 30 layers MPELU (1, 1) has lower test errors than ELU: without BN, and with BN from either start"
PAIRS_24 = (
    (WITHOUT["elu"], WITHOUT["mpelu"]),
    *((WITH_BN["elu", init], WITH_BN["mpelu", init]) for init in ("gaussian", "eq22")),
)


def judge_24(results: Results) -> Finding:
    """ELU must have the greater error in every column."""
    return conclude(
        24,
        STATEMENT_24,
        results,
        _all([net for pair in PAIRS_24 for net in pair])(results.setting),
        [_excess(results, elu, mpelu) for elu, mpelu in PAIRS_24],
        differs=DIFFERS_GAUSSIAN,
    )


STATEMENT_25 = (
    "With BN the 30-layer MPELU nets are worse than the 15-layer ones, in training and test error; without BN they are "
    "not"
)
BN_NETS = (WITH_BN["mpelu", "gaussian"], WITH_BN["mpelu", "eq22"])
ONE_SIZE = replace(WITH_BN["mpelu", "eq22"], growing=False)
NETS_25 = tuple(net for deep in (*BN_NETS, WITHOUT["mpelu"]) for net in (deep, _at_15(deep)))
GROWING = (
    "In the released files every layer behind the twelfth adds a row and a column to the map, so that depth and size "
    "of the map change together"
)


def judge_25(results: Results) -> Finding:
    """The deep net must have the greater errors with BN, the shallow one without."""
    parts = [
        _excess(results, deep, _at_15(deep), number) for deep in BN_NETS for number in ("test error", "training error")
    ]
    parts.append(_excess(results, _at_15(WITHOUT["mpelu"]), WITHOUT["mpelu"]))
    beside = [_excess(results, ONE_SIZE, _at_15(ONE_SIZE)).interval] if results.setting.scale == "paper" else []
    size = "here maps keep their size" if results.setting.scale == "cpu" else "one more pair keeps the size"
    return conclude(
        25,
        STATEMENT_25,
        results,
        jobs_25(results.setting),
        parts,
        beside=beside,
        note=f"{GROWING}; {size}. Without BN, not worse is held to be shown where the 15-layer net has the greater "
        "test error",
        differs=DIFFERS_GAUSSIAN,
    )


def jobs_25(setting: Setting) -> tuple[Training, ...]:
    """Return the nets of both depths; at the paper's scale also two whose maps keep their size."""
    extra = (ONE_SIZE, _at_15(ONE_SIZE)) if setting.scale == "paper" else ()
    return _all((*NETS_25, *extra))(setting)


def show_table5(results: Results) -> Grid:
    """Return Table 5: the paper's errors and outcomes with ours beside them."""
    return Grid(
        name="table5",
        title=TITLE_5,
        columns=("network", "activation", "BN", "init", "top-1 error (%)", "outcome"),
        rows=tuple(_line(results, line["activation"], line["BN"], line["init"]) for line in lines("table05")),
        scale=results.setting.scale,
        data=results.setting.data if results.setting.scale == "cpu" else "imagenet",
        notes=tuple(f"{note}." for note in (LEARNS, differing(DIFFERS_GAUSSIAN, results.setting)) if note),
    )


def _line(results: Results, activation: str, norm: str, init: str) -> tuple[str | Cell, ...]:
    where = {"activation": activation, "BN": norm, "init": init}
    net = Net(
        "elu" if activation == "ELU" else "mpelu", "eq22" if init == "Eq. 22" else "gaussian", batch_norm=norm == "yes"
    )
    jobs = trainings(net, results.setting)
    records = results.present(jobs)
    errors = errors_of(records)
    said = counts(results, jobs)
    runs = tuple(map(key_of, records))
    error = replace(
        printed("table05", where, "top1"),
        ours=spread(errors),
        text=said if records and not errors else "",
        runs=runs,
    )
    outcome = replace(printed("table05", where, "outcome"), text=said, runs=runs)
    return ("30-layer", activation, norm, init, error, outcome)


TITLE_5 = "30-layer nets: ELU and MPELU, with and without BN, from two scales of weights"
TITLE_3 = "MPELU nets of 15 and 30 layers: training loss, training error and test error"
CURVES = (*(_at_15(net) for net in BN_NETS), *BN_NETS, WITHOUT["mpelu"])


def show_figure3(results: Results) -> Picture:
    """Return the learning curves of the MPELU nets of both depths."""
    from mpelu.report.curves import panels

    groups = {net.label: results.present(trainings(net, results.setting)) for net in CURVES}
    return Picture(
        name="figure3",
        title=TITLE_3,
        svg=panels({label: runs for label, runs in groups.items() if runs}, name="figure3"),
        caption=(
            "Means over seeds with their range; a cross ends a run that diverged. In the paper, the 30-layer nets with "
            "BN end above those of 15 layers in training and test error, and the one without BN does not."
        ),
        scale=results.setting.scale,
        data=results.setting.data if results.setting.scale == "cpu" else "imagenet",
        runs=tuple(key_of(record) for runs in groups.values() for record in runs),
    )


CLAIMS = (
    Claim(21, STATEMENT_21, _all(STARTS), judge_21),
    Claim(22, STATEMENT_22, _all(DEPTHS), judge_22),
    Claim(23, STATEMENT_23, _all([net for pair in PAIRS_23 for net in pair]), judge_23),
    Claim(24, STATEMENT_24, _all([net for pair in PAIRS_24 for net in pair]), judge_24),
    Claim(25, STATEMENT_25, jobs_25, judge_25),
)
EXHIBITS = (
    Exhibit("table5", TITLE_5, _all(TABLE_5), show_table5),
    Exhibit("figure3", TITLE_3, _all(CURVES), show_figure3),
)
