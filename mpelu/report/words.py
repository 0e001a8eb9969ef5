"""Strict JSON of records: it has no numbers that are not finite, so they are written as words."""

import json
import math
from collections.abc import Mapping
from typing import Any

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
TEXTS = frozenset(
    {"name", "kind", "op", "weight", "model", "state", "layer", "cause", "advice", "effect", "summary", "notes"}
)
"""Keys below which words are only words: a layer may have the name of a number."""


def strict_json(value: Any) -> str:
    """Return JSON with "NaN", "Infinity" and "-Infinity" in the place of what is not finite.

    Example:
        >>> strict_json({"mean": math.inf})
        '{"mean": "Infinity"}'
    """
    return json.dumps(_worded(value), allow_nan=False)


def with_numbers(value: Any) -> Any:
    """Return what was read from such JSON, with numbers in the place of their words.

    Example:
        >>> with_numbers({"name": "NaN", "mean": "-Infinity"})
        {'name': 'NaN', 'mean': -inf}
    """
    if isinstance(value, str):
        return WORDS.get(value, value)
    if isinstance(value, Mapping):
        return {key: item if key in TEXTS else with_numbers(item) for key, item in value.items()}
    return [with_numbers(item) for item in value] if isinstance(value, list) else value


def _worded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _worded(item) for key, item in value.items()}
    return [_worded(item) for item in value] if isinstance(value, list | tuple) else value
