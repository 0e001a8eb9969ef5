"""Timings as Markdown, from the rows that a benchmark wrote."""

from collections.abc import Sequence

from mpelu.bench.timing import Row

AGAINST = ("elu", "prelu", "leaky_relu", "relu", "silu", "gelu", "reference", "compiled naive")


def activation_table(rows: Sequence[Row]) -> str:
    """Return MPELU's time, and its ratio to each other activation, forward and backward together, row by setting."""
    newest = _newest(rows, "activation")
    names = [name for name in AGAINST if any(key[4] == name for key in newest)]
    settings = list(dict.fromkeys(key[:4] for key in newest))
    head = ["shape, layout, dtype", "isa", "fwd / bwd ms", *(f"/ {name}" for name in names)]
    body = []
    for shape, layout, dtype, isa in settings:
        cells = newest.get((shape, layout, dtype, isa, "mpelu", "forward ms"))
        backward = newest.get((shape, layout, dtype, isa, "mpelu", "backward ms"))
        body.append(
            [
                f"{shape} {layout} {dtype}",
                isa,
                f"{cells:.2f} / {backward:.2f}" if cells is not None and backward is not None else "–",
                *(_ratio(newest.get((shape, layout, dtype, isa, name, "mpelu / it"))) for name in names),
            ]
        )
    return _markdown(head, body)


def model_table(rows: Sequence[Row]) -> str:
    """Return images/s and kept memory of each network and activation, and MPELU's time divided by theirs."""
    newest = _newest(rows, "model")
    keys = list(dict.fromkeys(key[:5] for key in newest))
    head = ["network", "activation", "images/s", "time of MPELU / it", "kept for backward, MB"]
    body = [
        [
            key[0],
            key[4],
            f"{newest[(*key, 'images/s')]:.1f}",
            _ratio(newest.get((*key, "mpelu / it"))),
            f"{newest[(*key, 'kept MB')]:.1f}",
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


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))
