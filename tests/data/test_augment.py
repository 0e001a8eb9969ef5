import pytest
import torch

from mpelu.data import AUGMENTATIONS, augment, evaluation_view, normalize, random_crop, random_flip
from mpelu.errors import UsageError

MEAN = (0.49, 0.48, 0.45)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct_images(count: int, *, channels: int = 3, height: int = 7, width: int = 9) -> torch.Tensor:
    """No two pixels of an image have the same value, so that a window tells its offset."""
    values = torch.arange(channels * height * width).reshape(channels, height, width)
    return (values + 1000 * torch.arange(count)[:, None, None, None]).to(torch.int32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
@pytest.mark.parametrize(("padding", "size"), [(0, (5, 3)), (2, (7, 9)), (1, (9, 11)), (3, (1, 1)), (0, (7, 9))])
def test_each_crop_is_a_window_of_the_padded_image(padding, size, dtype):
    images = (distinct_images(11) % 251).to(dtype)
    fill = (252, 253, 254)
    crops = random_crop(images, padding=padding, size=size, fill=fill, generator=generator())
    assert crops.shape == (11, 3, *size)
    assert crops.dtype == dtype
    padded = torch.tensor(fill, dtype=dtype).view(1, 3, 1, 1).repeat(11, 1, 7 + 2 * padding, 9 + 2 * padding)
    padded[:, :, padding : padding + 7, padding : padding + 9] = images
    windows = padded.unfold(2, size[0], 1).unfold(3, size[1], 1)
    equal = (windows == crops[:, :, None, None]).all(dim=(-1, -2)).all(dim=1)
    assert equal.flatten(1).any(dim=1).all()


def test_offsets_cover_the_full_range_evenly():
    count, offsets = 8100, 9
    image = torch.arange(40 * 40, dtype=torch.int32).reshape(1, 1, 40, 40).expand(count, -1, -1, -1)
    corner = random_crop(image, padding=0, size=(32, 32), fill=(0,), generator=generator())[:, 0, 0, 0]
    top, left = corner // 40, corner % 40
    pairs = torch.bincount(top * offsets + left, minlength=offsets**2)
    assert pairs.shape == (offsets**2,)
    expected = count / offsets**2
    # chi-squared with 80 degrees of freedom: mean 80, standard deviation sqrt(160)
    assert float(((pairs - expected) ** 2 / expected).sum()) < 80 + 4 * 160**0.5


def test_flips_are_about_half_and_mirror_columns():
    images = distinct_images(2000, channels=1)
    flipped = random_flip(images, generator=generator())
    same = (flipped == images).flatten(1).all(dim=1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 1000) < 4 * (2000 / 4) ** 0.5  # four standard deviations of a fair coin


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 33, 41)])
def test_augment_keeps_dtype_and_agrees_with_evaluation_in_shape(kind, channels, height, width):
    images = torch.randint(0, 256, (5, channels, height, width), dtype=torch.uint8, generator=generator())
    before = images.clone()
    result = augment(images, kind, mean=MEAN[:channels], generator=generator(1))
    assert result.dtype == torch.uint8
    assert result.shape == evaluation_view(images, kind).shape
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", [kind for kind in AUGMENTATIONS if kind != "none"])
def test_the_same_seed_gives_the_same_batch(kind):
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator())
    first, again, other = (augment(images, kind, mean=MEAN, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_none_changes_nothing():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator())
    assert torch.equal(augment(images, "none", mean=MEAN, generator=generator()), images)
    assert torch.equal(evaluation_view(images, "none"), images)


def test_padding_has_the_mean_colour():
    images = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    result = augment(images, "pad4", mean=MEAN, generator=generator())
    colours = result.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)
    assert colours.tolist() == [[0, 0, 0], [round(255 * value) for value in MEAN]]


def test_floating_images_have_a_scale_of_their_own():
    images = torch.full((20, 3, 32, 32), 7.0, dtype=torch.float16)
    result = augment(images, "pad4", mean=(0.25, -1.0, 0.0), generator=generator())
    assert result.dtype == torch.float16
    colours = result.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)
    assert colours.tolist() == [[0.25, -1.0, 0.0], [7.0, 7.0, 7.0]]
    shown = normalize(images, (1.0, 0.0, 7.0), (2.0, 1.0, 1.0))
    assert shown[0, :, 0, 0].tolist() == [3.0, 7.0, 0.0]
    assert (images == 7).all()


def test_only_pad4_noflip_never_mirrors():
    row = torch.arange(32, dtype=torch.uint8).expand(200, 1, 32, 32)
    rising = {
        kind: augment(row, kind, mean=(0.0,), generator=generator())[:, 0, 16, 14:18].int().diff().gt(0).all(dim=1)
        for kind in ("pad4", "pad4-noflip", "crop28")
    }
    assert rising["pad4-noflip"].all()
    assert 0 < int(rising["pad4"].sum()) < 200
    assert 0 < int(rising["crop28"].sum()) < 200


def test_evaluation_takes_the_centre():
    images = distinct_images(2, height=32, width=33)
    assert torch.equal(evaluation_view(images, "crop28"), images[:, :, 2:30, 2:30])
    small = distinct_images(2, height=16, width=16).float()
    assert torch.equal(evaluation_view(small, "crop14"), small[:, :, 1:15, 1:15])
    assert augment(small, "crop14", mean=(0.5,) * small.shape[1], generator=generator()).shape[-2:] == (14, 14)


def test_crop_larger_than_the_image_is_refused():
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(UsageError, match="crop of 28x28 does not fit into images of 16x16"):
        augment(images, "crop28", mean=(0.5,), generator=generator())
    with pytest.raises(UsageError, match="crop of 28x28 does not fit into images of 16x16"):
        evaluation_view(images, "crop28")


def test_unknown_kind_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match=r"unknown augmentation 'pad5': use one of none, .*did you mean 'pad4"):
        evaluation_view(torch.zeros(1, 1, 4, 4), "pad5")


def test_wrong_dtype_and_wrong_fill_are_refused():
    with pytest.raises(TypeError, match=r"must be torch\.uint8 or floating, got torch\.int32"):
        augment(torch.zeros(1, 1, 4, 4, dtype=torch.int32), "pad4", mean=(0.5,), generator=generator())
    with pytest.raises(ValueError, match="each of 3 channels, got 1"):
        augment(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "pad4", mean=(0.5,), generator=generator())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalize_is_the_formula_rounded_once(dtype):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = MEAN, (0.2, 0.25, 0.3)
    exact = images.double() / 255
    exact = (exact - torch.tensor(mean).double().view(-1, 1, 1)) / torch.tensor(std).double().view(-1, 1, 1)
    result = normalize(images, mean, std, dtype=dtype)
    assert result.dtype == dtype
    # three roundings in float32 of values up to 3, one in the dtype of the result
    tolerance = 3 * (4 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps)
    assert float((result.double() - exact).abs().max()) <= tolerance
