import copy
import pickle
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mpelu.conversion import convert
from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.models import create_model
from mpelu.nn import MPELU, SPELU
from tests.architectures import ARCHITECTURES, BY_NAME, image, over_architectures, tokens
from tests.cases import normal

pytestmark = pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # dynamo's own

FUNCTIONS = {
    "relu", "leaky_relu", "prelu", "elu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "hardsigmoid", "abs",
}  # fmt: skip
"""All activation functions that the architectures call."""
WITH_RELU_OR_ELU = {
    "vgg": 3, "resnet": 7, "pre-activation": 5, "densenet": 3, "mobilenet": 1, "inception": 4, "autoencoder": 2,
    "functional": 4, "weight norm": 1,
}  # fmt: skip
"""How many ReLUs and ELUs each architecture computes in a pass, counted by reading its code."""


def everything(_):
    return True


def relu_or_elu(node):
    return node.op in ("relu", "elu")


class Called(TorchFunctionMode):
    """Counts calls of activation functions, those of MPELU left out."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").strip("_")
        if name in FUNCTIONS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def call(model, example):
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def tensors(output):
    if isinstance(output, Tensor):
        return [output]
    return [item for part in (output.values() if isinstance(output, dict) else output) for item in tensors(part)]


def called(model, example):
    with Called() as found:
        call(model, example)
    return found.counts


def unit_calls(model, example):
    """Count calls of MPELU by hooks."""
    count = Counter()
    hooks = [
        module.register_forward_hook(lambda unit, args, output: count.update([id(unit)]))
        for module in model.modules()
        if isinstance(module, MPELU)
    ]
    call(model, example)
    for hook in hooks:
        hook.remove()
    return count


def structure(model):
    return [(name, id(module), type(module), sorted(vars(module))) for name, module in model.named_modules()]


def close(model, example, before, tolerance=1e-6):
    after = tensors(call(model, example))
    assert len(after) == len(before)
    return all((new - old).abs().max() <= tolerance for new, old in zip(after, before, strict=True))


@over_architectures
def test_every_activation_is_found_and_called_as_often(architecture):
    model, example = architecture.build().eval(), architecture.example()
    before = called(model, example)
    if not before:
        with pytest.raises(UsageError, match="nothing was converted"):
            convert(model, everything, example=example)
        return
    conversion = convert(model, everything, example=example, approximate=True)
    written_out = {row.name for row in conversion.left if "written out" in row.reason}
    after = called(model, example)
    assert {row.name for row in conversion.left if row.old.strip("()") in FUNCTIONS} <= written_out
    assert sum(before.values()) - sum(after.values()) == len(conversion.rows)
    assert set(after) <= {"sigmoid"}  # of the x * sigmoid(x) that "functional" writes out
    assert sum(unit_calls(model, example).values()) == len(conversion.rows)


@pytest.mark.parametrize("name", WITH_RELU_OR_ELU)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_exact_conversions_keep_outputs_and_gradients(name, training):
    architecture = BY_NAME[name]
    model, example = architecture.build(), architecture.example()
    reference = copy.deepcopy(model)
    conversion = convert(model, relu_or_elu, example=example)
    assert len(conversion.rows) == WITH_RELU_OR_ELU[name]
    assert all(row.error <= 1e-15 for row in conversion.rows)
    results = []
    for network in (reference.train(training), model.train(training)):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # dropout
            output = tensors(call(network, example))
        sum(part.square().sum() for part in output).backward()
        results.append(output)
    for old, new in zip(*results, strict=True):
        assert (old - new).abs().max() <= 1e-6
    for key, parameter in reference.named_parameters():
        if parameter.grad is not None:
            # the sums of the gradients are taken in another order in float32, at most some thousand terms
            torch.testing.assert_close(model.get_parameter(key).grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.name != "lstm"], ids=lambda a: a.name)
def test_gradients_flow_to_every_alpha_and_beta(architecture):
    model, example = architecture.build().eval(), architecture.example()
    with torch.no_grad():  # gains of 0 let nothing through
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=index, dtype=torch.float32))
    conversion = convert(model, everything, example=example, start=(0.25, 1.0))
    sum(part.square().sum() for part in tensors(call(model, example))).backward()
    units = [module for module in model.modules() if isinstance(module, MPELU)]
    assert len(units) == len({row.unit for row in conversion.rows})
    for row in conversion.rows:
        unit = next(module for module in model.get_submodule(row.unit).modules() if isinstance(module, MPELU))
        for parameter in (unit.alpha, unit.beta):
            assert parameter.grad.isfinite().all(), row.name
            assert parameter.grad.abs().sum() > 0, row.name


def test_beta_of_a_relu_gets_its_gradient_after_the_first_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    x = normal(32, 8, dtype=torch.float32)
    conversion = convert(model, nn.ReLU, example=x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    assert (model[1].alpha.grad != 0).all()
    assert (model[1].beta.grad == 0).all()
    optimizer.step()
    optimizer.zero_grad()
    model(x).square().sum().backward()
    assert (model[1].beta.grad != 0).all()
    assert "the gradient of beta is 0 there" in str(conversion)


@over_architectures
def test_undo_restores_everything(architecture):
    model, example = architecture.build(), architecture.example()
    before, state = structure(model), {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    if architecture.name == "lstm":
        with pytest.raises(UsageError):
            convert(model, everything, example=example, approximate=True)
    else:
        conversion = convert(model, everything, example=example, approximate=True)
        after = model.state_dict()
        assert all(torch.equal(after[key], value) for key, value in state.items() if key in after)
        assert set(state) - set(after) <= {"trunk.1.weight"}  # of the PReLU
        assert structure(model) != before
        conversion.undo()
        with pytest.raises(UsageError, match="was undone before"):
            conversion.undo()
    assert structure(model) == before
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", ["resnet", "functional", "unet", "siamese", "mixer"])
def test_copies_and_states(name):
    architecture = BY_NAME[name]
    model, example = architecture.build().eval(), architecture.example()
    convert(model, everything, example=example, approximate=True)
    before = tensors(call(model, example))
    assert close(copy.deepcopy(model), example, before, 0.0)
    assert close(pickle.loads(pickle.dumps(model)), example, before, 0.0)
    other = architecture.build().eval()
    convert(other, everything, example=example, start=(0.5, 2.0))
    other.load_state_dict(model.state_dict())
    assert close(other, example, before, 0.0)


@pytest.mark.parametrize("name", ["vgg", "resnet", "functional", "unet", "shared cell", "mixer"])
def test_compiles_without_a_break(name):
    architecture = BY_NAME[name]
    model, example = architecture.build().eval(), architecture.example()
    convert(model, everything, example=example, approximate=True)
    before = tensors(call(model, example))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert close(compiled, example, before, 1e-5)  # convolutions and norms are taken apart and rounded otherwise
    sum(part.sum() for part in tensors(call(compiled, example))).backward()
    assert all(unit.alpha.grad is not None for unit in model.modules() if isinstance(unit, MPELU))


@over_architectures
def test_on_the_meta_device(architecture):
    model, example = architecture.build().to("meta"), architecture.example()
    if architecture.name in ("control flow", "lstm"):
        with pytest.raises(UsageError, match=r"needs values|nothing was converted"):
            convert(model, everything, example=example, approximate=True)
        return
    real = architecture.build()
    expected = convert(real, everything, example=example, approximate=True)
    found = convert(model, everything, example=example, approximate=True)
    refused = [row for row in found.left if "is on the meta device" in row.reason]
    assert len(refused) == (architecture.name == "siamese")
    names = [row.name for row in expected.rows if "PReLU" not in row.old]
    assert [row.name for row in found.rows] == names
    assert found.largest_difference is None
    assert not any(row.measured for row in found.rows)
    assert all(parameter.is_meta for parameter in model.parameters())
    found.undo()
    assert [name for name, _ in model.named_modules()] == [name for name, _ in architecture.build().named_modules()]


def test_start_values_survive_leaving_the_meta_device():
    model = nn.Sequential(nn.Linear(4, 3), nn.ELU(0.7)).to("meta")
    convert(model, nn.ELU, example=torch.zeros(2, 4))
    model.to_empty(device="cpu")
    model[1].reset_parameters()
    assert torch.equal(model[1].alpha, torch.full((3,), 0.7))
    assert torch.equal(model[1].beta, torch.ones(3))


@pytest.mark.parametrize(
    ("old", "alpha", "beta"),
    [
        (nn.ReLU(), 0.0, 1.0),
        (nn.Threshold(0.0, 0.0), 0.0, 1.0),
        (nn.ELU(0.3), 0.3, 1.0),
        (nn.CELU(0.3), 0.3, 1 / 0.3),
        (MPELU(1, 0.6, 2.5), 0.6, 2.5),
    ],
    ids=repr,
)
def test_what_mpelu_contains_becomes_the_same_function(old, alpha, beta):
    x = 3 * normal(64, 5)
    model = nn.Sequential(nn.Linear(5, 5), old).double()
    before = model(x)
    conversion = convert(model, type(old), example=x)
    # float64: what is searched for is found to about the root of epsilon, what is known to epsilon; MPELU's own
    # parameters are those of float32
    assert model[1].alpha.tolist() == pytest.approx([alpha] * 5, rel=1e-6)
    assert model[1].beta.tolist() == pytest.approx([beta] * 5, rel=1e-6)
    assert conversion.largest_difference == (model(x) - before).abs().max()
    assert conversion.largest_difference <= 1e-8
    if isinstance(old, nn.ELU):
        assert conversion.rows[0].alpha == (alpha,)
        assert conversion.rows[0].beta == (beta,)


def test_prelu_keeps_a_slope_for_each_channel():
    slopes = torch.tensor([0.25, 0.0, -0.5, 1.0])
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].weight.copy_(slopes)
    x = image()
    inputs = model[0](x)
    row = convert(model, nn.PReLU, example=x).rows[0]
    # alpha * beta is near the slope; the least squares make up for the curve
    product = torch.tensor(row.alpha) * torch.tensor(row.beta)
    torch.testing.assert_close(product, slopes, rtol=0.05, atol=0.0)
    assert row.channels == 4
    expected = torch.where(inputs > 0, inputs, inputs * slopes.view(1, -1, 1, 1))
    found = model[1](inputs)
    difference = (found - expected).abs().max().item()
    assert 0 < difference < 0.02
    # largest_error is that over all channels at the measured points, the ends of the range among them
    assert difference <= row.largest_error * 1.01
    assert row.error < row.largest_error


def test_smaller_beta_comes_nearer_to_a_leaky_relu():
    x = normal(64, 8, dtype=torch.float32)
    differences = []
    for smallest in (0.1, 0.01, 0.001):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3))
        conversion = convert(model, nn.LeakyReLU, example=x, smallest_beta=smallest)
        assert conversion.rows[0].beta == pytest.approx((smallest,))
        differences.append(conversion.largest_difference)
    assert differences[0] > 5 * differences[1] > 25 * differences[2] > 0


def test_the_reported_difference_is_that_of_the_outputs():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)), tokens()[:, 0]
    before = model(x)
    conversion = convert(model, nn.GELU, example=x, approximate=True)
    assert conversion.largest_difference == pytest.approx((model(x) - before).abs().max().item(), rel=1e-6)
    assert conversion.largest_difference > 1e-4


class TwoSpellings(nn.Module):
    """A module and a call of each of two functions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.relu, self.elu = nn.ReLU(), nn.ELU()

    def forward(self, x):
        x = self.relu(self.layers[0](x))
        x = F.relu(self.layers[1](x))
        x = self.elu(self.layers[2](x))
        x = F.elu(self.layers[3](x))
        return torch.tanh(self.layers[4](x))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (nn.ReLU, ["relu"]),
        (F.relu, ["relu#2"]),
        (torch.relu, ["relu#2"]),
        (Tensor.relu_, ["relu#2"]),
        ("relu", ["relu", "relu#2"]),
        ([nn.ReLU, F.elu], ["relu", "elu#2"]),
        ("elu*", ["elu", "elu#2"]),
        (lambda node: node.kind == "activation" and node.source is None and node.op == "elu", ["elu#2"]),
        ((nn.ReLU, nn.ELU), ["relu", "elu"]),
    ],
    ids=["type", "F", "torch", "method", "name", "list", "pattern", "predicate", "tuple"],
)
def test_sources(source, names):
    model = TwoSpellings()
    graph = read(model, tokens()[:, 0])
    assert [node.name for node in graph.nodes if node.kind == "activation"] == [
        "relu",
        "relu#2",
        "elu",
        "elu#2",
        "tanh",
    ]
    conversion = convert(model, source, example=tokens()[:, 0])
    assert [row.name for row in conversion.rows] == names
    assert len(conversion.rows) + len(conversion.left) == 5
    assert conversion.largest_difference <= 1e-6


def test_left_activations_say_why():
    conversion = convert(TwoSpellings(), nn.ReLU, example=tokens()[:, 0])
    reasons = {row.name: row.reason for row in conversion.left}
    assert "'relu' means both" in reasons["relu#2"]
    assert reasons["elu"] == "not asked for"
    text = str(conversion)
    assert "left as it is" in text
    assert all(row.name in text for row in (*conversion.rows, *conversion.left))


class Bottleneck(nn.Module):
    """As in torchvision: one ReLU in place for all, with several numbers of channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.skip, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.conv1(x))
        out = self.relu(self.conv2(out))
        out = self.conv3(out)
        out += self.skip(x)
        out = self.relu(out)
        return self.relu(self.fc(out.mean((2, 3))))


def test_a_shared_module_has_a_unit_for_each_number_of_channels():
    model, x = Bottleneck().eval(), image()
    before = model(x)
    conversion = convert(model, nn.ReLU, example=x)
    assert [row.channels for row in conversion.rows] == [4, 4, 8, 5]
    assert {row.unit for row in conversion.rows} == {"relu"}
    units = [module for module in model.modules() if isinstance(module, MPELU)]
    assert sorted(unit.num_parameters for unit in units) == [4, 5, 8]
    assert (model(x) - before).abs().max() == 0
    model(x).sum().backward()
    assert all(unit.alpha.grad is not None for unit in units)
    with pytest.raises(UsageError, match="converted for 4, 5, 8 channels"):
        model.relu(torch.zeros(2, 9, 3, 3))


def test_a_shared_module_stays_shared_where_the_channels_agree():
    model = BY_NAME["resnet"].build()
    convert(model, nn.ReLU, example=image())
    assert [type(block.relu) for block in (*model.layer1, *model.layer2)] == [MPELU] * 3


class Everywhere(nn.Module):
    """One module under several names and in two parents."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.same = self.act
        self.body = nn.Sequential(nn.Linear(8, 8), self.act)

    def forward(self, x):
        return self.same(self.body(self.act(x)))


def test_a_module_is_replaced_wherever_it_is_held():
    model = Everywhere()
    conversion = convert(model, nn.ReLU, example=tokens()[:, 0])
    assert model.act is model.same is model.body[1]
    assert isinstance(model.act, MPELU)
    assert len(conversion.rows) == 3


def test_one_alpha_for_all_channels():
    model = Bottleneck()
    rows = convert(model, nn.ReLU, example=image(), channels=1).rows
    assert isinstance(model.relu, MPELU)
    assert model.relu.num_parameters == 1
    assert {row.channels for row in rows} == {1}


@pytest.mark.parametrize("to", [SPELU, nn.PReLU, partial(MPELU, save="output")], ids=["spelu", "prelu", "partial"])
def test_other_units(to):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ELU(0.5), nn.Conv2d(4, 2, 1)), image()
    conversion = convert(model, nn.ELU, to, example=x)
    assert isinstance(model[1], nn.PReLU if to is nn.PReLU else SPELU if to is SPELU else MPELU)
    assert (conversion.largest_difference <= 1e-6) == (to is not nn.PReLU)
    assert (conversion.rows[0].alpha is None) == (to is nn.PReLU)
    if to is not nn.PReLU:
        assert torch.equal(model[1].alpha, torch.full((4,), 0.5))


def test_a_copy_leaves_the_model():
    model = TwoSpellings()
    before = structure(model)
    conversion = convert(model, "relu", example=tokens()[:, 0], copy=True)
    assert structure(model) == before
    assert isinstance(conversion.model.relu, MPELU)
    conversion.undo()
    assert isinstance(conversion.model.relu, nn.ReLU)


def test_hooks_modes_and_flags_are_kept():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    seen = []
    handle = model[2].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    model[0].weight.requires_grad_(False)
    model.train()
    model[1].eval()
    model[2].eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    convert(model, nn.ReLU, example=normal(16, 8))
    seen.clear()
    model(normal(16, 8))
    assert seen == [MPELU]
    handle.remove()
    model(normal(16, 8))
    assert seen == [MPELU]
    assert [module.training for module in model] == [True, False, False, True]
    assert model[2].alpha.dtype == torch.float64
    assert not model[0].weight.requires_grad
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_dtype_is_that_of_the_layer(dtype):
    model = BY_NAME["functional"].build().to(dtype)
    x = tokens()[:, 0].to(dtype)
    before = model(x)
    convert(model, F.relu, example=x)
    assert {unit.alpha.dtype for unit in model.modules() if isinstance(unit, MPELU)} == {dtype}
    assert torch.equal(model(x), before)


class OldInput(nn.Module):
    """The ReLU in place changes what the sum reads: so it does in nets with pre-activation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(inplace=True)

    def forward(self, x):
        hidden = self.first(x)
        return hidden + self.second(self.relu(hidden))


class WrittenLater(nn.Module):
    """The input of the ReLU is written to afterwards: ReLU keeps its output, MPELU would keep the input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.first(x)
        branch = self.second(F.relu(hidden))
        return hidden.add_(branch)


@pytest.mark.parametrize("build", [OldInput, WrittenLater], ids=["read again", "written later"])
def test_writes_in_place(build):
    torch.manual_seed(0)
    model, x = build(), normal(4, 8, dtype=torch.float32)
    reference = copy.deepcopy(model)
    conversion = convert(model, "relu", example=x)
    assert conversion.largest_difference == 0
    for network in (model, reference):
        network(x).square().sum().backward()
    torch.testing.assert_close(model.first.weight.grad, reference.first.weight.grad)


class Branches(nn.Module):
    """Which ReLU is called depends on the values, and how often on a number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.kept = nn.ReLU()

    def forward(self, x):
        x = self.kept(self.layers[0](x))
        x = self.layers[1](x).relu() if x.sum() > 0 else torch.relu(self.layers[2](x)) + 1
        return F.relu(x - 0.1)


def test_control_flow():
    torch.manual_seed(0)
    model = Branches()
    reference = copy.deepcopy(model)
    x = normal(4, 8, dtype=torch.float32)
    conversion = convert(model, F.relu, example=x)
    assert [row.unit for row in conversion.rows] == ["relu_1", "relu_2"]
    assert type(model.kept) is nn.ReLU
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for network in (model, reference):
                network.layers[0].bias.fill_(sign)
                network.layers[0].weight.mul_(0.1)
        assert torch.equal(model(x), reference(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.state = nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x):
        hidden = x.new_zeros(len(x), 6)
        for step in range(x.shape[1]):
            hidden = F.relu(self.read(x[:, step]) + self.state(hidden))
        return hidden


def test_steps_in_time_share_a_unit_and_may_be_more():
    model = Recurrent()
    reference = copy.deepcopy(model)
    conversion = convert(model, F.relu, example=tokens(3))
    assert {row.unit for row in conversion.rows} == {"relu_1"}
    for length in (1, 3, 7):
        assert torch.equal(model(tokens(length)), reference(tokens(length)))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.depth = 3

    def forward(self, x):
        for layer in self.layers[: self.depth]:
            x = F.relu(layer(x))
        return x


def test_layers_in_a_loop_have_a_unit_each():
    model, x = Layers(), tokens()[:, 0]
    assert len({row.unit for row in convert(model, F.relu, example=x).rows}) == 3
    model.depth = 2
    model(x)
    model.depth = 4
    with pytest.raises(UsageError, match="calls relu 3 times, and now calls it once more"):
        model(x)


class Auxiliary(nn.Module):
    """A second head in training mode, whose ReLU comes first."""

    def __init__(self):
        super().__init__()
        self.body, self.side, self.head = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(6, 5)

    def forward(self, x):
        x = self.body(x)
        if self.training:
            return F.relu(self.side(x)), F.relu(self.head(x))
        return F.relu(self.head(x))


def test_heads_that_exist_in_training_only():
    model, x = Auxiliary(), tokens()[:, 0]
    conversion = convert(model, F.relu, example=x)
    assert sorted(row.channels for row in conversion.rows) == [4, 5]
    head = next(row.unit for row in conversion.rows if row.channels == 5)
    model.train()
    model(x)[1].sum().backward()
    assert model.get_submodule(head).alpha.grad is not None
    assert model.eval()(x).shape == (2, 5)


class HuggingFaceStyle(nn.Module):
    """Activations as attributes: a function, a module from a table, a partial function."""

    def __init__(self):
        super().__init__()
        self.dense1, self.dense2, self.dense3 = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)
        self.intermediate_act_fn = {"relu": F.relu, "gelu": F.gelu}["relu"]
        self.act = {"relu": nn.ReLU, "elu": nn.ELU}["elu"]()
        self.other = partial(F.leaky_relu, negative_slope=0.1)

    def forward(self, hidden_states, attention_mask=None):
        hidden_states = self.intermediate_act_fn(self.dense1(hidden_states))
        hidden_states = self.other(self.act(self.dense2(hidden_states)))
        return {"last_hidden_state": self.dense3(hidden_states)}


def test_activations_held_as_attributes():
    model = HuggingFaceStyle()
    conversion = convert(model, everything, example={"hidden_states": tokens()})
    assert [(row.channels, row.channel_dim) for row in conversion.rows] == [(16, 2)] * 3
    assert [row.alpha for row in conversion.rows][:2] == [(0.0,), (1.0,)]
    assert conversion.largest_difference < 1e-2


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.held = nn.Conv2d(3, 4, 1), [nn.ReLU()]

    def forward(self, x):
        return nn.ELU()(self.held[0](self.conv(x)) - 0.1)


def test_modules_that_are_not_registered():
    model = Unregistered()
    conversion = convert(model, ["relu", "elu"], example=image())
    assert [row.unit for row in conversion.rows] == ["relu_1", "elu_1"]
    assert conversion.largest_difference <= 1e-6


def test_two_conversions_one_after_the_other():
    model, x = Unregistered(), image()
    before = structure(model)
    first = convert(model, "elu", example=x)
    second = convert(model, "relu", example=x)
    assert close(pickle.loads(pickle.dumps(model)), x, [model(x)], 0.0)
    with pytest.raises(UsageError, match="undo that first"):
        first.undo()
    second.undo()
    first.undo()
    assert structure(model) == before


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()], ids=["function", "module"])
def test_transformer_layers_do_not_take_their_fused_path(activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=activation, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), tokens()
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    with torch.no_grad():
        before = model(x)
        conversion = convert(model, "relu", example=x)
        # fused and separate kernels add up in another order
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
        for unit in (module for module in model.modules() if isinstance(module, MPELU)):
            unit.alpha.fill_(2.0)
        assert (model(x) - before).abs().max() > 1e-2
        assert model(x, src_key_padding_mask=mask).shape == x.shape
    assert len(conversion.rows) == 2
    assert {row.name for row in conversion.left} == {"layers.0.self_attn", "layers.1.self_attn"}
    conversion.undo()
    with torch.no_grad():
        assert torch.equal(model(x), before)


def test_checkpointed_blocks():
    block = BY_NAME["pre-activation"].build()
    x = normal(2, 3, 8, 8, dtype=torch.float32)
    convert(block, "relu", example=x, start=(0.25, 1.0))
    block.eval()
    block(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    out = block[0](x)
    for part in list(block)[1:]:
        out = checkpoint(part, out, use_reentrant=False)
    out.sum().backward()
    for parameter, grad in zip(block.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_a_deep_net_of_the_catalog():
    model = create_model("nopre164", activation="relu").eval()
    x = normal(2, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        before, count = model(x), called(model, x)["relu"]
        conversion = convert(model, nn.ReLU, example=x)
        assert torch.equal(model(x), before)
    assert len(conversion.rows) == count > 100
    assert conversion.largest_difference == 0


def test_nothing_converted_says_what_there_is():
    model = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), nn.Softmax(dim=1))
    with pytest.raises(UsageError) as error:
        convert(model, [nn.GELU, nn.ELU], example=torch.zeros(2, 4))
    for part in ("nothing was converted", "1 (GELU(approximate='none'))", "f(1) = 0.8413", "3 (Tanh()): not asked for"):
        assert part in str(error.value)
    assert [type(module) for module in model] == [nn.Linear, nn.GELU, nn.Linear, nn.Tanh, nn.Linear, nn.Softmax]


class Obstacles(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.spare = nn.ReLU()
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        x, _ = self.rnn(F.relu(self.layer(x)))
        x = self.layer(x)
        x = self.layer(F.rrelu(x, training=self.training))
        return x * torch.sigmoid(x)


def test_what_cannot_be_converted_is_named_with_its_reason():
    conversion = convert(Obstacles(), everything, example=tokens())
    reasons = {row.name: row.reason for row in conversion.left}
    assert "gates" in reasons["rnn"]
    assert "no pass on this example reaches it" in reasons["spare"]
    assert "written out in 2 steps (sigmoid, mul)" in reasons["sigmoid"]
    assert "at random" in reasons["rrelu"]
    assert [row.old for row in conversion.rows] == ["relu()"]


def test_a_forward_that_was_replaced_on_the_object_is_named():
    model = nn.Sequential(BY_NAME["control flow"].build())  # it holds weights, and so is not replaced as a whole
    model[0].forward = F.relu
    with pytest.raises(UsageError, match="replaced on the object"):
        convert(model, "relu", example=tokens()[:, 0])


def test_a_part_of_the_uses_is_refused():
    with pytest.raises(UsageError, match=r"not all of them were asked for: relu, relu#2, relu#4"):
        convert(Bottleneck(), "relu#3", example=image())


class Hidden(nn.Module):
    """Calls a module through a list beside its registration."""

    def __init__(self):
        super().__init__()
        self.layer, self.relu = nn.Linear(8, 8), nn.ReLU()
        self.calls = [self.relu]

    def forward(self, x):
        return self.calls[0](self.layer(x))


def test_a_module_that_is_held_elsewhere_is_an_error_that_leaves_the_model():
    model = Hidden()
    before = structure(model)
    with pytest.raises(UsageError, match="holds it outside of its modules"):
        convert(model, nn.ReLU, example=tokens()[:, 0])
    assert structure(model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": 3}, "a source is a module type"),
        ({"source": []}, "a source is a module type"),
        ({"source": nn.ReLU()}, "a source is a module type"),
        ({"source": Tensor}, "a source is a module type"),
        ({"start": (0.0, 0.0)}, "beta > 0"),
        ({"channels": 4}, "channels is 1"),
        ({"smallest_beta": 0.0}, "smallest_beta must be > 0"),
        ({"to": 3}, "to is MPELU"),
        ({"to": lambda channels: F.relu}, "is to return a module"),
        ({"channel_dim": 2}, "channel_dim=2, but 1 has the shape"),
        ({"example": "x"}, "an example is a tensor"),
    ],
    ids=lambda item: "-".join(item) if isinstance(item, dict) else "",
)
def test_arguments(arguments, message):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(UsageError, match=message):
        convert(model, **{"source": "relu", "example": torch.zeros(2, 4), **arguments})
    assert type(model[1]) is nn.ReLU


def test_the_example_is_not_written_to():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)), tokens()[:, 0]
    before = x.clone()
    convert(model, nn.ReLU, example=x)
    assert torch.equal(x, before)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("transform", ["functional_call", "vmap", "trace", "export", "fx"])
def test_transforms_of_torch(transform):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), Layers(), nn.Linear(8, 2)).eval(), tokens()[:, 0]
    convert(model, F.relu, example=x, start=(0.25, 1.0))
    found = {
        "functional_call": lambda: torch.func.functional_call(model, dict(model.named_parameters()), (x,)),
        "vmap": lambda: torch.func.vmap(model)(x[:, None])[:, 0],
        "trace": lambda: torch.jit.trace(model, x)(x),
        "export": lambda: torch.export.export(model, (x,)).module()(x),
        "fx": lambda: torch.fx.symbolic_trace(model)(x),
    }[transform]()
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own
def test_a_compiled_part():
    model, x = nn.Sequential(nn.Linear(8, 8), torch.compile(Layers(), backend="eager"), nn.Linear(8, 2)), tokens()[:, 0]
    before = model(x)
    conversion = convert(model, F.relu, example=x)
    assert len(conversion.rows) == 3
    after = model(x)
    assert torch.equal(after, before)
    after.sum().backward()
    assert all(unit.alpha.grad is not None for unit in model.modules() if isinstance(unit, MPELU))


def test_a_part_that_cannot_be_seen_into_is_named():
    class Opaque(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.detach().numpy() * 2)

    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), Opaque())
    conversion = convert(model, nn.ReLU, example=normal(3, 8, dtype=torch.float32))
    assert [(row.name, "outside of torch's functions" in row.reason) for row in conversion.left] == [("2", True)]


def test_under_inference_mode():
    with torch.inference_mode():
        conversion = convert(BY_NAME["functional"].build(), "relu", example=normal(2, 8, dtype=torch.float32))
    assert conversion.largest_difference == 0
    assert all(parameter.requires_grad for parameter in conversion.model.parameters())
