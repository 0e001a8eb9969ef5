import torch

from mpelu.data import load


def test_facts():
    digits = load("digits")
    assert digits.name == "digits"
    assert digits.classes == tuple("0123456789")
    for split, count in ((digits.train, 1500), (digits.test, 297)):
        assert split.images.shape == (count, 1, 16, 16)
        assert split.images.dtype == torch.uint8
        assert split.labels.shape == (count,)
        assert split.labels.dtype == torch.int64
    images = torch.cat([digits.train.images, digits.test.images])
    assert int(images.min()) == 0
    assert int(images.max()) == 255


def test_label_counts_are_those_of_the_source():
    digits = load("digits")
    labels = torch.cat([digits.train.labels, digits.test.labels])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_statistics_are_those_of_the_pixels():
    digits = load("digits")
    pixels = digits.train.images.double() / 255
    assert abs(digits.mean[0] - float(pixels.mean())) < 1e-12
    assert abs(digits.std[0] - float(pixels.std(correction=0))) < 1e-12


def test_does_not_touch_the_cache(cache_folder):
    load("digits")
    assert not cache_folder.exists()
