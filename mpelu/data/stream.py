"""Batches of photographs that are decoded while the training runs.

What a step sees follows from the seed, the epoch and the step alone (:mod:`mpelu.data.batches`): not from the number of
worker processes, nor from where the stream was started.
"""

import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mpelu.data.batches import epoch_order, generator, rank_slice, steps_per_epoch, windowed_order
from mpelu.data.collect import require_label
from mpelu.data.photographs import Photographs
from mpelu.data.view import View, cut
from mpelu.errors import DataError, UsageError

AHEAD = 3
"""Steps that are decoded ahead, or one more than there are workers."""

BLOCKS_PER_WORKER = 4
"""From so many blocks of Parquet on, each worker reads and decodes blocks of its own, so that none is read twice. Else
each decodes all of every so many-th step, which spares the main process the joining."""


@dataclass(frozen=True)
class Batch:
    """What one process sees in one step.

    Attributes:
        step: Its number, from 0.
        indices: Which images of the split, int64, shape ``(n,)``.
        images: uint8, shape ``(n, 3, crop, crop)``.
        labels: int64, shape ``(n,)``.
        corners: Top and left of each crop in the resized image, int64, shape ``(n, 2)``.
        mirrored: Whether it was mirrored after that, bool, shape ``(n,)``.
        skipped: A line for each image that was left out: where it is, and what is wrong.
    """

    step: int
    indices: Tensor
    images: Tensor
    labels: Tensor
    corners: Tensor
    mirrored: Tensor
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """A split of a data set as batches.

    Attributes:
        photographs: The images.
        classes: Number of classes.
        view: How each is cut.
        batch_size: Images in a step, over all processes.
        workers: Processes that decode; 0 decodes in this one.
        damaged: What to do about an image that cannot be read: ``fatal``, or ``skip`` it, which makes the batch smaller
            and adds a line to :attr:`Batch.skipped`.
        rank: Number of this process among those that train.
        processes: How many there are.
    """

    photographs: Photographs
    classes: int
    view: View
    batch_size: int
    workers: int = 0
    damaged: Literal["fatal", "skip"] = "fatal"
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.damaged not in ("fatal", "skip"):
            raise UsageError(f"damaged must be fatal or skip, got {self.damaged!r}")
        if self.workers < 0 or self.batch_size < 1:
            raise UsageError(
                f"a stream needs at least 0 workers and a batch of at least 1 image, got {self.workers} workers and "
                f"a batch of {self.batch_size}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch; the last batch may be smaller."""
        return steps_per_epoch(len(self.photographs.labels), self.batch_size)

    def training(self, *, seed: int, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps ``start`` to ``stop - 1``, counted over all epochs.

        The order of the images follows from (seed, epoch), crops and flips from (seed, step) for the whole batch. An
        iterator that starts at a step yields what one from 0 yields there.

        Raises:
            DataError: If an image cannot be read, unless those are skipped.
        """
        return self._batches(_Parts(self, seed, start, stop))

    def evaluation(self) -> Iterator[Batch]:
        """Yield all images once, in the order in which they are stored, each one's centre.

        Raises:
            DataError: If an image cannot be read, unless those are skipped.
        """
        return self._batches(_Parts(self, None, 0, self.steps_per_epoch))

    def _batches(self, parts: "_Parts") -> Iterator[Batch]:
        loader = DataLoader(
            parts,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=max(AHEAD, self.workers + 1) if self.workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_outlive_interrupt,
            generator=torch.Generator(),  # else the loader would draw from torch's global one
        )
        each = iter(loader)
        for step in range(parts.start, parts.stop):
            batch = _joined(step, [next(each) for _ in range(max(1, self.workers))])
            if batch.skipped and self.damaged == "fatal":
                raise DataError(
                    f"damaged data: {'; '.join(batch.skipped[:3])}. Mend or remove it, or have such images skipped; "
                    "mpelu data check --stream lists them all"
                )
            yield batch


@dataclass(frozen=True)
class _Shown:
    """What a batch says about one image, in plain values: each tensor that a worker sends costs a file descriptor."""

    place: int
    index: int
    label: int
    corner: tuple[int, int]
    mirrored: bool


@dataclass(frozen=True)
class _Part:
    """What one worker made of its share of a step: images of shape ``(n, crop, crop, 3)``, with places in the batch."""

    shown: tuple[_Shown, ...]
    images: Tensor
    skipped: tuple[tuple[int, str], ...]


class _Parts(IterableDataset[_Part]):
    """In each worker: one part for each step. The loader takes them from the workers in turn."""

    def __init__(self, stream: Stream, seed: int | None, start: int, stop: int) -> None:
        self.stream, self.seed, self.start, self.stop = stream, seed, start, stop

    def __iter__(self) -> Iterator[_Part]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, order = -1, _Order(torch.empty(0, dtype=torch.int64), None)
        reader = _Reader(self.stream.photographs)
        for step in range(self.start, self.stop):
            if epoch != step // self.stream.steps_per_epoch:
                epoch = step // self.stream.steps_per_epoch
                order = _order(self.stream.photographs, self.seed, epoch)
                reader.blocks.clear()
            yield self._part(step, order, reader, worker, workers)

    def _part(self, step: int, order: "_Order", reader: "_Reader", worker: int, workers: int) -> _Part:
        stream = self.stream
        first = step % stream.steps_per_epoch * stream.batch_size
        rows = order.rows[first : first + stream.batch_size]
        places = torch.arange(len(rows))[rank_slice(len(rows), rank=stream.rank, processes=stream.processes)]
        blocks = reader.block_of(rows)
        mine = places[self._owners(blocks[places], step, workers) == worker].tolist()
        cuts = _centres(len(rows)) if self.seed is None else _draws(self.seed, step, len(rows), stream.view)
        images = _room((len(mine), stream.view.crop, stream.view.crop, 3))
        shown: list[_Shown] = []
        skipped: list[tuple[int, str]] = []
        for place in mine:
            index = int(rows[place])
            try:
                label = require_label(int(stream.photographs.labels[index]), stream.classes)
                at, mirrored = cuts[place]
                pixels, corner = cut(reader.read(index, int(blocks[place])), stream.view, at=at, mirrored=mirrored)
            except DataError as error:
                skipped.append((place, f"{stream.photographs.where(index)}: {error}"))
                continue
            images.numpy()[len(shown)] = pixels
            shown.append(_Shown(place, index, label, corner, mirrored))
        reader.forget_before(order, blocks)
        return _Part(tuple(shown), images[: len(shown)], tuple(skipped))

    def _owners(self, blocks: Tensor, step: int, workers: int) -> Tensor:
        """Return which worker decodes each image: who reads its block, or one worker all images of a step."""
        photographs = self.stream.photographs
        many = len(photographs.starts) - 1 >= BLOCKS_PER_WORKER * workers
        by_block = self.seed is not None and photographs.window is not None and many
        return (blocks if by_block else torch.full_like(blocks, step)) % workers


@dataclass(frozen=True)
class _Order:
    """The order of the images, and the window of each block (None: blocks are not used again)."""

    rows: Tensor
    windows: Tensor | None


def _order(photographs: Photographs, seed: int | None, epoch: int) -> _Order:
    count, blocks = len(photographs.labels), len(photographs.starts) - 1
    if seed is None:
        return _Order(torch.arange(count), torch.arange(blocks))
    if photographs.window is None:
        return _Order(epoch_order(count, seed=seed, epoch=epoch), None)
    return _Order(*windowed_order(photographs.starts, photographs.window, seed=seed, epoch=epoch))


_Cut = tuple[tuple[float, float] | None, bool]
"""Where an image is cut (None: its centre), and whether it is mirrored."""


def _centres(count: int) -> list[_Cut]:
    return [(None, False)] * count


def _draws(seed: int, step: int, count: int, view: View) -> list[_Cut]:
    """Draw where to crop, and the coin of the flip, for the whole batch."""
    draws = torch.rand(3, count, dtype=torch.float64, generator=generator(seed, "augment", step)).T.tolist()
    return [((top, left), view.flip and coin < 0.5) for top, left, coin in draws]


class _Reader:
    """Reads blocks, and keeps those of the windows that are in use."""

    def __init__(self, photographs: Photographs) -> None:
        self._photographs = photographs
        self.blocks: dict[int, list[bytes | None]] = {}

    def block_of(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(self._photographs.starts, rows, right=True) - 1

    def read(self, index: int, block: int) -> bytes | None:
        if block not in self.blocks:
            self.blocks[block] = self._photographs.read_block(block)
        return self.blocks[block][index - int(self._photographs.starts[block])]

    def forget_before(self, order: _Order, blocks: Tensor) -> None:
        """Drop what lies in earlier windows than the last of these blocks."""
        if order.windows is None:
            self.blocks.clear()
        elif len(blocks):
            current = order.windows[blocks[-1]]
            for block in [block for block in self.blocks if order.windows[block] < current]:
                del self.blocks[block]


def _room(shape: tuple[int, ...]) -> Tensor:
    """Return memory for images; that of a worker is shared, so that sending it copies nothing."""
    if get_worker_info() is None or 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    # what torch's own collate function uses
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    flat: Tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    return flat.view(shape)


def _outlive_interrupt(_: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the one that trains: it may want to save first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(part: Any) -> Any:
    return part


def _joined(step: int, parts: Sequence[_Part]) -> Batch:
    """Put the images of all parts into the order of the batch."""
    shown = sorted((one for part in parts for one in part.shown), key=lambda one: one.place)
    filled = [part for part in parts if part.shown] or [parts[0]]
    images = filled[0].images
    if len(filled) > 1:
        number = {one.place: number for number, one in enumerate(shown)}
        images = torch.empty(len(shown), *images.shape[1:], dtype=torch.uint8)
        for part in filled:
            images.index_copy_(0, torch.tensor([number[one.place] for one in part.shown]), part.images)
    return Batch(
        step=step,
        indices=torch.tensor([one.index for one in shown], dtype=torch.int64),
        images=images.permute(0, 3, 1, 2),
        labels=torch.tensor([one.label for one in shown], dtype=torch.int64),
        corners=torch.tensor([one.corner for one in shown], dtype=torch.int64).view(-1, 2),
        mirrored=torch.tensor([one.mirrored for one in shown], dtype=torch.bool),
        skipped=tuple(line for _, line in sorted(line for part in parts for line in part.skipped)),
    )
