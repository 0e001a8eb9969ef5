"""Four 30-layer nets without normalization on the built-in digits: one stays flat, three learn.

Source:   Li et al., arXiv:1606.00305, section 4.3 and Table 5 (claim: without batch normalization the 30-layer ELU and
          MPELU nets do not learn from Gaussian(0.01) weights and do from Eq. 22), at a scale for two cores.
Command:  mpelu demo
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

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
RECIPES = (  # the slowest first, so that two workers end together
    replace(BASE, activation="mpelu", alpha=1.0, beta=1.0, init="eq22"),
    replace(BASE, activation="elu", alpha=1.0, init="eq22"),
    replace(BASE, activation="relu", init="msra"),
    replace(BASE, activation="relu", init="gaussian", init_std=0.01),
)
TITLE = "A 30-layer net without normalization: does it learn?"
LEAD = (
    "Four copies of one plain 30-layer network, without batch normalization or shortcuts, are trained on 1,500 "
    "handwritten digits. Only the activation and the scale of the starting weights differ."
)
HOW_TO_READ = (
    "Training loss: a net that has learned nothing stays at ln 10 = 2.303, the dotted line; below it, it learns.",
    (
        "With Gaussian(0.01) weights the signal is multiplied by a small factor in each layer. After 30 layers nothing "
        "of the image is left, so no gradient tells the weights what to do."
    ),
    (
        "MSRA keeps the signal through ReLU. Eq. 22 of the paper does the same, to first order, for exponential units: "
        "ELU and MPELU with alpha = beta = 1."
    ),
    (
        "One seed and 297 test images cannot rank the three nets that learn: differences of a few percent are chance. "
        "Run more seeds with --seeds."
    ),
)
FLAT = 0.01  # of ln 10, in nats: a training loss within it has not moved
LEARNED_PERCENT = 10.0  # test error; chance is 90 %


def verdicts(records: Sequence[dict[str, Any]]) -> tuple[Verdict, ...]:
    """Judge the three statements of the demo from its records; diverged runs count as not learning."""
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


def _evidence(record: dict[str, Any]) -> str:
    if record["outcome"] != "finished":
        return f"seed {record['seed']}: {record['reason']}"
    last = record["last"]
    return (
        f"seed {record['seed']}: training loss {last['train_loss']:.3f}, "
        f"test error {last['test_error_percent']:.1f} % in the last epoch"
    )
