"""The training loop. It reads as the training goes: order, augment, forward, backward, check, step, evaluate."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mpelu.data.batches import stream_seed
from mpelu.errors import DataError, MpeluError
from mpelu.train.recipe import Recipe
from mpelu.train.schedule import learning_rate
from mpelu.train.supply import Batch, Batches, Supply


class DivergedError(MpeluError):
    """The loss or a gradient is not finite; the weights are those before the step that would have used it."""


class StoppedError(MpeluError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal_number, str(self))


@dataclass(frozen=True)
class Tested:
    """What a test of a network found."""

    loss: float
    error_percent: float
    images: int
    skipped: int
    """Images that could not be read."""


@dataclass
class Position:
    """How far a run is: everything besides weights and optimizer that the next step depends on."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """Training loss, wrong predictions and images of the epoch so far."""
    peak: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """Largest finite |logit| of the training batches of the epoch so far."""
    skipped: int = 0
    """Training images of the epoch so far that could not be read."""
    train_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def to(self, device: torch.device) -> "Position":
        """Move the sums to a device."""
        self.sums, self.peak = self.sums.to(device), self.peak.to(device)
        return self

    def clear_sums(self) -> None:
        """Forget what was summed up over the epoch so far."""
        self.sums, self.peak = torch.zeros_like(self.sums), torch.zeros_like(self.peak)
        self.skipped = 0

    def begin_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.batch, self.train_seconds = self.epoch + 1, 0, 0.0
        self.clear_sums()


@dataclass(frozen=True)
class Trainer:
    """What stays the same over a run."""

    fabric: Fabric
    net: nn.Module
    """The network itself; ``model`` is the same one as Fabric wraps it."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    seed: int
    supply: Supply
    stop_signal: Callable[[], int]
    """Returns the number of the signal that arrived, or 0."""
    on_step: Callable[[int, Tensor], None] | None = None
    """Called after each step with its index and the indices of the images this process saw."""

    def train_epoch(self, position: Position) -> None:
        """Train from ``position`` to the end of its epoch; raises DivergedError or StoppedError on the way."""
        fabric, batches = self.fabric, self.supply.steps_per_epoch
        self.model.train()
        started = time.perf_counter() - position.train_seconds
        stop = (position.epoch + 1) * batches
        with closing(self.supply.training(seed=self.seed, start=position.step, stop=stop)) as source:
            for batch in source:
                step = position.step
                self._set_learning_rate(position.epoch, position.batch / batches)
                torch.manual_seed(stream_seed(self.seed, "model", step, fabric.global_rank))
                self.optimizer.zero_grad()
                loss, sums = self._backward(batch, position)
                self._step_if_finite(loss, step)
                position.sums += sums
                position.skipped += batch.skipped
                position.batch += 1
                position.step += 1
                position.train_seconds = time.perf_counter() - started
                if self.on_step is not None:
                    self.on_step(step, batch.indices)
                self._stop_if_asked(position, batches)

    def evaluate(self) -> Tested:
        """Test the network; the images are counted over all processes."""
        fabric = self.fabric
        if fabric.world_size > 1:  # each process has batch statistics of its own; the first one's are saved and tested
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.net.eval()
        with fabric.autocast():
            sums = sums_of(self.net, self.supply.evaluation(), fabric.device)
        return tested(self.over_processes(sums))

    def over_processes(self, sums: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.fabric.world_size > 1:
            sums = sums.clone()
            torch.distributed.all_reduce(sums)
        return sums

    def gather(self, position: Position) -> None:
        """Give every process what all of them summed up over the epoch so far."""
        if self.fabric.world_size == 1:
            return
        position.sums = self.over_processes(position.sums)
        position.skipped = int(self.over_processes(torch.tensor(position.skipped, device=self.fabric.device)).item())
        position.peak = position.peak.clone()
        torch.distributed.all_reduce(position.peak, torch.distributed.ReduceOp.MAX)

    def _backward(self, batch: Batch, position: Position) -> tuple[Tensor, Tensor]:
        """Add up the gradient of a batch, part by part; returns the summed loss, and the sums of :class:`Position`."""
        # DDP averages gradients over processes: scaled so that the mean over the whole batch comes out
        scale = self.fabric.world_size / self._count(batch)
        losses, sums = [], torch.zeros_like(position.sums)
        for number, part in enumerate(_parts(batch, self.recipe.accumulate), start=1):
            last = number == self.recipe.accumulate
            with self.fabric.no_backward_sync(self.model, enabled=not last):  # type: ignore[arg-type]  # is Fabric's
                logits, loss = self._forward(part)
                with torch.no_grad():
                    position.peak = torch.maximum(position.peak, _peak(logits))
                self.fabric.backward(loss * scale)
            losses.append(loss.detach())
            with torch.no_grad():
                sums += _sums(loss, logits, part.labels)
        return torch.stack(losses).sum(), sums

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits, and the summed loss of this process's images."""
        if len(batch.labels):
            logits = self.model(batch.images)
            return logits, F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        # None of them could be read. The other processes wait for this one in the backward pass, and not every layer
        # takes an empty batch: one image of zeros, whose gradient is 0
        logits = self.model(torch.zeros(1, *batch.images.shape[1:], device=self.fabric.device))
        return logits[:0], 0.0 * logits.float().sum()

    def _count(self, batch: Batch) -> float:
        """Return how many images the loss is the mean of, over all processes; at least 1."""
        if self.recipe.damaged == "fatal":
            return batch.total
        skipped = self.over_processes(torch.tensor(float(batch.skipped), device=self.fabric.device))
        return max(1.0, batch.total - skipped.item())

    def _set_learning_rate(self, epoch: int, progress: float) -> None:
        lr = learning_rate(self.recipe, epoch, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_multiplier"]

    def _step_if_finite(self, loss: Tensor, step: int) -> None:
        parameters = [parameter for parameter in self.net.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = math.isfinite((norm + loss.detach()).item())
        if not self._all(finite):
            raise DivergedError(f"{self._what_is_not_finite(loss)} at step {step + 1}, before the optimizer used it")
        if self.recipe.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_norm, norm)
        self.optimizer.step()

    def _what_is_not_finite(self, loss: Tensor) -> str:
        if not math.isfinite(loss.item()):
            return f"the training loss is {loss.item()}"
        for name, parameter in self.net.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return f"the gradient of {name} is not finite"
        return "the norm of the gradient is not finite"

    def _stop_if_asked(self, position: Position, batches: int) -> None:
        number = self.stop_signal()
        if self._all(number == 0):
            return
        raise StoppedError(number, f"stopped in epoch {position.epoch + 1} after step {position.batch} of {batches}")

    def _all(self, flag: bool) -> bool:
        """Return whether the flag holds in every process, so that all of them leave the loop at the same step."""
        if self.fabric.world_size == 1:
            return flag
        votes = self.over_processes(torch.tensor(float(flag), device=self.fabric.device))
        return bool(votes.item() == self.fabric.world_size)


def sums_of(net: nn.Module, batches: Batches, device: torch.device) -> Tensor:
    """Return the sums over batches of what :func:`tested` takes."""
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with torch.inference_mode():
        for batch in batches:
            sums[3] += batch.skipped
            if len(batch.labels):
                logits = net(batch.images).float()
                loss = F.cross_entropy(logits, batch.labels, reduction="sum")
                sums[:3] += _sums(loss, logits, batch.labels)
    return sums


def tested(sums: Tensor) -> Tested:
    """Return what sums of loss, wrong predictions, images and skipped images amount to.

    Raises:
        DataError: If all images were skipped.
    """
    loss, wrong, count, skipped = sums.tolist()
    if not count:
        raise DataError(f"none of {skipped:.0f} test images can be read; get the data again")
    return Tested(loss / count, 100.0 * wrong / count, int(count), int(skipped))


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield the images and labels of a batch in ``count`` parts."""
    parts = zip(batch.images.tensor_split(count), batch.labels.tensor_split(count), strict=True)
    return (replace(batch, images=images, labels=labels) for images, labels in parts)


def _peak(logits: Tensor) -> Tensor:
    """Return the largest finite |logit|, float64; 0 where there is none."""
    found = logits.detach().float().abs().nan_to_num_(nan=0.0, posinf=0.0)
    return found.max().double() if found.numel() else torch.zeros((), dtype=torch.float64, device=found.device)


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss, the number of wrong predictions and the number of images, float64, shape ``(3,)``."""
    wrong = (logits.argmax(1) != labels).sum()
    return torch.stack((loss.double(), wrong.double(), torch.full_like(wrong, len(labels)).double()))
