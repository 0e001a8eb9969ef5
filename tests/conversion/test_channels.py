import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpelu.conversion import convert
from mpelu.conversion.channels import channel_dim
from mpelu.graph import read
from mpelu.nn import MPELU
from tests.cases import normal, plain_formula


class Net(nn.Module):
    """One layer, something in between, and a ReLU."""

    def __init__(self, layer, between=lambda x: x):
        super().__init__()
        self.layer, self.between = layer, between

    def forward(self, x):
        return F.relu(self.between(self.layer(x)))


class MatmulLeft(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(normal(6, 4, dtype=torch.float32))

    def forward(self, x):
        return self.weight @ x


class First(nn.Module):
    """A recurrent or attention layer that returns its first output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return (self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x))[0]


CASES = {
    "conv1d": (nn.Conv1d(4, 6, 1), lambda x: x, (2, 4, 5), 1),
    "conv2d": (nn.Conv2d(4, 6, 1), lambda x: x, (2, 4, 5, 3), 1),
    "conv2d without a batch": (nn.Conv2d(4, 6, 1), lambda x: x, (4, 5, 3), 0),
    "conv3d": (nn.Conv3d(4, 6, 1), lambda x: x, (2, 4, 2, 5, 3), 1),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 2), lambda x: x, (2, 4, 5, 3), 1),
    "linear": (nn.Linear(4, 6), lambda x: x, (3, 4), 1),
    "linear on sequences": (nn.Linear(4, 6), lambda x: x, (2, 5, 4), 2),
    "linear on maps": (nn.Linear(4, 6), lambda x: x, (2, 5, 3, 4), 3),
    "matmul from the left": (MatmulLeft(), lambda x: x, (2, 4, 5), 1),
    "batch norm behind linear": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(6)), lambda x: x, (2, 6, 4), 1),
    "group norm": (nn.GroupNorm(2, 6), lambda x: x, (2, 6, 5, 3), 1),
    "layer norm": (nn.LayerNorm(6), lambda x: x, (2, 5, 6), 2),
    "layer norm over maps": (nn.LayerNorm((6, 5, 3)), lambda x: x, (2, 6, 5, 3), 1),
    "gru": (First(nn.GRU(4, 6, batch_first=True)), lambda x: x, (2, 5, 4), 2),
    "attention": (First(nn.MultiheadAttention(6, 2, batch_first=True)), lambda x: x, (2, 5, 6), 2),
    "pooling": (nn.Conv2d(4, 6, 1), lambda x: F.max_pool2d(x, 2), (2, 4, 4, 4), 1),
    "transposed": (nn.Conv1d(4, 6, 1), lambda x: x.transpose(1, 2), (2, 4, 5), 2),
    "permuted": (nn.Conv2d(4, 6, 1), lambda x: x.permute(0, 2, 3, 1), (2, 4, 5, 3), 3),
    "patches": (nn.Conv2d(4, 6, 1), lambda x: x.flatten(2).transpose(1, 2), (2, 4, 5, 3), 2),
    "there and back": (nn.Linear(4, 6), lambda x: x.transpose(1, 2).transpose(1, 2), (2, 5, 4), 2),
    "to a map": (nn.Linear(4, 6), lambda x: x.transpose(1, 2).reshape(2, 6, 3, 2), (2, 6, 4), 1),
    "sum": (nn.Conv1d(4, 6, 1), lambda x: x + x.flip(2), (2, 4, 5), 1),
    "concatenated": (nn.Conv1d(4, 3, 1), lambda x: torch.cat([x, x * x], 1), (2, 4, 5), 1),
    "chunk": (nn.Linear(4, 12), lambda x: x.chunk(2, -1)[1], (2, 5, 4), 2),
    "averaged": (nn.Conv2d(4, 6, 1), lambda x: x.mean((2, 3)), (2, 4, 5, 3), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_channel_dim(name):
    layer, between, shape, dim = CASES[name]
    model = Net(layer, between).eval()
    x = normal(*shape, dtype=torch.float32)
    graph = read(model, x)
    node = next(node for node in graph.nodes if node.op == "relu")
    assert channel_dim(graph, node)[0] == dim
    assert node.shape[dim] == 6


@pytest.mark.parametrize("name", CASES)
def test_each_channel_has_its_own_parameters(name):
    layer, between, shape, dim = CASES[name]
    model = Net(layer, between).eval()
    x = normal(*shape, dtype=torch.float32)
    before = model.between(model.layer(x))
    row = convert(model, F.relu, example=x).rows[0]
    assert (row.channels, row.channel_dim) == (6, dim)
    unit = next(module for module in model.modules() if isinstance(module, MPELU))
    with torch.no_grad():
        unit.alpha.copy_(torch.linspace(0.5, 3.0, 6))
    along = [1] * before.dim()
    along[dim] = 6
    expected = plain_formula(before, unit.alpha.view(along), 1.0)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_the_dim_can_be_given():
    model = Net(nn.Linear(4, 6))
    row = convert(model, F.relu, example=torch.zeros(2, 5, 4), channel_dim=1).rows[0]
    assert (row.channels, row.channel_dim, row.channel_rule) == (5, 1, "channel_dim")
    model = Net(nn.Linear(4, 6))
    row = convert(model, F.relu, example=torch.zeros(2, 5, 4), channel_dim=-1).rows[0]
    assert (row.channels, row.channel_dim) == (6, 2)


def test_where_nothing_says_it_images_and_sequences_are_told_apart():
    found = {}
    for shape in ((3, 4), (2, 4, 5), (2, 4, 5, 6)):
        row = convert(nn.Sequential(nn.ReLU()), nn.ReLU, example=torch.zeros(shape)).rows[0]
        found[len(shape)] = row.channel_dim
        assert row.channel_rule == ("two dims" if len(shape) == 2 else "no layer says it")
    assert found == {2: 1, 3: 2, 4: 1}


def test_a_value_without_channels_has_one_parameter():
    row = convert(Net(nn.Linear(4, 6), lambda x: x.sum((0, 1))), F.relu, example=torch.zeros(3, 4)).rows[0]
    assert (row.channels, row.channel_dim) == (1, None)


def test_one_module_on_both_sides_of_a_transposition_is_refused():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear, self.act = nn.Conv1d(4, 6, 1), nn.Linear(5, 6), nn.ReLU()

        def forward(self, x):
            return self.act(self.linear(self.act(self.conv(x))))

    with pytest.raises(Exception, match=r"channels in dims 1 and 2; say which with channel_dim="):
        convert(Both(), nn.ReLU, example=torch.zeros(2, 4, 5))
