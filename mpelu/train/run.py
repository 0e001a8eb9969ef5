"""A run: recipe and seed become a network, a folder, and at the end one record."""

import atexit
import csv
import dataclasses
import gc
import hashlib
import io
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import safetensors.torch
import torch
import yaml
from lightning_fabric import Fabric
from torch import Tensor, nn

from mpelu.data import Dataset
from mpelu.diagnostics.watch import Watch, watch
from mpelu.errors import DataError, MpeluError, UsageError
from mpelu.models import family_of, takes_activation
from mpelu.report.signal import SIGNAL
from mpelu.train import checkpoint
from mpelu.train.batch_norm import synchronize_batch_norm
from mpelu.train.environment import describe_environment
from mpelu.train.loop import DivergedError, Position, StoppedError, Trainer
from mpelu.train.network import AS_BUILT, build, check_network, hash_of, optimizer_of
from mpelu.train.recipe import Recipe, recipe_name, resolve
from mpelu.train.recompute import checkpoint_activations
from mpelu.train.records import METRICS, RESULT, read_result, to_json
from mpelu.train.supply import Data, data_of, supply_of

LAST, BEST, WEIGHTS, CONFIG = "last.ckpt", "best.ckpt", "weights.safetensors", "config.yaml"

logger = logging.getLogger("mpelu.train")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe with nothing left open, its data, and the folder that follows from them."""

    recipe: Recipe
    seed: int
    dataset: Data
    hash: str
    folder: Path


def prepare(
    recipe: Recipe,
    *,
    seed: int,
    runs: Path,
    study: str = "train",
    dataset: Dataset | None = None,
    workers: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Prepared:
    """Load the data, fill in what the recipe left open, and name the run folder; nothing is written.

    Args:
        recipe: The recipe.
        seed: Of the run.
        runs: Folder of all runs.
        study: Folder in it.
        dataset: What :func:`mpelu.data.load` returns for the recipe, where that was done before.
        workers: Processes that decode photographs, where their means are not known yet.
        on_progress: Called while images are preprocessed or surveyed with the stage, the images done and their number.

    Raises:
        UsageError: If fields of the recipe contradict each other, the network cannot be built so, or the batch is
            larger than the training set.
        DataError: If the data set cannot be read.
    """
    family = family_of(recipe.model)
    if not takes_activation(recipe.model):
        recipe = dataclasses.replace(recipe, activation=AS_BUILT)
    data = data_of(recipe, loaded=dataset, workers=workers, on_progress=on_progress)
    resolved = resolve(recipe, family=family, image_size=data.image_shape[-1])
    images = len(data.train.labels)
    assert resolved.batch_size is not None
    if resolved.batch_size > images:
        raise UsageError(
            f"batch_size must be at most the number of training images ({images}), got {resolved.batch_size}; "
            f"lower --batch-size or raise --limit"
        )
    with torch.random.fork_rng(devices=[]):
        check_network(resolved, data)
    digest = hash_of(resolved, data)
    folder = runs / study / f"{recipe_name(resolved)}-{digest}" / f"seed{seed}"
    return Prepared(resolved, seed, data, digest, folder)


def run(
    prepared: Prepared,
    *,
    study: str = "train",
    scale: str | None = None,
    device: str = "auto",
    workers: int = 0,
    watch_every: int | None = None,
    recompute: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> dict[str, Any]:
    """Train, or continue, or do nothing: whatever brings the run to its record.

    A run that was killed goes on from its last checkpoint and ends with the same bits. A loss or gradient that is not
    finite ends the run with outcome ``diverged``, which is a result. Torch's global random state is left as it was.

    Args:
        prepared: See :func:`prepare`.
        study: Name of what the run belongs to; stands in the record.
        scale: ``paper`` or ``cpu``, where a study says so; stands in the record. None: ``gpu`` on CUDA, else ``cpu``.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Processes that decode photographs for each process that trains; 0 decodes in this one. The run is the
            same to the bit, and so is its hash.
        watch_every: If given, the signal of every so many-th step goes to ``signal.jsonl`` in the run folder, seen by
            the first process; see :func:`mpelu.watch`. The run is the same to the bit, and so is its hash.
        recompute: Whether most activations are computed again in the backward pass instead of being kept; see
            :func:`mpelu.train.recompute.checkpoint_activations`. The run is the same to the bit.
        on_epoch: Called in the first process with each row of the history.
        on_step: Called in every process after each step.

    Returns:
        The record, as in ``result.json``. Each row of its ``history`` has the largest finite |logit| of the training
        batches of that epoch, ``max_abs_logit``. A run that diverged has ``diverged_at``: the step (from 1), and of its
        epoch the mean training loss before that step (null where it was the first) and ``max_abs_logit``, that of the
        step included. A recipe that skips damaged photographs counts them: ``skipped_train_images`` and
        ``skipped_test_images`` in each row, and ``skipped_images`` of the last epoch.

    Raises:
        UsageError: If ``watch_every`` is less than 1, ``workers`` is below 0, the batches do not suit the processes,
            or ``recompute``, ``watch_every`` or the recipe's ``sync_batch_norm`` meets what it does not go with.
        DataError: If a photograph cannot be read, unless the recipe skips those.
        StoppedError: If SIGINT or SIGTERM arrived; the state is saved.
        MpeluError: If the folder cannot be written, another process is at work in it, or its checkpoints are damaged.
    """
    folder = prepared.folder
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and (folder / RESULT).exists():
        return read_result(folder)
    if recompute and prepared.recipe.compile:
        raise UsageError("torch.compile decides by itself what is computed again: leave out one of the two")
    if prepared.recipe.sync_batch_norm and prepared.recipe.compile:
        raise UsageError("sync_batch_norm is for networks that are not compiled: leave out one of the two")
    if watch_every is not None and prepared.recipe.accumulate > 1:
        raise UsageError(
            f"the signal is watched in one pass for each step, and accumulate is {prepared.recipe.accumulate}: leave "
            f"out one of the two"
        )
    fabric = _fabric(device, prepared.recipe.precision)
    _check_batches(prepared, fabric.world_size)
    finished = _finished(prepared, fabric)
    if finished is not None:
        return finished
    with torch.random.fork_rng(), _locked(folder, fabric), _log_file(folder, fabric), _signals() as stop_signal:
        trainer = _trainer(prepared, fabric, stop_signal, on_step, workers=workers, recompute=recompute)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        environment = describe_environment(fabric.device, processes=fabric.world_size) | {"started_utc": started}
        if fabric.is_global_zero:
            checkpoint.write_atomically(
                folder / CONFIG, yaml.safe_dump(_plain(prepared.recipe), sort_keys=False).encode()
            )
            checkpoint.write_atomically(folder / "environment.json", to_json(environment, indent=2).encode())
        position = _resume(trainer, prepared)
        with _watching(trainer, prepared, position, watch_every) as signal_watch:
            diverged = _train(trainer, prepared, position, on_epoch, signal_watch)
        scale = scale or ("gpu" if environment["device"] == "cuda" else "cpu")
        record = _record(trainer, prepared, position, study, scale, diverged, environment)
        if fabric.is_global_zero:
            weights = {name: tensor.contiguous() for name, tensor in trainer.net.state_dict().items()}
            checkpoint.write_atomically(
                folder / WEIGHTS, safetensors.torch.save(weights, {"recipe_hash": prepared.hash})
            )
            logger.info("%s: %s", record["outcome"], record["reason"] or f"{position.step} steps")
            checkpoint.write_atomically(folder / RESULT, to_json(record, indent=2).encode())
        fabric.barrier()
        return record


def _finished(prepared: Prepared, fabric: Fabric) -> dict[str, Any] | None:
    """Return the record of a finished run as the first process has it: hosts need not share a run folder.

    Raises:
        UsageError: If this process is about to train something else than the first.
    """
    first = fabric.is_global_zero and (prepared.folder / RESULT).exists()
    wanted, record = fabric.broadcast((prepared.hash, read_result(prepared.folder) if first else None))
    if wanted != prepared.hash:
        raise UsageError(
            f"process {fabric.global_rank} is about to train {prepared.hash}, the first process {wanted}: give every "
            f"host the same command, the same version and the same data"
        )
    found: dict[str, Any] | None = record
    return found


def _watching(
    trainer: Trainer, prepared: Prepared, position: Position, every: int | None
) -> AbstractContextManager[Watch | None]:
    """Watch the signal in the first process, where that was asked for; go on with the file at a position."""
    if every is None or not trainer.fabric.is_global_zero:
        return nullcontext()
    return watch(
        trainer.model,
        every,
        path=prepared.folder / SIGNAL,
        optimizer=trainer.optimizer,
        start=position.step,
        steps_per_epoch=trainer.supply.steps_per_epoch,
    )


def _train(
    trainer: Trainer,
    prepared: Prepared,
    position: Position,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    signal_watch: Watch | None,
) -> dict[str, Any] | None:
    """Run the epochs that are left; saves after each, and in between when a signal asks to stop.

    Returns:
        Where and why the run diverged, None if it is finished.
    """
    recipe, folder, fabric = prepared.recipe, prepared.folder, trainer.fabric
    assert recipe.epochs is not None
    while position.epoch < recipe.epochs:
        started = time.perf_counter()
        try:
            trainer.train_epoch(position)
        except DivergedError as error:
            return {"reason": str(error)} | _before(trainer, position)
        except StoppedError as error:
            _save(trainer, prepared, position, signal_watch)
            raise StoppedError(
                error.signal_number, f"{error}; saved in {folder}, run the same command to continue"
            ) from None
        trainer.gather(position)
        loss_sum, wrong, count = position.sums.tolist()
        if not count:
            raise DataError(f"none of {position.skipped} training images can be read; get the data again")
        found = trainer.evaluate()
        row = {
            "epoch": position.epoch + 1,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum / count,
            "train_error_percent": 100.0 * wrong / count,
            "test_loss": found.loss,
            "test_error_percent": found.error_percent,
            "wall_seconds": time.perf_counter() - started,
            "images_per_second": count / position.train_seconds,
            "max_abs_logit": position.peak.item(),
        }
        if recipe.damaged == "skip":
            row |= {"skipped_train_images": position.skipped, "skipped_test_images": found.skipped}
        position.history.append(row)
        position.begin_epoch()
        if fabric.is_global_zero and best(position.history) is row:
            state = {"hash": prepared.hash, "epoch": row["epoch"], "model": trainer.net.state_dict()}
            checkpoint.save(folder / BEST, state, keep_previous=False)
        _save(trainer, prepared, position, signal_watch)
        if fabric.is_global_zero:
            logger.info("%s", to_json(row))
            if on_epoch is not None:
                on_epoch(row)
    return None


def best(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first row with the least test error, None where there is no row."""
    return min(history, key=lambda row: row["test_error_percent"], default=None)


def _save(trainer: Trainer, prepared: Prepared, position: Position, signal_watch: Watch | None) -> None:
    if signal_watch is not None:  # what was seen before a checkpoint is in its file before the checkpoint is
        signal_watch.flush()
    trainer.gather(position)
    if not trainer.fabric.is_global_zero:
        position.clear_sums()
        return
    state = {
        "hash": prepared.hash,
        "seed": prepared.seed,
        "epoch": len(position.history),
        "setting": _setting(trainer.fabric),
        "position": {field.name: getattr(position, field.name) for field in dataclasses.fields(position)},
        "model": trainer.net.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
    }
    checkpoint.save(prepared.folder / LAST, state, keep_previous=True)
    checkpoint.write_atomically(prepared.folder / METRICS, _csv(position.history))


def _resume(trainer: Trainer, prepared: Prepared) -> Position:
    # from the first process, which alone writes it: hosts need not share a run folder
    state = checkpoint.load_newest(prepared.folder / LAST) if trainer.fabric.is_global_zero else None
    state = trainer.fabric.broadcast(state)
    if state is None:
        return Position().to(trainer.fabric.device)
    if state.get("hash") != prepared.hash or state.get("seed") != prepared.seed:
        raise checkpoint.CheckpointError(
            f"{prepared.folder / LAST} belongs to recipe {state.get('hash')} with seed {state.get('seed')}, wanted "
            f"{prepared.hash} with seed {prepared.seed}; move it away or give another folder with --runs"
        )
    if state["setting"] != _setting(trainer.fabric):
        warning = (
            f"continued on {_setting(trainer.fabric)}, begun on {state['setting']}: the result will not be bit for bit "
            f"that of an uninterrupted run"
        )
        logger.warning(warning)
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
    trainer.net.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    position = Position(**state["position"]).to(trainer.fabric.device)
    if not trainer.fabric.is_global_zero:
        position.clear_sums()
    logger.info("continued at epoch %d, step %d", position.epoch + 1, position.step)
    return position


def _csv(history: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    # the last row: a run that an older version began has rows with fewer columns
    writer = csv.DictWriter(text, fieldnames=list(history[-1]) if history else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def _trainer(
    prepared: Prepared,
    fabric: Fabric,
    stop_signal: Callable[[], int],
    on_step: Callable[[int, Tensor], None] | None,
    *,
    workers: int,
    recompute: bool,
) -> Trainer:
    recipe = prepared.recipe
    net, plan = build(recipe, prepared.dataset, seed=prepared.seed)
    _check_single_images(net, prepared, fabric.world_size)
    if recipe.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    net = net.to(fabric.device)
    if recipe.sync_batch_norm and fabric.world_size > 1:
        synchronize_batch_norm(net)
    if recompute:
        checkpoint_activations(net)
    if recipe.compile:
        net.compile()
    optimizer = optimizer_of(recipe, net, plan)
    model, _ = fabric.setup(net, optimizer)
    supply = supply_of(
        recipe,
        prepared.dataset,
        device=fabric.device,
        rank=fabric.global_rank,
        processes=fabric.world_size,
        workers=workers,
    )
    return Trainer(fabric, net, model, optimizer, recipe, prepared.seed, supply, stop_signal, on_step)


def _fabric(device: str, precision: str) -> Fabric:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch finds none; use --device cpu")
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=processes // local,
        strategy="ddp" if processes > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    joined_before = torch.distributed.is_initialized()
    fabric.launch()
    if torch.distributed.is_initialized() and not joined_before:
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """Leave the group of processes before the interpreter ends: gloo's threads, still running, abort it now and then.

    Fabric does so for NCCL alone. The threads end with the last that holds the group, and networks wrapped for several
    processes, which do, may lie in cycles of references.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def _check_batches(prepared: Prepared, processes: int) -> None:
    assert prepared.recipe.batch_size is not None
    images, batch_size = len(prepared.dataset.train.labels), prepared.recipe.batch_size
    smallest = images % batch_size or batch_size
    accumulate = prepared.recipe.accumulate
    if smallest < processes * accumulate:
        parts = f"{processes} processes" + f" of {accumulate} parts" * (accumulate > 1)
        raise UsageError(
            f"the last batch of an epoch has {smallest} of {images} images, too few for {parts}; choose another "
            f"batch_size or limit"
        )


def _check_single_images(net: nn.Module, prepared: Prepared, processes: int) -> None:
    """Raise a UsageError where a step ends up with one image, in which a BatchNorm1d finds no variance."""
    recipe, images = prepared.recipe, len(prepared.dataset.train.labels)
    assert recipe.batch_size is not None
    smallest = images % recipe.batch_size or recipe.batch_size
    together = 1 if recipe.sync_batch_norm else processes
    if smallest // (together * recipe.accumulate) > 1:
        return
    if any(isinstance(module, nn.BatchNorm1d) for module in net.modules()):
        raise UsageError(
            f"{recipe.model} normalizes vectors over the images of a step, and of the last {smallest} of {images} "
            f"images one is left alone; choose another batch_size or limit" + ", or sync_batch_norm" * (processes > 1)
        )


@contextmanager
def _locked(folder: Path, fabric: Fabric) -> Iterator[None]:
    """Create the run folder and keep every other run out of it."""
    if not fabric.is_global_zero:
        fabric.barrier()
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise MpeluError(f"another process trains in {folder}; wait for it or stop it") from None
    except OSError as error:
        raise MpeluError(f"cannot write to {folder}: {error.strerror}; choose another folder with --runs") from error
    try:
        fabric.barrier()
        yield
    finally:
        lock.release()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name in logging
        """Print no traceback: what stops the log stops the next checkpoint too, and is said there."""


@contextmanager
def _log_file(folder: Path, fabric: Fabric) -> Iterator[None]:
    """Send the log, and warnings, to ``log.txt`` of the first process."""
    if not fabric.is_global_zero:
        yield
        return
    handler = _LogFile(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Note SIGINT and SIGTERM instead of dying of them.

    A second Ctrl-C is not held back. A second SIGTERM is: a pool that loses one worker sends it to all the others, and
    they may be about to save.
    """
    received = [0]

    def note(number: int, _: object) -> None:
        received[0] = received[0] or number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received[0]:  # it came after the last step: the run is finished, and who sent it still wants the process to end
        signal.raise_signal(received[0])


def _setting(fabric: Fabric) -> str:
    return f"{fabric.device.type}, {fabric.world_size} processes of {torch.get_num_threads()} threads"


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain types that YAML and JSON know."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(recipe).items()}


def state_sha256(net: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Return the sha256 over all weights, buffers and optimizer state, in a fixed order."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode() + _bytes(tensor))
    for index, entry in sorted(optimizer.state_dict()["state"].items()):
        for name, value in sorted(entry.items()):
            digest.update(f"{index}.{name}".encode() + (_bytes(value) if isinstance(value, Tensor) else b""))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _before(trainer: Trainer, position: Position) -> dict[str, Any]:
    """Return how the epoch in which a run diverged went before."""
    trainer.gather(position)
    loss_sum, _, count = position.sums.tolist()
    return {
        "step": position.step + 1,
        "train_loss_before": loss_sum / count if count else None,
        "max_abs_logit": position.peak.item(),
    }


def _record(
    trainer: Trainer,
    prepared: Prepared,
    position: Position,
    study: str,
    scale: str,
    diverged: dict[str, Any] | None,
    environment: dict[str, Any],
) -> dict[str, Any]:
    data, history = prepared.dataset, position.history
    rates = sorted(row["images_per_second"] for row in history)
    record = {
        "schema": 1,
        "study": study,
        "recipe": recipe_name(prepared.recipe),
        "hash": prepared.hash,
        "seed": prepared.seed,
        "outcome": "diverged" if diverged else "finished",
        "reason": diverged["reason"] if diverged else None,
        "steps": position.step,
        "config": _plain(prepared.recipe) | {"data": data.name},  # not the folder: records leave the machine
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "train_images": len(data.train.labels),
            "test_images": len(data.test.labels),
            "classes": len(data.classes),
        },
        "scale": scale,
        "model": {"parameters": sum(parameter.numel() for parameter in trainer.net.parameters())},
        "last": history[-1] if history else None,
        "best": best(history),
        "history": history,
        "wall_seconds": sum(row["wall_seconds"] for row in history),
        "images_per_second": rates[len(rates) // 2] if rates else None,
        "state_sha256": state_sha256(trainer.net, trainer.optimizer),
        "environment": environment,
    }
    if diverged:
        record["diverged_at"] = {name: value for name, value in diverged.items() if name != "reason"}
    if prepared.recipe.damaged == "skip" and history:
        record["skipped_images"] = {part: history[-1][f"skipped_{part}_images"] for part in ("train", "test")}
    return record
