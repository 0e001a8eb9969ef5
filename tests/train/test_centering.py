"""What the network is given, where a recipe centres and scales otherwise than by channel."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mpelu.data import load
from mpelu.errors import UsageError
from mpelu.train.evaluation import evaluate, load_trained
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run
from mpelu.train.supply import data_of, examples_of, first_batch, other_data, supply_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("center", ["image", "none"])
def test_run_is_tested_as_it_was_trained(small, tmp_path, center):
    recipe = replace(small, center=center, pixel_scale="raw", lr=1e-4, epochs=1)
    prepared = prepare(recipe, seed=1, runs=tmp_path)
    record = run(prepared, device="cpu")
    assert prepared.hash != prepare(replace(recipe, center="channel"), seed=1, runs=tmp_path).hash
    found = evaluate(prepared.folder)
    assert found.test_error_percent == record["last"]["test_error_percent"]
    assert found.test_loss == pytest.approx(record["last"]["test_loss"], rel=1e-5)
    assert evaluate(prepared.folder, data="digits") == replace(found, images_per_second=pytest.approx(0, abs=1e9))


def test_a_raw_scale_reaches_the_network(small, tmp_path):
    data = prepare(replace(small, center="none", pixel_scale="raw"), seed=1, runs=tmp_path).dataset
    recipe = replace(small, augment="none")
    batch = next(supply_of(recipe, data, device=CPU).training(seed=1, start=0, stop=1))
    stored = load("digits").train.images[batch.indices]
    torch.testing.assert_close(batch.images, stored.float(), rtol=3e-7, atol=0)


def test_other_images_lose_the_mean_of_those_the_network_was_trained_on(small, tmp_path):
    recipe = replace(small, center="image", limit=10, batch_size=10)
    trained_on = prepare(recipe, seed=1, runs=tmp_path).dataset
    other = other_data(recipe, "digits", trained_on)
    assert torch.equal(other.mean_image, trained_on.mean_image)
    assert len(other.train.labels) == 1500


def test_examples_are_shown_as_in_a_test(small, tmp_path):
    prepared = prepare(replace(small, center="image", augment="crop14", epochs=1), seed=1, runs=tmp_path)
    run(prepared, device="cpu")
    trained = load_trained(prepared.folder)
    images, labels = examples_of(trained.recipe, trained.dataset, 5)
    data = trained.dataset
    expected = (data.train.images[:5] / 255 - data.mean_image) / data.std[0]
    torch.testing.assert_close(images, expected[..., 1:15, 1:15])
    assert torch.equal(labels, data.train.labels[:5])


def test_the_first_batch_is_what_all_processes_are_shown_first(small, tmp_path):
    prepared = prepare(replace(small, center="image"), seed=1, runs=tmp_path)
    recipe, data = prepared.recipe, prepared.dataset
    parts = [
        next(supply_of(recipe, data, device=CPU, rank=rank, processes=3).training(seed=1, start=0, stop=1)).images
        for rank in range(3)
    ]
    assert torch.equal(first_batch(recipe, data, seed=1), torch.cat(parts))


def test_a_supply_goes_on_at_any_step(small, tmp_path):
    prepared = prepare(small, seed=1, runs=tmp_path)
    supply = supply_of(prepared.recipe, prepared.dataset, device=CPU)
    everything = list(supply.training(seed=1, start=0, stop=7))
    for one, other in zip(everything[4:], supply.training(seed=1, start=4, stop=7), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)


def test_skipping_is_for_streams(small, tmp_path):
    with pytest.raises(UsageError, match=r"damaged skip .* stream is off"):
        prepare(replace(small, damaged="skip"), seed=1, runs=tmp_path)


@pytest.mark.parametrize("change", [{"center": "image"}, {"pixel_scale": "raw"}])
def test_whitened_images_are_refused_before_they_are_whitened(small, tmp_path, monkeypatch, change):
    monkeypatch.setattr("mpelu.train.supply.load", None)
    with pytest.raises(UsageError, match="preprocess gcn_zca centres and scales the images itself"):
        prepare(replace(small, preprocess="gcn_zca", **change), seed=1, runs=tmp_path)


def write_classes(folder, count):
    for split in ("train", "test"):
        for label in range(3):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (16, 16), 80 * label + number).save(place / f"{number}.png")
    return folder


def test_a_limit_that_leaves_out_classes_is_warned_of(tmp_path):
    folder = str(write_classes(tmp_path / "made-up", 12))
    with pytest.warns(UserWarning, match="limit 24 leaves images of 2 of the 3 classes"):
        data_of(Recipe(data=folder, limit=24))
    for limit in (None, 25):
        data_of(Recipe(data=folder, limit=limit))
