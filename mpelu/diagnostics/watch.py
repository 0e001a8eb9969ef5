"""The signal during training: each so many steps, what a forward and backward pass of the training itself shows."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mpelu.diagnostics.draft import Draft, Layers, compiled_in_place, layers_of
from mpelu.diagnostics.records import LayerRecord
from mpelu.errors import UsageError
from mpelu.report.signal import read_signal
from mpelu.report.words import strict_json, with_numbers


@dataclass(frozen=True)
class Watched:
    """What was seen at one step of training."""

    step: int
    """Number of training steps before it."""
    epoch: float | None
    """The same in epochs, where their length is known."""
    records: tuple[LayerRecord, ...]
    """In order of execution; ``depth`` counts the weights in that order. See :func:`watch`."""

    def __getitem__(self, name: str) -> LayerRecord:
        """Return the record of a layer."""
        return {record.name: record for record in self.records}[name]

    def to_json(self) -> str:
        """Return one line of strict JSON, without what is None and with six digits of each number.

        NaN and infinities are the words "NaN", "Infinity" and "-Infinity".
        """
        records = [{key: _rounded(value) for key, value in asdict(record).items()} for record in self.records]
        found = [{key: value for key, value in record.items() if value is not None} for record in records]
        return strict_json({"step": self.step, "epoch": _rounded(self.epoch), "records": found})

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return what a line of :meth:`to_json` holds."""
        layers = with_numbers(found["records"])
        records = tuple(LayerRecord(**{**record, "shape": tuple(record["shape"])}) for record in layers)
        return cls(found["step"], found["epoch"], records)


def watch(
    model: nn.Module,
    every: int = 100,
    *,
    path: Path | str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    steps_per_epoch: int | None = None,
    layers: Callable[[str, nn.Module], bool] | None = None,
) -> "Watch":
    """Record the signal while a model trains, from its own passes: a context manager, and the sequence of its records.

    A step is a forward pass in training mode with gradients recorded; evaluation does not count. In every ``every``-th,
    starting with the first, each layer gets a :class:`~mpelu.diagnostics.LayerRecord`:

    - at each module that has a weight: second moment, mean and correlation of its output, over the first 32 examples;
      norms of the gradient with respect to its output (the whole batch), of its weight and of the weight's gradient;
      with ``optimizer`` also of the step that it took, over that of the weight;
    - at each module that has an alpha and a beta: their means over channels, mean and second moment of its output.

    What is inside a module that torch.compile compiled is not seen, and its output only where the compiled module is
    called from outside (``torch.compile(module)``, not ``module.compile()``); of its layers there are the weights,
    alpha and beta, with nan in the place of the second moment. Under DDP each process sees its own part of the batch,
    and gradients before they are averaged. Layers within a checkpoint are seen in the first pass; the gradient of a
    reentrant one comes from the second.

    Training goes on bit for bit as without. Between two recorded steps there is one hook, on the model; no tensor is
    kept but a few numbers, until the next step begins. Everything is removed when the context ends.

    Args:
        model: What the training loop calls: the wrapper of DDP or torch.compile, where there is one.
        every: Number of steps from one record to the next.
        path: A file to which each record is appended as a line of JSON, in place of keeping it in memory; for
            ``mpelu report``, ``signal.jsonl`` in the run folder. In a training of several processes, give it in one.
        optimizer: That of the model, for ``update_ratio``.
        start: Number of steps that the model was trained before. Of a file that exists, later records are dropped: so a
            run that goes on from a checkpoint leaves the same file as one that was not interrupted.
        steps_per_epoch: If given, the records say the epoch too.
        layers: Which modules to look at, given name and module; None stands for those above.

    Returns:
        What ``with`` gives: a sequence of :class:`Watched`. The newest is in it when the next step begins, at the end
        of the context, or after :meth:`Watch.flush`.

    Raises:
        UsageError: If ``every`` is less than 1, nothing in the model can be watched, or it was compiled in place.

    Example:
        >>> from mpelu.diagnostics.watch import watch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> with watch(model, every=2) as records:
        ...     for _ in range(5):
        ...         model(torch.ones(3, 4)).sum().backward()
        >>> [seen.step for seen in records], [layer.name for layer in records[0].records]
        ([0, 2, 4], ['0', '2'])
    """
    if every < 1:
        raise UsageError(f"every must be at least 1, got {every}")
    if compiled_in_place(model):
        raise UsageError(
            "the model was compiled in place with model.compile(), so that no hook sees its passes; compile it with "
            "compiled = torch.compile(model), call that, and watch it"
        )
    found = layers_of(model, layers)
    if not found.seen and not found.hidden:
        raise UsageError(
            f"{type(model).__name__} has no module with a weight of its own to watch; choose modules with layers="
        )
    return Watch(
        model,
        found,
        every,
        path=None if path is None else Path(path),
        optimizer=optimizer,
        start=start,
        steps_per_epoch=steps_per_epoch,
    )


class Watch(Sequence[Watched]):
    """What :func:`watch` returns."""

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        every: int,
        *,
        path: Path | None,
        optimizer: torch.optim.Optimizer | None,
        start: int,
        steps_per_epoch: int | None,
    ) -> None:
        self._model, self._layers, self._every = model, layers, every
        self._path, self._optimizer, self._steps_per_epoch = path, optimizer, steps_per_epoch
        self._next = self._start = start
        self._lines: list[str] = []
        self._file: TextIO | None = None
        self._hook: RemovableHandle | None = None
        self._draft: Draft | None = None

    def __enter__(self) -> Self:
        if self._hook is not None:
            raise UsageError("this watch has begun already; make another with mpelu.watch")
        if self._path is not None:
            _drop_later(self._path, self._start)
            self._file = self._path.open("a", encoding="utf-8")
        self._hook = self._model.register_forward_pre_hook(self._before_forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __len__(self) -> int:
        return len(self._found())

    def __getitem__(self, index: Any) -> Any:
        found = self._found()[index]
        return [Watched.from_dict(step) for step in found] if isinstance(index, slice) else Watched.from_dict(found)

    def __iter__(self) -> Iterator[Watched]:
        return map(Watched.from_dict, self._found())

    def flush(self) -> None:
        """Complete the newest record now. To be called after the backward pass, before a checkpoint is written."""
        draft, self._draft = self._draft, None
        if draft is None:
            return
        records = draft.finish()
        if not draft.complete:
            return
        epoch = None if self._steps_per_epoch is None else draft.step / self._steps_per_epoch
        line = Watched(draft.step, epoch, records).to_json()
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(f"{line}\n")
            self._file.flush()

    def _found(self) -> list[Any]:
        return [json.loads(line) for line in self._lines] if self._path is None else read_signal(self._path)

    def _before_forward(self, model: nn.Module, args: Any) -> None:  # noqa: ARG002
        if torch.compiler.is_compiling():  # somebody compiled the model that is watched: leave no trace in its graph
            return
        if not (model.training and torch.is_grad_enabled()) or (self._draft is not None and self._draft.running):
            return
        self.flush()
        step, self._next = self._next, self._next + 1
        if step % self._every == 0:
            self._draft = Draft(step, self._layers, self._optimizer)
            self._draft.attach(model)


def _drop_later(path: Path, start: int) -> None:
    """Leave of a file the records of the steps before ``start``."""
    if not path.exists():
        return
    kept = [step for step in read_signal(path) if step["step"] < start]
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(f"{strict_json(step)}\n" for step in kept), encoding="utf-8")
    part.replace(path)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
