"""Timings as Markdown, from the rows that a benchmark wrote."""

import math
from collections.abc import Sequence

from mpelu.bench.timing import Row

PARTS = ("forward", "backward")
TENSORS = {"forward": 2, "backward": 3}
"""How many of the size of x a pass has to read and write at least; so does a copy forward."""
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
AGAINST = ("elu", "prelu", "leaky_relu", "relu", "silu", "gelu", "reference", "compiled naive")


def activation_table(rows: Sequence[Row]) -> str:
    """Return MPELU's time, and its ratio to each other activation, forward and backward together, row by setting.

    Beside it the bandwidth that this amounts to, and that of a copy, which is what memory allows.
    """
    newest = _newest(rows, "activation")
    names = [name for name in AGAINST if any(key[4] == name for key in newest)]
    settings = list(dict.fromkeys(key[:4] for key in newest))
    head = ["shape, layout, dtype", "isa", "fwd / bwd ms", "GB/s", "copy GB/s", *(f"/ {name}" for name in names)]
    body = []
    for shape, layout, dtype, isa in settings:
        times = [newest.get((shape, layout, dtype, isa, "mpelu", f"{part} ms")) for part in PARTS]
        copy = newest.get((shape, layout, dtype, isa, "copy", "forward ms"))
        body.append(
            [
                f"{shape} {layout} {dtype}",
                isa,
                " / ".join(_number(time, 2) for time in times),
                " / ".join(_bandwidth(shape, dtype, part, time) for part, time in zip(PARTS, times, strict=True)),
                _bandwidth(shape, dtype, "forward", copy),
                *(_number(newest.get((shape, layout, dtype, isa, name, "mpelu / it")), 2) for name in names),
            ]
        )
    return _markdown(head, body)


def _bandwidth(shape: str, dtype: str, part: str, milliseconds: float | None) -> str:
    """Return GB/s of a pass that reads and writes what it has to, and nothing twice."""
    if milliseconds is None:
        return _number(None, 0)
    size = BYTES[dtype] * math.prod(int(length) for length in shape.split(","))
    return _number(TENSORS[part] * size / (milliseconds * 1e6), 1)


def compiled_table(rows: Sequence[Row]) -> str:
    """Return the times of MPELU and ELU under torch.compile, and MPELU's divided by that of ELU and of the formula."""
    newest = _newest(rows, "compiled")
    settings = list(dict.fromkeys(key[:4] for key in newest))
    head = ["block or network, layout, dtype", "isa", "MPELU fwd / bwd ms", "ELU fwd / bwd ms", "/ elu", "/ naive"]
    body = [
        [
            f"{subject}, {layout}, {dtype}",
            isa,
            *(
                " / ".join(f"{newest[(subject, layout, dtype, isa, name, f'{part} ms')]:.1f}" for part in PARTS)
                for name in ("mpelu", "elu")
            ),
            *(_number(newest.get((subject, layout, dtype, isa, name, "mpelu / it")), 2) for name in ("elu", "naive")),
        ]
        for subject, layout, dtype, isa in settings
    ]
    return _markdown(head, body)


def model_table(rows: Sequence[Row]) -> str:
    """Return images/s and memory of each network and activation, and MPELU's time divided by theirs."""
    newest = _newest(rows, "model")
    keys = list(dict.fromkeys(key[:5] for key in newest))
    head = ["network", "activation", "images/s", "time of MPELU / it", "kept for backward, MB", "peak of a step, MB"]
    body = [
        [
            key[0],
            key[4],
            _number(newest.get((*key, "images/s")), 1),
            _number(newest.get((*key, "mpelu / it")), 2),
            _number(newest.get((*key, "kept MB")), 1),
            _number(newest.get((*key, "peak MB")), 1),
        ]
        for key in keys
    ]
    return _markdown(head, body)


def _newest(rows: Sequence[Row], benchmark: str) -> dict[tuple[str, ...], float]:
    """Return the last value of each (subject, layout, dtype, isa, name, metric)."""
    return {
        (row.subject, row.layout, row.dtype, row.isa, row.name, row.metric): row.value
        for row in rows
        if row.benchmark == benchmark
    }


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))
