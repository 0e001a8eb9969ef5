"""Look at every item of a data set and report what is there."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from mpelu.data.catalog import find, find_photographs, name_of
from mpelu.data.dataset import Split, channel_statistics
from mpelu.data.survey import survey_images, training_survey
from mpelu.data.view import View
from mpelu.data.whiten import Progress
from mpelu.errors import DataError

NAMED_ITEMS, NAMED_CLASSES = 20, 100


@dataclass(frozen=True)
class CheckReport:
    """What is in a data set.

    Attributes:
        name: Its name in results.
        sha256: Digest of its content, as in :class:`Dataset`.
        classes: Name of each class.
        size: Channels, height and width of an image; empty where they differ.
        train: Good training images of each class.
        test: Good test images of each class.
        mean: Mean of each channel of the good training images, on the scale 0 to 1.
        std: Standard deviation of each channel of the good training images, on the same scale.
        duplicates: Test images with exactly the pixels of a training image; None if nobody looked for them.
        damaged: One line for each file or row that cannot be read.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    size: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    duplicates: int | None
    damaged: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as pairs of a heading and its text; at most 100 classes and 20 damaged items are named."""
        rows = [
            ("name", self.name),
            ("sha256", self.sha256),
            ("size", "x".join(str(length) for length in self.size) or "several"),
            ("train", str(sum(self.train))),
            ("test", str(sum(self.test))),
            ("mean", " ".join(f"{value:.4f}" for value in self.mean)),
            ("std", " ".join(f"{value:.4f}" for value in self.std)),
        ]
        if len(self.classes) <= NAMED_CLASSES:
            rows += [
                (f"class {name}", f"{train} train, {test} test")
                for name, train, test in zip(self.classes, self.train, self.test, strict=True)
            ]
        else:
            train, test = (f"{min(counts)} to {max(counts)}" for counts in (self.train, self.test))
            rows.append(("classes", f"{len(self.classes)}, of each {train} train and {test} test"))
        if self.duplicates is not None:
            rows.append(("test images that are in train", str(self.duplicates)))
        rows.append(("damaged", str(len(self.damaged))))
        rows += [("damaged item", line) for line in self.damaged[:NAMED_ITEMS]]
        if len(self.damaged) > NAMED_ITEMS:
            rows.append(("damaged item", f"and {len(self.damaged) - NAMED_ITEMS} more"))
        return rows


def check(source: str | Path, *, resize: int | None = None) -> CheckReport:
    """Read every item of a data set anew, past the cache, and count; damage is reported, not raised.

    Args:
        source: As for :func:`load`.
        resize: As for :func:`load`.

    Raises:
        UsageError: If the name is neither in the catalog nor a path.
        DataError: If there is no such data, or no image of it can be read.
    """
    found = find(source, resize=resize)
    decoded = found.decode()
    splits = [split for split in (decoded.train, decoded.test) if len(split.labels)]
    if not splits:
        shown = "; ".join(decoded.damaged[:3])
        raise DataError(
            f"no image of {source} can be read ({len(decoded.damaged)} damaged: {shown}); get the data again"
        )
    mean, std = channel_statistics(decoded.train.images) if len(decoded.train.labels) else ((), ())
    in_train = set(_pixel_hashes(decoded.train))
    return CheckReport(
        name=name_of(decoded, found.name),
        sha256=found.sha256(),
        classes=decoded.classes,
        size=tuple(splits[0].images.shape[1:]),
        train=_class_counts(decoded.train, len(decoded.classes)),
        test=_class_counts(decoded.test, len(decoded.classes)),
        mean=mean,
        std=std,
        duplicates=sum(pixels in in_train for pixels in _pixel_hashes(decoded.test)),
        damaged=decoded.damaged,
    )


def check_photographs(
    source: str | Path, *, view: View | None = None, workers: int = 0, on_progress: Progress | None = None
) -> CheckReport:
    """Open every photograph of a data set on disk and count; damage is reported, not raised.

    Mean and std are those of the resized training images. What is found in the training images is kept for streams.

    Args:
        source: As for :func:`mpelu.data.find_photographs`.
        view: How images are resized for mean and std; by default squashed to 256x256.
        workers: Processes that decode.
        on_progress: Called with what is looked at, the images done and their number.

    Raises:
        UsageError: If the name is one that is held in memory.
        DataError: If there is no such data, or no image of a split can be read.
    """
    data, view = find_photographs(source), view or View()
    train = training_survey(data, view, workers=workers, anew=True, on_progress=on_progress)
    test = survey_images(data.test, len(data.classes), view, workers=workers, on_progress=on_progress)
    return CheckReport(
        name=data.name,
        sha256=data.sha256,
        classes=data.classes,
        size=(),
        train=train.counts,
        test=test.counts,
        mean=tuple(value / 255 for value in train.mean),
        std=tuple(value / 255 for value in train.std),
        duplicates=None,
        damaged=(*train.damaged, *test.damaged),
    )


def _class_counts(split: Split, classes: int) -> tuple[int, ...]:
    return tuple(torch.bincount(split.labels, minlength=classes).tolist())


def _pixel_hashes(split: Split) -> list[bytes]:
    return [hashlib.sha256(image.data).digest() for image in split.images.numpy()]
