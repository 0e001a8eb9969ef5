"""ResNets whose ReLUs are swapped for ELUs and MPELUs (claims 35 to 37, Table 9).

Source:   Li et al., arXiv:1606.00305, section 5.1, Table 9.
Command:  mpelu reproduce table9, mpelu reproduce claim37
"""

import dataclasses

from mpelu.report.finding import Finding
from mpelu.report.grid import UNKNOWN, Cell, Grid
from mpelu.report.paper import printed
from mpelu.studies.arms import Arm, Contest, cell, contested, factors_of, jobs_of
from mpelu.studies.fate import Part, conclude, counts, difference
from mpelu.studies.jobs import Setting, Training, of_each_seed
from mpelu.studies.study import Claim, Exhibit, Results
from mpelu.train.recipe import Recipe

RELU = Arm("ReLU", "resnet110-relu")
ELU = Arm("ELU", "resnet110-elu")
MPELU_A = Arm("MPELU (A)", "resnet110-mpelu-a")
MPELU_B = Arm("MPELU (B)", "resnet110-mpelu-b")
WITHOUT_DECAY = Arm("MPELU (B) without decay", "resnet110-mpelu-b-nodecay")
TABLE_9 = (RELU, ELU, MPELU_A, MPELU_B)

PLAIN = Recipe(
    model="plain15",
    activation="mpelu",
    alpha=1.0,
    beta=1.0,
    width=64,
    batch_norm=False,
    dropout=0.0,
    init="eq22",
    data="cifar10",
    augment="pad4",
    epochs=38,
    batch_size=64,
    lr=0.01,
    milestones=(100 / 750, 600 / 750),
    weight_decay=5e-4,
)
"""A plain net that trains with and without BN; the paper's statement is about its nets in general."""
PLAIN_CPU = {"width": 16, "resize": 16, "limit": 5000, "augment": "none", "epochs": 5, "batch_size": 32}
PLAIN_FACTORS = (
    "a plain net of 15 layers, BN without scale and shift; width 64 to 16",
    "images of 32 to 16 pixels, 50,000 to 5,000 of them (digits: 1,500), without crops and flips",
    "38 to 5 epochs, batches of 64 to 32",
)
STATEMENT_37 = "BN does not help ELU nets and does not hurt MPELU nets"
HELD_37 = "Held to be so if BN makes the error of ELU greater and that of MPELU smaller; not so if it does the contrary"
ONE_DEPTH = "one depth, where the paper says so of every depth"


def plain_recipe(activation: str, setting: Setting, *, batch_norm: bool) -> Recipe:
    """Return the recipe of a plain net with or without BN."""
    made = dataclasses.replace(PLAIN, activation=activation, batch_norm=batch_norm)
    if activation != "mpelu":
        made = dataclasses.replace(made, alpha=1.0 if activation == "elu" else None, beta=None)
    if setting.scale == "paper":
        return made
    made = dataclasses.replace(made, **PLAIN_CPU, data=setting.data)  # type: ignore[arg-type]
    return dataclasses.replace(made, limit=None, resize=None) if setting.data == "digits" else made


def plain_jobs(activation: str, setting: Setting, *, batch_norm: bool) -> tuple[Training, ...]:
    """Return one training of a plain net for each seed."""
    return of_each_seed(plain_recipe(activation, setting, batch_norm=batch_norm), setting)


def jobs_37(setting: Setting) -> tuple[Training, ...]:
    """Return plain nets with each activation, with and without BN."""
    return tuple(
        job
        for activation in ("relu", "elu", "mpelu")
        for batch_norm in (False, True)
        for job in plain_jobs(activation, setting, batch_norm=batch_norm)
    )


def judge_37(results: Results) -> Finding:
    """BN must make the test error of ELU greater, and that of MPELU smaller."""
    setting = results.setting
    runs = {
        (name, norm): plain_jobs(name, setting, batch_norm=norm)
        for name in ("relu", "elu", "mpelu")
        for norm in (False, True)
    }
    elu = difference(results, "ELU with BN minus without", runs["elu", True], runs["elu", False])
    mpelu = difference(results, "MPELU without BN minus with", runs["mpelu", False], runs["mpelu", True])
    relu = difference(results, "ReLU without BN minus with", runs["relu", False], runs["relu", True])
    fates = {
        f"{name.upper()} {'with' if norm else 'without'} BN": counts(results, jobs)
        for (name, norm), jobs in runs.items()
    }
    told = "; ".join(f"{label} {text}" for label, text in fates.items() if "diverged" in text or "flat" in text)
    return conclude(
        37,
        STATEMENT_37,
        results,
        jobs_37(setting),
        (Part(elu, "above"), Part(mpelu, "above")),
        beside=(relu,),
        note=". ".join(filter(None, (HELD_37, told))),
        differs="; ".join(PLAIN_FACTORS),
    )


def show_9(results: Results) -> Grid:
    """Return Table 9 in the row of the one depth that the text names."""
    rows = []
    for arm, start in zip(TABLE_9, ("", "", "1, 1", "after addition 98, 0.01"), strict=True):
        where = {"depth": "110", "activation": arm.label}
        best = printed("table09", where, "best_err")
        rows.append(
            (arm.label, start, cell(results, arm, printed("table09", where, "mean_err")), best.paper or UNKNOWN)
        )
    extra = cell(results, WITHOUT_DECAY, Cell())
    rows.append((f"{WITHOUT_DECAY.label} (not in the paper)", "after addition 98, 0.01", extra, UNKNOWN))
    cpu = results.setting.scale == "cpu"
    return Grid(
        "table9",
        TITLE_9,
        ("Activation", "alpha, beta at start", "Test error, %, depth 110", "Paper's best"),
        tuple(rows),
        results.setting.scale,
        results.setting.data if cpu else "cifar10",
        factors_of(TABLE_9) if cpu else (),
    )


TITLE_9 = "Test error of ResNets with swapped activations"
CLAIMS = (
    contested(
        35,
        "In ResNets with BN, ELU in the place of ReLU hurts and MPELU (A) helps, at every depth",
        (Contest(ELU, RELU), Contest(RELU, MPELU_A)),
        differs=ONE_DEPTH,
    ),
    contested(
        36,
        "MPELU (B), near-identities (98, 0.01) behind the additions, is better than MPELU (A) and all others, at every "
        "depth",
        (Contest(MPELU_A, MPELU_B), Contest(RELU, MPELU_B), Contest(ELU, MPELU_B)),
        differs=ONE_DEPTH,
        controls=(Contest(MPELU_B, WITHOUT_DECAY),),
    ),
    Claim(37, STATEMENT_37, jobs_37, judge_37),
)
EXHIBITS = (Exhibit("table9", TITLE_9, jobs_of((*TABLE_9, WITHOUT_DECAY)), show_9),)
