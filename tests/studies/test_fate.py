import pytest

from mpelu.recipes import imagenet30
from mpelu.studies.fate import Part, conclude, counts, difference, fate, final, share
from mpelu.studies.jobs import Setting, Training, key
from tests.studies.trained import GUESSING, diverged, finished, results

RECIPES = [row.recipe("cpu") for row in imagenet30.ROWS[:2]]
FIRST, SECOND = ([Training(recipe, seed) for seed in range(4)] for recipe in RECIPES)


def test_a_run_learns_if_its_loss_ends_clearly_below_guessing():
    job = FIRST[0]
    assert fate(finished(job, 2.0)) == "learns"
    assert fate(finished(job, GUESSING - 0.01)) == "flat"
    assert fate(finished(job, 3.0)) == "flat"
    assert fate(finished(job, float("nan"))) == "flat"
    assert fate(diverged(job)) == "diverged"


def test_a_run_that_diverged_counts_as_one_that_guesses():
    assert final(diverged(FIRST[0]), "test error") == pytest.approx(90.0)
    assert final(diverged(FIRST[0]), "training loss") == pytest.approx(GUESSING, abs=1e-4)
    assert final(finished(FIRST[0], 1.5, 20.0), "training error") == 20.0


def test_a_share_needs_a_run_of_each_group():
    found = results(FIRST, lambda job: finished(job, 1.0) if job.seed else diverged(job))
    interval = share(found, "runs that learn", [FIRST])
    assert interval is not None
    assert (interval.estimate, interval.n, interval.bound) == (0.75, 4, 0.5)
    assert share(found, "runs that learn", [FIRST, SECOND]) is None
    assert counts(found, FIRST) == "diverged 1 of 4, learns 3 of 4"
    assert counts(found, SECOND) == ""


def test_differences_are_paired_by_seed():
    def make(job):
        if job.recipe == RECIPES[1]:
            return finished(job, 1.0, 10.0 + job.seed) if job.seed < 3 else None
        return finished(job, 1.0, 20.0 + 2 * job.seed) if job.seed else None

    found = difference(results([*FIRST, *SECOND], make), "a minus b", FIRST, SECOND)
    assert found is not None
    assert found.n == 2  # seeds 1 and 2 have both
    assert found.estimate == pytest.approx(((22 - 11) + (24 - 12)) / 2)


def test_a_finding_names_its_runs_and_those_that_diverged():
    found = results(FIRST, diverged)
    part = Part(share(found, "runs that learn", [FIRST]), "above")
    finding = conclude(1, "It learns.", found, FIRST, [part], note="a note.")
    assert finding.outcome == "refuted" if finding.intervals[0].high < 0.5 else "inconclusive"
    assert finding.runs == tuple(map(key, FIRST))
    assert finding.evidence.startswith("A note. Runs that learn: 0.00")
    assert "4 of 4 runs diverged" in finding.evidence


def test_nothing_run_is_said_to_be_not_run():
    part = Part(share(results([], diverged), "runs that learn", [FIRST]), "above")
    at_scale = Setting("paper")
    jobs = [Training(row.recipe("paper"), 0, "paper") for row in imagenet30.ROWS[:1]]
    finding = conclude(1, "It learns.", results([], diverged, at_scale), jobs, [part], differs="smaller")
    assert (finding.outcome, finding.evidence, finding.data, finding.differs) == ("not run", "", "imagenet", "")
