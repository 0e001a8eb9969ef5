"""Bottleneck blocks: what may be left out, what needs a warm-up, and what diverges (claims 39 to 46, Table 11).

Source:   Li et al., arXiv:1606.00305, section 5.3, Table 11, Figures 4 and 5.
Command:  mpelu reproduce table11, mpelu reproduce claim40

Which nets fail at a learning rate of 0.1 is looked at in the first 30 steps at the paper's depth of 164, at both
scales; scale cpu shortens that by the size of the images only. Errors are those of shorter and less deep trainings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpelu.report.finding import Finding, Interval
from mpelu.report.grid import UNKNOWN, Cell, Grid
from mpelu.report.paper import printed
from mpelu.studies.arms import Arm, Contest, arms_of, cell, contested, factors_of, finding, jobs_of
from mpelu.studies.beginning import STEPS, failed, measurements, unevenness
from mpelu.studies.fate import MOST, Part, learns
from mpelu.studies.jobs import Job, Setting, key_of
from mpelu.studies.statistic import compared, paired_difference, proportion, share_difference
from mpelu.studies.study import Claim, Exhibit, Results

RELU = Arm("ReLU full pre-activation", "preact164-relu")
PREACT = Arm("MPELU full pre-activation (4d)", "preact164-mpelu")
FIG_5A = Arm("5a", "fig5a164-mpelu")
FIG_5A_WARM = Arm("5a with warm-up", "fig5a164-mpelu-warmup")
FIG_5B = Arm("5b", "fig5b164-mpelu")
FIG_5C = Arm("5c", "fig5c164-mpelu")
FIG_5C_WARM = Arm("5c with warm-up", "fig5c164-mpelu-warmup")
NOPRE = Arm("nopre (5d)", "nopre164-mpelu")
FIG_5E = Arm("5e", "fig5e164-mpelu")
FIG_5E_WARM = Arm("5e with warm-up", "fig5e164-mpelu-warmup")
NO_NORMS = Arm("nopre without BN1 and BNend", "nopre164-mpelu-no-norms")
NO_FIRST = Arm("nopre without BN1", "nopre164-mpelu-no-first-norm")
NO_END = Arm("nopre without BNend", "nopre164-mpelu-no-end-norm")
NOPRE_RELU = Arm("nopre with ReLU", "nopre164-relu")

DIFFERS = (
    f"the first {STEPS} steps, where failing is looked at, are at depth 164, batches of 128 and the full learning rate"
)
FAILING = "To fail is a loss or gradient that is not finite, or a mean loss of the last 10 steps not below guessing"


def failing(results: Results, arm: Arm) -> Interval | None:
    """Return the share of nets that fail in the first steps."""
    records = results.present(measurements(arm.row, results.setting))
    quantity = f"share of {arm.label} failing in the first {STEPS} steps at lr 0.1"
    return compared(proportion(quantity, sum(map(failed, records)), len(records)), MOST)


def helped(results: Results, without: Arm, warm: Arm) -> Interval | None:
    """Return by how much more often a net learns with a warm-up than without, paired by seed."""
    jobs = zip(without.jobs(results.setting), warm.jobs(results.setting), strict=True)
    pairs = [(one, other) for a, b in jobs if (one := results.of(a)) and (other := results.of(b))]
    quantity = f"share of {warm.label} learning minus without"
    return share_difference(quantity, [learns(warmed) for _, warmed in pairs], [learns(cold) for cold, _ in pairs])


def begun(results: Results, arms: Sequence[Arm]) -> str:
    """Say how many nets fail in the first steps, e.g. "5c failed 0 of 6"; empty where nothing was measured."""
    texts = []
    for arm in arms:
        records = results.present(measurements(arm.row, results.setting))
        if records:
            texts.append(f"{arm.label} failed {sum(map(failed, records))} of {len(records)}")
    return f"In the first {STEPS} steps at lr 0.1, {', '.join(texts)}. {FAILING}" if texts else ""


def beginning_claim(
    number: int,
    statement: str,
    *,
    fails: Sequence[Arm] = (),
    begins: Sequence[Arm] = (),
    warmed: Sequence[tuple[Arm, Arm]] = (),
    contests: Sequence[Contest] = (),
    controls: Sequence[Arm] = (),
    also: Sequence[Arm] = (),
) -> Claim:
    """Return a claim about how nets begin to train, and how they end.

    Args:
        number: Of the claim.
        statement: What the paper says.
        fails: Most of these fail in the first steps at full learning rate.
        begins: Most of these do not.
        warmed: Pairs of a net without and with a warm-up: with it more runs learn.
        contests: The first has the greater test error.
        controls: Their first steps are looked at too, without a part in the verdict.
        also: Nets that are trained too, likewise.
    """
    measured = (*fails, *begins, *controls)
    trained = [*measured, *(arm for pair in warmed for arm in pair), *arms_of(contests), *also]
    arms = tuple({arm.label: arm for arm in trained}.values())

    def first(setting: Setting) -> tuple[Job, ...]:
        return tuple(job for arm in measured for job in measurements(arm.row, setting))

    def judge(results: Results) -> Finding:
        parts = [Part(failing(results, arm), "above", MOST) for arm in fails]
        parts += [Part(failing(results, arm), "below", MOST) for arm in begins]
        parts += [Part(helped(results, *pair), "above") for pair in warmed]
        parts += [contest.part(results) for contest in contests]
        return finding(
            number,
            statement,
            results,
            arms,
            parts,
            beside=[failing(results, arm) for arm in controls],
            more=first(results.setting),
            note=begun(results, measured),
            differs=DIFFERS,
        )

    def jobs(setting: Setting) -> tuple[Job, ...]:
        return (*first(setting), *jobs_of(arms)(setting))

    return Claim(number, statement, jobs, judge)


ENDS = ((FIG_5A, FIG_5B), (FIG_5C, NOPRE))
"""Blocks that end with BN, and the same without."""
STATEMENT_46 = "A BN at the end of the branch harms the flow of the gradient at the start, hence the warm-up"


def jobs_46(setting: Setting) -> tuple[Job, ...]:
    """Return the first steps of blocks with and without BN at their end."""
    return tuple(job for pair in ENDS for arm in pair for job in measurements(arm.row, setting))


def judge_46(results: Results) -> Finding:
    """The gradients of the blocks must differ more in size where the branches end with BN."""
    setting = results.setting
    intervals = []
    for ending, plain in ENDS:
        jobs = zip(measurements(ending.row, setting), measurements(plain.row, setting), strict=True)
        records = [(one, other) for a, b in jobs if (one := results.of(a)) and (other := results.of(b))]
        spans = [(unevenness(one), unevenness(other)) for one, other in records]
        pairs = [(a, b) for a, b in spans if a is not None and b is not None]
        quantity = f"powers of ten between the largest and the smallest gradient of a block, {ending.label} minus "
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        intervals.append(paired_difference(quantity + plain.label, first, second, unit=""))
    parts = [Part(interval, "above") for interval in intervals]
    told = "; ".join(filter(None, (span_text(results, arm) for pair in ENDS for arm in pair)))
    note = f"{HELD_46}. Means over steps 0 to 20: {told}" if told else ""
    return finding(46, STATEMENT_46, results, (), parts, more=jobs_46(setting), note=note, differs=DIFFERS_46)


HELD_46 = (
    "Harm is held to be that gradients of the blocks differ more in size; runs with one that is not finite are left out"
)
DIFFERS_46 = (
    "images of 32 to 16 pixels, 50,000 to 5,000 of them (digits: 1,500), without crops and flips; "
    "kept: depth 164, batch size, learning rate"
)


def span_text(results: Results, arm: Arm) -> str:
    """Say how uneven the gradients of an arm are; empty where nothing was measured."""
    spans = [unevenness(record) for record in results.present(measurements(arm.row, results.setting))]
    found = [span for span in spans if span is not None]
    return f"{arm.label} {sum(found) / len(found):.2f} powers of ten (n = {len(found)})" if found else ""


@dataclass(frozen=True)
class Line:
    """A row of Table 11: a net, and where the paper has it."""

    name: str
    arm: Arm
    network: str = ""
    warm: bool = False


FULL = "MPELU full pre-activation (Fig. 4d)"
ONLY_BN = "MPELU-only pre-activation, ends with BN (Fig. 5a)"
ENDING = "nopre ending with BN (Fig. 5c)"
TABLE_11 = (
    Line("Pre-ResNet (ReLU)", RELU, "Pre-ResNet (ReLU full pre-activation)"),
    Line(FULL, PREACT, FULL),
    Line(ONLY_BN, FIG_5A, ONLY_BN),
    Line(f"{ONLY_BN}, warm-up", FIG_5A_WARM, ONLY_BN, warm=True),
    Line("MPELU-only pre-activation (Fig. 5b)", FIG_5B, "MPELU-only pre-activation (Fig. 5b)"),
    Line(ENDING, FIG_5C, ENDING),
    Line(f"{ENDING}, warm-up", FIG_5C_WARM, ENDING, warm=True),
    Line("nopre (Fig. 5d)", NOPRE, "nopre (Fig. 5d)"),
    Line("nopre without BN in the branch (Fig. 5e)", FIG_5E, "nopre without BN in the branch (Fig. 5e)"),
    Line("nopre without BN1 and BNend", NO_NORMS, "nopre without BN1 and BNend"),
    Line("nopre without BN1, BNend kept", NO_FIRST, "nopre without BN1, BNend kept"),
    Line("not in the paper: 5e, warm-up", FIG_5E_WARM, warm=True),
    Line("not in the paper: nopre without BNend, BN1 kept", NO_END),
    Line("not in the paper: nopre with ReLU", NOPRE_RELU),
)
MEASURED = (FIG_5A, FIG_5B, FIG_5C, NOPRE, FIG_5E, NO_NORMS, NO_FIRST, NO_END)
TITLE_11 = "Bottleneck residual nets of 164 layers: what fails, and test errors"


def show_11(results: Results) -> Grid:
    """Return Table 11, with what happens in the first steps beside the paper's word for it."""
    cpu = results.setting.scale == "cpu"
    arms = tuple(each.arm for each in TABLE_11)
    return Grid(
        "table11",
        TITLE_11,
        ("Network", "At lr 0.1", "Test error, %", "Paper's best"),
        tuple((each.name, *_cells(results, each)) for each in TABLE_11),
        results.setting.scale,
        results.setting.data if cpu else "cifar10",
        (*factors_of(arms), DIFFERS) if cpu else (),
    )


def _cells(results: Results, line: Line) -> tuple[Cell, Cell, str]:
    where = {"network": line.network}
    known = line.network and not line.warm
    begins = printed("table11", where, "warm_up" if line.warm else "outcome") if line.network else Cell()
    if line.arm in MEASURED:
        records = results.present(measurements(line.arm.row, results.setting))
        text = f"failed {sum(map(failed, records))} of {len(records)}" if records else ""
        begins = replace(begins, text=text, runs=tuple(map(key_of, records)))
    error = cell(results, line.arm, printed("table11", where, "mean_err") if known else Cell())
    best = printed("table11", where, "best_err").paper if known else ""
    return begins, error, best or UNKNOWN


def jobs_11(setting: Setting) -> tuple[Job, ...]:
    """Return the trainings of Table 11, and the first steps of what is said to fail or not."""
    first = (job for arm in MEASURED for job in measurements(arm.row, setting))
    return (*first, *jobs_of([each.arm for each in TABLE_11])(setting))


CLAIMS = (
    contested(
        39,
        "MPELU in the place of ReLU makes full pre-activation slightly better (5.46 to 5.32 %)",
        (Contest(RELU, PREACT),),
    ),
    beginning_claim(
        40,
        "MPELU-only pre-activation ending with BN (5a) fails at lr 0.1, trains after a warm-up, and is worse than full "
        "pre-activation",
        fails=(FIG_5A,),
        warmed=((FIG_5A, FIG_5A_WARM),),
        contests=(Contest(FIG_5A_WARM, PREACT),),
    ),
    beginning_claim(
        41,
        "Without the BN at its end (5b), that block converges without a warm-up, and is worse than full pre-activation",
        begins=(FIG_5B,),
        contests=(Contest(FIG_5B, PREACT),),
    ),
    contested(
        42,
        "nopre (5d), without pre-activation, is the best of the bottleneck blocks, with fewer parameters",
        (Contest(RELU, NOPRE), Contest(PREACT, NOPRE), Contest(FIG_5B, NOPRE)),
        controls=(Contest(NOPRE_RELU, NOPRE), Contest(FIG_5A_WARM, NOPRE), Contest(FIG_5C_WARM, NOPRE)),
        note="nopre-164 has 1,696,250 parameters for 10 classes, Pre-ResNet-164 with ReLU 1,703,258",
    ),
    beginning_claim(
        43,
        "nopre ending with BN (5c) diverges within a few steps at lr 0.1, and trains well after a warm-up",
        fails=(FIG_5C,),
        warmed=((FIG_5C, FIG_5C_WARM),),
    ),
    beginning_claim(44, "nopre without BN in the branch (5e) diverges at lr 0.1", fails=(FIG_5E,), also=(FIG_5E_WARM,)),
    beginning_claim(
        45,
        "nopre without BN1 and BNend diverges; with BNend kept it converges, worse than with both (5.29 to 5.04 %)",
        fails=(NO_NORMS,),
        begins=(NO_FIRST,),
        contests=(Contest(NO_FIRST, NOPRE),),
        controls=(NO_END,),
    ),
    Claim(46, STATEMENT_46, jobs_46, judge_46),
)
EXHIBITS = (Exhibit("table11", TITLE_11, jobs_11, show_11),)
