"""What a worker process looks up before it begins."""

import pytest
from PIL import Image

from mpelu.errors import MpeluError
from mpelu.studies import work
from mpelu.studies.jobs import Measurement


def write(folder, sizes):
    for split in ("train", "test"):
        for index, size in enumerate(sizes):
            place = folder / split / f"class{index}"
            place.mkdir(parents=True)
            Image.new("RGB", size, (100 * index, 50, 0)).save(place / "image.png")
    return str(folder)


@pytest.fixture
def decoded(monkeypatch):
    """What was decoded whole."""
    seen = []
    original = work.loaded
    monkeypatch.setattr(work, "loaded", lambda data: seen.append(data) or original(data))
    return seen


def test_photographs_of_several_sizes_are_listed_and_not_decoded(tmp_path, decoded):
    folder = write(tmp_path / "photos", [(40, 50), (60, 50)])
    assert work.named(folder).name == "photos"
    assert decoded == []


def test_images_of_one_size_are_those_that_a_training_holds(tmp_path, decoded, monkeypatch):
    monkeypatch.setenv("MPELU_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "small", [(8, 8), (8, 8)])
    assert len(work.named(folder).train.labels) == 2
    assert work.named("digits").name == "digits"
    assert decoded == [folder, "digits"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    asked = Measurement("tests.studies.fake:square", {"number": 1})
    with pytest.raises(MpeluError, match=r"cannot write to .*seed0: Not a directory; choose .* with --runs"):
        work.measure(lambda _: None, measurement=asked, runs=tmp_path / "runs", study="x", device="cpu")
