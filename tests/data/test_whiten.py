import pytest
import torch

from mpelu.data import PREPROCESSINGS, Split, augment, load, normalize
from mpelu.data.catalog import Preprocessing
from mpelu.data.dataset import Decoded
from mpelu.data.whiten import FLOOR, SCALE, contrast_normalize, fit, gcn_zca, whiten
from mpelu.errors import UsageError


def smooth_images(count: int, *, seed: int = 0, size: int = 8) -> torch.Tensor:
    """Images of few colours and slow changes, whose covariance has directions far above and far below the floor."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.05 * fine
    return (images * 40 + 128).round().clamp(0, 255).to(torch.uint8)


def covariance(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def test_each_image_has_mean_0_and_the_norm_of_the_scale():
    images = smooth_images(20)
    result = contrast_normalize(images).flatten(1)
    assert result.mean(1).abs().max() < 1e-13  # 192 roundings of values up to 55
    assert (result.norm(dim=1) - SCALE).abs().max() < 1e-12
    pixels = images[3].double()
    expected = SCALE * (pixels - pixels.mean()) / ((pixels - pixels.mean()) ** 2).sum().sqrt()
    torch.testing.assert_close(result[3], expected.flatten(), rtol=1e-12, atol=1e-12)


def test_brightness_and_contrast_do_not_matter_and_an_even_image_becomes_zero():
    images = torch.randint(0, 100, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(contrast_normalize(2 * images + 7), contrast_normalize(images), rtol=1e-12, atol=1e-12)
    assert not contrast_normalize(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)).any()


@pytest.mark.parametrize("count", [2500, 100], ids=["many", "fewer images than pixels"])
def test_covariance_is_the_identity_on_the_kept_directions(count):
    images = smooth_images(count)
    whitening = fit(images)
    kept = whitening.kept
    assert 10 < int(kept.sum()) < len(kept) - 10
    rows = whiten(images, whitening).flatten(1).double() @ whitening.directions
    inside = covariance(rows)[kept][:, kept]
    assert (inside - torch.eye(len(inside), dtype=torch.float64)).abs().max() < 1e-3
    # below the floor the variance is d / floor: less than 1, and in proportion
    outside = covariance(rows).diagonal()[~kept]
    assert (outside - whitening.eigenvalues[~kept].clamp(min=0) / FLOOR).abs().max() < 1e-3
    # the mean is 0 but for the rounding of pixels to half precision
    assert rows.mean(0).abs().max() < 1e-3


def test_the_map_is_symmetric_and_changes_images_as_little_as_it_can():
    whitening = fit(smooth_images(500))
    torch.testing.assert_close(whitening.matrix, whitening.matrix.T)
    assert (torch.linalg.eigvalsh(whitening.matrix) > 0).all()
    # symmetric, positive, and a root of the inverse covariance: only one map is all three
    restored = whitening.directions @ whitening.eigenvalues.clamp(min=FLOOR).diag() @ whitening.directions.T
    identity = torch.eye(len(restored), dtype=torch.float64)
    torch.testing.assert_close(whitening.matrix @ whitening.matrix @ restored, identity, rtol=0, atol=1e-9)


def test_the_floor_is_an_argument():
    images = smooth_images(500)
    assert int(fit(images, floor=1e-6).kept.sum()) > int(fit(images, floor=1.0).kept.sum())


def test_statistics_come_from_the_training_images_alone():
    train, labels = smooth_images(300), torch.zeros(300, dtype=torch.int64)
    tests = [Split(images, labels) for images in (smooth_images(300, seed=1), torch.zeros_like(train))]
    first, second = (gcn_zca(Decoded(("a",), Split(train, labels), test)) for test in tests)
    assert torch.equal(first.train.images, second.train.images)
    shown = whiten(tests[0].images, fit(train))
    assert torch.equal(first.test.images, shown)


def test_load_keeps_what_it_whitened(cache_folder, monkeypatch):
    stages = []
    first = load("digits", preprocess="gcn_zca", on_progress=lambda *report: stages.append(report))
    assert ("covariance", 1500, 1500) in stages
    assert ("whitening", 297, 297) in stages
    entries = {path.name for path in cache_folder.iterdir()}
    assert any("-gcn55-zca0.1-" in name for name in entries)

    def refuse(*_: object, **__: object) -> Decoded:
        raise AssertionError("whitened again")

    monkeypatch.setitem(PREPROCESSINGS, "gcn_zca", Preprocessing("gcn55-zca0.1", refuse, largest=10**9))
    again = load("digits", preprocess="gcn_zca")
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.images, again.test.images)
    assert (again.mean, again.std, again.preprocess) == ((0.0,), (1.0,), "gcn_zca")
    assert (again.sha256, again.name, again.preprocess) == (load("digits").sha256, "digits", "gcn_zca")


def test_the_training_loop_takes_whitened_images_as_they_are():
    digits = load("digits", preprocess="gcn_zca")
    images = digits.train.images[:50]
    batch = augment(images, "pad4", mean=digits.mean, generator=torch.Generator().manual_seed(0))
    assert batch.dtype == torch.float16
    shown = normalize(batch, digits.mean, digits.std)
    assert torch.equal(shown, batch.float())
    assert (shown == 0).any()  # the padding


def test_unknown_names_and_large_images_are_refused(tmp_path, random_pixels, encode, write_parquet):
    with pytest.raises(UsageError, match="preprocess must be none or gcn_zca, got 'zca'"):
        load("digits", preprocess="zca")
    for split in ("train", "test"):
        write_parquet(tmp_path / "x" / f"{split}-0.parquet", [encode(random_pixels(1, height=72, width=72)[0])], [0])
    with pytest.raises(UsageError, match=r"at most 12288 values, got 15552; make them smaller \(resize\)"):
        load(tmp_path / "x", preprocess="gcn_zca")
    assert load(tmp_path / "x", preprocess="gcn_zca", resize=8).train.images.shape == (1, 3, 8, 8)
