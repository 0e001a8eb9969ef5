import numpy as np
import pytest
import torch
from PIL import Image

from mpelu.data import Dataset, Split, evaluation_inputs, load, training_inputs
from mpelu.data.augment import AUGMENTATIONS
from mpelu.errors import UsageError

OFFSETS = torch.tensor([0, 10, 30, 60])


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def shifted() -> Dataset:
    """Four images that are one picture plus a number: minus the mean image, nothing but the number is left."""
    picture = torch.randint(0, 190, (3, 32, 32), generator=draws())
    images = (picture + OFFSETS.view(-1, 1, 1, 1)).to(torch.uint8)
    split = Split(images, torch.zeros(4, dtype=torch.int64))
    return Dataset("shifted", ("one",), split, split, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.25), sha256="0")


@pytest.mark.parametrize("kind", [kind for kind, found in AUGMENTATIONS.items() if not found.padding])
def test_each_pixel_loses_its_own_mean_wherever_crop_and_flip_put_it(shifted, kind):
    data = shifted.centered("image", "raw")
    expected = (OFFSETS - OFFSETS.float().mean()).view(-1, 1, 1, 1)
    images = data.train.images
    for shown in (training_inputs(data, images, kind, generator=draws()), evaluation_inputs(data, images, kind)):
        # float32: pixels of 255 times its epsilon, three operations
        torch.testing.assert_close(shown, expected.expand_as(shown), rtol=0, atol=255 * 3 * 1.2e-7)
        assert shown.shape[-1] == (AUGMENTATIONS[kind].size or 32)


@pytest.mark.parametrize("center", ["channel", "image", "none"])
def test_padding_is_zero(center):
    white = Split(torch.full((64, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    black = Split(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    data = Dataset("two", ("one",), black, white, mean=(51 / 255,), std=(0.5,), sha256="0").centered(center)
    shown = training_inputs(data, white.images, "pad4", generator=draws())
    left = 255 - {"channel": 51, "image": 0, "none": 0}[center]
    assert {round(value * 0.5 * 255) for value in shown.unique().tolist()} == {0, left}


def test_raw_leaves_the_pixels_as_they_are_stored():
    digits = load("digits")
    images = digits.train.images[:20]
    shown = evaluation_inputs(digits.centered("none", "raw"), images, "none")
    torch.testing.assert_close(shown, images.float(), rtol=3e-7, atol=0)  # rounded when divided, twice
    channel = evaluation_inputs(digits.centered("channel", "raw"), images, "none")
    torch.testing.assert_close(channel, images - 255 * digits.mean[0], rtol=0, atol=1e-4)


def test_default_changes_nothing_and_the_mean_image_is_that_of_the_images_in_use():
    digits = load("digits")
    assert digits.centered() is digits
    few = digits.limited(7).centered("image")
    torch.testing.assert_close(few.mean_image, digits.train.images[:7].double().mean(0).float() / 255)
    assert few.std == digits.std
    assert few.image_shape == tuple(few.mean_image.shape) == (1, 16, 16)


def test_part_of_a_batch_is_what_the_whole_batch_shows_there(shifted):
    for center in ("channel", "image"):
        data = shifted.centered(center)
        images = data.train.images
        whole = training_inputs(data, images, "pad4", generator=draws())
        part = training_inputs(data, images, "pad4", generator=draws(), part=slice(1, 3))
        assert torch.equal(part, whole[1:3])


@pytest.mark.parametrize(("options", "named"), [(("image",), "center image"), (("channel", "raw"), "pixel_scale raw")])
def test_preprocessed_images_are_not_scaled_again(options, named):
    whitened = load("digits", preprocess="gcn_zca")
    with pytest.raises(UsageError, match=f"preprocess gcn_zca centres .* leave out {named}"):
        whitened.centered(*options)


def test_images_in_memory_are_resized():
    digits, small = load("digits"), load("digits", resize=8)
    assert torch.equal(load("digits", resize=16).train.images, digits.train.images)
    assert small.test.images.shape == (297, 1, 8, 8)
    image = Image.fromarray(digits.test.images[5, 0].numpy()).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(small.test.images[5, 0].numpy(), np.asarray(image))
