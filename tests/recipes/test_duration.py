import dataclasses

import pytest

from mpelu.data.catalog import CATALOG
from mpelu.models import FAMILIES, family_of
from mpelu.recipes import duration
from mpelu.recipes.duration import DATA, Step, expected_seconds, images_of, in_words, is_measured
from mpelu.train.recipe import Recipe

SHORT = Recipe(model="plain30", activation="mpelu", data="digits", augment="none", batch_size=32, epochs=1)


@pytest.fixture
def table(monkeypatch):
    """Two measured steps of plain30 and one of nin, in the place of the table."""
    measured = {"machine": "a machine", "torch": "2"}
    steps = [
        Step("plain30", "mpelu", "{}", 1, 16, 32, 2_000_000, 0.5, **measured),
        Step("plain30", "relu", "{}", 1, 16, 32, 2_000_000, 0.25, **measured),
        Step("nin", "mpelu", "{}", 1, 16, 32, 2_500_000, 7.0, **measured),
        Step("plain60", "mpelu", "{}", 1, 16, 32, 4_000_000),
        Step("plain30", "elu", "{}", 1, 16, 64, 2_000_000),
    ]
    monkeypatch.setattr(duration, "_known", lambda: {step.key: step for step in steps})


def test_steps_and_test_images_are_paid_for(table):
    assert is_measured(SHORT)
    assert expected_seconds(SHORT) == pytest.approx(0.5 * (47 + 297 / 32 / 3))
    assert expected_seconds(SHORT, 320) == pytest.approx(0.5 * (10 + 297 / 32 / 3))
    limited = dataclasses.replace(SHORT, limit=64, epochs=3)
    assert expected_seconds(limited) == pytest.approx(3 * 0.5 * (2 + 297 / 32 / 3))


def test_what_was_not_measured_is_scaled_from_the_nearest(table):
    deeper = dataclasses.replace(SHORT, model="plain60")
    assert not is_measured(deeper)
    assert duration.step_seconds(deeper) == pytest.approx(2 * 0.5), "the same family and activation, not nin"
    larger = dataclasses.replace(SHORT, activation="elu", batch_size=64)
    assert duration.step_seconds(larger) in (pytest.approx(2 * 0.5), pytest.approx(2 * 0.25))
    unlisted = dataclasses.replace(SHORT, activation="relu", width=32)
    assert duration.multiply_adds(unlisted) > 3 * duration.multiply_adds(SHORT)
    expected = 0.25 * duration.multiply_adds(unlisted) / 2_000_000
    assert duration.step_seconds(unlisted) == pytest.approx(expected)


def test_data_are_those_of_the_catalog():
    for name, images in DATA.items():
        entry = CATALOG[name]
        channels, size, _ = entry.size
        size = {"imagenet": 224}.get(name, size)  # a crop of what is stored
        wanted = (entry.train, entry.test, entry.classes, channels, size)
        assert (images.train, images.test, images.classes, images.channels, images.size) == wanted
    assert set(DATA) == set(CATALOG)


def test_families_are_those_of_the_models():
    for family, entry in FAMILIES.items():
        name = f"{family}{entry.depths[0] if entry.depths else ''}"
        assert duration.family(name) == family_of(name)
    assert duration.family("my.package:net") == family_of("my.package:net")


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"data": "cifar10"}, 32),
        ({"data": "cifar10", "augment": "crop28"}, 28),
        ({"data": "some/folder", "resize": 24}, 24),
        ({"data": "some/folder", "stream": "squash"}, 224),
        ({"data": "digits", "augment": "crop14"}, 14),
    ],
)
def test_size_of_what_the_network_sees(changes, size):
    assert images_of(dataclasses.replace(SHORT, **changes)).size == size


def test_every_measured_step_says_where():
    steps = duration.read(duration.TABLE).values()
    assert any(step.seconds for step in steps)
    for step in steps:
        assert step.multiply_adds > 0
        assert (step.seconds is None) == (step.machine == "") == (step.torch == "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.0, "59 s"), (61.0, "1 min"), (7200.0, "2.0 h"), (86400 * 12.3, "12 days"), (4e7, "1.3 years")],
)
def test_words(seconds, words):
    assert in_words(seconds) == words
