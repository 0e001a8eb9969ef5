import pytest

from mpelu.report.finding import Finding, Interval
from mpelu.report.grid import Cell, Grid, Picture
from mpelu.report.reproduction import PARTS, counts, counts_by_setting, has_numbers, headline, nearest_first, parts
from mpelu.report.summary import Spread


def finding(outcome="confirmed", *, claim=8, scale="cpu", data="digits", n=3, evidence="numbers"):
    intervals = () if outcome == "not run" else (Interval("a minus b", "points", 1.0, 0.5, 1.5, n, ""),)
    return Finding(claim, "statement", outcome, evidence, intervals, scale, data)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (finding("refuted", n=2), finding("not run", scale="paper", data="cifar10")),
        (finding("inconclusive", scale="paper", data="cifar10", n=2), finding(n=9)),
        (finding("inconclusive", data="cifar10-jpeg75", n=2), finding(n=9)),
        (finding("inconclusive", scale="any", data=""), finding()),
        (finding("inconclusive", n=5), finding(n=3)),
        (finding("inconclusive", claim=29, data="imagenet-sample"), finding(claim=29, data="cifar10")),
        (finding("inconclusive", claim=8, data="cifar10-jpeg75"), finding(claim=8, data="imagenet-sample")),
        (finding("not run", evidence="it has no such layer"), finding("not run", scale="paper", evidence="")),
    ],
    ids=["run", "scale", "natural images", "computed", "seeds", "imagenet", "cifar", "reason"],
)
def test_the_weightier_finding_is_in_front_in_either_order(better, worse):
    assert headline([better, worse]).finding == headline([worse, better]).finding == better


def test_the_verdict_itself_plays_no_part():
    alike = [finding(outcome) for outcome in ("inconclusive", "refuted", "confirmed")]
    assert headline(alike).finding.outcome == "inconclusive"
    assert headline(alike[::-1]).finding.outcome == "confirmed"


def test_other_findings_follow_and_settings_without_runs_do_not():
    photographs = finding("refuted", data="cifar10")
    judged = headline([finding("not run", scale="paper"), finding(), photographs, finding()])
    assert judged.finding == photographs
    assert judged.others == (finding(),)


def test_a_finding_that_has_no_scale_is_listed_once():
    computed = finding(scale="any", data="")
    assert headline([computed, computed, computed]).others == ()


def test_outcomes_are_counted_by_the_setting_that_decided():
    claims = [headline([one]) for one in (finding("not run"), finding(), finding("refuted", data="cifar10"))]
    assert counts(claims) == {"confirmed": 1, "refuted": 1, "inconclusive": 0, "not run": 1}
    by_setting = counts_by_setting(claims)
    assert list(by_setting) == ["scale cpu, cifar10", "scale cpu, digits", ""]
    assert by_setting["scale cpu, cifar10"]["refuted"] == by_setting[""]["not run"] == 1


def test_the_parts_hold_every_claim_once():
    assert [number for first, last, _, _ in PARTS for number in range(first, last + 1)] == list(range(1, 53))
    claims = [headline([finding(claim=number)]) for number in (1, 7, 8, 52, 60)]
    found = {title: [claim.finding.claim for claim in alike] for title, alike in parts(claims)}
    assert found == {
        "The function": [1, 7],
        "NIN on CIFAR-10": [8],
        "Against other networks": [52],
        "Others": [60],
    }


@pytest.mark.parametrize(
    ("name", "order"),
    [("table7", ["imagenet", "imagenet-sample", "cifar10-x", "digits"]),
     ("table9", ["imagenet", "cifar10-x", "imagenet-sample", "digits"])],
)  # fmt: skip
def test_tables_are_shown_on_images_like_the_paper_s_first(name, order):
    views = [
        Grid(name, "", (), (), scale, data)
        for scale, data in (("cpu", "digits"), ("cpu", "cifar10-x"), ("cpu", "imagenet-sample"), ("paper", "imagenet"))
    ]
    assert [view.data for view in nearest_first(views)] == order


def test_what_holds_numbers_of_ours():
    spread = Spread(best=1.0, mean=1.0, sd=None, n=1)

    def grid(cell):
        return Grid("table1", "", ("", ""), (("row", cell),), "cpu", "digits")

    assert has_numbers(grid(Cell(ours=spread)))
    assert has_numbers(grid(Cell(text="diverged 5 of 5", runs=("key",))))
    assert not has_numbers(grid(Cell(paper="9.06")))
    assert has_numbers(Picture("figure1", "", "<svg/>", "", "any", ""))
    assert has_numbers(Picture("figure2", "", "<svg/>", "", "cpu", "digits", runs=("key",)))
    assert not has_numbers(Picture("figure2", "", "<svg/>", "", "cpu", "digits"))
