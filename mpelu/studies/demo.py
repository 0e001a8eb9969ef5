"""Plain nets without normalization on the built-in digits: 30 layers deep, one stays flat and three learn; deeper, the
one that is tailored to its depth learns.

Source:   Li et al., arXiv:1606.00305, section 4.3 and Table 5 (claim: without batch normalization the 30-layer ELU and
          MPELU nets do not learn from Gaussian(0.01) weights and do from Eq. 22), at a scale for two cores.
Command:  mpelu demo, mpelu demo --depth 100
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from mpelu.errors import UsageError
from mpelu.report.verdict import Verdict
from mpelu.train.recipe import Recipe

BASE = Recipe(
    model="plain30",
    width=16,
    data="digits",
    augment="none",
    epochs=10,
    batch_size=32,
    lr=0.02,
    schedule="cosine",
    warmup_epochs=1,
    warmup_lr=0.002,
    momentum=0.9,
    weight_decay=1e-4,
    clip_norm=5.0,
)
DEPTH = 30
RECIPES = (  # the slowest first, so that two workers end together
    replace(BASE, activation="mpelu", alpha=1.0, beta=1.0, init="eq22"),
    replace(BASE, activation="elu", alpha=1.0, init="eq22"),
    replace(BASE, activation="relu", init="msra"),
    replace(BASE, activation="relu", init="gaussian", init_std=0.01),
)


def recipes(depth: int = DEPTH) -> tuple[Recipe, ...]:
    """Return the nets of the demo: four of 30 layers, or three of another depth.

    Raises:
        UsageError: If the depth is neither 30 nor one of 60, 70, ..., 200.
    """
    if depth == DEPTH:
        return RECIPES
    if depth not in range(60, 201, 10):
        raise UsageError(f"--depth must be 30, or 60 to 200 in steps of 10, got {depth}")
    deep = replace(BASE, model=f"plain{depth}")
    return (
        replace(deep, activation="mpelu", alpha=1.0, beta=1.0, init="tailored"),
        replace(deep, activation="mpelu", alpha=1.0, beta=1.0, init="eq22"),
        replace(deep, activation="relu", init="msra"),
    )


def title(depth: int = DEPTH) -> str:
    """Return the headline of the page."""
    return f"A {depth}-layer net without normalization: does it learn?"


def lead(depth: int = DEPTH) -> str:
    """Return the first paragraph of the page."""
    copies = "Four" if depth == DEPTH else "Three"
    differ = "the activation and the scale of the starting weights differ"
    if depth != DEPTH:
        differ = "the activation and how it starts differ"
    return (
        f"{copies} copies of one plain {depth}-layer network, without batch normalization or shortcuts, are trained on "
        f"1,500 handwritten digits. Only {differ}."
    )


FLAT_LINE = (
    "Training loss: a net that has learned nothing stays at ln 10 = 2.303, the dotted line; below it, it learns."
)
SEEDS = (
    "One seed and 297 test images cannot rank nets that learn: differences of a few percent are chance. Run more seeds "
    "with --seeds."
)
HOW_TO_READ = (
    FLAT_LINE,
    (
        "With Gaussian(0.01) weights the signal is multiplied by a small factor in each layer. After 30 layers nothing "
        "of the image is left, so no gradient tells the weights what to do."
    ),
    (
        "MSRA keeps the signal through ReLU. Eq. 22 of the paper does the same, to first order, for exponential units: "
        "ELU and MPELU with alpha = beta = 1."
    ),
    SEEDS,
)
HOW_TO_READ_DEEP = (
    FLAT_LINE,
    (
        "At this depth it is not enough that the signal keeps its size: layer by layer all images become alike, and "
        "what looks the same is hard to tell apart. Eq. 22 and MSRA do not take that into account: from Eq. 22 a net "
        "of 100 layers still learns, but slowly."
    ),
    (
        "Tailoring starts MPELU nearly linear, with alpha and beta chosen from the depth, so that images stay apart; "
        "training bends it where that helps. Nothing else about the network is changed."
    ),
    SEEDS,
)


def how_to_read(depth: int = DEPTH) -> tuple[str, ...]:
    """Return the paragraphs under the curves."""
    return HOW_TO_READ if depth == DEPTH else HOW_TO_READ_DEEP


FLAT = 0.01  # of ln 10, in nats: a training loss within it has not moved
LEARNED_PERCENT = 10.0  # test error; chance is 90 %


def verdicts(records: Sequence[dict[str, Any]], depth: int = DEPTH) -> tuple[Verdict, ...]:
    """Judge the statements of the demo from its records; diverged runs count as not learning."""
    if depth != DEPTH:
        return (
            _verdict(
                f"MPELU tailored to the depth comes below {LEARNED_PERCENT:g} % test error",
                records,
                "mpelu",
                "tailored",
                _has_learned,
            ),
            _verdict(
                f"MPELU from Eq. 22 stays above {LEARNED_PERCENT:g} % test error in the same time",
                records,
                "mpelu",
                "eq22",
                _has_not_learned,
            ),
            _verdict(
                f"ReLU from MSRA stays above {LEARNED_PERCENT:g} % in the same time",
                records,
                "relu",
                "msra",
                _has_not_learned,
            ),
        )
    return (
        _verdict("ReLU from Gaussian(0.01) weights does not learn", records, "relu", "gaussian", _is_flat),
        _verdict("ELU from Eq. 22 learns", records, "elu", "eq22", _has_learned),
        _verdict("MPELU from Eq. 22 learns", records, "mpelu", "eq22", _has_learned),
    )


def _verdict(
    statement: str,
    records: Sequence[dict[str, Any]],
    activation: str,
    init: str,
    holds: Callable[[dict[str, Any]], bool],
) -> Verdict:
    chosen = [
        record
        for record in records
        if record["config"]["activation"] == activation and record["config"]["init"] == init
    ]
    found = {holds(record) for record in chosen}
    outcome: Literal["holds", "fails", "inconclusive"] = (
        "holds" if found == {True} else "fails" if found == {False} else "inconclusive"
    )
    return Verdict(statement, outcome, "; ".join(_evidence(record) for record in chosen))


def _is_flat(record: dict[str, Any]) -> bool:
    chance = math.log(record["data"]["classes"])
    return record["outcome"] == "finished" and bool(abs(record["last"]["train_loss"] - chance) <= FLAT)


def _has_learned(record: dict[str, Any]) -> bool:
    return record["outcome"] == "finished" and bool(record["last"]["test_error_percent"] < LEARNED_PERCENT)


def _has_not_learned(record: dict[str, Any]) -> bool:
    return not _has_learned(record)


def _evidence(record: dict[str, Any]) -> str:
    if record["outcome"] != "finished":
        return f"seed {record['seed']}: {record['reason']}"
    last = record["last"]
    return (
        f"seed {record['seed']}: training loss {last['train_loss']:.3f}, "
        f"test error {last['test_error_percent']:.1f} % in the last epoch"
    )
