import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpelu.data import check_photographs, find_photographs
from mpelu.data import survey as survey_module
from mpelu.data.photographs import FolderPhotographs, ParquetPhotographs, open_photographs, open_shards
from mpelu.data.stream import Batch, Stream
from mpelu.data.survey import Normalization, normalization, survey_images, training_survey
from mpelu.data.view import View, whole
from mpelu.errors import DataError, UsageError

VIEW = View(size=20, crop=16)
SAMPLE = os.environ.get("MPELU_TEST_IMAGENET")


def photographs_of(count: int, *, seed: int = 0) -> list[bytes]:
    """JPEG files of several sizes, every fifth grey, every seventh CMYK."""
    random = np.random.default_rng(seed)
    files = []
    for number in range(count):
        height, width = random.integers(18, 40, 2)
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        stream = io.BytesIO()
        image.convert("L" if number % 5 == 4 else "CMYK" if number % 7 == 6 else "RGB").save(stream, "JPEG")
        files.append(stream.getvalue())
    return files


@pytest.fixture
def shards(tmp_path, write_parquet) -> Path:
    """47 training and 9 test images of three classes, in row groups of four."""
    folder = tmp_path / "shards" / "data"
    names = ("ant", "bee", "cat")
    train, test = photographs_of(47), photographs_of(9, seed=1)
    options = {"names": names, "image_column": "image"}
    write_parquet(folder / "train-0.parquet", train[:30], [row % 3 for row in range(30)], **options)
    write_parquet(folder / "train-1.parquet", train[30:], [row % 3 for row in range(17)], **options)
    write_parquet(folder / "validation-0.parquet", test, [row % 3 for row in range(9)], **options)
    write_parquet(folder / "test-0.parquet", test, [-1] * 9, **options)
    return folder.parent


@pytest.fixture
def class_folders(tmp_path) -> Path:
    folder = tmp_path / "folders"
    for split, count, seed in (("train", 15, 0), ("val", 3, 1)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / split / name).mkdir(parents=True)
            for number, data in enumerate(photographs_of(count, seed=10 * seed + label)):
                (folder / split / name / f"{number:02}.JPEG").write_bytes(data)
    return folder


@pytest.fixture(params=["shards", "class_folders"])
def data(request):
    return open_photographs(request.getfixturevalue(request.param))


def stream_of(photographs, **options) -> Stream:
    return Stream(photographs, 3, VIEW, **({"batch_size": 10} | options))


def same(one: Batch, other: Batch) -> bool:
    names = ("indices", "images", "labels", "corners", "mirrored")
    tensors = all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
    return tensors and (one.step, one.skipped) == (other.step, other.skipped)


def test_what_is_listed(shards, class_folders):
    parquet, folders = open_photographs(shards), open_photographs(class_folders)
    assert isinstance(parquet.train, ParquetPhotographs)
    assert isinstance(folders.train, FolderPhotographs)
    assert (parquet.name, parquet.classes) == ("shards", ("ant", "bee", "cat"))
    assert folders.classes == ("ant", "bee", "cat")
    assert parquet.train.labels.tolist() == [row % 3 for row in (*range(30), *range(17))]
    assert parquet.test.labels.tolist() == [row % 3 for row in range(9)]  # not the test images, which have no labels
    assert parquet.train.starts.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 30, 34, 38, 42, 46, 47]
    assert folders.train.labels.bincount().tolist() == [15, 15, 15]
    assert parquet.train.where(31).endswith("train-1.parquet row group 0 row 1")


def test_an_epoch_shows_every_image_once_and_in_another_order_the_next_time(data):
    stream = stream_of(data.train)
    steps = stream.steps_per_epoch
    batches = list(stream.training(seed=0, start=0, stop=2 * steps))
    epochs = [torch.cat([batch.indices for batch in batches[first : first + steps]]) for first in (0, steps)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(len(data.train.labels)))
    assert not torch.equal(*epochs)
    for batch in batches:
        assert batch.images.shape[1:] == (3, 16, 16)
        assert torch.equal(batch.labels, data.train.labels[batch.indices])


def test_pixels_are_those_of_the_window(data):
    batch = next(stream_of(data.train).training(seed=3, start=0, stop=1))
    for index, image, (top, left), flip in zip(
        batch.indices.tolist(), batch.images, batch.corners.tolist(), batch.mirrored.tolist(), strict=True
    ):
        block = int(torch.searchsorted(data.train.starts, index, right=True)) - 1
        encoded = data.train.read_block(block)[index - int(data.train.starts[block])]
        window = torch.from_numpy(whole(encoded, VIEW).copy())[top : top + 16, left : left + 16].permute(2, 0, 1)
        window = window.flip(2) if flip else window
        assert (image.int() - window.int()).abs().max() <= 1  # Pillow takes the window in float32
    assert batch.mirrored.unique().tolist() == [False, True]
    assert len(batch.corners.unique(dim=0)) > 5


def test_a_stream_that_starts_at_a_step_goes_on_with_the_same_batches(data):
    stream = stream_of(data.train)
    everything = list(stream.training(seed=1, start=0, stop=12))
    for start in (3, 5, 7):
        rest = list(stream.training(seed=1, start=start, stop=12))
        assert all(same(*pair) for pair in zip(everything[start:], rest, strict=True))
    other = next(stream.training(seed=2, start=3, stop=4))
    assert not same(other, everything[3])


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(data, workers):
    before = torch.random.get_rng_state()
    for photographs in (data.train, data.train.first(13)):  # each reads blocks of its own; or, of few blocks, all
        pairs = zip(
            stream_of(photographs).training(seed=1, start=3, stop=11),
            stream_of(photographs, workers=workers).training(seed=1, start=3, stop=11),
            strict=True,
        )
        assert all(same(*pair) for pair in pairs)
    pairs = zip(stream_of(data.test).evaluation(), stream_of(data.test, workers=workers).evaluation(), strict=True)
    assert all(same(*pair) for pair in pairs)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_processes_see_together_what_one_sees(data):
    whole_batches = list(stream_of(data.train).training(seed=1, start=0, stop=6))
    parts = [list(stream_of(data.train, rank=rank, processes=3).training(seed=1, start=0, stop=6)) for rank in range(3)]
    for step, batch in enumerate(whole_batches):
        for name in ("indices", "images", "labels", "corners", "mirrored"):
            assert torch.equal(torch.cat([getattr(part[step], name) for part in parts]), getattr(batch, name))


def test_evaluation_shows_centres_in_stored_order(data):
    batches = list(stream_of(data.test, batch_size=4).evaluation())
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(9))
    for batch in batches:
        assert (batch.corners == 2).all()
        assert not batch.mirrored.any()


def spoil(folder: Path, write_parquet) -> str:
    """Damage one training image and return where it is."""
    files = photographs_of(30)
    files[9] = files[9][:200]
    place = folder / "data" / "train-0.parquet"
    write_parquet(place, files, [row % 3 for row in range(30)], names=("ant", "bee", "cat"), image_column="image")
    return f"{place} row group 2 row 1: the bytes are not a whole image"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_stops_the_stream(shards, write_parquet, workers):
    where = spoil(shards, write_parquet)
    with pytest.raises(DataError) as caught:
        list(stream_of(open_photographs(shards).train, workers=workers).training(seed=0, start=0, stop=5))
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_skipped_and_counted(shards, write_parquet, workers):
    where = spoil(shards, write_parquet)
    train = open_photographs(shards).train
    batches = list(stream_of(train, workers=workers, damaged="skip").training(seed=0, start=0, stop=5))
    (line,) = [line for batch in batches for line in batch.skipped]
    assert line.startswith(where)
    assert sum(len(batch.labels) for batch in batches) == 46
    assert sum(len(batch.images) for batch in batches) == 46


def test_missing_files_and_labels_are_damage(class_folders, shards):
    train = open_photographs(class_folders).train
    train.paths[4].unlink()
    lines = [line for batch in stream_of(train, damaged="skip").evaluation() for line in batch.skipped]
    assert lines == [f"{train.paths[4]}: there are no image bytes; store the encoded image in the file"]
    unlabelled, _ = open_shards([shards / "data" / "test-0.parquet"])
    with pytest.raises(DataError, match="label -1 is not one of 0 to 2"):
        list(stream_of(unlabelled).evaluation())


def test_first_images_only(data):
    few = data.train.first(13)
    assert torch.equal(few.labels, data.train.labels[:13])
    shown = torch.cat([batch.indices for batch in stream_of(few).training(seed=0, start=0, stop=2)])
    assert sorted(shown.tolist()) == list(range(13))


@pytest.mark.parametrize("workers", [0, 2])
def test_survey_finds_counts_and_means(data, workers):
    found = survey_images(data.train, 3, VIEW, workers=workers)
    images = [
        torch.from_numpy(whole(encoded, VIEW).copy()).double()
        for block in range(len(data.train.starts) - 1)
        for encoded in data.train.read_block(block)
    ]
    stacked = torch.stack(images).permute(0, 3, 1, 2)
    assert found.counts == tuple(data.train.labels.bincount().tolist())
    assert torch.equal(found.mean_image, stacked.mean(0).float())
    torch.testing.assert_close(torch.tensor(found.mean).double(), stacked.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.tensor(found.std).double(), stacked.std((0, 2, 3), correction=0), rtol=1e-6, atol=0
    )
    assert found.damaged == ()


def test_survey_is_kept_in_the_cache(shards, write_parquet, cache_folder, monkeypatch):
    spoil(shards, write_parquet)
    data = open_photographs(shards)
    first = training_survey(data, VIEW)
    assert len(first.damaged) == 1
    assert sum(first.counts) == 46

    def equals_first(other):
        fields = ("counts", "mean", "std", "damaged")
        same_fields = all(getattr(first, field) == getattr(other, field) for field in fields)
        return same_fields and torch.equal(first.mean_image, other.mean_image)

    with monkeypatch.context() as patched:
        patched.setattr(survey_module, "survey_images", None)  # cannot be called
        assert equals_first(training_survey(data, VIEW))
    (entry,) = cache_folder.glob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is damaged: looking at all images anew"):
        assert equals_first(training_survey(data, VIEW))
    assert equals_first(training_survey(data, VIEW))  # a warning would be an error here


def test_survey_of_some_images_is_kept_apart(data):
    some = training_survey(data, VIEW, limit=5)
    assert sum(some.counts) == 5
    assert sum(training_survey(data, VIEW).counts) == len(data.train.labels)
    assert torch.equal(training_survey(data, VIEW, limit=5).mean_image, some.mean_image)
    with pytest.raises(UsageError, match="must be from 1 to"):
        training_survey(data, VIEW, limit=1000)


def test_survey_where_nothing_can_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot cache"):
        found = training_survey(data, VIEW, cache=tmp_path / "file" / "cache")
    assert sum(found.counts) == len(data.train.labels)


def test_check_opens_every_photograph(shards, write_parquet):
    where = spoil(shards, write_parquet)
    report = check_photographs(shards, view=VIEW)
    assert (report.classes, report.train, report.test) == (("ant", "bee", "cat"), (15, 16, 15), (3, 3, 3))
    (line,) = report.damaged
    assert line.startswith(where)
    found = training_survey(find_photographs(shards), VIEW)
    assert report.mean == tuple(value / 255 for value in found.mean)
    headings = [heading for heading, _ in report.rows()]
    assert ("size", "several") in report.rows()
    assert "test images that are in train" not in headings


def test_the_mean_image_is_subtracted_under_the_crop(data):
    found = survey_images(data.train, 3, VIEW)
    batch = next(stream_of(data.train).training(seed=0, start=0, stop=1))
    given = batch.images.clone()
    raw = normalization(found).apply(batch.images, batch.corners, batch.mirrored)
    for image, shown, (top, left), flip in zip(
        batch.images, raw, batch.corners.tolist(), batch.mirrored.tolist(), strict=True
    ):
        original = image.flip(2) if flip else image
        expected = original.float() - found.mean_image[:, top : top + 16, left : left + 16]
        assert torch.equal(shown, expected.flip(2) if flip else expected)
    assert torch.equal(batch.images, given)
    unit = normalization(found, center="channel", scale="std").apply(batch.images, batch.corners, batch.mirrored)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (found.mean, found.std))
    torch.testing.assert_close(unit, (batch.images - mean) / std)


def test_normalizations_that_are_refused(data):
    found = survey_images(data.train, 3, View(resize="short", size=20, crop=16))
    assert found.mean_image is None
    assert isinstance(normalization(found, center="channel"), Normalization)
    with pytest.raises(UsageError, match="no mean image: use center 'channel'"):
        normalization(found)
    with pytest.raises(UsageError, match="center must be image, channel or none"):
        normalization(found, center="pixel")


def test_nothing_subtracted_and_nothing_divided_leaves_the_pixels(data):
    batch = next(stream_of(data.train).training(seed=0, start=0, stop=1))
    found = normalization(survey_images(data.train, 3, VIEW), center="none", scale="raw")
    assert torch.equal(found.apply(batch.images, batch.corners, batch.mirrored), batch.images.float())


@pytest.mark.parametrize("options", [{"damaged": "ignore"}, {"workers": -1}, {"batch_size": 0}])
def test_streams_that_are_refused(data, options):
    with pytest.raises(UsageError):
        stream_of(data.train, **options)


def test_layouts_that_are_refused(tmp_path, shards, class_folders):
    with pytest.raises(DataError, match="no folder"):
        open_photographs(tmp_path / "nothing")
    for file in (*(shards / "data").glob("validation-*"), *(shards / "data").glob("test-*")):
        file.unlink()
    with pytest.raises(DataError, match="must have validation"):
        open_photographs(shards)
    (class_folders / "val").rename(class_folders / "held")
    with pytest.raises(DataError, match="must have a folder validation or val or test beside train"):
        open_photographs(class_folders)
    (class_folders / "train").rename(class_folders / "all")
    with pytest.raises(DataError, match=r"must hold train-\*\.parquet"):
        open_photographs(class_folders)


def test_the_digest_is_of_what_is_listed(class_folders, shards):
    for folder in (class_folders, shards):
        before = open_photographs(folder).sha256
        assert open_photographs(folder).sha256 == before
        changed = next(path for path in sorted(folder.rglob("*")) if path.is_file())
        copy = folder / "other"
        if folder == class_folders:
            changed.rename(changed.with_name("renamed.jpg"))
        else:
            changed = folder / "data" / "train-1.parquet"
            changed.rename(copy)
        assert open_photographs(folder).sha256 != before


@pytest.mark.skipif(SAMPLE is None, reason="set MPELU_TEST_IMAGENET to a folder with Parquet files of ImageNet")
def test_real_photographs():
    photographs, classes = open_shards(sorted(Path(SAMPLE).glob("*.parquet")))
    assert len(classes) == 1000
    stream = Stream(photographs, len(classes), View(), batch_size=64, workers=2)
    shown = [batch.indices for batch in stream.training(seed=0, start=0, stop=stream.steps_per_epoch)]
    assert sorted(torch.cat(shown).tolist()) == list(range(len(photographs.labels)))
