"""What is watched agrees with plain references, training is the same to the bit, and nothing stays behind."""

import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mpelu.diagnostics.watch import Watched, watch
from mpelu.errors import DataError, UsageError
from mpelu.models import create_model
from mpelu.nn import MPELU
from mpelu.report.signal import read_signal
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run

STEPS = 5


def plain() -> nn.Module:
    return create_model("plain9", in_channels=3, width=4)


def residual() -> nn.Module:
    return create_model("nopre11", in_channels=3)


def sequential() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), MPELU(16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))


class Checkpointed(nn.Module):
    """Two blocks whose inner values are computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), MPELU(4), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4, 10)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = checkpoint(self.block, x, use_reentrant=self.reentrant) if torch.is_grad_enabled() else self.block(x)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One layer that is used twice, and a hidden state beside the output."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(192, 192)
        self.cells = nn.LSTM(192, 10, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(torch.tanh(self.twice(x.flatten(1))))
        return self.cells(x[:, None])[0][:, 0]


class InPlace(nn.Module):
    """Activations that write over the output of the layer before them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), MPELU(4, inplace=True)
        )
        self.head = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


MODELS = {
    "plain": plain,
    "residual with batch norm": residual,
    "sequential": sequential,
    "checkpointed": lambda: Checkpointed(reentrant=False),
    "reentrant": lambda: Checkpointed(reentrant=True),
    "shared": Shared,
    "in place": InPlace,
}
SIZE = {"plain": 32, "residual with batch norm": 32}


class Training:
    """A model, its optimizer, and batches that follow from the number of the step."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(3)
        self.model = MODELS[name]()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.size = SIZE.get(name, 8)
        self.done = 0

    def images(self, step: int) -> torch.Tensor:
        return torch.randn(6, 3, self.size, self.size, generator=torch.Generator().manual_seed(step))

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.images(self.done)), torch.arange(6) % 10).backward()
        self.optimizer.step()
        self.done += 1

    def evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(self.images(99))
        self.model.train()

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def hooks(model: nn.Module) -> int:
    """Return the number of hooks on modules, parameters and what they hold."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    on_modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    return on_modules + sum(len(parameter._backward_hooks or {}) for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_training_is_the_same_to_the_bit_and_nothing_stays(name):
    alone, watched = Training(name), Training(name)
    random_states = []
    for training in (alone, watched):
        torch.manual_seed(5)
        if training is alone:
            for _ in range(STEPS):
                training.step()
        else:
            with watch(training.model, every=2, optimizer=training.optimizer) as records:
                for _ in range(STEPS):
                    training.step()
                    training.evaluate()
            assert [seen.step for seen in records] == [0, 2, 4]
            assert hooks(training.model) == 0
            assert not training.optimizer._optimizer_step_pre_hooks
            assert not training.optimizer._optimizer_step_post_hooks
        random_states.append(torch.get_rng_state())
    assert torch.equal(*random_states)
    for (key, expected), found in zip(alone.state().items(), watched.state().values(), strict=True):
        assert torch.equal(expected, found), key
    for expected, found in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(expected.grad, found.grad)


def reference(training: Training) -> dict[str, dict[str, float]]:
    """Return what a step shows, each number by its definition: outputs and their gradients are kept."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            copied = output.clone()  # an activation behind it may write over what it gets
            copied.retain_grad()
            outputs[name] = copied
            return copied.clone()

        return hook

    model = training.model
    layers = {name: module for name, module in model.named_modules() if getattr(module, "weight", None) is not None}
    layers = {name: module for name, module in layers.items() if module.weight.dim() > 1}
    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    before = {name: module.weight.detach().clone() for name, module in layers.items()}
    training.step()
    for handle in handles:
        handle.remove()
    found = {}
    for name, module in layers.items():
        rows = outputs[name].detach().double().flatten(1)
        pairs = [F.cosine_similarity(rows[i], rows[j], 0) for i in range(len(rows)) for j in range(i)]
        found[name] = {
            "mean": rows.mean().item(),
            "second_moment": rows.square().mean().item(),
            "correlation": torch.stack(pairs).mean().item(),
            "gradient_norm": outputs[name].grad.double().square().sum().sqrt().item(),
            "weight_norm": before[name].double().square().sum().sqrt().item(),
            "weight_gradient_norm": module.weight.grad.double().square().sum().sqrt().item(),
            "update_ratio": ((module.weight - before[name]).double().norm() / before[name].double().norm()).item(),
        }
    return found


@pytest.mark.parametrize("name", ["plain", "residual with batch norm", "sequential", "in place"])
def test_what_is_seen_is_what_a_plain_reference_computes(name):
    expected = reference(Training(name))
    training = Training(name)
    with watch(training.model, optimizer=training.optimizer) as records:
        training.step()
    seen = {record.name: record for record in records[0].records if record.kind == "weight"}
    assert seen.keys() == expected.keys()
    for layer, values in expected.items():
        for key, value in values.items():
            # float32 sums of up to 1e5 terms, and six digits in the record; an update is a difference of close numbers
            tolerance = {"rel": 1e-3, "abs": 1e-9} if key == "update_ratio" else {"rel": 2e-5, "abs": 2e-7}
            assert getattr(seen[layer], key) == pytest.approx(value, **tolerance), (layer, key)


@pytest.mark.parametrize("name", ["checkpointed", "reentrant"])
def test_a_checkpoint_changes_nothing_that_is_seen(name):
    training, direct = Training(name), Training(name)
    block, first, head = direct.model.block, direct.model.first, direct.model.head
    direct.model.forward = lambda x: head(block(first(x)).mean((2, 3)))
    found = []
    for each in (training, direct):
        with watch(each.model) as records:
            each.step()
            each.step()
            each.evaluate()
        found.append(records[0])
    assert [record.name for record in found[0].records] == ["first", "block.0", "block.1", "block.2", "head"]
    assert found[0] == found[1]
    assert all(record.gradient_norm > 0 for record in found[0].records if record.kind == "weight")


def test_a_layer_used_twice_has_a_record_for_each_use():
    training = Training("shared")
    with watch(training.model, optimizer=training.optimizer) as records:
        training.step()
    names = [record.name for record in records[0].records]
    assert names == ["twice", "twice#2", "cells"]
    assert records[0]["twice"].gradient_norm != records[0]["twice#2"].gradient_norm
    assert records[0]["twice"].weight_gradient_norm > 0
    assert records[0]["twice#2"].weight is None  # it is counted once
    assert records[0]["cells"].weight == "cells.weight_ih_l0"


def test_alpha_and_beta_are_means_over_channels():
    training = Training("sequential")
    with torch.no_grad():
        training.model[2].alpha.copy_(torch.linspace(0, 3, 16))
        training.model[2].beta.copy_(torch.linspace(1, 2, 16))
    with watch(training.model) as records:
        training.step()
    layer = records[0]["2"]
    assert (layer.kind, layer.op, layer.alpha, layer.beta) == ("activation", "mpelu", 1.5, 1.5)


def test_only_training_steps_are_counted():
    training = Training("sequential")
    with watch(training.model, every=2, start=3, steps_per_epoch=4) as records:
        for _ in range(4):
            training.step()  # 3, 4, 5, 6
            training.evaluate()
            with torch.no_grad():
                training.model(training.images(0))
    assert [(seen.step, seen.epoch) for seen in records] == [(4, 1.0), (6, 1.5)]


def numbers_held() -> int:
    """Return how many tensors of no dimension are alive."""
    gc.collect()
    return sum(type(item) is torch.Tensor and item.dim() == 0 for item in gc.get_objects())


def test_no_tensor_is_kept():
    training = Training("sequential")
    kept = []
    training.model[1].register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    before = numbers_held()
    with watch(training.model) as records:
        training.step()
        training.optimizer.zero_grad()
        gc.collect()
        assert [reference() for reference in kept] == [None]
        records.flush()
        assert numbers_held() <= before


def test_an_error_in_the_forward_pass_leaves_no_record_and_no_hook():
    training = Training("sequential")
    with watch(training.model, every=1) as records:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            training.model(torch.zeros(2, 3, 5, 5))
        training.step()
    assert [seen.step for seen in records] == [1]
    assert hooks(training.model) == 0


def test_a_forward_pass_without_a_backward_pass_has_no_gradient():
    training = Training("sequential")
    with watch(training.model) as records:
        training.model(training.images(0))
    assert [record.gradient_norm for record in records[0].records] == [None] * 4
    assert records[0]["1"].second_moment > 0


def test_numbers_that_are_not_finite_are_said(tmp_path):
    training = Training("sequential")
    with torch.no_grad():
        training.model[3].weight[0, 0] = math.nan
    with watch(training.model, path=tmp_path / "signal.jsonl") as records:
        training.step()
    assert records[0]["1"].non_finite == 0.0
    assert records[0]["3"].non_finite == pytest.approx(1 / 16)
    assert math.isnan(records[0]["3"].second_moment)
    (line,) = (tmp_path / "signal.jsonl").read_text().splitlines()
    json.loads(line, parse_constant=pytest.fail)
    assert Watched.from_dict(json.loads(line)) == records[0]


def test_frozen_layers_and_integers_are_no_obstacle():
    model = nn.Sequential(nn.Embedding(5, 8, sparse=True), nn.Linear(8, 3))
    model[1].requires_grad_(False)
    with watch(model) as records:
        model(torch.tensor([[0, 1], [2, 3]])).sum().backward()
    assert records[0]["0"].weight_gradient_norm > 0
    assert records[0]["1"].weight_gradient_norm is None
    assert records[0]["1"].gradient_norm > 0


def test_half_precision_is_measured_in_float32():
    training = Training("in place")
    with watch(training.model) as records, torch.autocast("cpu", dtype=torch.bfloat16):
        training.step()
    with watch(training.model.double()) as exact:
        training.model(training.images(0).double())
    assert records[0]["layers.0"].weight_norm > 0
    # one step was made between: what is compared is the scale
    assert records[0]["layers.0"].second_moment == pytest.approx(exact[0]["layers.0"].second_moment, rel=0.2)


def test_chosen_layers_only():
    training = Training("sequential")
    with watch(training.model, layers=lambda name, module: isinstance(module, nn.Tanh)) as records:
        training.step()
    (record,) = records[0].records
    assert (record.name, record.op, record.weight) == ("4", "tanh", None)
    assert record.gradient_norm > 0


# Compiled parts


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")  # dynamo's own
@pytest.mark.parametrize("how", ["a part", "all", "a part in place"])
def test_compiled_modules_train_the_same_and_show_their_borders(how):
    states, names = [], []
    for watched in (False, True):
        torch._dynamo.reset()
        training = Training("sequential")
        inner = training.model
        if how == "a part":
            inner[3] = torch.compile(nn.Sequential(inner[3], nn.Tanh()), backend="aot_eager")
        elif how == "a part in place":
            inner[3].compile(backend="aot_eager")
        else:
            training.model = torch.compile(inner, backend="aot_eager")
        every = 1 if watched else 10**6
        with watch(training.model, every=every, start=0 if watched else 1) as records:
            for _ in range(STEPS):
                training.step()
        states.append(training.state())
        names.append([(record.name, math.isnan(record.second_moment)) for seen in records for record in seen.records])
        if watched:
            assert all(record.weight_gradient_norm for seen in records for record in seen.records if record.weight)
            assert hooks(inner) == 0
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    expected = {
        "a part": [("1", False), ("2", False), ("3", False), ("5", False), ("3.0", True)],
        "all": [("1", True), ("2", True), ("3", True), ("5", True)],
        "a part in place": [("1", False), ("2", False), ("5", False), ("3", True)],
    }[how]
    assert names == [[], expected * STEPS]


def test_a_model_compiled_in_place_is_refused():
    model = sequential()
    model.compile(backend="eager")
    with pytest.raises(UsageError, match=r"compiled = torch\.compile\(model\)"):
        watch(model)


# Several processes


def test_under_ddp_names_are_those_of_the_model(tmp_path):
    """One process is enough for what the wrapper does to names and hooks."""

    def check():  # what wraps the model must be gone before the group: else torch can wait for itself for ever
        alone, wrapped = Training("plain"), Training("plain")
        wrapped.model = nn.parallel.DistributedDataParallel(wrapped.model)
        with watch(alone.model) as expected, watch(wrapped.model) as found:
            for training in (alone, wrapped):
                training.step()
                training.step()
        assert list(found) == list(expected)
        assert hooks(wrapped.model) == 0

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        check()
    finally:
        torch.distributed.destroy_process_group()


# The file


def test_each_record_is_a_line_and_is_written_at_once(tmp_path):
    path = tmp_path / "signal.jsonl"
    training = Training("sequential")
    with watch(training.model, every=1, path=path) as records:
        training.step()
        assert path.read_text() == ""
        training.step()
        assert len(path.read_text().splitlines()) == 1
        records.flush()
        assert len(path.read_text().splitlines()) == 2
        records.flush()
    assert [Watched.from_dict(json.loads(line)) for line in path.read_text().splitlines()] == list(records)
    assert records[-1].step == 1
    assert [seen.step for seen in records[:1]] == [0]


def test_going_on_drops_what_came_after_and_what_was_cut_off(tmp_path):
    path = tmp_path / "signal.jsonl"
    training = Training("sequential")
    with watch(training.model, every=1, path=path):
        for _ in range(4):
            training.step()
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert [step["step"] for step in read_signal(path)] == [0, 1, 2]
    training = Training("sequential")
    training.step()
    training.step()
    with watch(training.model, every=1, path=path, start=2):
        training.step()
        training.step()
    assert path.read_text() == whole


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "signal.jsonl"
    for text, message in (("{\n", "line 1 is not JSON"), ('{"a": 1}\n', "line 1 is no watched step")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_signal(path)
    with pytest.raises(DataError, match="mpelu train --watch"):
        read_signal(tmp_path / "other")


def test_usage_errors():
    with pytest.raises(UsageError, match="every must be at least 1, got 0"):
        watch(sequential(), every=0)
    with pytest.raises(UsageError, match="no module with a weight"):
        watch(nn.ReLU())
    with watch(sequential()) as records, pytest.raises(UsageError, match="begun already"):
        records.__enter__()


# In a run


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("MPELU_CACHE", str(tmp_path / "cache"))
    return Recipe(
        model="plain9", width=4, dropout=0.3, data="digits", limit=96, augment="pad4", epochs=2, batch_size=32, lr=0.05
    )


def trained(recipe: Recipe, runs: Path, **options: object) -> tuple[dict, Path]:
    prepared = prepare(recipe, seed=1, runs=runs)
    return run(prepared, device="cpu", **options), prepared.folder / "signal.jsonl"


def test_a_watched_run_is_the_same_run(small, tmp_path):
    expected, no_file = trained(small, tmp_path / "a")
    found, file = trained(small, tmp_path / "b", watch_every=2)
    assert (found["hash"], found["state_sha256"]) == (expected["hash"], expected["state_sha256"])
    assert not no_file.exists()
    steps = [Watched.from_dict(step) for step in read_signal(file)]
    assert [(seen.step, seen.epoch) for seen in steps] == [(0, 0.0), (2, 0.666667), (4, 1.33333)]
    weights = [record for record in steps[0].records if record.kind == "weight"]
    assert [record.weight for record in weights[:2]] == ["conv1.weight", "conv2.weight"]
    assert all(record.update_ratio > 0 for record in weights)


@pytest.mark.parametrize("crash", [2, 4, 5])
def test_a_run_that_goes_on_leaves_the_same_file(small, tmp_path, crash):
    _, whole = trained(small, tmp_path / "whole", watch_every=1)

    def die(step: int, _: torch.Tensor) -> None:
        if step + 1 == crash:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        trained(small, tmp_path / "parts", watch_every=1, on_step=die)
    _, file = trained(small, tmp_path / "parts", watch_every=1)
    assert file.read_text() == whole.read_text()


def test_activations_that_are_computed_again_are_seen_once(small, tmp_path):
    _, kept = trained(small, tmp_path / "kept", watch_every=2)
    _, again = trained(small, tmp_path / "again", watch_every=2, recompute=True)
    assert again.read_text() == kept.read_text()


def test_watching_runs_in_half_precision_and_channels_last(small, tmp_path):
    _, file = trained(replace(small, channels_last=True, precision="bf16", epochs=1), tmp_path, watch_every=3)
    (step,) = read_signal(file)
    assert all(record["second_moment"] > 0 for record in step["records"])
