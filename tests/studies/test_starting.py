"""The net at the start: layers are measured on raw pixels, and the verdicts follow from the variances."""

import math

import pytest

from mpelu.report.grid import Cell
from mpelu.studies import starting
from mpelu.studies.jobs import Measurement, Setting, key, key_of
from mpelu.studies.study import Results
from mpelu.studies.work import named

SETTING = Setting(seeds=3)
CLAIMS = {claim.number: claim for claim in starting.CLAIMS}
SHRINKS = {"conv1": 5000.0, "conv7": 100.0, "conv14": 1.0, "conv20": 0.1, "conv27": 0.01}
KEEPS = dict.fromkeys(starting.LAYERS, 9000.0)


def statistics_of(variances, seed):
    """Return what a net of Gaussian layers with these variances measures."""
    found = {}
    for layer, variance in variances.items():
        sigma = math.sqrt(variance * 1.05**seed)
        above = [0.5 * math.erfc(y / (sigma * math.sqrt(2.0))) for y in (-0.1414, -1.0, -2.0, -3.0)]
        found[layer] = {"mean": 0.01 * seed, "variance": sigma**2, "above": above, "below": above}
    return found


def results_with(variances, setting=SETTING):
    """Return records of nets with these variances, by activation."""
    records = {}
    for job in starting._both(setting):
        record = {
            "kind": "measurement",
            "function": job.function,
            "options": dict(job.options),
            "seed": job.seed,
            "version": job.version,
            "data": {"name": job.data, "sha256": ""},
            "values": statistics_of(variances[job.options["activation"]], job.seed),
        }
        assert key_of(record) == key(job)
        records[key(job)] = record
    return Results(setting, records)


@pytest.mark.parametrize(
    ("relu", "mpelu", "outcome"),
    [(KEEPS, SHRINKS, "confirmed"), (SHRINKS, SHRINKS, "refuted"), (KEEPS, KEEPS, "refuted")],
)
def test_variance_is_kept_or_shrunk(relu, mpelu, outcome):
    found = CLAIMS[27].judge(results_with({"relu": relu, "mpelu": mpelu}))
    assert found.outcome == outcome
    assert (found.scale, found.data, len(found.runs)) == ("cpu", "digits", 6)
    assert "digits" in found.differs


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "confirmed"),
        ({"conv14": 30.0}, "refuted"),  # far from N(0, 1)
        ({"conv27": 9.0}, "refuted"),  # less linear than conv20
        ({"conv14": 2.0}, "inconclusive"),
    ],
)
def test_linearity_is_judged_in_its_parts(change, outcome):
    found = CLAIMS[29].judge(results_with({"relu": KEEPS, "mpelu": SHRINKS | change}))
    assert found.outcome == outcome


@pytest.mark.parametrize("number", CLAIMS)
def test_nothing_is_said_without_records(number):
    assert CLAIMS[number].judge(Results(SETTING, {})).outcome == "not run"


def test_one_seed_is_no_verdict():
    results = results_with({"relu": KEEPS, "mpelu": SHRINKS}, Setting(seeds=1))
    assert CLAIMS[27].judge(results).outcome == "not run"
    assert CLAIMS[29].judge(results).outcome == "not run"


def test_tables_show_every_layer_and_no_number_of_the_paper():
    results = results_with({"relu": KEEPS, "mpelu": SHRINKS})
    seven, eight = (exhibit.show(results) for exhibit in starting.EXHIBITS)
    assert [row[:2] for row in seven.rows] == [(net, layer) for net in starting.NETS.values() for layer in SHRINKS]
    assert [row[0] for row in eight.rows] == list(SHRINKS)
    assert eight.columns[1:] == ("(0,0.01)", "(0,0.5)", "(0,2)", "(0,4.5)")
    for grid in (seven, eight):
        cells = [cell for row in grid.rows for cell in row if isinstance(cell, Cell)]
        assert all(cell.paper == "" and cell.ours.n == 3 and len(cell.runs) == 3 for cell in cells)
        assert all(len(row) == len(grid.columns) for row in grid.rows)
    assert math.isclose(seven.rows[-1][3].ours.mean, 0.01, rel_tol=0.1)
    assert 83 < eight.rows[2][2].ours.mean < 85  # conv14 is N(0, 1) here, and a little more for later seeds


@pytest.mark.slow
def test_the_net_is_measured():
    """It is the whole stack of 27 convolutions, on images that are small enough for a test."""
    mpelu, relu = (
        starting.layer_statistics(seed=0, data="digits", activation=activation, images=2, size=64)
        for activation in ("mpelu", "relu")
    )
    assert list(mpelu) == list(starting.LAYERS)
    # MSRA is sqrt(2) as wide as Eq. 22 with slope 1, for the same draws: the first layer is a linear function of them
    assert math.isclose(relu["conv1"]["variance"] / mpelu["conv1"]["variance"], 2.0, rel_tol=0.01)
    assert mpelu["conv27"]["variance"] < 1e-3 * mpelu["conv1"]["variance"]
    assert relu["conv27"]["variance"] > 0.05 * relu["conv1"]["variance"]
    for layer in mpelu.values():
        # the bound of Eq. 27 is one: the residual itself is below it at least as often
        assert all(below >= above - 1e-6 for above, below in zip(layer["above"], layer["below"], strict=True))
    assert "below" not in relu["conv1"]


def test_images_are_raw_pixels_less_their_mean():
    images = starting.raw_images("digits", 4, 32, seed=0)
    assert images.shape == (4, 3, 32, 32)
    assert abs(float(images.mean())) < 1e-3
    assert float(images.std()) > 50.0
    assert not images.equal(starting.raw_images("digits", 4, 32, seed=1))


def test_photographs_are_cut(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for index, grey in enumerate((0, 200)):
            folder = tmp_path / split / f"class{index}"
            folder.mkdir(parents=True)
            Image.new("RGB", (40 + 20 * index, 50), (grey, grey, grey)).save(folder / "image.png")
    found = named(str(tmp_path))  # they differ in size, so that they are not held in memory
    assert (found.name, len(found.sha256)) == (tmp_path.name, 64)
    images = starting.raw_images(str(tmp_path), 2, 32, seed=0)
    assert images.shape == (2, 3, 32, 32)
    assert sorted(images.flatten(1).mean(1).tolist()) == [-100.0, 100.0]


def test_what_cannot_be_found_is_an_error():
    from mpelu.errors import MpeluError

    with pytest.raises(MpeluError, match="no folder"):
        starting.raw_images("/nowhere/at/all", 2, 32, seed=0)


@pytest.mark.parametrize(("lsuv", "outcome"), [(5.0, "confirmed"), (0.2, "refuted")])
def test_cost_is_a_ratio(lsuv, outcome):
    (job,) = CLAIMS[33].jobs(SETTING)
    seconds = {"eq22": [1.0, 2.0, 1.0], "lsuv": [lsuv * 1.1, lsuv * 2.0, lsuv]}
    found = CLAIMS[33].judge(Results(SETTING, {key(job): {**_bare(job), "values": {"seconds": seconds}}}))
    assert found.outcome == outcome
    assert "one pass" in found.differs


def _bare(job: Measurement):
    record = {"function": job.function, "options": job.options, "seed": 0, "version": job.version, "data": None}
    return {"kind": "measurement", **record}


def test_both_starts_are_timed():
    options = {"model": "plain15", "options": {"width": 4, "input_size": 16}, "size": 16, "batch": 4, "rounds": 1}
    found = starting.starting_seconds(seed=0, data="", **options)
    assert found["seconds"].keys() == {"eq22", "lsuv"}
    assert all(len(times) == 1 and times[0] > 0 for times in found["seconds"].values())
