from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.errors import MpeluError, UsageError
from mpelu.graph import UnknownNodeError, read
from mpelu.models import PyramidPool, create_model
from mpelu.nn import MPELU
from tests.cases import over_activations

ROW = torch.zeros(2, 8)
IMAGE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Two linear layers and a ReLU; the subclasses say how they are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.act = nn.ReLU()
        self.second = nn.Linear(8, 8)


def net(forward) -> Net:
    """Return a Net whose forward is the given function of itself and x."""
    return type("Joined", (Net,), {"forward": forward})()


def sources(model: nn.Module, example: Tensor = ROW) -> dict[str, tuple[str, str]]:
    return {reader.name: (reader.source.kind, reader.source.name) for reader in read(model, example)}


def conv_net(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ELU(), *between, nn.Conv2d(4, 4, 1))


@over_activations
def test_an_activation_is_found_with_its_module(case):
    model = nn.Sequential(nn.Linear(8, 8), case.build(8), nn.Linear(8, 8))
    first, second = read(model, ROW)
    assert (first.source.kind, first.source.name, first.source.module) == ("input", "input", None)
    assert (second.source.kind, second.source.name) == ("activation", "1")
    assert second.source.module is model[1]
    assert second.module is model[2]


TRANSPARENT = {
    "max pooling": nn.MaxPool2d(2),
    "average pooling": nn.AvgPool2d(2),
    "adaptive pooling": nn.AdaptiveAvgPool2d(2),
    "adaptive max pooling": nn.AdaptiveMaxPool2d(2),
    "dropout": nn.Dropout(0.5),
    "channel dropout": nn.Dropout2d(0.5),
    "identity": nn.Identity(),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_modules_that_are_looked_through(name):
    model = conv_net(TRANSPARENT[name], TRANSPARENT[name])
    assert sources(model, IMAGE)["4"] == ("activation", "1")


CALLS = {
    "flatten": lambda x: torch.flatten(x, 1),
    "x.flatten": lambda x: x.flatten(1),
    "x.view": lambda x: x.view(x.size(0), -1),
    "x.reshape": lambda x: x.reshape(x.shape[0], -1),
    "max_pool2d": lambda x: F.max_pool2d(x, 1).flatten(1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 1).flatten(1),
    "dropout": lambda x: F.dropout(x, 0.5).flatten(1),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_looked_through(name):
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.fc = nn.Conv2d(3, 2, 1), MPELU(2), nn.Linear(128, 5)

        def forward(self, x):
            return self.fc(CALLS[name](self.act(self.conv(x))))

    assert sources(Called(), IMAGE)["fc"] == ("activation", "act")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)], ids=lambda norm: type(norm).__name__)
def test_a_norm_hides_what_is_before_it(norm):
    assert sources(conv_net(norm), IMAGE)["3"] == ("norm", "2")
    assert sources(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 8)))["3"] == ("norm", "2")


def test_a_weight_behind_a_weight():
    assert sources(nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8)))["2"] == ("weight", "0")


SUMS = {
    "+": lambda self, x: self.second(self.act(self.first(x)) + x),
    "torch.add": lambda self, x: self.second(torch.add(self.act(self.first(x)), x)),
    "x.add": lambda self, x: self.second(self.act(self.first(x)).add(x)),
    "+=": lambda self, x: self.second(in_place_sum(self.act(self.first(x)), x)),
}


def in_place_sum(a, b):
    a += b
    return a


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_a_source_of_its_own(name):
    assert sources(net(SUMS[name]))["second"][0] == "sum"


def test_execution_order_and_not_registration_order():
    class Reverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 4)
            self.second_act = nn.ELU()
            self.middle = nn.Linear(8, 8)
            self.first_act = nn.ReLU()
            self.first = nn.Linear(8, 8)

        def forward(self, x):
            return self.last(self.second_act(self.middle(self.first_act(self.first(x)))))

    assert list(sources(Reverse()).items()) == [
        ("first", ("input", "input")),
        ("middle", ("activation", "first_act")),
        ("last", ("activation", "second_act")),
    ]


def test_a_module_under_two_names_and_nested_modules():
    act = MPELU(8)
    inner = nn.Sequential(nn.Linear(8, 8), act)
    model = nn.Sequential(OrderedDict(left=inner, right=nn.Sequential(nn.Linear(8, 8), act), end=nn.Linear(8, 8)))
    assert sources(model) == {
        "left.0": ("input", "input"),
        "right.0": ("activation", "left.1"),
        "end": ("activation", "left.1"),
    }


def test_a_weight_used_twice_behind_the_same_source_is_one_reader():
    model = net(lambda self, x: self.second(self.act(x)) + self.second(self.act(x)))
    assert sources(model) == {"second": ("activation", "act")}


def test_a_weight_used_twice_behind_different_sources_is_refused():
    model = net(lambda self, x: self.first(self.act(self.first(x))))
    with pytest.raises(UnknownNodeError, match=r"'first' is read twice, after 'input' and after 'act'"):
        read(model, ROW)


def test_concatenation_of_one_source_is_that_source():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), MPELU(4), PyramidPool(), nn.Linear(84, 3))
    assert sources(model, IMAGE)["3"] == ("activation", "1")


def test_concatenation_of_different_sources_is_refused():
    class Joined(Net):
        def forward(self, x):
            return nn.functional.relu(self.first(torch.cat([self.act(self.second(x)), x], 1)[:, :8]))

    class Plain(Net):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(16, 8)

        def forward(self, x):
            return self.second(torch.cat([self.act(self.first(x)), x], 1))

    with pytest.raises(UnknownNodeError, match=r"node 'cat' .*different sources \(act, input\)"):
        read(Plain(), ROW)
    with pytest.raises(UnknownNodeError, match="node 'getitem'"):
        read(Joined(), ROW)


UNKNOWN = {
    "mul": lambda self, x: self.second(self.first(x) * torch.sigmoid(self.first(x))),
    "relu": lambda self, x: self.second(torch.relu(self.first(x))),
    "tanh": lambda self, x: self.second(self.first(x).tanh()),
    "softmax": lambda self, x: self.second(F.softmax(self.first(x), 1)),
    "getitem": lambda self, x: self.second(self.act(self.first(x))[:1]),
}


@pytest.mark.parametrize("node", UNKNOWN)
def test_an_unknown_node_before_a_weight_is_named(node):
    with pytest.raises(UnknownNodeError, match=rf"node '{node}' \({node}\) feeds a weight.*known activations: MPELU"):
        read(net(UNKNOWN[node]), ROW)


@pytest.mark.parametrize("module", [nn.GELU(), nn.Sigmoid(), nn.Softmax(1)], ids=lambda module: type(module).__name__)
def test_an_unknown_module_before_a_weight_is_named(module):
    model = nn.Sequential(OrderedDict(first=nn.Linear(8, 8), gate=module, second=nn.Linear(8, 8)))
    with pytest.raises(UnknownNodeError, match=rf"node 'gate' \(module {type(module).__name__}\)"):
        read(model, ROW)
    assert issubclass(UnknownNodeError, MpeluError)


def test_an_unknown_node_that_feeds_no_weight_is_no_matter():
    assert sources(nn.Sequential(nn.Linear(8, 8), nn.GELU())) == {"0": ("input", "input")}


CONTROL_FLOW = {
    "if": lambda self, x: self.second(x) if x.sum() > 0 else self.first(x),
    "range": lambda self, x: next(self.first(x) for _ in range(x.shape[0])),
    "len": lambda self, x: self.first(x[: len(x)]),
}


@pytest.mark.parametrize("kind", CONTROL_FLOW)
def test_control_flow_that_depends_on_data_is_refused(kind):
    with pytest.raises(UnknownNodeError, match=r"Joined cannot be read by torch.fx .*control flow"):
        read(net(CONTROL_FLOW[kind]), ROW)


@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 3, 2, 2), torch.zeros(2, 4, 8, 8), torch.zeros(2, 3), torch.zeros(2, 3, 8, 8, dtype=torch.int64)],
    ids=["too small", "channels", "dimensions", "dtype"],
)
def test_an_example_that_the_model_does_not_accept(example):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(UsageError) as caught:
        read(model, example)
    message = str(caught.value)
    assert f"Sequential does not accept an example of shape {tuple(example.shape)}" in message
    assert str(example.dtype) in message


def test_one_example_is_enough_for_batch_normalization():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    assert sources(model, ROW[:1])["2"] == ("norm", "1")


def test_shapes_are_those_behind_one_example():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    assert [reader.output_shape for reader in read(model, IMAGE)] == [(4, 6, 6), (5,)]


def test_the_head_is_what_only_the_output_reads():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [reader.last for reader in read(model, IMAGE)] == [False, True]

    class TwoHeads(Net):
        def forward(self, x):
            hidden = self.act(x)
            return self.first(hidden), self.second(hidden)

    assert [reader.last for reader in read(TwoHeads(), ROW)] == [True, True]
    used_and_put_out = net(lambda self, x: (hidden := self.first(x), self.second(hidden)))
    assert [reader.last for reader in read(used_and_put_out, ROW)] == [False, True]


def test_the_name_of_a_module_does_not_make_it_transparent():
    model = nn.Sequential(OrderedDict(fc=nn.Linear(8, 8), view=nn.Linear(8, 8)))
    assert [reader.last for reader in read(model, ROW)] == [False, True]


@pytest.mark.parametrize("after", [nn.LogSoftmax(1), nn.Sigmoid()], ids=lambda module: type(module).__name__)
def test_the_head_may_be_followed_by_probabilities(after):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), after)
    assert [reader.last for reader in read(model, ROW)] == [False, True]


BY_KEYWORD = {
    "weight": lambda self, x: self.second(input=self.act(self.first(x))),
    "act": lambda self, x: self.second(self.act(input=self.first(x))),
    "flatten": lambda self, x: self.second(torch.flatten(input=self.act(self.first(x)), start_dim=1)),
    "cat": lambda self, x: self.second(torch.cat(tensors=[self.act(self.first(x))], dim=1)),
}


@pytest.mark.parametrize("name", BY_KEYWORD)
def test_arguments_by_keyword(name):
    assert sources(net(BY_KEYWORD[name]))["second"] == ("activation", "act")


def test_one_weight_in_two_modules_behind_different_sources_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    with pytest.raises(UnknownNodeError):
        read(model, ROW)


class RawWeight(Net):
    def forward(self, x):
        return F.linear(self.act(self.first(x)), self.second.weight)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Linear(8, 8), ROW),
        (RawWeight(), ROW),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2)), IMAGE),
        (nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 8)), torch.zeros(2, 5, 8)),
    ],
    ids=["root", "raw weight", "transposed", "attention"],
)
def test_a_weight_that_is_not_understood_is_refused_or_listed(model, example):
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    try:
        readers = read(model, example)
    except UnknownNodeError:
        return
    assert len(readers) == len(matrices)


def test_reading_changes_nothing():
    model = create_model("plain9", width=2, batch_norm=True, dropout=0.5).train()
    example = torch.ones(2, 1, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    read(model, example)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert (example == 1).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_residual_net():
    found = sources(create_model("nopre29"), torch.zeros(1, 3, 32, 32))
    assert len(found) == 1 + 3 * 3 * 3 + 3 + 1  # stem, three convolutions in each block, shortcuts, fc
    assert found["stem"] == ("input", "input")
    assert found["stage1_block1.branch.conv1"] == found["stage1_block1.shortcut"] == ("activation", "act_first")
    assert found["stage1_block1.branch.conv2"] == ("activation", "stage1_block1.branch.act1")
    assert found["stage1_block1.branch.conv3"] == ("activation", "stage1_block1.branch.act2")
    assert found["stage1_block2.branch.conv1"] == ("sum", "sum of stage1_block1")
    assert found["stage2_block1.branch.conv1"] == found["stage2_block1.shortcut"] == ("sum", "sum of stage1_block3")
    assert found["fc"] == ("activation", "act_end")
    assert "stage1_block2.shortcut" not in found


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_plain_net(batch_norm):
    model = create_model("plain15", batch_norm=batch_norm, dropout=0.5)
    found = sources(model, torch.zeros(2, 1, 16, 16))
    weights = [*(f"conv{index}" for index in range(1, 13)), "fc1", "fc2", "fc3"]
    feeds = ["input", *(f"act{index}" for index in range(1, 13)), "fc_act1", "fc_act2"]
    assert [(name, source) for name, (_, source) in found.items()] == list(zip(weights, feeds, strict=True))
