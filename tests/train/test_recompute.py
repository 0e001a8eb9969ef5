import copy
import dataclasses
import io

import pytest
import safetensors.torch
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.models import create_model
from mpelu.train.recipe import Recipe
from mpelu.train.recompute import checkpoint_activations
from mpelu.train.run import prepare, run
from tests.cases import normal

NETS = {"nopre20": (4, 3, 8, 8), "plain15": (4, 1, 16, 16), "nin": (4, 3, 28, 28), "preact11": (4, 3, 8, 8)}


def step(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(3)  # of dropout
    output = net(x)
    output.square().sum().backward()
    return output, [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("segments", [None, 1, 2, 5])
@pytest.mark.parametrize("name", NETS)
def test_a_step_gives_the_same_bits(name, segments):
    net = create_model(name, in_channels=NETS[name][1])
    again = copy.deepcopy(net)
    checkpoint_activations(again, segments)
    x = normal(*NETS[name], dtype=torch.float32)
    for _ in range(2):
        (output, gradients), (output_again, gradients_again) = step(net, x), step(again, x)
        assert torch.equal(output, output_again)
        assert all(map(torch.equal, gradients, gradients_again))
    for (key, value), (key_again, value_again) in zip(
        net.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert key == key_again
        assert torch.equal(value, value_again), key  # running statistics and their counts too
    assert torch.equal(net.eval()(x), again.eval()(x))


def kept(net: nn.Module, x: torch.Tensor) -> int:
    tensors = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            tensors[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def test_little_is_kept_between_the_passes():
    net, x = create_model("nopre47"), normal(2, 3, 32, 32, dtype=torch.float32)
    whole = kept(net, x)
    checkpoint_activations(net)
    # what is left are the inputs of five segments, of a block's size each
    assert kept(net, x) < 0.1 * whole


def test_the_weights_can_be_saved_as_before():
    net = create_model("nopre11")
    names = list(net.state_dict())
    checkpoint_activations(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == names


@pytest.mark.parametrize("segments", [0, -1, 100])
def test_a_wrong_number_of_segments_is_refused(segments):
    with pytest.raises(UsageError, match=f"segments must be from 1 to the 11 children of the network, got {segments}"):
        checkpoint_activations(create_model("nopre11"), segments)


def test_another_kind_of_network_is_refused():
    with pytest.raises(UsageError, match=r"an nn\.Sequential, got Linear"):
        checkpoint_activations(nn.Linear(2, 2))


def test_a_run_that_computes_activations_again_ends_with_the_same_weights(tmp_path):
    recipe = Recipe(model="nopre11", data="digits", limit=96, epochs=1, batch_size=32)
    weights = []
    for recompute in (False, True):
        prepared = prepare(recipe, seed=0, runs=tmp_path / str(recompute))
        run(prepared, device="cpu", recompute=recompute)
        weights.append(safetensors.torch.load_file(prepared.folder / "weights.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_compiled_run_is_refused(small, tmp_path):
    prepared = prepare(dataclasses.replace(small, compile=True), seed=0, runs=tmp_path)
    with pytest.raises(UsageError, match=r"torch\.compile decides by itself what is computed again"):
        run(prepared, device="cpu", recompute=True)
