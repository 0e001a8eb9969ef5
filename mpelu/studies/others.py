"""nopre ResNets beside other nets: the longer recipe, alpha, depth, and the recommended settings (claims 47 to 50, 52;
Table 12).

Source:   Li et al., arXiv:1606.00305, sections 3.1 and 5.4, Table 12; README of the authors' code.
Command:  mpelu reproduce table12, mpelu reproduce claim52
"""

import dataclasses
import itertools
import re
from collections.abc import Callable

from mpelu.report.finding import Finding, Interval
from mpelu.report.grid import Cell, Grid
from mpelu.report.paper import Line, lines
from mpelu.studies.arms import Arm, Contest, arms_of, cell, factors_of, finding, jobs_of
from mpelu.studies.bottleneck import NOPRE, RELU
from mpelu.studies.fate import Part, final
from mpelu.studies.jobs import Job, Setting
from mpelu.studies.statistic import mean
from mpelu.studies.study import Claim, Exhibit, Results


def nopre_arm(depth: int, data: str, *, alpha: str = "", longer: bool = True) -> Arm:
    """Return nopre of a depth on a data set of the paper, with the longer recipe or the standard one."""
    place = data.replace("cifar", "c")
    start, length = ", alpha 1" if alpha else "", "longer recipe" if longer else "standard recipe"
    name = f"nopre{depth}-mpelu{alpha}-{place}{'-longer' if longer else ''}"
    name = NOPRE.row if (depth, place, longer) == (164, "c10", False) else name
    return Arm(f"nopre-{depth}{start}, {length}, CIFAR-{place[1:]}", name)


def without_place(arm: Arm) -> Arm:
    """Return an arm whose label names neither the depth nor the data, which are others at scale cpu."""
    return dataclasses.replace(arm, label=re.sub(r"-\d+\b(?=,)|, CIFAR-\d+$", "", arm.label))


def preact_arm(depth: int, data: str, suffix: str = "") -> Arm:
    """Return Pre-ResNet of a depth on a data set of the paper; the suffix is that of the recipe's name."""
    place = data.replace("cifar", "c")
    if (depth, place, suffix) == (164, "c10", ""):
        return RELU
    return Arm(f"Pre-ResNet-{depth}{suffix.replace('-', ', ')}, {place.upper()}", f"preact{depth}-relu-{place}{suffix}")


def data_sets(setting: Setting) -> tuple[str, ...]:
    """Return the data sets of the paper that a setting has: at scale cpu, any but CIFAR-100 stands for CIFAR-10."""
    if setting.scale == "paper":
        return ("cifar10", "cifar100")
    return ("cifar100",) if setting.data.startswith("cifar100") else ("cifar10",)


ONE_FOR_BOTH = "one data set in the place of CIFAR-10 and CIFAR-100"
HALF = "What is said about the other of the two data sets is not tested, so that no more than inconclusive comes out"
HELD_48 = "Not to help is held to be shown where alpha 1 has the greater test error"


def longer_contests(setting: Setting) -> tuple[Contest, ...]:
    """Return the standard recipe against the longer one."""
    contests = (Contest(nopre_arm(164, data, longer=False), nopre_arm(164, data)) for data in data_sets(setting))
    return tuple(map(_named_at(setting), contests))


def _named_at(setting: Setting) -> Callable[[Contest], Contest]:
    """Return what gives contests the labels that are true at a setting."""
    if setting.scale == "paper":
        return lambda contest: contest
    return lambda contest: Contest(without_place(contest.worse), without_place(contest.better))


def alpha_contests(setting: Setting) -> tuple[Contest, ...]:
    """Return the two starts of alpha: 1 is worse on CIFAR-10 and better on CIFAR-100."""
    pairs = {data: (nopre_arm(164, data, alpha="1"), nopre_arm(164, data)) for data in data_sets(setting)}
    contests = (Contest(*(pair if data == "cifar10" else pair[::-1])) for data, pair in pairs.items())
    return tuple(map(_named_at(setting), contests))


def depth_contests(setting: Setting) -> tuple[Contest, ...]:
    """Return the depths of the paper, or at scale cpu a series of three: the less deep net is worse."""
    if setting.scale == "paper":
        return tuple(Contest(nopre_arm(164, data), nopre_arm(1001, data)) for data in data_sets(setting))
    arms = (SHALLOW, MIDDLE, DEEP)
    return tuple(Contest(one, other) for one, other in itertools.pairwise(arms))


def rival_contests(setting: Setting) -> tuple[Contest, ...]:
    """Return Pre-ResNet-1001 against nopre-1001: as the paper has it, and with the same recipe; none at scale cpu."""
    if setting.scale == "cpu":
        return ()
    pairs = ((preact_arm(1001, data, suffix), data) for data in data_sets(setting) for suffix in ("", "-longer"))
    return tuple(Contest(rival, nopre_arm(1001, data)) for rival, data in pairs)


SHALLOW = Arm("nopre-11", "nopre164-mpelu", scaled={"model": "nopre11"})
MIDDLE = Arm("nopre-29", NOPRE.row)
DEEP = Arm("nopre-47", "nopre164-mpelu", scaled={"model": "nopre47"})

SWEEP_SEEDS = 3
SWEEP = {
    (alpha, rate, decay): Arm(
        f"alpha {alpha:g}, learning rate x {rate:g}, decay x {decay:g}",
        "nopre164-mpelu",
        changes={"model": "nopre29", "alpha": alpha, "alpha_beta_lr": rate, "alpha_beta_weight_decay": decay},
        scaled={"model": "nopre20"},
        seeds=SWEEP_SEEDS,
    )
    for alpha in (0.25, 1.0)
    for rate in (1.0, 5.0)
    for decay in (0.0, 10.0)
}
"""Start of alpha, and multipliers of learning rate and decay of alpha and beta: every combination."""
STATEMENT_52 = "alpha 1 or 0.25, beta 1, 5 times the learning rate and a decay of both are what to start from"
HELD_52 = (
    "Held to be right if 5 times the learning rate beats the plain one, and a decay (10 times that of the weights, as "
    "in the released code) beats none, each over all combinations of the others"
)
STATEMENT_49 = "1001 layers do not overfit and are better still than 164 (CIFAR-10 3.57 %, CIFAR-100 18.81 %)"
STATEMENT_50 = "nopre-1001 is clearly better than Pre-ResNet-1001 (CIFAR-100: 18.81 to 22.71 %)"


def judge_52(results: Results) -> Finding:
    """Over all combinations, 5 times the learning rate and the decay must each lower the test error."""
    found = {key: _by_seed(results, arm) for key, arm in SWEEP.items()}
    seeds = sorted(set.intersection(*(set(errors) for errors in found.values())))

    def effect(place: int, worse: float, better: float, quantity: str) -> Interval | None:
        def average(value: float, seed: int) -> float:
            errors = [errors[seed] for key, errors in found.items() if key[place] == value]
            return sum(errors) / len(errors)

        values = [average(worse, seed) - average(better, seed) for seed in seeds]
        return mean(f"test error, {quantity}", values, unit="points", method="Student over seeds of 8 runs, 95 %")

    rate = effect(1, 1.0, 5.0, "learning rate x 1 minus x 5 of alpha and beta")
    decay = effect(2, 0.0, 10.0, "no decay of alpha and beta minus decay x 10")
    alpha = effect(0, 1.0, 0.25, "alpha 1 minus alpha 0.25")
    return finding(
        52,
        STATEMENT_52,
        results,
        tuple(SWEEP.values()),
        (Part(rate, "above"), Part(decay, "above")),
        beside=(alpha,),
        note=HELD_52,
        differs="a sweep of 2 x 2 x 2 at depth 20; in so few steps a decay has hardly any effect",
    )


def _by_seed(results: Results, arm: Arm) -> dict[int, float]:
    records = results.present(arm.jobs(results.setting))
    return {record["seed"]: final(record, "test error") for record in records}


def varied(
    number: int,
    statement: str,
    contests: Callable[[Setting], tuple[Contest, ...]],
    *,
    differs: str,
    note: str = "",
    reason: str = "",
    half: bool = False,
) -> Claim:
    """Return a claim whose contests depend on the setting.

    Args:
        number: Of the claim.
        statement: What the paper says.
        contests: All of them must come out as the paper says; none where the claim cannot be tested.
        differs: How scale cpu differs, beside the factors of the recipes.
        note: A sentence that goes before the numbers.
        reason: Why there are none.
        half: Whether scale cpu tests one of two parts only, which is not enough to confirm the whole.
    """

    def jobs(setting: Setting) -> tuple[Job, ...]:
        return jobs_of(arms_of(contests(setting)))(setting)

    def judge(results: Results) -> Finding:
        found = contests(results.setting)
        if not found:
            setting = results.setting
            return Finding(number, statement, "not run", reason, (), setting.scale, setting.data)
        parts = [contest.part(results) for contest in found]
        cpu = results.setting.scale == "cpu"
        said = ". ".join(filter(None, (note, HALF if half and cpu else "")))
        judged = finding(number, statement, results, arms_of(found), parts, note=said, differs=differs)
        missing = half and cpu and judged.outcome == "confirmed"
        return dataclasses.replace(judged, outcome="inconclusive") if missing else judged

    return Claim(number, statement, jobs, judge)


TITLE_12 = "Test error of nopre ResNets and Pre-ResNets"


def arms_12(setting: Setting) -> dict[tuple[str, ...], dict[str, Arm]]:
    """Return the nets of Table 12 that a setting has, by row (network, depth, alpha, recipe) and data set."""
    nopre, preact = "MPELU nopre ResNet", "Pre-ResNet"
    wanted: dict[tuple[str, ...], Callable[[str], Arm]] = {
        (nopre, "164", "0.25", "standard"): lambda data: nopre_arm(164, data, longer=False),
        (nopre, "164", "0.25", "dagger"): lambda data: nopre_arm(164, data),
        (nopre, "164", "1", "dagger"): lambda data: nopre_arm(164, data, alpha="1"),
        (preact, "164", "", "He et al."): lambda data: preact_arm(164, data),
    }
    if setting.scale == "paper":
        wanted |= {
            (nopre, "1001", "0.25", "dagger"): lambda data: nopre_arm(1001, data),
            (nopre, "1001", "1", "dagger"): lambda data: nopre_arm(1001, data, alpha="1"),
            (preact, "1001", "", "He et al. batch 128"): lambda data: preact_arm(1001, data),
        }
    found = {row: {data: make(data) for data in data_sets(setting)} for row, make in wanted.items()}
    if setting.scale == "paper":
        found[preact, "1001", "", "He et al. batch 64"] = {"cifar10": preact_arm(1001, "cifar10", "-batch64")}
    return found


def jobs_12(setting: Setting) -> tuple[Job, ...]:
    """Return the trainings of Table 12."""
    return tuple(job for arms in arms_12(setting).values() for arm in arms.values() for job in arm.jobs(setting))


def show_12(results: Results) -> Grid:
    """Return Table 12; at scale cpu, numbers on other data than CIFAR-100 stand in the column of CIFAR-10."""
    setting = results.setting
    arms = arms_12(setting)
    rows = [(line["network"], line["depth"], line["alpha_init"], line["recipe"]) for line in lines("table12")]
    body: list[tuple[str | Cell, ...]] = []
    for row, line in zip(rows, lines("table12"), strict=True):
        if not line["depth"]:
            continue
        ours = arms.get(row, {})
        cells = (
            cell(results, ours[data], paper) if data in ours else paper
            for data in ("cifar10", "cifar100")
            for paper in (_printed(line, data.replace("cifar", "c")),)
        )
        body.append((*row[:3], RECIPES.get(row[3], row[3]), line["params"], *cells))
    every = [arm for by_data in arms.values() for arm in by_data.values()]
    return Grid(
        "table12",
        TITLE_12,
        ("Network", "Depth", "alpha", "Recipe", "Parameters", "CIFAR-10, error, %", "CIFAR-100, error, %"),
        tuple(body),
        setting.scale,
        setting.data if setting.scale == "cpu" else "cifar10",
        (NOTE_12, *(factors_of(every) if setting.scale == "cpu" else ())),
    )


NOTE_12 = "The paper's numbers are best (mean +- std) of 5 runs, or what is known of them"
RECIPES = {"standard": "200 epochs", "dagger": "300 epochs, batches of 64"}


def _printed(line: Line, place: str) -> Cell:
    """Return the paper's numbers of a line for one data set, as best (mean +- std)."""
    best, average, median = (line[f"{place}_{column}"] for column in ("best", "mean_std", "median"))
    middle = average or (median and f"median {median}")
    text = f"{best} ({middle})" if best and middle else best or middle
    return Cell(paper=text, source=line["source"] if text else "")


CLAIMS = (
    varied(
        47,
        "300 epochs of batches of 64 are better than the standard recipe (nopre-164: CIFAR-100 23.29 to 21.88 %, "
        "CIFAR-10 5.04 to 4.53 %)",
        longer_contests,
        differs=ONE_FOR_BOTH,
    ),
    varied(
        48,
        "alpha 1 in the place of 0.25 helps on CIFAR-100 (21.78 to 21.88 %) and not on CIFAR-10 (4.67 to 4.53 %)",
        alpha_contests,
        differs=ONE_FOR_BOTH,
        note=HELD_48,
        half=True,
    ),
    varied(
        49,
        STATEMENT_49,
        depth_contests,
        differs="depths 11, 29 and 47 in the place of 164 and 1001, so that nothing is said about 1001; the standard "
        f"recipe in the place of the longer one; {ONE_FOR_BOTH}",
    ),
    varied(
        50,
        STATEMENT_50,
        rival_contests,
        differs="",
        reason="Not tested at this scale: nets of 1001 layers take a month on a core, and the claim is about these; "
        "less deep nets of both kinds are compared in claim 42. At scale paper, nopre-1001 is compared with "
        "Pre-ResNet-1001 as published and with the same longer recipe.",
    ),
    Claim(52, STATEMENT_52, jobs_of(tuple(SWEEP.values())), judge_52),
)
EXHIBITS = (Exhibit("table12", TITLE_12, jobs_12, show_12),)
