"""How a number is written, the same in the terminal, in Markdown and on the page."""

from collections.abc import Sequence

from mpelu.report.summary import Divergence, Spread, Summary

NOTHING = "—"


def spread_text(spread: Spread | None) -> str:
    """Write errors over seeds as papers do, ``best (mean ± sd)``; one seed is one number, without a spread.

    Example:
        >>> spread_text(Spread(best=4.0, mean=5.0, sd=1.4142, n=2))
        '4.00 (5.00 ± 1.41)'
        >>> spread_text(Spread(best=4.0, mean=4.0, sd=None, n=1))
        '4.00'
    """
    if spread is None:
        return NOTHING
    if spread.sd is None:
        return f"{spread.best:.2f}"
    return f"{spread.best:.2f} ({spread.mean:.2f} ± {spread.sd:.2f})"


def paper_style(spread: Spread | None) -> str:
    """Write ``best (mean ± sd), n``.

    Example:
        >>> paper_style(Spread(best=4.43, mean=4.53, sd=0.12, n=5))
        '4.43 (4.53 ± 0.12), n = 5'
    """
    return f"{spread_text(spread)}, n = {seeds_finished(spread)}"


def seeds_finished(spread: Spread | None) -> int:
    """Return the number of seeds behind a spread."""
    return 0 if spread is None else spread.n


def loss_text(loss: float | None) -> str:
    """Write a loss with three digits.

    Example:
        >>> loss_text(2.302585), loss_text(0.00012345)
        ('2.30', '0.000123')
    """
    return NOTHING if loss is None else f"{loss:#.3g}"


def count_text(count: float | None) -> str:
    """Write a count or a rate with thousands apart.

    Example:
        >>> count_text(1234567), count_text(843.7)
        ('1,234,567', '844')
    """
    return NOTHING if count is None else f"{count:,.0f}"


def duration_text(seconds: float | None) -> str:
    """Write a duration in the unit that suits it.

    Example:
        >>> duration_text(9.26), duration_text(192.4), duration_text(7500.0)
        ('9.3 s', '3 min 12 s', '2 h 05 min')
    """
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def diverged_count_text(summary: Summary) -> str:
    """Write how many of the runs diverged."""
    return f"{len(summary.diverged)} of {len(summary.runs)}" if summary.diverged else "0"


def divergence_text(divergence: Divergence) -> str:
    """Write which seed stopped, when and why.

    Example:
        >>> divergence_text(Divergence(seed=0, steps=12, reason="loss is nan at step 12"))
        'seed 0 stopped after 12 steps: loss is nan at step 12'
    """
    steps = "1 step" if divergence.steps == 1 else f"{divergence.steps} steps"
    return f"seed {divergence.seed} stopped after {steps}: {divergence.reason}"


def measured_on(summary: Summary) -> str:
    """Write the data set and the scale, which stand beside every number."""
    return f"{summary.data}, scale {summary.scale}"


def common_measured_on(summaries: Sequence[Summary]) -> str | None:
    """Return the data set and scale that all summaries share, or None if they differ."""
    places = {measured_on(summary) for summary in summaries}
    return places.pop() if len(places) == 1 else None
