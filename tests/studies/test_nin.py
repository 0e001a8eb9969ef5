import pytest

from mpelu.report.grid import Cell
from mpelu.studies import nin
from mpelu.studies.by_name import trainings
from mpelu.studies.jobs import Setting, key, key_of
from tests.studies.by_error import training
from tests.studies.trained import results

SETTING = Setting("cpu", "digits")
EPOCHS = 20
ALL = nin.EXHIBITS[0].jobs(SETTING)
CLAIMS = {claim.number: claim for claim in nin.CLAIMS}
NOISE = (0.0, 0.2, -0.1, 0.1, -0.2)


def activation_of(job):
    return job.recipe.activation + (f"{job.recipe.alpha:g}" if job.recipe.activation == "mpelu" else "")


def falling(final, reached=None):
    """Return errors of all epochs: 90 %, from epoch ``reached`` on 74 %, and ``final`` in the last."""
    curve = [90.0 if reached is None or epoch < reached else 74.0 for epoch in range(1, EPOCHS)]
    return [*curve, final]


def judged(number, finals, reached=None, *, seeds=range(5), diverged=()):
    """Judge records in which each activation ends with an error, give or take a noise that seeds have in common."""

    def make(job):
        name = activation_of(job)
        if job.seed not in seeds or name not in finals:
            return None
        own = 0.05 * ((job.seed * 7 + len(name)) % 3)
        errors = falling(finals[name] + NOISE[job.seed] + own, (reached or {}).get(name))
        return training(job, errors[:0] if name in diverged else errors, diverged=name in diverged)

    return CLAIMS[number].judge(results(ALL, make))


ORDERED = {"relu": 70.0, "prelu": 66.0, "elu": 64.0, "mpelu0.25": 66.0, "mpelu1": 62.0}


@pytest.mark.parametrize(
    ("number", "change", "outcome"),
    [
        (8, {}, "confirmed"),
        (8, {"mpelu1": 66.0}, "refuted"),
        (8, {"mpelu1": 64.0}, "inconclusive"),
        (9, {}, "confirmed"),
        (9, {"mpelu0.25": 73.0}, "refuted"),
        (9, {"mpelu0.25": 66.0 + 0.06 * 66.0}, "inconclusive"),
        (11, {}, "confirmed"),
        (11, {"prelu": 75.0}, "refuted"),
        (11, {"prelu": 70.0}, "inconclusive"),
    ],
)
def test_errors_are_compared(number, change, outcome):
    found = judged(number, ORDERED | change)
    assert found.outcome == outcome
    assert len(found.runs) == len(CLAIMS[number].jobs(SETTING))
    assert "points" in found.evidence
    assert ("Refuted at scale cpu" in found.evidence) == (outcome == "refuted")
    assert "widths 192" in found.differs


REACHED = {"relu": 12, "prelu": 8, "elu": 4, "mpelu1": 4}


@pytest.mark.parametrize(
    ("reached", "outcome"),
    [
        ({}, "confirmed"),
        ({"prelu": 3}, "refuted"),
        ({"relu": 8}, "inconclusive"),
        ({"relu": None}, "confirmed"),
    ],
)
def test_speed_is_counted_in_steps(reached, outcome):
    found = judged(10, dict.fromkeys(ORDERED, 70.0) | {"relu": 80.0}, REACHED | reached)
    assert found.outcome == outcome
    steps = -(-1500 // 32)
    first = 8 if "prelu" not in reached else 3
    assert found.intervals[0].estimate == (first - 4) * steps
    assert ("5 of 20 runs never came to 75 %" in found.evidence) is (reached.get("relu", 0) is None)


@pytest.mark.parametrize(
    ("reached", "outcome"), [({}, "confirmed"), ({"relu": 16}, "confirmed"), ({"relu": 18}, "refuted")]
)
def test_all_must_come_below_the_threshold_before_the_rate_falls(reached, outcome):
    found = judged(12, dict.fromkeys(ORDERED, 70.0), REACHED | reached)
    assert found.outcome == outcome
    assert all(interval.bound == 75.0 for interval in found.intervals)


def test_the_paper_has_another_threshold():
    setting = Setting("paper")
    jobs = CLAIMS[12].jobs(setting)
    errors = [90.0] * 62 + [14.0] * 245
    for reached, outcome in ((errors, "confirmed"), ([90.0] * 3 + errors, "refuted")):
        found = CLAIMS[12].judge(results(jobs, lambda job, reached=reached: training(job, reached[:307]), setting))
        assert (found.outcome, found.data, found.scale, found.differs) == (outcome, "cifar10", "paper", "")


def test_a_run_that_diverged_counts_as_guessing():
    found = judged(8, ORDERED, diverged=("elu",))
    assert found.outcome == "confirmed"
    assert found.intervals[0].estimate == pytest.approx(90.0 - 62.0, abs=1.0)
    assert "diverged" in found.evidence
    assert judged(8, ORDERED, diverged=("mpelu1",)).outcome == "refuted"
    assert judged(10, ORDERED, REACHED, diverged=("mpelu1",)).outcome == "refuted"
    assert judged(12, ORDERED, REACHED, diverged=("mpelu1",)).outcome == "refuted"
    assert judged(9, ORDERED, diverged=("prelu", "mpelu0.25")).outcome == "confirmed"


@pytest.mark.parametrize("number", CLAIMS)
def test_less_than_two_pairs_are_no_verdict(number):
    assert judged(number, {}).outcome == "not run"
    assert judged(number, ORDERED, REACHED, seeds=[0]).outcome == "not run"
    assert judged(number, {"relu": 70.0, "elu": 64.0}, REACHED).outcome == "not run"
    assert judged(number, ORDERED, REACHED, seeds=[0, 3]).outcome != "not run"


@pytest.mark.parametrize("item", [*nin.CLAIMS, *nin.EXHIBITS], ids=lambda item: item.name)
def test_jobs_are_unique_and_shared_with_the_table(item):
    keys = [key(job) for job in item.jobs(SETTING)]
    assert len(set(keys)) == len(keys) > 0
    assert set(keys) <= {key(job) for job in ALL}
    assert keys == [key(job) for job in item.jobs(Setting("cpu", "digits", 5))]
    assert len(item.jobs(Setting("cpu", "digits", 2))) == len(keys) * 2 // 5


def test_records_are_found_by_their_jobs():
    for job in (*ALL, *nin.EXHIBITS[0].jobs(Setting("cpu", "cifar10-jpeg75"))):
        assert key_of(training(job, [50.0])) == key(job)


def test_table_has_the_layout_and_the_numbers_of_the_paper():
    show = nin.EXHIBITS[0].show
    grid = show(results(ALL, lambda job: training(job, [50.0 + job.seed])))
    assert grid.columns == ("activation", "no augmentation", "augmentation")
    names = ["ReLU", "PReLU (0.25)", "ELU", nin.UNSTATED, "MPELU (0.25, 1)", "MPELU (1, 1)"]
    assert [row[0] for row in grid.rows] == names
    assert all(len(row) == 3 for row in grid.rows)
    cells = {(row[0], column): cell for row in grid.rows for column, cell in enumerate(row) if column}
    printed = {place: cell.paper for place, cell in cells.items() if cell.paper}
    assert printed == {("ELU", 1): "9.39", ("ELU", 2): "7.77", (nin.UNSTATED, 1): "9.06", (nin.UNSTATED, 2): "7.30"}
    assert all(cell.source for cell in cells.values() if cell.paper)
    assert cells["ELU", 1].ours.mean == 52.0
    assert cells["ELU", 1].ours.n == len(cells["ELU", 1].runs) == 5
    assert cells[nin.UNSTATED, 1].ours is None
    assert show(results(ALL, lambda _: None)).rows[0][1] == Cell()


def test_table_counts_what_diverged():
    relu = set(map(key, trainings("nin-relu", SETTING)))
    grid = nin.show_table1(results(ALL, lambda job: training(job, [60.0], diverged=key(job) in relu and job.seed < 2)))
    assert grid.rows[0][1].text == "diverged 2 of 5"
    assert grid.rows[0][1].ours.n == 3


def test_figure_shows_the_curves_there_are():
    show = nin.EXHIBITS[1].show
    nothing = show(results(ALL, lambda _: None))
    assert nothing.svg == ""
    picture = show(results(ALL, lambda job: training(job, falling(60.0, 5)) if activation_of(job) == "elu" else None))
    assert picture.svg.count("<svg") == 1
    assert "ELU" in picture.svg
    assert "PReLU" not in picture.svg
    assert len(picture.runs) == 5
