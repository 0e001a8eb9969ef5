"""The training loop. It reads as the training goes: order, augment, forward, backward, check, step, evaluate."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mpelu.data import Dataset, Split, augment, evaluation_view, normalize
from mpelu.data.batches import epoch_order, generator, rank_slice, steps_per_epoch, stream_seed
from mpelu.errors import MpeluError
from mpelu.train.recipe import Recipe
from mpelu.train.schedule import learning_rate

EVALUATION_BATCH = 500


class DivergedError(MpeluError):
    """The loss or a gradient is not finite; the weights are those before the step that would have used it."""


class StoppedError(MpeluError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal_number, str(self))


@dataclass
class Position:
    """How far a run is: everything besides weights and optimizer that the next step depends on."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """Training loss, wrong predictions and images of the epoch so far."""
    train_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


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
    dataset: Dataset
    stop_signal: Callable[[], int]
    """Returns the number of the signal that arrived, or 0."""
    on_step: Callable[[int, Tensor], None] | None = None
    """Called after each step with its index and the indices of the images this process saw."""

    def train_epoch(self, position: Position) -> None:
        """Train from ``position`` to the end of its epoch; raises DivergedError or StoppedError on the way."""
        recipe, fabric = self.recipe, self.fabric
        assert recipe.batch_size is not None
        split = self.dataset.train
        order = epoch_order(len(split.labels), seed=self.seed, epoch=position.epoch)
        batches = steps_per_epoch(len(order), recipe.batch_size)
        self.model.train()
        started = time.perf_counter() - position.train_seconds
        while position.batch < batches:
            step = position.step
            indices = order[position.batch * recipe.batch_size :][: recipe.batch_size]
            images, labels, seen = self._batch(split, indices, step)
            self._set_learning_rate(position.epoch, position.batch / batches)
            torch.manual_seed(stream_seed(self.seed, "model", step, fabric.global_rank))
            self.optimizer.zero_grad()
            logits = self.model(images)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            # DDP averages gradients over processes: scaled so that the mean over the whole batch comes out
            fabric.backward(loss * (fabric.world_size / len(indices)))
            self._step_if_finite(loss, step)
            with torch.no_grad():
                position.sums += _sums(loss, logits, labels)
            position.batch += 1
            position.step += 1
            position.train_seconds = time.perf_counter() - started
            if self.on_step is not None:
                self.on_step(step, seen)
            self._stop_if_asked(position, batches)

    def evaluate(self, split: Split) -> tuple[float, float]:
        """Return the mean loss and the error in percent over a split, the latter counted over all processes."""
        fabric, recipe = self.fabric, self.recipe
        assert recipe.augment is not None
        if fabric.world_size > 1:  # each process has batch statistics of its own; the first one's are saved and tested
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.net.eval()
        part = rank_slice(len(split.labels), rank=fabric.global_rank, processes=fabric.world_size)
        sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        with torch.inference_mode(), fabric.autocast():
            for images, labels in batches_of(split, part):
                logits = self.net(self._prepare(evaluation_view(images, recipe.augment))).float()
                loss = F.cross_entropy(logits, labels, reduction="sum")
                sums += _sums(loss, logits, labels)
        loss_sum, wrong_sum, count = self.over_processes(sums).tolist()
        return loss_sum / count, 100.0 * wrong_sum / count

    def over_processes(self, sums: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.fabric.world_size > 1:
            sums = sums.clone()
            torch.distributed.all_reduce(sums)
        return sums

    def _batch(self, split: Split, indices: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, labels and indices of this process's part; the draws are made for the whole batch."""
        recipe, fabric = self.recipe, self.fabric
        assert recipe.augment is not None
        part = rank_slice(len(indices), rank=fabric.global_rank, processes=fabric.world_size)
        chosen = indices.to(split.images.device)
        draws = generator(self.seed, "augment", step)
        images = augment(split.images[chosen], recipe.augment, mean=self.dataset.mean, generator=draws)
        return self._prepare(images[part]), split.labels[chosen[part]], indices[part]

    def _prepare(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return normalize(images, self.dataset.mean, self.dataset.std).contiguous(memory_format=layout)

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


def batches_of(split: Split, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of a part of a split, in order, in batches for evaluation."""
    images, labels = split.images[part], split.labels[part]
    for start in range(0, len(labels), EVALUATION_BATCH):
        yield images[start : start + EVALUATION_BATCH], labels[start : start + EVALUATION_BATCH]


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss, the number of wrong predictions and the number of images, float64, shape ``(3,)``."""
    wrong = (logits.argmax(1) != labels).sum()
    return torch.stack((loss.double(), wrong.double(), torch.full_like(wrong, len(labels)).double()))
