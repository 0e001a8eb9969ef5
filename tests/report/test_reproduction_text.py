import io

import pytest
from rich.console import Console

from mpelu.report.finding import Finding, Interval
from mpelu.report.grid import Cell, Grid, Picture
from mpelu.report.reproduction import Judged, Reproduction, Shown
from mpelu.report.reproduction_text import claims_table, lead, ours_text, reproduction_markdown
from mpelu.report.summary import Spread

INTERVAL = Interval("a minus b", "points", -1.0, -1.5, -0.5, 5, "paired Student, 95 %")


def finding(claim, outcome, **changes):
    intervals = () if outcome == "not run" else (INTERVAL,)
    fields = {"evidence": "", "scale": "cpu", "data": "digits"} | changes
    return Finding(claim, f"Statement {claim}", outcome, intervals=intervals, **fields)


@pytest.fixture
def found(make_record):
    cells = (Cell(paper="9.06+-0.1", ours=Spread(8.0, 8.5, 0.5, 5), text="diverged 1 of 6"), Cell(paper="7.30"))
    grid = Grid("table1", "Errors", ("net", "plain", "augmented"), (("NIN", *cells),), "cpu", "digits", ("Narrow.",))
    picture = Picture("figure1", "Shapes", "<svg/>", "Seen.", "any", "")
    return Reproduction(
        claims=(
            Judged(finding(1, "confirmed", scale="any", data="")),
            Judged(finding(8, "refuted", evidence="1.0 points", differs="narrower")),
            Judged(finding(9, "not run", evidence="needs *ImageNet*")),
        ),
        exhibits=(Shown("table1", "Errors", (grid,)), Shown("figure1", "Shapes", (picture,))),
        records={"a": make_record(), "b": make_record(seed=1)},
    )


def test_the_lead_counts_claims_runs_and_time(found):
    assert lead(found) == (
        "Of 3 claims of the paper, the runs so far confirm 1, refute 1 and leave 0 open; 1 has not been tested. "
        "Of those refuted, 1 is so at a small scale only. Behind this: 2 trainings, 18.5 s of computing, on digits."
    )


def test_the_headline_has_the_outcomes_by_setting_and_a_sum(found):
    lines = reproduction_markdown(found, "headline").splitlines()
    assert lines[2:] == [
        "| setting | confirmed | refuted | inconclusive | not run |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| computed, no data | 1 | 0 | 0 | 0 |",
        "| scale cpu, digits | 0 | 1 | 0 | 0 |",
        "| nothing was run | 0 | 0 | 0 | 1 |",
        "| all | 1 | 1 | 0 | 1 |",
    ]


def test_every_claim_is_a_line_with_its_outcome_and_evidence(found):
    assert reproduction_markdown(found, "claims").splitlines()[2:] == [
        (
            "| 1 | Statement 1 | **confirmed** | a minus b: −1.0 points (−1.5 to −0.5; n = 5; paired Student, 95 %) "
            "| computed, no data |"
        ),
        "| 8 | Statement 8 | **refuted** | 1.0 points | scale cpu, digits; narrower |",
        "| 9 | Statement 9 | not run | needs \\*ImageNet\\* | — |",
    ]


def test_a_table_has_the_papers_numbers_and_ours(found):
    assert reproduction_markdown(found, "tables").splitlines() == [
        "**Table 1. Errors** (ours: scale cpu, digits)",
        "",
        "| net | plain, paper | plain, ours | augmented, paper | augmented, ours |",
        "| --- | --- | --- | --- | --- |",
        "| NIN | 9.06 ± 0.1 | 8.50 ± 0.50 (n = 5), diverged 1 of 6 | 7.30 | not run |",
        "",
        "Narrow.",
    ]


def test_all_parts_together_hold_each(found):
    whole = reproduction_markdown(found)
    for part in ("headline", "claims", "tables", "figures"):
        assert reproduction_markdown(found, part) in whole


def test_our_number_says_its_spread_and_its_seeds():
    assert ours_text(Cell(ours=Spread(4.0, 4.0, None, 1), digits=1)) == "4.0 (n = 1)"
    assert ours_text(Cell(text="diverged 5 of 5", runs=("key",))) == "diverged 5 of 5"


def test_the_terminal_shows_every_claim(found):
    text = io.StringIO()
    Console(file=text, width=160).print(claims_table(found))
    for word in ("Statement 1", "confirmed", "refuted", "1.0 points [scale cpu, digits]", "not run"):
        assert word in text.getvalue()
