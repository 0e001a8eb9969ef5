"""A diagnosis leaves no trace, and works where models are wrapped, compiled or cast."""

import copy
import gc
import random
import weakref

import pytest
import torch
from torch import Tensor, nn

from mpelu.diagnostics import Diagnosis, diagnose
from mpelu.errors import UsageError
from tests.architectures import over_architectures
from tests.cases import normal


def state(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": [(name, item.clone()) for name, item in model.state_dict().items()],
        "grad": [
            (own.requires_grad, own.grad, None if own.grad is None else own.grad.clone()) for own in model.parameters()
        ],
        "ids": [id(own) for own in (*model.parameters(), *model.buffers())],
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "own": [len(own._backward_hooks or ()) for own in model.parameters()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def same(ours: object, theirs: object) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return ours == theirs


@over_architectures
@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(architecture, training):
    torch.manual_seed(0)
    model, example = architecture.build(), architecture.example()
    model.train(training)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = state(model)
    found = diagnose(model, example)
    after = state(model)
    for key, value in before.items():
        assert same(value, after[key]), key
    assert found.records
    assert found.loss is not None
    assert Diagnosis.from_json(found.to_json()) == found or "NaN" in found.to_json()


@over_architectures
def test_no_tensor_stays_alive(architecture):
    model, example = architecture.build(), architecture.example()
    diagnose(model, example)
    gc.collect()
    before = {id(item) for item in gc.get_objects() if issubclass(type(item), Tensor)}
    found = diagnose(model, example)
    gc.collect()
    more = [item for item in gc.get_objects() if issubclass(type(item), Tensor) and id(item) not in before]
    assert found.records
    assert not more


def test_activations_are_gone_when_their_numbers_are_there():
    alive: list[weakref.ref[Tensor]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result = torch.sin(x)
            if not result.is_meta:
                alive.append(weakref.ref(result))
            return result

    diagnose(nn.Sequential(nn.Linear(4, 4), Spy(), nn.Linear(4, 4)), normal(8, 4, dtype=torch.float32), jacobian=False)
    gc.collect()
    assert alive
    assert all(item() is None for item in alive)


def test_two_diagnoses_are_equal_and_hold_the_same_dropout():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 2))
    x = normal(8, 8, dtype=torch.float32)
    assert diagnose(model, x) == diagnose(model, x)
    assert diagnose(model, x, seed=1).records != diagnose(model, x).records


def test_the_mode_is_chosen():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = 5 + normal(32, 8, dtype=torch.float32)
    assert diagnose(model, x)["1"].second_moment == pytest.approx(1.0, rel=1e-2)
    as_is = diagnose(model, x, training=False)["1"]
    assert as_is.second_moment == pytest.approx(model[1](model[0](x)).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    x = normal(16, 16, dtype=torch.float32)
    plain = diagnose(model, x)
    with torch.autocast("cpu", dtype=dtype):
        found = diagnose(model, x)
        assert model(x).dtype == dtype
    for ours, theirs in zip(found.records, plain.records, strict=True):
        assert ours.second_moment == pytest.approx(theirs.second_moment, rel=0.05)
        if theirs.gradient_norm is not None:
            assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=0.05)


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_models(whole):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = normal(8, 8, dtype=torch.float32)
    expected = diagnose(model, x)
    compiled = torch.compile(model, backend="eager") if whole else copy.copy(model)
    if not whole:
        compiled = nn.Sequential(torch.compile(model[0], backend="eager"), model[1], model[2])
    output = compiled(x)
    found = diagnose(compiled, x)
    assert [record.second_moment for record in found.records] == [record.second_moment for record in expected.records]
    assert torch.equal(compiled(x), output)


def test_wrapped_models_have_the_names_of_what_is_inside():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = normal(8, 8, dtype=torch.float32)
    assert diagnose(nn.DataParallel(model), x) == diagnose(model, x)


def test_distributed_models_send_nothing(tmp_path):
    import torch.distributed as dist

    def check():  # what wraps the model must be gone before the group: else torch can wait for itself for ever
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        x = normal(8, 8, dtype=torch.float32)
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert diagnose(wrapped, x) == diagnose(model, x)
        wrapped(x).sum().backward()
        assert model[0].weight.grad is not None

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        check()
    finally:
        dist.destroy_process_group()


def test_singular_values_are_those_of_the_jacobian():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x = normal(4, 5, dtype=torch.float32)
    exact = torch.linalg.svdvals(torch.autograd.functional.jacobian(model, x[:1]).reshape(3, 5))
    assert diagnose(model, x).singular_values == pytest.approx(exact.tolist(), rel=1e-5)
    assert diagnose(model, x, jacobian=False).singular_values == ()
    large = nn.Linear(400, 400)
    assert diagnose(large, torch.ones(2, 400)).singular_values == ()
    assert len(diagnose(large, torch.ones(2, 400), jacobian=True).singular_values) == 400


def test_targets_and_losses():
    model, x = nn.Linear(6, 3), normal(8, 6, dtype=torch.float32)
    labels = torch.arange(8) % 3
    expected = nn.functional.cross_entropy(model(x), labels).item()
    assert diagnose(model, x, target=labels).loss == pytest.approx(expected, rel=1e-5)
    assert diagnose(model, x, nn.CrossEntropyLoss(), target=labels).loss == pytest.approx(expected, rel=1e-5)
    # that of 24 numbers from N(0, 1), over sqrt(8 * 24): sqrt(1 / 8), to 1 / sqrt(48) = 14 % for one standard error
    assert diagnose(model, x)["output"].gradient_norm == pytest.approx(8**-0.5, rel=0.45)


def test_refusals_say_what_to_do():
    with pytest.raises(UsageError, match=r"must be a torch\.nn\.Module"):
        diagnose(len, torch.ones(2, 3))
    with pytest.raises(UsageError, match="meta device"):
        diagnose(nn.Linear(3, 2, device="meta"), torch.ones(2, 3))
    with pytest.raises(UsageError, match="one entry"):
        diagnose(nn.Linear(3, 2), torch.ones(2, 3), lambda output: output)
    with pytest.raises(UsageError, match="give a loss"):
        diagnose(_Counting(), torch.ones(2, 3))


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).argmax(1)
