import pytest

from mpelu.report.cells import duration_text, paper_style, spread_text
from mpelu.report.summary import Spread


def test_errors_are_written_as_the_paper_writes_them():
    assert paper_style(Spread(best=4.43, mean=4.53, sd=0.12, n=5)) == "4.43 (4.53 ± 0.12), n = 5"


def test_one_seed_is_written_without_a_spread():
    assert paper_style(Spread(best=4.434, mean=4.434, sd=None, n=1)) == "4.43, n = 1"
    assert "±" not in spread_text(Spread(best=4.434, mean=4.434, sd=None, n=1))


def test_no_seed_is_not_a_number():
    assert paper_style(None) == "—, n = 0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"), (None, "—")],
)
def test_durations_carry_over_into_the_next_unit(seconds, text):
    assert duration_text(seconds) == text
