"""The paper's own numbers can be read, and cells that its text does not give stay empty."""

import pytest

from mpelu.report.paper import TABLES, line, lines, printed


@pytest.mark.parametrize("table", TABLES)
def test_every_line_has_a_source_and_every_column_a_name(table):
    found = lines(table)
    assert found
    assert all(each.keys() == found[0].keys() and "source" in each for each in found)
    assert all(name and name == name.strip() for name in found[0])


@pytest.mark.parametrize(
    ("table", "where", "column", "number"),
    [
        ("table01", {"activation": "ELU"}, "err_aug", "7.77"),
        ("table03", {"activation": "LReLU D"}, "negative_slope", "1"),
        ("table05", {"activation": "MPELU(1,1) no decay", "BN": "no", "init": "Eq. 22"}, "top1", "36.49"),
        ("table12", {"depth": "1001", "alpha_init": "0.25"}, "c10_mean_std", "3.71+-0.11"),
    ],
)
def test_a_number_of_the_text_is_found(table, where, column, number):
    cell = printed(table, where, column)
    assert cell.paper == number
    assert cell.source


def test_a_number_that_the_text_does_not_give_is_empty():
    cell = printed("table04", {"activation": "MPELU"}, "seconds_per_iteration")
    assert (cell.paper, cell.source, cell.ours) == ("", "", None)


@pytest.mark.parametrize(
    ("table", "where", "message"),
    [
        ("table13", {}, "one of table01 to table12"),
        ("table05", {"activation": "ELU"}, "one line of table05, got 4"),
        ("table05", {"activation": "GELU"}, "got 0"),
        ("table05", {"unit": "ELU"}, "no column unit"),
    ],
)
def test_what_is_not_there_is_an_error(table, where, message):
    with pytest.raises(ValueError, match=message):
        line(table, where)


def test_a_column_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no column 'top5'"):
        printed("table05", {"activation": "ELU", "BN": "no", "init": "Eq. 22"}, "top5")
