"""The 15-layer ImageNet net with BN: activations, decay of alpha and beta, slopes and starts (claims 13 to 20 and 32,
Tables 2, 3 and 6).

Source:   Li et al., arXiv:1606.00305, sections 4.2 and 4.4, Tables 2, 3 and 6.
Command:  mpelu reproduce claim14, mpelu reproduce table2
"""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from mpelu.recipes import imagenet15, recipe
from mpelu.recipes.imagenet15 import Start, name_of
from mpelu.report.finding import Finding
from mpelu.report.grid import Cell, Grid
from mpelu.report.paper import printed
from mpelu.report.summary import finite
from mpelu.studies.by_name import all_of_them, cell, excess, trainings
from mpelu.studies.fate import Part, conclude, differing, final, in_words
from mpelu.studies.jobs import SEEDS, Job, Measurement, Setting, key_of
from mpelu.studies.statistic import all_of, compared, mean, outcome_of, paired_difference, rank_correlation
from mpelu.studies.study import Claim, Exhibit, Results, at_its_scale

NARROW = (
    "Gaussian(0.01) is a twelfth of Eq. 22's standard deviation in the convolutions of so narrow a net, and a third "
    "to a quarter of it in most of the paper's"
)
DIFFERS = "; ".join((*imagenet15.FACTORS[:-1], NARROW, imagenet15.FACTORS[-1]))
ROWS = {row.name: row for row in imagenet15.ROWS}
Pair: TypeAlias = tuple[str, str]


def label(name: str) -> str:
    """Return what a row is called in a sentence.

    Example:
        >>> label("imagenet15-mpelu1-decay")
        'MPELU (1, 1) with decay of alpha and beta from Gaussian(0.01)'
    """
    unit, _, start = ROWS[name].about.removeprefix("15 layers, BN, ").rpartition(", ")
    return f"{unit.replace(', decay', ' with decay')} from {start}"


def _excesses(results: Results, pairs: Sequence[Pair]) -> list[Part]:
    """Return the claims that the first of each pair has the greater test error."""
    return [excess(results, f"{label(first)} minus {label(second)}", first, second) for first, second in pairs]


def _claim(number: int, statement: str, *pairs: Pair, note: str = "") -> Claim:
    jobs = all_of_them(list(dict.fromkeys(name for pair in pairs for name in pair)))

    def judge(results: Results) -> Finding:
        parts = _excesses(results, pairs)
        return conclude(number, statement, results, jobs(results.setting), parts, note=note, differs=DIFFERS)

    return Claim(number, statement, jobs, judge)


RELU, ELU, PRELU = name_of("relu"), name_of("elu"), name_of("prelu0.25")
MPELU_1, MPELU_1_DECAY = name_of("mpelu1"), name_of("mpelu1", decay=True)
MPELU, MPELU_DECAY = name_of("mpelu0.25"), name_of("mpelu0.25", decay=True)

CLAIM_13 = _claim(
    13,
    "With BN, 15 layers and Gaussian weights, MPELU (1, 1) has a lower test error than ELU, by 0.83 without decay of "
    "alpha and beta and by 2.32 with it",
    (ELU, MPELU_1),
    (ELU, MPELU_1_DECAY),
)
CLAIM_14 = _claim(
    14,
    "Decay of alpha and beta lowers the test error of MPELU: from 40.94 to 37.81 where alpha starts at 0.25",
    (MPELU, MPELU_DECAY),
    (MPELU_1, MPELU_1_DECAY),
)
CLAIM_15 = _claim(
    15,
    "MPELU (0.25, 1) has a higher test error than PReLU (0.25) without decay of alpha and beta (40.94 against 39.48), "
    "and a lower one with it (37.81)",
    (MPELU, PRELU),
    (PRELU, MPELU_DECAY),
)
CLAIM_17 = _claim(
    17,
    "In the 15-layer net with BN, MPELU is a little better than ReLU, and ReLU better than PReLU and ELU",
    (RELU, MPELU_DECAY),
    (PRELU, RELU),
    (ELU, RELU),
    note="MPELU is the one with the best known number from Gaussian weights, (0.25, 1) with decay; how little better "
    "it is has no part in the verdict",
)
TABLE_6 = {
    "ELU": (name_of("elu", init="lsuv"), name_of("elu", init="eq22")),
    "MPELU (1, 1), decay": (name_of("mpelu1", decay=True, init="lsuv"), name_of("mpelu1", decay=True, init="eq22")),
}
CLAIM_32 = _claim(
    32,
    "In the 15-layer net with BN, Eq. 22 has a slightly lower test error than LSUV, consistently",
    *TABLE_6.values(),
    note="Which activations the paper compared is not stated; here ELU, and MPELU with decay. Our LSUV scales all "
    "layers in one pass over the first batch",
)

STATEMENT_16 = (
    "The lowest test error of Table 2 is an MPELU's, and from Eq. 22 MPELU has a lower one than from Gaussian weights "
    "in every row"
)
CHOSEN_16 = "The best of MPELU and the best of the others are chosen by their means over these same seeds"
IN_TABLE_2 = tuple(row.name for row in imagenet15.TABLE2)
OF_MPELU = tuple(name for name in IN_TABLE_2 if "-mpelu" in name)
jobs_of_table2 = all_of_them(IN_TABLE_2)


def judge_16(results: Results) -> Finding:
    """Every row of MPELU, and the best MPELU against the best of the others, by their means at this setting."""
    pairs = [(name, f"{name}-eq22") for name in OF_MPELU if f"{name}-eq22" in OF_MPELU]
    parts = _excesses(results, pairs)
    others = [name for name in IN_TABLE_2 if name not in OF_MPELU]
    best_other, best = _best(results, others), _best(results, OF_MPELU)
    if best_other is None or best is None:
        parts.append(Part(None, "above"))
    else:
        parts += _excesses(results, [(best_other, best)])
    jobs = jobs_of_table2(results.setting)
    return conclude(16, STATEMENT_16, results, jobs, parts, note=CHOSEN_16, differs=DIFFERS)


def _best(results: Results, names: Sequence[str]) -> str | None:
    """Return the row with the least mean test error; None while one of them has no run."""
    means = {}
    for name in names:
        errors = [final(record, "test error") for record in results.present(trainings(name, results.setting))]
        if not errors:
            return None
        means[name] = statistics.fmean(errors)
    return min(means, key=means.__getitem__)


CLAIM_16 = Claim(16, STATEMENT_16, jobs_of_table2, judge_16)

STATEMENT_18 = "Decay drives alpha and beta of MPELU towards 0"
NO_PARAMETERS = "Not tested at this scale: records of trainings hold no alpha and beta."
SECONDS = {"digits": 7.0}
"""CPU seconds of such a training, measured; images in a folder are cut to 5,000 and take about 30."""
MEASURE = "mpelu.studies.fifteen:alpha_and_beta"


def jobs_18(setting: Setting) -> tuple[Job, ...]:
    """Return trainings that are measured for their parameters, which records do not hold; none at the paper's scale."""
    if setting.scale == "paper":
        return ()
    return tuple(
        Measurement(MEASURE, {"decay": decay}, seed=seed, data=setting.data, seconds=SECONDS.get(setting.data, 30.0))
        for decay in (True, False)
        for seed in range(setting.seeds or SEEDS)
    )


def alpha_and_beta(*, seed: int, data: str, decay: bool, **changes: Any) -> dict[str, Any]:
    """Train MPELU (1, 1) from Gaussian weights at scale cpu and return the mean of abs(alpha) and of beta at the end.

    Args:
        seed: Of the training.
        data: Name or path of the data set.
        decay: Whether alpha and beta decay.
        **changes: Fields of the recipe with other values.
    """
    from safetensors.torch import load_file

    from mpelu.train.run import WEIGHTS, prepare, run

    trained = replace(recipe(name_of("mpelu1", decay=decay), "cpu", data=data), **changes)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(trained, seed=seed, runs=Path(folder))
        record = run(prepared, device="cpu")
        weights = load_file(prepared.folder / WEIGHTS)
    layers = [name.removesuffix(".alpha") for name in weights if name.endswith(".alpha")]
    ends: dict[str, Any] = {"outcome": record["outcome"], "layers": layers}
    for kind in ("alpha", "beta"):
        of_layers = [weights[f"{layer}.{kind}"].abs() for layer in layers]
        ends[kind] = sum(each.sum().item() for each in of_layers) / sum(each.numel() for each in of_layers)
        ends[f"{kind}_by_layer"] = [each.mean().item() for each in of_layers]
    return ends


def judge_18(results: Results) -> Finding:
    """With decay, alpha and beta must end below their start, and below where they end without it."""
    setting = results.setting
    jobs = jobs_18(setting)
    with_decay, without = ([job for job in jobs if _decays(job) is decay] for decay in (True, False))
    parts = []
    for kind in ("alpha", "beta"):
        found_ends = [finite(record["values"][kind]) for record in results.present(with_decay)]
        values = [value for value in found_ends if value is not None]
        parts.append((compared(mean(f"{kind} at the end with decay, from 1", values), 1.0), 1.0))
        found = [(results.of(one), results.of(other)) for one, other in zip(with_decay, without, strict=True)]
        pairs = [(finite(one["values"][kind]), finite(other["values"][kind])) for one, other in found if one and other]
        ends = [(one, other) for one, other in pairs if one is not None and other is not None]
        difference_of = f"{kind} at the end with decay minus without"
        parts.append((paired_difference(difference_of, [a for a, _ in ends], [b for _, b in ends], unit=""), 0.0))
    intervals = tuple(interval for interval, _ in parts if interval is not None)
    records = results.present(jobs)
    said = f"Means over all channels: {'; '.join(map(in_words, intervals))}." if intervals else ""
    judged = Finding(
        claim=18,
        statement=STATEMENT_18,
        outcome=all_of([outcome_of(interval, "below", bound) for interval, bound in parts]),
        evidence=said if setting.scale == "cpu" else NO_PARAMETERS,
        intervals=intervals,
        scale=setting.scale,
        data=setting.data if setting.scale == "cpu" else "imagenet",
        runs=tuple(map(key_of, records)),
        differs=differing(DIFFERS, setting),
    )
    return at_its_scale(judged)


def _decays(job: Job) -> bool:
    return isinstance(job, Measurement) and bool(job.options["decay"])


CLAIM_18 = Claim(18, STATEMENT_18, jobs_18, judge_18)

STATEMENT_19 = "With BN and 15 layers, the test error falls with the negative slope: 1, 0.5, 0.25, 0.1 and 0"
BY_SLOPE = {0.0: RELU} | {slope: name_of(f"lrelu-{letter}") for letter, slope in imagenet15.SLOPES.items()}
jobs_19 = all_of_them(tuple(BY_SLOPE.values()))


def judge_19(results: Results) -> Finding:
    """The rank correlation of slope and test error must be positive."""
    setting = results.setting
    by_seed = zip(*(trainings(name, setting) for name in BY_SLOPE.values()), strict=True)
    records = [[results.of(job) for job in jobs] for jobs in by_seed]
    runs = [[final(record, "test error") for record in row if record] for row in records if all(row)]
    quantity = "rank correlation of slope and test error"
    found = rank_correlation(quantity, list(BY_SLOPE), runs) if len(runs) >= 2 else None
    means = [statistics.fmean(column) for column in zip(*runs, strict=True)] if found else []
    rising = ", ".join(f"{error:.2f} ({slope:g})" for slope, error in zip(BY_SLOPE, means, strict=False))
    note = f"Mean test errors by slope: {rising}. Held to fall: a rank correlation above 0" if means else ""
    jobs = jobs_19(setting)
    return conclude(19, STATEMENT_19, results, jobs, (Part(found, "above"),), note=note, differs=DIFFERS)


CLAIM_19 = Claim(19, STATEMENT_19, jobs_19, judge_19)

STATEMENT_20 = "That smaller slopes are better in the 15-layer net is because they make its activations sparse"
REASON_20 = (
    "Not tested: an explanation needs units of different sparsity with equal mean, variance and slopes, and the paper "
    "compares none; BN removes mean and variance before the next unit, but the slope that sets the sparsity also sets "
    "how far the net is from linear. Claim 19 tests the trend itself."
)


def judge_20(results: Results) -> Finding:
    """Nothing here separates sparsity from nonlinearity."""
    scale = results.setting.scale
    data = results.setting.data if scale == "cpu" else "imagenet"
    return Finding(20, STATEMENT_20, "not run", REASON_20, (), scale, data)


CLAIM_20 = Claim(20, STATEMENT_20, lambda _: (), judge_20)

TITLE_2 = "Top-1 error (%) of the 15-layer net with BN on ImageNet"
TITLE_3 = "Top-1 and top-5 error (%) of the 15-layer net with BN by negative slope"
TITLE_6 = "Top-1 error (%) of the 15-layer net with BN, LSUV against Eq. 22"
LAST_EPOCH = "Ours is the last epoch's."


def _starts(activation: str, *inits: Start, decay: bool = False) -> tuple[str, ...]:
    return tuple(name_of(activation, decay=decay, init=init) for init in inits)


LINES_OF_TABLE_2: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("ReLU", "", ""): _starts("relu", "gaussian", "msra"),
    **{
        ("PReLU", f"{alpha:g}", ""): _starts(f"prelu{alpha:g}", "gaussian", "msra")
        for alpha in imagenet15.STARTS["prelu"]
    },
    ("ELU", "1", ""): _starts("elu", "gaussian", "eq22"),
    **{
        ("MPELU", f"{alpha:g}, 1", "yes" if decay else "no"): _starts(
            f"mpelu{alpha:g}", "gaussian", "eq22", decay=decay
        )
        for alpha in imagenet15.STARTS["mpelu"]
        for decay in (False, True)
    },
}


def _paper(name: str, table: str, column: str = "top1") -> Cell:
    """Return the paper's cell that a row stands for."""
    return next(printed(table, target.where, column) for target in ROWS[name].targets if target.table == table)


def show_table2(results: Results) -> Grid:
    """Return Table 2: Gaussian weights and the other start side by side."""
    rows: list[tuple[str | Cell, ...]] = [
        (*named, *(cell(results, name, _paper(name, "table02")) for name in names))
        for named, names in LINES_OF_TABLE_2.items()
    ]
    best = printed("table02", {"alpha_init": "(unknown cell)"}, "top1")
    rows.append(("MPELU", "not stated", "yes", Cell(), best))
    columns = ("activation", "start of alpha, beta", "decay of alpha, beta", "Gaussian(0.01)", "MSRA or Eq. 22")
    return _grid(results, "table2", TITLE_2, columns, rows, LAST_EPOCH)


def show_table3(results: Results) -> Grid:
    """Return Table 3: ReLU and LReLU A to D."""
    rows: list[tuple[str | Cell, ...]] = []
    for slope, name in BY_SLOPE.items():
        named = "ReLU" if slope == 0.0 else f"LReLU {name[-1].upper()}"
        top5 = _paper(name, "table03", "top5")
        rows.append((named, f"{slope:g}", cell(results, name, _paper(name, "table03")), top5))
    note = f"{LAST_EPOCH} The slopes of A to C are those of the released files; a top-5 error is not recorded."
    return _grid(results, "table3", TITLE_3, ("activation", "slope", "top-1", "top-5"), rows, note)


def show_table6(results: Results) -> Grid:
    """Return Table 6: LSUV and Eq. 22 side by side."""
    starts = ("LSUV", "Eq. 22")
    unknown = [printed("table06", {"init": start}, "top1") for start in starts]
    rows: list[tuple[str | Cell, ...]] = [
        (named, *(cell(results, name, paper) for name, paper in zip(names, unknown, strict=True)))
        for named, names in TABLE_6.items()
    ]
    note = f"{LAST_EPOCH} Which activations the paper compared is not stated."
    return _grid(results, "table6", TITLE_6, ("activation", *starts), rows, note)


def _grid(
    results: Results,
    name: str,
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str | Cell, ...]],
    note: str,
) -> Grid:
    scale = results.setting.scale
    return Grid(
        name=name,
        title=title,
        columns=columns,
        rows=tuple(rows),
        scale=scale,
        data=results.setting.data if scale == "cpu" else "imagenet",
        notes=(note, DIFFERS) if scale == "cpu" else (note,),
    )


CLAIMS = (
    CLAIM_13, CLAIM_14, CLAIM_15, CLAIM_16, CLAIM_17, CLAIM_18, CLAIM_19, CLAIM_20, CLAIM_32,
)  # fmt: skip
EXHIBITS = (
    Exhibit("table2", TITLE_2, jobs_of_table2, show_table2),
    Exhibit("table3", TITLE_3, jobs_19, show_table3),
    Exhibit("table6", TITLE_6, all_of_them([name for names in TABLE_6.values() for name in names]), show_table6),
)
