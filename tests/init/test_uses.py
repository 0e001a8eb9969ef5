import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.graph import read
from mpelu.init import Fans
from mpelu.init.uses import branches, next_kinds, read_uses, sums, trunk_length
from tests.architectures import ARCHITECTURES, BY_NAME, over_architectures


def uses_of(model: nn.Module, example) -> dict:
    return {use.weight: use for use in read_uses(read(model, example), model)}


class Calls(nn.Module):
    """Every operation that a rule fills the weight of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(2, 6, 3), nn.Conv2d(2, 6, 3, groups=2), nn.Conv3d(1, 2, 3)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.linear, self.bilinear = nn.Linear(5, 7), nn.Bilinear(3, 4, 5)
        self.right, self.left = nn.Parameter(torch.zeros(5, 7)), nn.Parameter(torch.zeros(7, 5))
        self.turned, self.stack = nn.Parameter(torch.zeros(5, 7)), nn.Parameter(torch.zeros(3, 5, 7))
        self.heads = nn.Parameter(torch.zeros(5, 2, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        flat = x.flatten()
        return (
            self.conv1(flat[:20].view(1, 2, 10)), self.conv2(flat[:50].view(1, 2, 5, 5)),
            self.conv3(flat[:64].view(1, 1, 4, 4, 4)), self.up(flat[:16].view(1, 4, 2, 2)), self.linear(flat[:5]),
            self.bilinear(flat[:3], flat[:4]), flat[:5] @ self.right, self.left @ flat[:5].view(5, 1),
            F.linear(flat[:5], self.turned.t()), flat[:15].view(3, 1, 5) @ self.stack,
            torch.einsum("nc,chd->nhd", flat[:10].view(2, 5), self.heads),
        )  # fmt: skip


def test_nominal_fans_and_layers():
    wanted = {
        "conv1.weight": ("Conv 3(2 -> 6)", 6, 18),
        "conv2.weight": ("Conv 3x3(2 -> 6)", 9, 27),
        "conv3.weight": ("Conv 3x3x3(1 -> 2)", 27, 54),
        "up.weight": ("ConvT 2x2(4 -> 6)", 8, 12),
        "linear.weight": ("Linear(5 -> 7)", 5, 7),
        "bilinear.weight": ("Bilinear(3 x 4 -> 5)", 12, 5),
        "right": ("Matmul(5 -> 7)", 5, 7),
        "left": ("Matmul(5 -> 7)", 5, 7),
        "turned": ("Linear(5 -> 7)", 5, 7),
        "stack": ("Matmul(5 -> 7)", 5, 7),
        "heads": ("Einsum(5 -> 8)", 5, 8),
    }
    uses = uses_of(Calls(), torch.zeros(200))
    assert {name: (use.layer, use.fans.fan_in, use.fans.fan_out) for name, use in uses.items()} == wanted
    assert isinstance(uses["heads"].fans, Fans)
    plain = {name for name, use in uses.items() if use.plain}
    assert plain == {"conv1.weight", "conv2.weight", "conv3.weight", "linear.weight"}


class Equations(nn.Module):
    def __init__(self, equation: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.equation, self.weight = equation, nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.weight)


@pytest.mark.parametrize(
    ("equation", "shape", "fans"),
    [
        ("nlc,cd->nld", (4, 6), (4, 6)),
        ("...c,cd->...d", (4, 6), (4, 6)),
        ("nlc,ld->ndc", (3, 6), (3, 6)),
        ("nlc,lcd->nd", (3, 4, 6), (12, 6)),
        ("nlc,ldc->nld", (3, 6, 4), (4, 6)),  # a matrix for each position
        ("nlc,cd->nd", (4, 6), None),  # a sum over positions as well
        ("nlc,cc->nlc", (4, 4), None),
    ],
)
def test_fans_of_an_einsum(equation, shape, fans):
    uses = uses_of(Equations(equation, shape), torch.zeros(2, 3, 4))
    assert [(use.fans.fan_in, use.fans.fan_out) for use in uses.values()] == ([fans] if fans else [])


def test_who_feeds_a_weight_and_what_reads_it():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 4, 4), nn.Softmax(1),
    )  # fmt: skip
    uses = uses_of(model, torch.zeros(2, 3, 8, 8))
    sources = {name: use.source.name for name, use in uses.items()}
    assert sources == {"0.weight": "input", "3.weight": "1", "7.weight": "5", "10.weight": "8"}
    assert [use.head for use in uses.values()] == [False, False, False, True]
    # a norm behind 3, pooling in front of 7; 10 is the head
    assert [use.chained for use in uses.values()] == [False, False, False, False]
    assert [use.previous >= 0 for use in uses.values()] == [False, True, False, True]


def test_chains():
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())]
    uses = list(uses_of(nn.Sequential(*layers, nn.Linear(8, 2)), torch.zeros(2, 8)).values())
    assert [use.chained for use in uses] == [False, True, True, True, False]
    assert [use.previous for use in uses] == [-1, *(use.node.index for use in uses[:-1])]


def test_shared_weights_are_one_use_at_the_first_call():
    uses = uses_of(BY_NAME["shared cell"].build(), torch.zeros(2, 3, 8))
    assert {name: use.shared for name, use in uses.items()} == {"read.weight": 3, "cell.weight": 2, "head.weight": 1}
    assert uses["read.weight"].node.name == "read"
    assert all(use.branch is None for use in uses.values())  # steps in time are no residual branches


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.shortcut = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(torch.relu(self.a(x)))  # two weights
        x = self.shortcut(x) + 0.5 * self.norm(self.d(torch.relu(self.c(x))))  # the trunk has a weight, too
        return self.head(x + 1.0)


def test_residual_branches():
    model = Residual()
    graph = read(model, torch.zeros(2, 8))
    found = sums(graph)
    assert len(found) == 2
    assert graph.nodes[next(iter(found.values()))].name == "b"
    assert max(trunk_length(graph, found)) == 2
    places = {graph.nodes[index].name: place for index, place in branches(graph).items()}
    assert places.keys() == {"a", "b", "c", "d", "norm"}
    assert [(places[name].place, places[name].size, places[name].last) for name in "abcd"] == [
        (1, 2, False),
        (2, 2, True),
        (1, 2, False),
        (2, 2, False),
    ]
    assert places["norm"].last
    assert {place.length for place in places.values()} == {2}
    assert [graph.nodes[places[name].start].name for name in ("a", "c")] == ["stem", "shortcut"]


def test_what_else_reads_the_end_of_a_branch():
    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out = self.b(torch.relu(self.a(x)))
            return x + out, out

    places = branches(read(Tapped(), torch.zeros(2, 8)))
    assert not any(place.last for place in places.values())


SUMS = {
    "vgg": 0,
    "resnet": 3,
    "pre-activation": 2,
    "densenet": 0,
    "mobilenet": 1,
    "unet": 0,
    "mixer": 2,
    "vit": 2,
    "fused attention": 2,
    "shared cell": 0,
    "siamese": 0,
    "layer scale": 2,
    "normalizer-free": 1,
}


@pytest.mark.parametrize(("name", "count"), SUMS.items())
def test_residual_sums_of_networks(name, count):
    with torch.no_grad():
        model = BY_NAME[name].build().train()
    assert len(sums(read(model, BY_NAME[name].example()))) == count


@over_architectures
def test_kinds_behind_a_node_are_those_of_its_readers(architecture):
    graph = read(architecture.build().train(), architecture.example())
    for node in graph.nodes:
        kinds = next_kinds(graph, node.index)
        assert bool(kinds) == (node.kind != "output")
        assert not kinds & {"shape", "dropout", "pool", "pad", "resize", "scale"}
    assert len(ARCHITECTURES) >= 18
