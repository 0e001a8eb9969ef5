import pytest

from mpelu.report.grid import Cell
from mpelu.studies import fifteen
from mpelu.studies.jobs import Measurement, Setting, key, key_of
from tests.studies.by_error import measurement, training
from tests.studies.trained import results

SETTING = Setting("cpu", "digits")
ITEMS = (*fifteen.CLAIMS, *fifteen.EXHIBITS)
CLAIMS = {claim.number: claim for claim in fifteen.CLAIMS}
TABLES = {exhibit.name: exhibit for exhibit in fifteen.EXHIBITS}
ALL = {key(job): job for item in ITEMS for job in item.jobs(SETTING)}
NAMES = {key(job): name for name in fifteen.ROWS for job in fifteen.trainings(name, SETTING)}
NOISE = (0.0, 0.2, -0.1, 0.1, -0.2)

AS_IN_THE_PAPER = {
    "imagenet15-relu": 38.4,
    "imagenet15-relu-msra": 38.3,
    "imagenet15-elu": 40.36,
    "imagenet15-elu-eq22": 40.0,
    "imagenet15-elu-lsuv": 40.8,
    **{f"imagenet15-prelu{alpha}{init}": 39.48 for alpha in ("0", "0.25", "1") for init in ("", "-msra")},
    "imagenet15-mpelu0": 39.6,
    "imagenet15-mpelu0-eq22": 39.0,
    "imagenet15-mpelu0-decay": 38.0,
    "imagenet15-mpelu0-decay-eq22": 37.5,
    "imagenet15-mpelu0.25": 40.94,
    "imagenet15-mpelu0.25-eq22": 40.0,
    "imagenet15-mpelu0.25-decay": 37.81,
    "imagenet15-mpelu0.25-decay-eq22": 37.33,
    "imagenet15-mpelu1": 39.53,
    "imagenet15-mpelu1-eq22": 38.42,
    "imagenet15-mpelu1-decay": 38.04,
    "imagenet15-mpelu1-decay-eq22": 37.5,
    "imagenet15-mpelu1-decay-lsuv": 38.3,
    "imagenet15-lrelu-a": 38.8,
    "imagenet15-lrelu-b": 39.2,
    "imagenet15-lrelu-c": 40.2,
    "imagenet15-lrelu-d": 44.0,
}


def trained(errors, *, seeds=range(5), diverged=()):
    """Return results in which each recipe ends with its error, give or take a noise that seeds have in common."""

    def make(job):
        if isinstance(job, Measurement):
            return None
        name = NAMES[key(job)]
        if job.seed not in seeds or name not in errors:
            return None
        own = 0.02 * ((job.seed * 7 + len(name)) % 3)
        last = [] if name in diverged else [70.0, errors[name] + NOISE[job.seed] + own]
        return training(job, last, diverged=name in diverged)

    return results(ALL.values(), make)


def judged(number, change=None, **options):
    return CLAIMS[number].judge(trained(AS_IN_THE_PAPER | (change or {}), **options))


TRAINED = (13, 14, 15, 16, 17, 19, 32)


@pytest.mark.parametrize("number", TRAINED)
def test_the_paper_confirms_itself(number):
    found = judged(number)
    assert found.outcome == "confirmed"
    assert len(found.runs) == len(CLAIMS[number].jobs(SETTING))
    assert found.evidence.endswith(".")
    assert "width 64" in found.differs
    assert (found.scale, found.data) == ("cpu", "digits")


@pytest.mark.parametrize(
    ("number", "change", "outcome"),
    [
        (13, {"imagenet15-elu": 39.0}, "refuted"),
        (13, {"imagenet15-elu": 39.53}, "inconclusive"),
        (14, {"imagenet15-mpelu0.25-decay": 42.0}, "refuted"),
        (14, {"imagenet15-mpelu1-decay": 39.53}, "inconclusive"),
        (15, {"imagenet15-prelu0.25": 37.0}, "refuted"),
        (15, {"imagenet15-prelu0.25": 42.0}, "refuted"),
        (15, {"imagenet15-prelu0.25": 40.94}, "inconclusive"),
        (16, {"imagenet15-mpelu0-eq22": 41.0}, "refuted"),
        (16, {"imagenet15-prelu1-msra": 30.0}, "refuted"),
        (16, {"imagenet15-relu-msra": 37.33}, "inconclusive"),
        (17, {"imagenet15-relu": 37.0}, "refuted"),
        (17, {"imagenet15-elu": 38.0}, "refuted"),
        (17, {"imagenet15-elu": 38.4}, "inconclusive"),
        (19, {"imagenet15-relu": 50.0, "imagenet15-lrelu-a": 48.0, "imagenet15-lrelu-b": 46.0}, "refuted"),
        (19, {"imagenet15-relu": 41.0, "imagenet15-lrelu-d": 39.0}, "inconclusive"),
        (32, {"imagenet15-elu-lsuv": 39.0}, "refuted"),
        (32, {"imagenet15-elu-lsuv": 40.0}, "inconclusive"),
    ],
)
def test_other_numbers_have_other_outcomes(number, change, outcome):
    assert judged(number, change).outcome == outcome


def test_what_diverged_counts_as_guessing():
    assert judged(13, diverged=("imagenet15-elu",)).outcome == "confirmed"
    found = judged(13, diverged=("imagenet15-mpelu1",))
    assert found.outcome == "refuted"
    assert found.intervals[0].estimate == pytest.approx(40.36 - 90.0, abs=0.5)
    assert "5 of 15 runs diverged" in found.evidence
    assert judged(19, diverged=("imagenet15-lrelu-d",)).outcome == "confirmed"
    assert judged(19, diverged=tuple(fifteen.BY_SLOPE.values())).outcome == "not run"
    assert judged(16, diverged=("imagenet15-mpelu0-eq22",)).outcome == "refuted"


@pytest.mark.parametrize("number", TRAINED)
def test_less_than_two_pairs_are_no_verdict(number):
    assert CLAIMS[number].judge(trained({})).outcome == "not run"
    assert judged(number, seeds=[0]).outcome == "not run"
    without = {name: error for name, error in AS_IN_THE_PAPER.items() if "lsuv" not in name}
    del without["imagenet15-mpelu1"], without["imagenet15-relu"], without["imagenet15-prelu0.25"]
    assert CLAIMS[number].judge(trained(without)).outcome == "not run"
    assert judged(number, seeds=[1, 4]).outcome in ("confirmed", "inconclusive")


def ends(with_decay, without):
    def make(job):
        if not isinstance(job, Measurement):
            return None
        value = with_decay if job.options["decay"] else without
        return None if value is None else measurement(job, {"alpha": value + NOISE[job.seed] / 10, "beta": value})

    return CLAIMS[18].judge(results(ALL.values(), make))


@pytest.mark.parametrize(
    ("with_decay", "without", "outcome"),
    [
        (0.3, 1.0, "confirmed"),
        (1.2, 1.0, "refuted"),
        (0.3, 0.2, "refuted"),
        (1.0, 1.5, "inconclusive"),
        (0.3, None, "not run"),
        (None, None, "not run"),
    ],
)
def test_decay_of_alpha_and_beta_is_measured(with_decay, without, outcome):
    found = ends(with_decay, without)
    assert found.outcome == outcome
    assert bool(found.intervals) is (with_decay is not None)
    assert [interval.bound for interval in found.intervals if "from 1" in interval.quantity] in ([], [1.0, 1.0])


def test_a_training_is_measured_for_its_alpha_and_beta():
    ended = {
        decay: fifteen.alpha_and_beta(seed=0, data="digits", decay=decay, limit=320, epochs=1, width=4)
        for decay in (True, False)
    }
    assert len(ended[True]["layers"]) == len(ended[True]["alpha_by_layer"]) == 14
    for kind in ("alpha", "beta"):
        assert 0.9 < ended[True][kind] < ended[False][kind] - 0.01
        assert ended[False][kind] == pytest.approx(1.0, abs=0.02)
        assert ended[False][kind] != 1.0


def test_what_is_not_tested_says_why():
    assert CLAIMS[20].jobs(SETTING) == ()
    assert CLAIMS[20].judge(trained({})).evidence.startswith("Not tested")
    paper = CLAIMS[18].judge(results((), lambda _: None, Setting("paper")))
    assert paper.outcome == "not run"
    assert "hold no alpha and beta" in paper.evidence


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_jobs_are_unique_and_stable(item):
    for setting in (SETTING, Setting("cpu", "cifar10-jpeg75"), Setting("paper")):
        jobs = item.jobs(setting)
        keys = [key(job) for job in jobs]
        assert len(set(keys)) == len(keys)
        assert keys == [key(job) for job in item.jobs(setting)]
        assert 5 * len(item.jobs(Setting(setting.scale, setting.data, 2))) == 2 * len(keys)


def test_claims_share_the_runs_of_their_table():
    in_table = {key(job) for name in ("table2", "table3", "table6") for job in TABLES[name].jobs(SETTING)}
    for number in TRAINED:
        assert {key(job) for job in CLAIMS[number].jobs(SETTING)} <= in_table


def test_records_are_found_by_their_jobs():
    for job in ALL.values():
        made = measurement(job, {}) if isinstance(job, Measurement) else training(job, [50.0])
        assert key_of(made) == key(job)


def cells_of(grid):
    assert all(len(row) == len(grid.columns) for row in grid.rows)
    return {
        (*(part for part in row if isinstance(part, str) and part), grid.columns[column]): cell
        for row in grid.rows
        for column, cell in enumerate(row)
        if isinstance(cell, Cell)
    }


def test_table_2_has_the_numbers_of_the_paper():
    cells = cells_of(TABLES["table2"].show(trained(AS_IN_THE_PAPER)))
    assert len(cells) == 2 * (1 + 3 + 1 + 6 + 1)
    assert {place: cell.paper for place, cell in cells.items() if cell.paper} == {
        ("PReLU", "0.25", "Gaussian(0.01)"): "39.48",
        ("ELU", "1", "Gaussian(0.01)"): "40.36",
        ("MPELU", "0.25, 1", "no", "Gaussian(0.01)"): "40.94",
        ("MPELU", "0.25, 1", "yes", "Gaussian(0.01)"): "37.81",
        ("MPELU", "1, 1", "no", "Gaussian(0.01)"): "39.53",
        ("MPELU", "1, 1", "yes", "Gaussian(0.01)"): "38.04",
        ("MPELU", "1, 1", "no", "MSRA or Eq. 22"): "38.42",
        ("MPELU", "not stated", "yes", "MSRA or Eq. 22"): "37.33",
    }
    for place, cell in cells.items():
        if place[1] != "not stated":
            assert cell.ours.n == len(cell.runs) == 5, place
    assert cells["MPELU", "0.25, 1", "yes", "Gaussian(0.01)"].ours.mean == pytest.approx(37.81, abs=0.1)


@pytest.mark.parametrize(("name", "rows", "columns"), [("table3", 5, 4), ("table6", 2, 3)])
def test_tables_3_and_6_have_no_number_of_the_paper(name, rows, columns):
    grid = TABLES[name].show(trained(AS_IN_THE_PAPER))
    assert (len(grid.rows), len(grid.columns)) == (rows, columns)
    cells = cells_of(grid)
    assert all(cell.paper == "" for cell in cells.values())
    assert all(cell.ours is not None for place, cell in cells.items() if place[-1] != "top-5")
    nothing = cells_of(TABLES[name].show(trained({})))
    assert all(cell == Cell() for cell in nothing.values())
