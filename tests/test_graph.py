import random
import threading
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrizations

from mpelu.errors import MpeluError, UsageError
from mpelu.graph import KINDS, Graph, Node, UnknownNodeError, read, run
from mpelu.models import create_model
from mpelu.nn import MPELU
from tests.architectures import ARCHITECTURES, BY_NAME, ControlFlow, image, over_architectures, tokens
from tests.cases import normal, over_activations

ROW = normal(3, 8, dtype=torch.float32)
TOKENS = tokens()
IMAGE = normal(2, 4, 6, 6, dtype=torch.float32)


class Net(nn.Module):
    """Two linear layers of 8, two vectors and a matrix; ``net`` says how they are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.scalar = nn.Parameter(torch.tensor(0.3))
        self.matrix = nn.Parameter(normal(8, 5, dtype=torch.float32))
        self.register_buffer("fixed", torch.linspace(-1, 1, 8))


def net(forward, **members: nn.Module) -> Net:
    """Return a Net, with more modules in it, whose forward is the given function of itself and its inputs."""
    model = type("Joined", (Net,), {"forward": forward})()
    for name, member in members.items():
        setattr(model, name, member)
    return model


class Wrapped(nn.Module):
    """A module whose forward is a function of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def steps(graph: Graph) -> list[str]:
    """Return a line for each node behind the inputs: ``name = kind(what it reads)``."""
    return [
        f"{node.name} = {node.kind}({', '.join(graph.nodes[index].name for index in node.inputs)})"
        for node in graph.nodes
        if node.kind != "input"
    ]


def call(model: nn.Module, example):
    if isinstance(example, Tensor):
        return model(example)
    return model(**example) if isinstance(example, dict) else model(*example)


def tensors(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for item in (result.values() if isinstance(result, dict) else result) for tensor in tensors(item)]


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


STEPS = {
    "vgg": """
        0 = weight(input)
        1 = norm(0)
        2 = activation(1)
        3 = pool(2)
        4 = weight(3)
        5 = norm(4)
        6 = activation(5)
        7 = pool(6)
        8 = shape(7)
        9 = weight(8)
        10 = activation(9)
        11 = dropout(10)
        12 = weight(11)
        output = output(12)
    """,
    "resnet": """
        stem = weight(input)
        norm = norm(stem)
        relu = activation(norm)
        layer1.0.conv1 = weight(relu)
        layer1.0.norm1 = norm(layer1.0.conv1)
        layer1.0.relu = activation(layer1.0.norm1)
        layer1.0.conv2 = weight(layer1.0.relu)
        layer1.0.norm2 = norm(layer1.0.conv2)
        layer1.0.add = sum(layer1.0.norm2, relu)
        layer1.0.relu#2 = activation(layer1.0.add)
        layer1.1.conv1 = weight(layer1.0.relu#2)
        layer1.1.norm1 = norm(layer1.1.conv1)
        layer1.1.relu = activation(layer1.1.norm1)
        layer1.1.conv2 = weight(layer1.1.relu)
        layer1.1.norm2 = norm(layer1.1.conv2)
        layer1.1.add = sum(layer1.1.norm2, layer1.0.relu#2)
        layer1.1.relu#2 = activation(layer1.1.add)
        layer2.0.downsample.0 = weight(layer1.1.relu#2)
        layer2.0.downsample.1 = norm(layer2.0.downsample.0)
        layer2.0.conv1 = weight(layer1.1.relu#2)
        layer2.0.norm1 = norm(layer2.0.conv1)
        layer2.0.relu = activation(layer2.0.norm1)
        layer2.0.conv2 = weight(layer2.0.relu)
        layer2.0.norm2 = norm(layer2.0.conv2)
        layer2.0.add = sum(layer2.0.norm2, layer2.0.downsample.1)
        layer2.0.relu#2 = activation(layer2.0.add)
        pool = pool(layer2.0.relu#2)
        flatten = shape(pool)
        fc = weight(flatten)
        output = output(fc)
    """,
    "pre-activation": """
        0 = weight(input)
        1.norm1 = norm(0)
        1.relu = activation(1.norm1)
        1.conv1 = weight(1.relu)
        1.norm2 = norm(1.conv1)
        1.relu_2 = activation(1.norm2)
        1.conv2 = weight(1.relu_2)
        1.add = sum(0, 1.conv2)
        2.norm1 = norm(1.add)
        2.relu = activation(2.norm1)
        2.conv1 = weight(2.relu)
        2.norm2 = norm(2.conv1)
        2.relu_2 = activation(2.norm2)
        2.conv2 = weight(2.relu_2)
        2.add = sum(1.add, 2.conv2)
        3.0 = norm(2.add)
        3.1 = activation(3.0)
        3.2 = pool(3.1)
        3.3 = shape(3.2)
        3.4 = weight(3.3)
        output = output(3.4)
    """,
    "densenet": """
        0 = weight(input)
        1.norm = norm(0)
        1.relu = activation(1.norm)
        1.conv = weight(1.relu)
        1.cat = concat(0, 1.conv)
        2.norm = norm(1.cat)
        2.relu = activation(2.norm)
        2.conv = weight(2.relu)
        2.cat = concat(1.cat, 2.conv)
        3 = norm(2.cat)
        4 = activation(3)
        5 = weight(4)
        6 = pool(5)
        output = output(6)
    """,
    "mobilenet": """
        branch.0 = weight(input)
        branch.1 = activation(branch.0)
        branch.2 = weight(branch.1)
        branch.3 = activation(branch.2)
        branch.4.mean = pool(branch.3)
        branch.4.reduce = weight(branch.4.mean)
        branch.4.relu = activation(branch.4.reduce)
        branch.4.expand = weight(branch.4.relu)
        branch.4.hardsigmoid = activation(branch.4.expand)
        branch.4.mul = product(branch.3, branch.4.hardsigmoid)
        branch.5 = weight(branch.4.mul)
        add = sum(input, branch.5)
        output = output(add)
    """,
    "unet": """
        down1 = weight(input)
        leaky_relu = activation(down1)
        max_pool2d = pool(leaky_relu)
        down2 = weight(max_pool2d)
        leaky_relu_2 = activation(down2)
        up = weight(leaky_relu_2)
        cat = concat(up, leaky_relu)
        merge.pad = pad(cat)
        merge = weight(merge.pad)
        leaky_relu_3 = activation(merge)
        head = weight(leaky_relu_3)
        interpolate = resize(head)
        output = output(interpolate)
    """,
    "inception": """
        branch1.0 = weight(input)
        branch1.1 = activation(branch1.0)
        branch2.0 = weight(input)
        branch2.1 = activation(branch2.0)
        branch2.2 = weight(branch2.1)
        branch2.3 = activation(branch2.2)
        branch3.0 = pool(input)
        branch3.1 = weight(branch3.0)
        branch3.2 = activation(branch3.1)
        cat = concat(branch1.1, branch2.3, branch3.2)
        head = weight(cat)
        mean = pool(head)
        output = output(mean)
    """,
    "mixer": """
        norm1 = norm(input)
        transpose = shape(norm1)
        tokens.0 = weight(transpose)
        tokens.1 = activation(tokens.0)
        tokens.2 = weight(tokens.1)
        transpose_2 = shape(tokens.2)
        add = sum(input, transpose_2)
        norm2 = norm(add)
        channels.0 = weight(norm2)
        channels.1 = activation(channels.0)
        channels.2 = weight(channels.1)
        add_2 = sum(add, channels.2)
        mean = pool(add_2)
        head = weight(mean)
        output = output(head)
    """,
    "vit": """
        patches = weight(input)
        flatten = shape(patches)
        transpose = shape(flatten)
        cls_token = constant()
        cat = concat(cls_token, transpose)
        positions = constant()
        add = sum(cat, positions)
        norm1 = norm(add)
        attention.transpose = shape(norm1)
        attention = attention(attention.transpose, attention.transpose, attention.transpose)
        attention.transpose_2 = shape(attention)
        add_2 = sum(add, attention.transpose_2)
        norm2 = norm(add_2)
        mlp.0 = weight(norm2)
        mlp.1 = activation(mlp.0)
        mlp.2 = weight(mlp.1)
        add_3 = sum(add_2, mlp.2)
        norm = norm(add_3)
        getitem = shape(norm)
        head = weight(getitem)
        output = output(head)
    """,
    "fused attention": """
        norm1 = norm(input)
        qkv = weight(norm1)
        reshape = shape(qkv)
        permute = shape(reshape)
        unbind = shape(permute)
        unbind[1] = shape(permute)
        unbind[2] = shape(permute)
        scaled_dot_product_attention = attention(unbind, unbind[1], unbind[2])
        transpose = shape(scaled_dot_product_attention)
        reshape_2 = shape(transpose)
        proj = weight(reshape_2)
        add = sum(input, proj)
        norm2 = norm(add)
        mlp.0 = weight(norm2)
        mlp.1 = activation(mlp.0)
        mlp.2 = weight(mlp.1)
        add_2 = sum(add, mlp.2)
        output = output(add_2)
    """,
    "shared cell": """
        getitem = shape(input)
        read = weight(getitem)
        tanh = activation(read)
        getitem_2 = shape(input)
        read#2 = weight(getitem_2)
        cell = weight(tanh)
        add = sum(read#2, cell)
        tanh_2 = activation(add)
        getitem_3 = shape(input)
        read#3 = weight(getitem_3)
        cell#2 = weight(tanh_2)
        add_2 = sum(read#3, cell#2)
        tanh_3 = activation(add_2)
        head = weight(tanh_3)
        output = output(head)
    """,
    "lstm": """
        embedding = embedding(input)
        lstm = recurrent(embedding)
        lstm[1] = recurrent(lstm)
        getitem = shape(lstm[1])
        getitem_2 = shape(lstm[1])
        cat = concat(getitem, getitem_2)
        head = weight(cat)
        output = output(head)
    """,
    "autoencoder": """
        encoder.0 = weight(input)
        encoder.1 = activation(encoder.0)
        encoder.2 = weight(encoder.1)
        decoder.0 = weight(encoder.2)
        decoder.1 = activation(decoder.0)
        decoder.2 = weight(decoder.1)
        decoder.3 = activation(decoder.2)
        output = output(encoder.2)
        output_2 = output(decoder.3)
    """,
    "siamese": """
        trunk.0 = weight(left)
        trunk.1 = activation(trunk.0)
        trunk.2 = weight(trunk.1)
        trunk.0#2 = weight(right)
        trunk.1#2 = activation(trunk.0#2)
        trunk.2#2 = weight(trunk.1#2)
        sub = sum(trunk.2, trunk.2#2)
        abs = activation(sub)
        head = weight(abs)
        output = output(head)
    """,
    "functional": """
        layers.0 = weight(input)
        relu = activation(layers.0)
        layers.1 = weight(relu)
        relu_2 = activation(layers.1)
        layers.2 = weight(relu_2)
        relu_3 = activation(layers.2)
        layers.3 = weight(relu_3)
        relu_4 = activation(layers.3)
        layers.4 = weight(relu_4)
        sigmoid = activation(layers.4)
        layers.5 = weight(sigmoid)
        where = activation(layers.5)
        layers.6 = weight(where)
        output = output(layers.6)
    """,
    "control flow": """
        first = weight(input)
        tanh = activation(first)
        positive = weight(tanh)
        output = output(positive)
    """,
    "weight norm": """
        0 = weight(input)
        1 = activation(0)
        2 = pool(1)
        3 = shape(2)
        4 = weight(3)
        output = output(4)
    """,
    "normalizer-free": """
        stem = weight(input)
        gelu = activation(stem)
        conv = weight(gelu)
        mul = scale(conv)
        add = sum(stem, mul)
        output = output(add)
    """,
    "layer scale": """
        silu = activation(input)
        conv1 = weight(silu)
        mul = scale(conv1)
        add = sum(input, mul)
        silu_2 = activation(add)
        conv2 = weight(silu_2)
        mul_2 = scale(conv2)
        mul_3 = dropout(mul_2)
        add_2 = sum(add, mul_3)
        output = output(add_2)
    """,
    "text": """
        words = embedding(input)
        positions = embedding()
        add = sum(words, positions)
        mean = pool(add)
        hidden = weight(mean)
        tanh = activation(hidden)
        head = weight(tanh)
        output = output(head)
    """,
}


# --- laws for every architecture


@over_architectures
def test_the_steps_in_order(architecture):
    graph = read(architecture.build(), architecture.example())
    assert steps(graph) == [line.strip() for line in STEPS[architecture.name].strip().splitlines()]


@over_architectures
def test_nodes_are_consistent(architecture):
    model = architecture.build()
    graph = read(model, architecture.example())
    members = dict([*model.named_parameters(), *model.named_buffers()])
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    for index, node in enumerate(graph.nodes):
        assert node.index == index
        assert node.kind in KINDS
        assert all(before < index for before in node.inputs)
        assert {name for names in node.parameters.values() for name in names} <= members.keys()
        assert (node.function is not None) == (node.kind in ("activation", "scale"))
        assert graph[node.name] is node
        assert all(node in graph.readers(before) for before in node.inputs)
        if node.source is not None:
            assert node.source is model.get_submodule(node.module)


@over_architectures
def test_every_parameter_is_accounted_for(architecture):
    model = architecture.build()
    graph = read(model, architecture.example())
    assert list(graph.parameters) == [name for name, _ in model.named_parameters()]
    not_taken = ("negative.weight", "negative.bias") if architecture.name == "control flow" else ()
    assert graph.unused == not_taken
    for name, users in graph.parameters.items():
        assert all(name in {n for names in graph.nodes[user].parameters.values() for n in names} for user in users)


@over_architectures
def test_the_same_in_both_ways_to_run(architecture):
    model = architecture.build()
    assert read(model, architecture.example(), on_meta=False) == read(model, architecture.example())


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.name != "control flow"], ids=repr)
def test_the_same_for_a_model_on_the_meta_device(architecture):
    model = architecture.build()
    on_meta = deepcopy(model).to("meta")
    if architecture.name == "text":
        on_meta.head.weight = on_meta.words.weight  # to("meta") unties them
    assert read(on_meta, architecture.example()) == read(model, architecture.example())


def attributes(model: nn.Module) -> dict[str, dict]:
    """Return copies of the attributes of all modules, with the version counters and values of the tensors."""
    return {
        f"{path}.{name}": deepcopy(value) if isinstance(value, bool | int | list) else repr(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not isinstance(value, Tensor) and not name.startswith("_")
    }


def global_hooks() -> dict[str, list[int]]:
    """Return the ids of the hooks on all modules, and what torch notes beside them."""
    return {
        name: list(item) for name, item in vars(module_hooks).items() if "global" in name and type(item) is OrderedDict
    }


@pytest.mark.parametrize("on_meta", [True, False])
@over_architectures
def test_reading_changes_nothing(architecture, on_meta):
    model, example = architecture.build().train(), architecture.example()
    next(model.children()).eval()  # modes may be mixed
    frozen = next(model.parameters()).requires_grad_(False)
    held = [*model.parameters(), *model.buffers(), *tensors(example)]
    versions = [tensor._version for tensor in held]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = attributes(model)
    modes = [module.training for module in model.modules()]
    hooks = global_hooks()
    generators = torch.random.get_rng_state(), random.getstate()
    read(model, example, on_meta=on_meta)
    assert torch.equal(torch.random.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert [module.training for module in model.modules()] == modes
    assert global_hooks() == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [tensor._version for tensor in held] == versions
    assert attributes(model) == before
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter is not frozen)


@pytest.mark.parametrize("training", [True, False])
@over_architectures
def test_a_run_gives_what_the_model_gives_and_visits_each_node(architecture, training):
    model, example = architecture.build().train(training), architecture.example()
    plain, graph = deepcopy(model), read(model, example)
    visited = []

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        visited.append(node)
        assert tuple(output.shape) == node.shape
        assert [tuple(tensor.shape) for tensor in inputs] == [graph.nodes[index].shape for index in node.inputs]
        if node.function is not None:  # another memory layout may round in another way: some epsilons
            torch.testing.assert_close(node.function(inputs[0]), output, rtol=1e-6, atol=1e-6)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = run(model, example, graph, visit)
        torch.manual_seed(0)
        expected = call(plain, example)
    assert equal(result, expected)
    assert tuple(visited) == graph.nodes
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


@over_architectures
def test_functions_take_rows_of_channels_in_float64(architecture):
    graph = read(architecture.build(), architecture.example())
    for node in (node for node in graph.nodes if node.function is not None):
        shape = graph.nodes[node.inputs[0]].shape
        channel = node.options.get("channel_dim")
        rows = normal(7, 1 if channel is None else shape[channel])
        result = node.function(rows)
        assert result.dtype == torch.float64
        assert result.shape == rows.shape
        layout = [7, *([1] * (len(shape) - 1))]
        if channel is not None:
            layout[channel] = shape[channel]
        assert torch.equal(node.function(rows.reshape(layout)).reshape(rows.shape), result)


# --- functions of one value

GAMMA = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)

MATRIX = normal(8, 5, dtype=torch.float32).double()

AFFINE = {
    "x * 0.5": (lambda self, x: x * 0.5, lambda x: 0.5 * x),
    "2 * x + 1": (lambda self, x: 2 * x + 1, lambda x: 2 * x + 1),
    "1 - x": (lambda self, x: 1 - x, lambda x: 1 - x),
    "x / 2": (lambda self, x: x / 2, lambda x: x / 2),
    "-x": (lambda self, x: -x, lambda x: -x),
    "x + x": (lambda self, x: x + 0.5 * x, lambda x: 1.5 * x),
    "in place": (lambda self, x: x.clone().mul_(3).add_(1), lambda x: 3 * x + 1),
    "+=": (lambda self, x: in_place(x.clone()), lambda x: 2 * x + 1),
    "scalar parameter": (lambda self, x: self.scalar * x, lambda x: 0.3 * x),
    "computed from a parameter": (lambda self, x: x * self.scalar.square().add(1), lambda x: 1.09 * x),
    "vector": (lambda self, x: x * self.gamma, lambda x: GAMMA * x),
    "vector, buffer": (
        lambda self, x: (x - self.fixed) / self.gamma,
        lambda x: (x - torch.linspace(-1, 1, 8, dtype=torch.float64)) / GAMMA,
    ),
    "second of two": (lambda self, x: x * self.matrix.unbind(1)[1], lambda x: x * MATRIX[:, 1]),
    "zeros_like": (lambda self, x: torch.ones_like(x) - x, lambda x: 1 - x),
    "new_full": (lambda self, x: x * x.new_full((1,), 4.0), lambda x: 4 * x),
    "tensor": (lambda self, x: x * torch.full((8,), 2.0), lambda x: 2 * x),
    "torch.add": (lambda self, x: torch.add(x, 1, alpha=3), lambda x: x + 3),
    "out": (lambda self, x: torch.mul(x, 2, out=torch.empty_like(x)), lambda x: 2 * x),
}


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def in_place(x: Tensor) -> Tensor:
    x *= 2
    x += 1
    return x


NONLINEAR = {
    "F.relu": (lambda self, x: F.relu(x), lambda x: x.clamp(min=0)),
    "relu_": (lambda self, x: torch.relu_(x.clone()), lambda x: x.clamp(min=0)),
    "F.relu in place": (lambda self, x: F.relu(x.clone(), inplace=True), lambda x: x.clamp(min=0)),
    "x.relu": (lambda self, x: x.relu(), lambda x: x.clamp(min=0)),
    "max(x, 0)": (lambda self, x: torch.max(x, torch.zeros_like(x)), lambda x: x.clamp(min=0)),
    "maximum": (lambda self, x: torch.maximum(x, torch.tensor(0.0)), lambda x: x.clamp(min=0)),
    "clamp": (lambda self, x: x.clamp(-1, 1), lambda x: x.clamp(-1, 1)),
    "mask": (lambda self, x: x * (x > 0).float(), lambda x: x.clamp(min=0)),
    "mask, to": (lambda self, x: x * (x > 0).to(x.dtype), lambda x: x.clamp(min=0)),
    "masked_fill": (lambda self, x: x.masked_fill(x < 0, 0.0), lambda x: x.clamp(min=0)),
    "where": (lambda self, x: torch.where(x > 0, x, 0.1 * x), lambda x: torch.where(x > 0, x, 0.1 * x)),
    "x.where": (lambda self, x: x.where(x > 0, x.new_zeros(())), lambda x: x.clamp(min=0)),
    "swish": (lambda self, x: x * torch.sigmoid(self.scalar * x), lambda x: x / (1 + (-0.3 * x).exp())),
    "swish of a layer": (lambda self, x: swish(2 * x), lambda x: 2 * x / (1 + (-2 * x).exp())),
    "gelu, tanh": (
        lambda self, x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    "mish": (lambda self, x: x * torch.tanh(F.softplus(x)), F.mish),
    "x**2": (lambda self, x: x**2, lambda x: x * x),
    "2**x": (lambda self, x: 2**x, torch.exp2),
    "1 / x": (lambda self, x: 1 / (x * x + 1), lambda x: 1 / (x * x + 1)),
    "exp2": (lambda self, x: torch.special.expit(x), torch.sigmoid),
    "scaled": (lambda self, x: F.relu(x) * 1.7, lambda x: 1.7 * x.clamp(min=0)),
    "residual of one value": (lambda self, x: x + F.relu(x), lambda x: x + x.clamp(min=0)),
    "float": (lambda self, x: torch.tanh(x.float()).to(x.dtype), torch.tanh),
    "aten": (lambda self, x: torch.ops.aten.relu(x), lambda x: x.clamp(min=0)),
    "threshold": (lambda self, x: F.threshold(x, 0.5, 0.1), lambda x: torch.where(x > 0.5, x, 0.1)),
    "vector inside": (lambda self, x: torch.tanh(self.gamma * x), lambda x: torch.tanh(GAMMA * x)),
    "snake": (lambda self, x: x + torch.sin(self.gamma * x) ** 2, lambda x: x + torch.sin(GAMMA * x) ** 2),
    "prelu": (lambda self, x: F.prelu(x, self.gamma), lambda x: torch.where(x > 0, x, GAMMA * x)),
    "step": (lambda self, x: torch.heaviside(x, x.new_zeros(1)), lambda x: (x > 0).double()),
}


@pytest.mark.parametrize("on_meta", [True, False])
@pytest.mark.parametrize("name", [*AFFINE, *NONLINEAR])
def test_a_function_of_one_value_is_one_node(name, on_meta):
    forward, formula = (AFFINE | NONLINEAR)[name]
    model = net(lambda self, x: self.second(forward(self, self.first(x))))
    graph = read(model, ROW, on_meta=on_meta)
    assert [node.kind for node in graph.nodes if node.kind != "constant"] == [
        "input", "weight", "scale" if name in AFFINE else "activation", "weight", "output",
    ]  # fmt: skip
    (node,) = (node for node in graph.nodes if node.function is not None)
    x = normal(50, 8, seed=4)
    # parameters are stored in float32, and their squares and so on are computed from that
    torch.testing.assert_close(node.function(x), formula(x), rtol=1e-6, atol=1e-7)
    assert node.function(x).dtype == torch.float64


@over_activations
def test_activation_modules(case):
    module = case.build(8)
    graph = read(nn.Sequential(nn.Conv2d(4, 8, 3), module, nn.Identity(), nn.Conv2d(8, 2, 1)), IMAGE)
    node = graph["1"]
    assert (node.kind, node.source) == ("activation", module)
    assert [graph.nodes[index].name for index in graph["3"].inputs] == ["1"]
    names = [name for name, _ in module.named_parameters()]
    assert dict(node.parameters) == {name: (f"1.{name}",) for name in names}
    x = normal(20, 8, 3)
    # alpha and beta are stored in float32: relative error 6e-8, times 98 * exp(..)
    torch.testing.assert_close(node.function(x), case.formula(x), rtol=1e-5, atol=1e-6)


def test_a_function_follows_the_parameters():
    model = nn.Sequential(nn.Linear(8, 8), MPELU(8), nn.Linear(8, 8))
    function = read(model, ROW)["1"].function
    x = normal(5, 8)
    with torch.no_grad():
        model[1].alpha.fill_(0.0)
    assert torch.equal(function(x), x.clamp(min=0))
    model[1].alpha = nn.Parameter(torch.ones(8))
    torch.testing.assert_close(function(x), F.elu(x))


def test_a_function_can_be_differentiated():
    function = read(nn.Sequential(nn.Linear(8, 8), nn.Softplus(2.0), nn.Linear(8, 8)), ROW)["1"].function
    assert torch.autograd.gradcheck(function, normal(3, 8).requires_grad_())


def test_a_random_activation_says_so():
    model = nn.Sequential(nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 8))
    assert read(model.train(), ROW)["1"].options == {"random": "rrelu"}
    node = read(model.eval(), ROW)["1"]
    assert node.options == {}
    x = normal(4, 8)
    torch.testing.assert_close(node.function(x), torch.where(x > 0, x, x * (1 / 8 + 1 / 3) / 2))


def test_masks_of_integers_are_nodes_where_they_are_read_as_numbers():
    def forward(self, ids):
        mask = ids.eq(0)
        hidden = self.words(ids)
        hidden = self.encoder(hidden, src_key_padding_mask=mask)
        keep = (~mask).unsqueeze(-1).float()
        return self.first((hidden * keep).sum(1) / keep.sum(1).clamp(min=1))

    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1, enable_nested_tensor=False
    )
    model = net(forward, words=nn.Embedding(10, 8), encoder=encoder).eval()
    ids = torch.tensor([[1, 2, 0], [3, 0, 0]])
    graph = read(model, ids)
    assert graph["eq"].inputs == (graph["input"].index,)
    assert [graph.nodes[index].name for index in graph["float"].inputs] == ["unsqueeze"]

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if node.function is not None:
            torch.testing.assert_close(node.function(inputs[0]), output)

    assert torch.equal(run(model, ids, graph, visit), model(ids))


def test_a_module_of_several_calls():
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.sigmoid = nn.Sigmoid()

        def forward(self, x):
            return x * self.sigmoid(x)

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Swish(), nn.Identity()), nn.Linear(8, 8))
    node = read(model, ROW)["1.0"]
    assert (node.kind, node.op, node.source) == ("activation", "swish", model[1][0])
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Hardtanh(), nn.Linear(8, 8))
    node = read(model, ROW).nodes[2]
    assert (node.kind, node.name, node.source) == ("activation", "relu", None)


def test_a_value_that_is_read_otherwise_ends_a_function():
    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.second(hidden) + self.first(2 * hidden + 1)

    graph = read(net(forward), ROW)
    assert steps(graph) == [
        "first = weight(input)",
        "relu = activation(first)",
        "second = weight(relu)",
        "mul = scale(relu)",
        "first#2 = weight(mul)",
        "add = sum(second, first#2)",
        "output = output(add)",
    ]


def test_a_function_goes_back_to_the_one_value_behind_its_parts():
    def forward(self, x):
        hidden = self.first(x)
        gate = torch.sigmoid(hidden)
        return hidden * gate, gate

    graph = read(net(forward), ROW)
    assert steps(graph)[1:3] == ["sigmoid = activation(first)", "sigmoid_2 = activation(first)"]
    x = normal(4, 8)
    torch.testing.assert_close(graph["sigmoid_2"].function(x), F.silu(x))


VANISHING = {
    "identity": nn.Identity(),
    "dropout, eval": nn.Dropout(0.5).eval(),
    "dropout, p = 0": nn.Dropout(0.0),
    "contiguous": Wrapped(lambda x: x.contiguous()),
    "clone": Wrapped(lambda x: x.clone()),
    "detach": Wrapped(lambda x: x.detach()),
    "to": Wrapped(lambda x: x.to(torch.float32)),
    "float": Wrapped(lambda x: x.float()),
    "double and back": Wrapped(lambda x: x.double().float()),
    "type_as": Wrapped(lambda x: x.type_as(x)),
    "cpu": Wrapped(lambda x: x.cpu()),
    "device": Wrapped(lambda x: x.to("cpu").to(torch.device("cpu"), torch.float32)),
    "+ 0": Wrapped(lambda x: 0 + x - 0),
    "* 1": Wrapped(lambda x: x * 1 / 1.0),
    "python sum": Wrapped(lambda x: sum([x])),
    "data": Wrapped(lambda x: x.data),
    "copy": Wrapped(lambda x: torch.empty_like(x).copy_(x)),
}


@pytest.mark.parametrize("on_meta", [True, False])
@pytest.mark.parametrize("name", VANISHING)
def test_what_changes_no_entry_is_no_node(name, on_meta):
    model = nn.Sequential(nn.Linear(8, 8), VANISHING[name], nn.Linear(8, 8))
    assert steps(read(model, ROW, on_meta=on_meta)) == ["0 = weight(input)", "2 = weight(0)", "output = output(2)"]


@dataclass(frozen=True)
class Along:
    """A parameter of a shape, beside a value of a shape, and the dim of the value that it belongs to."""

    parameter: tuple[int, ...]
    example: Tensor
    dim: int | None


ALONG = [
    Along((), IMAGE, None),
    Along((1,), IMAGE, None),
    Along((1, 1, 1), IMAGE, None),
    Along((4, 1, 1), IMAGE, 1),
    Along((1, 4, 1, 1), IMAGE, 1),
    Along((6,), IMAGE, 3),
    Along((8,), ROW, 1),
    Along((8,), TOKENS, 2),
    Along((1, 1, 8), TOKENS, 2),
    Along((5, 1), TOKENS, 1),
]


@pytest.mark.parametrize("case", ALONG, ids=lambda case: f"{case.parameter} on {tuple(case.example.shape)}")
def test_parameters_along_one_dim(case):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(normal(*case.parameter, seed=5, dtype=torch.float32))

        def forward(self, x):
            return torch.sin(x * self.gain)

    model = Scaled()
    graph = read(model, case.example)
    node = graph["sin"]
    assert node.options.get("channel_dim") == case.dim
    assert dict(node.parameters) == {"gain": ("gain",)}
    assert torch.equal(node.function(case.example), model(case.example))
    x = normal(3, 1 if case.dim is None else case.example.shape[case.dim])
    torch.testing.assert_close(node.function(x), torch.sin(x * model.gain.detach().double().reshape(-1)))
    if case.dim is not None:
        with pytest.raises(UsageError, match=r"must have shape \(K, C\).* got \(9,\)"):
            node.function(torch.zeros(9))


def test_parameters_along_two_dims_are_two_functions():
    model = net(lambda self, x: self.second(self.act(self.first(x)) * self.gamma), act=nn.PReLU(5))
    graph = read(model, TOKENS)
    assert steps(graph)[1:3] == ["act = activation(first)", "mul = scale(act)"]
    assert [graph[name].options["channel_dim"] for name in ("act", "mul")] == [1, 2]


POSITIONS = {
    "sum": (lambda self, x: self.second(x + self.table), ["table = constant()", "add = sum(input, table)"]),
    "product": (lambda self, x: self.second(x * self.table), ["table = constant()", "mul = product(input, table)"]),
    "mask": (
        lambda self, x: self.second(x.masked_fill(self.table > 0, 0.0)),
        ["masked_fill = opaque(input)"],
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_parameters_along_more_dims_are_no_function_of_one_value(name):
    forward, expected = POSITIONS[name]
    model = net(forward)
    model.table = nn.Parameter(normal(1, 5, 8, dtype=torch.float32))
    graph = read(model, TOKENS)
    assert steps(graph)[:-2] == expected
    assert graph.parameters["table"]


# --- weights


class Weights(nn.Module):
    """Holds weights of several shapes; ``weights`` says how one of them is used."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(normal(8, 8, dtype=torch.float32))
        self.wide = nn.Parameter(normal(5, 8, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(5))
        self.kernel = nn.Parameter(normal(6, 2, 3, 3, dtype=torch.float32))
        self.low, self.rank = nn.Parameter(torch.ones(8, 2)), nn.Parameter(torch.ones(2, 8))
        self.register_buffer("blur", torch.full((4, 1, 3, 3), 1 / 9))


@dataclass(frozen=True)
class Use:
    name: str
    forward: object
    example: Tensor
    op: str
    weight: tuple[str, ...]
    options: dict


USES = [
    Use("linear", lambda self, x: F.linear(x, self.wide, self.bias), ROW, "linear", ("wide",), {"computed": False}),
    Use("keywords", lambda self, x: F.linear(input=x, weight=self.wide, bias=self.bias), ROW, "linear", ("wide",), {}),
    Use("transposed", lambda self, x: F.linear(x, self.square.t()), ROW, "linear", ("square",), {"computed": False}),
    Use("x @ W", lambda self, x: x @ self.wide.T, ROW, "matmul", ("wide",), {"side": "right", "weight_shape": (8, 5)}),
    Use("W @ x", lambda self, x: self.wide @ x.T, ROW, "matmul", ("wide",), {"side": "left", "weight_shape": (5, 8)}),
    Use("mm", lambda self, x: torch.mm(x, self.square), ROW, "mm", ("square",), {"side": "right"}),
    Use("addmm", lambda self, x: torch.addmm(self.bias, x, self.wide.t()), ROW, "addmm", ("wide",), {"side": "right"}),
    Use(
        "einsum",
        lambda self, x: torch.einsum("ntc,oc->nto", x, self.wide),
        TOKENS,
        "einsum",
        ("wide",),
        {"equation": "ntc,oc->nto", "side": "right"},
    ),
    Use(
        "low rank",
        lambda self, x: F.linear(x, self.square + self.low @ self.rank),
        ROW,
        "linear",
        ("low", "rank", "square"),
        {"computed": True},
    ),
    Use(
        "grouped",
        lambda self, x: F.conv2d(x, self.kernel, None, 2, 1, groups=2),
        IMAGE,
        "conv2d",
        ("kernel",),
        {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 2, "weight_shape": (6, 2, 3, 3)},
    ),
    Use(
        "same",
        lambda self, x: F.conv2d(x[:, :2], self.kernel, padding="same", dilation=2),
        IMAGE,
        "conv2d",
        ("kernel",),
        {"padding": "same", "dilation": (2, 2)},
    ),
    Use(
        "transposed convolution",
        lambda self, x: F.conv_transpose2d(x, self.kernel[:4], stride=(2, 1), output_padding=(1, 0)),
        IMAGE,
        "conv_transpose2d",
        ("kernel",),
        {"stride": (2, 1), "output_padding": (1, 0), "padding": (0, 0), "groups": 1},
    ),
]


def weights(use: Use) -> nn.Module:
    return type("Used", (Weights,), {"forward": use.forward})()


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_weights_however_they_are_used(use):
    graph = read(weights(use), use.example)
    (node,) = graph.weights
    assert (node.kind, node.op, node.parameters["weight"]) == ("weight", use.op, use.weight)
    assert len(node.inputs) == 1
    assert {name: node.options[name] for name in use.options} == use.options
    assert node.options["computed"] == (use.name == "low rank")


MODULES = {
    "conv1d": (nn.Conv1d(5, 4, 3, stride=2), TOKENS, (2,)),
    "conv3d": (nn.Conv3d(2, 3, 2), normal(1, 2, 4, 4, 4, dtype=torch.float32), (1, 1, 1)),
    "conv_transpose1d": (nn.ConvTranspose1d(5, 4, 3), TOKENS, (1,)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2, 2), normal(1, 2, 4, 4, 4, dtype=torch.float32), (2, 2, 2)),
}


@pytest.mark.parametrize("op", MODULES)
def test_convolutions_of_other_dims(op):
    module, example, stride = MODULES[op]
    (node,) = read(nn.Sequential(module), example).weights
    assert (node.name, node.op, node.source, node.options["stride"]) == ("0", op, module, stride)


def test_bilinear_reads_two_values():
    model = net(lambda self, x: self.join(self.first(x), self.second(x)), join=nn.Bilinear(8, 8, 3))
    graph = read(model, ROW)
    assert [graph.nodes[index].name for index in graph["join"].inputs] == ["first", "second"]


def test_a_fixed_kernel_is_a_weight_that_is_not_learned():
    model = type("Blur", (Weights,), {"forward": lambda self, x: F.conv2d(x, self.blur, groups=4)})()
    graph = read(model, IMAGE)
    assert graph["conv2d"].kind == "weight"
    assert (graph["conv2d"].options["fixed"], graph["conv2d"].parameters) == (True, {"weight": ("blur",)})
    assert graph.weights == ()


def test_a_product_of_two_values_is_no_weight():
    model = net(lambda self, x: torch.softmax(self.first(x) @ self.second(x).transpose(1, 2), -1) @ x)
    kinds = [(node.kind, node.op) for node in read(model, TOKENS).nodes]
    assert kinds[4:8] == [("product", "matmul"), ("softmax", "softmax"), ("product", "matmul"), ("output", "output")]


COMPUTED = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(8, 8)),
    "spectral_norm, hook": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed(name):
    model = nn.Sequential(COMPUTED[name](), nn.ReLU(), nn.Linear(8, 2))
    before = {key: set(vars(module)) for key, module in model.named_modules()}
    graph = read(model, ROW)
    assert {key: set(vars(module)) for key, module in model.named_modules()} == before
    assert graph["0"].options["computed"]
    learned = {key for key, _ in model.named_parameters() if key.startswith("0.") and key != "0.bias"}
    assert learned <= set(graph["0"].parameters["weight"])
    assert graph.unused == ()


def test_carriers_are_all_nodes_with_a_learned_weight():
    for name, expected in {
        "lstm": ["embedding", "lstm", "head"],
        "vit": ["patches", "attention", "mlp.0", "mlp.2", "head"],
        "text": ["words", "positions", "hidden", "head"],
    }.items():
        graph = read(BY_NAME[name].build(), BY_NAME[name].example())
        assert [node.name for node in graph.carriers] == expected


def test_tied_weights_have_one_name_and_two_users():
    graph = read(BY_NAME["text"].build(), BY_NAME["text"].example())
    assert graph["head"].parameters["weight"] == graph["words"].parameters["weight"] == ("words.weight",)
    assert [graph.nodes[index].name for index in graph.parameters["words.weight"]] == ["words", "head"]


def test_heads():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [read(model, IMAGE).is_head(node.index) for node in read(model, IMAGE).weights] == [False, True]

    def heads(forward) -> list[str]:
        graph = read(net(forward), ROW)
        return [node.name for node in graph.weights if graph.is_head(node.index)]

    assert heads(lambda self, x: (self.first(x), self.second(x))) == ["first", "second"]
    assert heads(lambda self, x: (y := self.first(x), self.second(y))) == ["second"]
    assert heads(lambda self, x: torch.sigmoid(self.first(x))) == ["first"]
    assert heads(lambda self, x: F.log_softmax(self.first(x), 1)) == ["first"]
    assert heads(lambda self, x: 10 * self.first(x)) == ["first"]
    assert heads(lambda self, x: torch.relu(self.first(x))) == []
    assert heads(lambda self, x: x + self.first(x)) == []
    assert heads(lambda self, x: torch.cumsum(self.first(x), 1)) == []


# --- the other kinds

OTHERS = {
    "batch norm": (nn.BatchNorm2d(4), "norm", "batch_norm", {"affine": True, "training": True, "eps": 1e-5}),
    "batch norm, fixed": (nn.BatchNorm2d(4, affine=False).eval(), "norm", "batch_norm", {"affine": False}),
    "instance norm": (nn.InstanceNorm2d(4), "norm", "instance_norm", {"affine": False}),
    "group norm": (nn.GroupNorm(2, 4), "norm", "group_norm", {"num_groups": 2, "affine": True}),
    "layer norm": (nn.LayerNorm(6), "norm", "layer_norm", {"normalized_shape": (6,), "affine": True}),
    "RMS norm": (nn.RMSNorm(6), "norm", "rms_norm", {"affine": True}),
    "response norm": (nn.LocalResponseNorm(3), "norm", "local_response_norm", {"size": 3}),
    "normalize": (Wrapped(lambda x: F.normalize(x, dim=1)), "norm", "normalize", {"dim": 1}),
    "max pooling": (nn.MaxPool2d(2), "pool", "max_pool2d", {"mode": "max", "stride": (2, 2), "kernel_size": (2, 2)}),
    "max pooling, indices": (
        Wrapped(lambda x: F.max_pool2d(x, 3, 1, return_indices=True)[0]),
        "pool",
        "max_pool2d_with_indices",
        {"mode": "max", "stride": (1, 1)},
    ),
    "average pooling": (nn.AvgPool2d(2, 1, 1), "pool", "avg_pool2d", {"mode": "avg", "padding": (1, 1)}),
    "adaptive": (nn.AdaptiveAvgPool2d((1, 2)), "pool", "adaptive_avg_pool2d", {"output_size": (1, 2)}),
    "adaptive max": (nn.AdaptiveMaxPool2d(1), "pool", "adaptive_max_pool2d", {"mode": "max"}),
    "power pooling": (nn.LPPool2d(2, 2), "pool", "lp_pool2d", {"mode": "lp", "norm_type": 2.0}),
    "mean": (Wrapped(lambda x: x.mean(dim=(2, 3))), "pool", "mean", {"mode": "avg", "dim": (2, 3)}),
    "sum": (Wrapped(lambda x: torch.sum(x, 1)), "pool", "sum", {"mode": "sum", "dim": 1}),
    "amax": (Wrapped(lambda x: x.amax(1)), "pool", "amax", {"mode": "max"}),
    "max over a dim": (Wrapped(lambda x: x.max(1)[0]), "pool", "max", {"mode": "max", "dim": 1}),
    "zero padding": (nn.ZeroPad2d(1), "pad", "pad", {"mode": "constant", "pad": (1, 1, 1, 1)}),
    "reflection": (nn.ReflectionPad2d((1, 0, 0, 1)), "pad", "pad", {"mode": "reflect", "pad": (1, 0, 0, 1)}),
    "upsampling": (nn.Upsample(scale_factor=2), "resize", "interpolate", {"mode": "nearest", "scale_factor": 2.0}),
    "softmax": (nn.Softmax(1), "softmax", "softmax", {"dim": 1}),
    "dropout": (nn.Dropout(0.3), "dropout", "dropout", {"p": 0.3}),
    "channel dropout": (nn.Dropout2d(0.3), "dropout", "dropout2d", {"p": 0.3}),
    "alpha dropout": (nn.AlphaDropout(0.3), "dropout", "alpha_dropout", {"p": 0.3}),
    "glu": (nn.GLU(1), "product", "glu", {"dim": 1}),
    "flatten": (nn.Flatten(), "shape", "flatten", {}),
    "slice": (Wrapped(lambda x: x[:, ::2]), "shape", "getitem", {}),
    "index": (Wrapped(lambda x: x[:, torch.tensor([0, 2])]), "shape", "getitem", {}),
    "shuffle": (nn.PixelShuffle(2), "shape", "pixel_shuffle", {}),
    "repeat": (Wrapped(lambda x: x.repeat(1, 2, 1, 1)), "shape", "repeat", {}),
    "cumsum": (Wrapped(lambda x: x.cumsum(1)), "opaque", "cumsum", {}),
    "topk": (Wrapped(lambda x: x.topk(2, 1)[0]), "opaque", "topk", {}),
    "fft": (Wrapped(lambda x: torch.fft.rfft2(x).abs()), "opaque", "fft_rfft2", {}),
    "chosen by a value": (Wrapped(lambda x: x.gather(1, x.argmax(1, keepdim=True))), "opaque", "gather", {}),
}  # fmt: skip


@pytest.mark.parametrize("on_meta", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds(name, on_meta):
    module, kind, op, options = OTHERS[name]
    graph = read(nn.Sequential(nn.Conv2d(4, 4, 1), module), IMAGE, on_meta=on_meta)
    node = next(node for node in graph.nodes if node.op == op)
    assert node.kind == kind
    assert graph.nodes[node.inputs[0]].name == "0"
    assert {key: node.options[key] for key in options} == options
    assert graph.unused == ()


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad


@torch.library.custom_op("mpelu_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_custom_operators():
    model = net(lambda self, x: self.second(twice(Custom.apply(self.first(x)))))
    assert steps(read(model, ROW))[1:3] == ["clamp = activation(first)", "twice = opaque(clamp)"]


WRITTEN_OUT = {
    "rms": (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), "rms_norm", (2,), 1e-6),
    "rms, x * x": (lambda x: x / torch.sqrt((x * x).mean(-1, True) + 1e-6), "rms_norm", (2,), 1e-6),
    "layer": (
        lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5),
        "layer_norm",
        (2,),
        1e-5,
    ),
    "layer, twice": (
        lambda x: (x - x.mean(1, True)) * ((x - x.mean(1, True)) ** 2).mean(1, True).add(1e-6).pow(-0.5),
        "layer_norm",
        (1,),
        1e-6,
    ),
    "std": (lambda x: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-3), "layer_norm", (2,), 1e-3),
    "batch": (
        lambda x: (x - x.mean((0, 1), True)) / x.var((0, 1), keepdim=True).sqrt(),
        "batch_norm",
        (0, 1),
        0.0,
    ),
    "unit": (lambda x: x / x.norm(dim=-1, keepdim=True), "normalize", (2,), 0.0),
    "unit, eps": (lambda x: x / (torch.linalg.vector_norm(x, dim=2, keepdim=True) + 1e-6), "normalize", (2,), 1e-6),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_normalizations_that_are_written_out(name):
    formula, op, dims, eps = WRITTEN_OUT[name]
    graph = read(net(lambda self, x: self.second(formula(self.first(x)) * self.gamma)), TOKENS)
    assert [node.kind for node in graph.nodes] == ["input", "weight", "norm", "scale", "weight", "output"]
    node = graph.nodes[2]
    assert (node.op, node.options["dim"]) == (op, dims)
    assert node.options["eps"] == pytest.approx(eps)


NO_NORM = {
    "cube": lambda x: x / torch.sqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6),
    "no root": lambda x: x / (x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "wrong dims": lambda x: (x - x.mean(1, True)) / x.std(-1, keepdim=True),
    "another value": lambda x: torch.relu(x) / x.std(-1, keepdim=True),
    "product": lambda x: x * x.std(-1, keepdim=True),
}


@pytest.mark.parametrize("name", NO_NORM)
def test_quotients_that_are_no_normalization(name):
    graph = read(net(lambda self, x: self.second(NO_NORM[name](self.first(x)))), TOKENS)
    assert "norm" not in {node.kind for node in graph.nodes}
    assert "product" in {node.kind for node in graph.nodes}


MASKS = {
    "bernoulli": (lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.8), 0.2, False),
    "scaled": (lambda x: x * torch.empty(len(x), 1).bernoulli_(0.8).div_(0.8), 0.2, True),
    "floor": (lambda x: x * torch.floor(0.8 + torch.rand(len(x), 1)), 0.2, False),
    "less": (lambda x: (torch.rand_like(x) < 0.8) * x, 0.2, False),
    "greater": (lambda x: x * (torch.rand(x.shape) > 0.2).float(), 0.2, False),
}


@pytest.mark.parametrize("on_meta", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_random_masks_are_dropout(name, on_meta):
    formula, p, scaled = MASKS[name]
    node = read(net(lambda self, x: self.second(formula(self.first(x)))), ROW, on_meta=on_meta).nodes[2]
    assert node.kind == "dropout"
    assert node.options["p"] == pytest.approx(p)
    assert node.options["scaled"] == scaled


def test_noise_is_a_constant_that_is_drawn():
    graph = read(net(lambda self, x: self.first(x) + torch.randn_like(x) * torch.exp(self.second(x))), ROW)
    assert steps(graph) == [
        "first = weight(input)",
        "second = weight(input)",
        "exp = activation(second)",
        "randn_like = constant()",
        "mul = product(randn_like, exp)",
        "add = sum(first, mul)",
        "output = output(add)",
    ]
    assert graph["randn_like"].options == {"random": "randn_like"}


def test_sums_have_coefficients():
    def coefficients(forward) -> tuple[float, ...]:
        return read(net(forward), ROW)[forward.__name__].options["coefficients"]

    def add(self, x):
        return torch.add(self.first(x), x, alpha=0.2)

    def sub(self, x):
        return self.first(x) - x

    def rsub(self, x):
        return torch.rsub(self.first(x), x)

    assert [coefficients(forward) for forward in (add, sub, rsub)] == [(1, 0.2), (1, -1), (-1, 1)]


# --- attention, recurrence, embeddings, constants


def test_attention_has_the_names_of_the_module():
    graph = read(BY_NAME["vit"].build(), BY_NAME["vit"].example())
    assert dict(graph["attention"].parameters) == {
        role: (f"attention.{role}",) for role in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }
    assert graph["attention"].options["num_heads"] == 2
    module = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    graph = read(module, (TOKENS, TOKENS[:, :, :6], TOKENS[:, :, :4]))
    node, averages = (node for node in graph.nodes if node.kind == "attention")
    assert (averages.inputs, averages.parameters, averages.options["output"]) == ((node.index,), {}, 1)
    assert {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"} <= node.parameters.keys()
    assert graph.unused == ()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layers(training, norm_first):
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first).train(training).eval()
    graph = read(model, TOKENS)
    assert [node.name for node in graph.nodes if node.kind in ("attention", "weight", "norm", "activation")] == (
        ["norm1", "self_attn", "norm2", "linear1", "relu", "linear2"]
        if norm_first
        else ["self_attn", "norm1", "linear1", "relu", "linear2", "norm2"]
    )
    assert graph.unused == ()


def test_the_fused_functions_of_attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            a, one, two = layer.self_attn, layer.norm1, layer.norm2
            x, _ = torch._native_multi_head_attention(
                x, x, x, 8, 2, a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, a.out_proj.bias
            )  # fmt: skip
            return torch._transformer_encoder_layer_fwd(
                x, 8, 2, a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, a.out_proj.bias, False, False, 1e-5,
                one.weight, one.bias, two.weight, two.bias, layer.linear1.weight, layer.linear1.bias,
                layer.linear2.weight, layer.linear2.bias,
            )  # fmt: skip

    graph = read(Fused(), TOKENS)
    assert [node.kind for node in graph.nodes] == ["input", "attention", "attention", "output"]
    names = {name for names in graph.nodes[1].parameters.values() for name in names}
    assert names == {name for name, _ in Fused().named_parameters() if "self_attn" in name}
    assert graph.unused == ()


def test_a_transformer_with_cross_attention():
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    graph = read(model, (TOKENS, TOKENS))
    cross = graph["decoder.layers.0.multihead_attn"]
    sources = {graph.nodes[graph.nodes[index].inputs[0]].name for index in cross.inputs}
    assert sources == {"decoder.layers.0.norm1", "encoder.norm"}
    assert graph.unused == ()


def test_learned_queries_are_signals():
    def forward(self, x):
        queries = self.queries.weight[None].expand(len(x), -1, -1)
        queries = queries + self.own(queries, queries, queries)[0]
        return self.cross(queries, x, x)[0]

    attention = {name: nn.MultiheadAttention(8, 2, batch_first=True) for name in ("own", "cross")}
    graph = read(net(forward, queries=nn.Embedding(3, 8), **attention), TOKENS)
    assert [node.name for node in graph.nodes if node.kind == "attention"] == ["own", "cross"]
    assert {graph.nodes[index].name for index in graph["own"].inputs} == {"queries.weight"}


def test_layers_behind_a_learned_constant():
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.conv, self.style = (
                nn.Parameter(torch.ones(1, 4, 2, 2)),
                nn.Conv2d(4, 8, 1),
                nn.Linear(8, 8),
            )

        def forward(self, x):
            return torch.relu(self.conv(self.start)) * self.style(x)[:, :, None, None]

    assert steps(read(Generator(), ROW))[:3] == [
        "start = constant()",
        "conv = weight(start)",
        "relu = activation(conv)",
    ]


RECURRENT = {
    "lstm": nn.LSTM(8, 6, num_layers=2, bidirectional=True),
    "lstm with projection": nn.LSTM(8, 6, proj_size=3),
    "gru": nn.GRU(8, 6, batch_first=True),
    "rnn_tanh": nn.RNN(8, 6),
    "rnn_relu": nn.RNN(8, 6, nonlinearity="relu"),
    "lstm_cell": nn.LSTMCell(8, 6),
    "gru_cell": nn.GRUCell(8, 6),
    "rnn_tanh_cell": nn.RNNCell(8, 6),
    "rnn_relu_cell": nn.RNNCell(8, 6, nonlinearity="relu"),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_modules(name):
    module = RECURRENT[name]
    graph = read(nn.Sequential(module), ROW if "cell" in name else TOKENS)
    node = graph["0"]
    assert (node.kind, node.op, node.source) == ("recurrent", name.partition(" ")[0], module)
    assert dict(node.parameters) == {key: (f"0.{key}",) for key, _ in module.named_parameters()}
    assert "bidirectional" not in node.options or node.options["bidirectional"] == module.bidirectional


def test_packed_sequences():
    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]

    graph = read(net(forward, lstm=nn.LSTM(8, 6)), TOKENS)
    assert steps(graph)[1] == "lstm = recurrent(pack_padded_sequence)"
    assert graph["lstm"].options["num_layers"] == 1


def test_rows_chosen_by_index():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(10, 3))

        def forward(self, ids):
            return self.table[ids]

    graph = read(Table(), torch.tensor([[1, 2], [3, 4]]))
    assert steps(graph) == ["getitem = embedding(input)", "output = output(getitem)"]
    assert graph["getitem"].parameters == {"weight": ("table",)}


# --- writing in place


def test_writes_through_views():
    def forward(self, x):
        hidden = self.first(x)
        hidden.view(-1).relu_()  # changes hidden
        result = self.second(hidden)
        result[:, :4] = hidden[:, :4]
        return result

    graph = read(net(forward), ROW)
    assert steps(graph) == [
        "first = weight(input)",
        "view = shape(first)",
        "relu = activation(view)",
        "view_2 = shape(relu)",
        "second = weight(view_2)",
        "getitem = shape(view_2)",
        "setitem = concat(second, getitem)",
        "output = output(setitem)",
    ]
    visited = {}
    model = net(forward)
    result = run(model, ROW, read(model, ROW), lambda node, inputs, output: visited.update({node.name: output.clone()}))
    assert list(visited) == [node.name for node in graph.nodes]
    assert torch.equal(visited["view_2"], torch.relu(model.first(ROW)))
    assert torch.equal(result, model(ROW))


def test_a_part_that_is_written_to_changes_the_whole():
    def forward(self, x):
        hidden = self.first(x)
        hidden[:, :4].relu_()
        return self.second(hidden)

    model = net(forward)
    graph = read(model, ROW)
    assert graph.nodes[graph["second"].inputs[0]].kind == "concat"
    assert torch.equal(run(model, ROW, graph, lambda *_: None), model(ROW))


# --- what cannot be seen


class InNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy())) * self.gain


class NumpyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.tanh(x.detach().numpy()))


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))


HIDDEN = {
    "numpy": (InNumpy, {"gain"}),
    "function": (lambda: Wrapped(NumpyFunction.apply), set()),
    "nested": (lambda: nn.Sequential(nn.Sequential(InNumpy()), nn.ReLU()), {"gain"}),
    "script": (scripted, {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("name", HIDDEN)
def test_a_module_that_hides_what_it_does_is_one_node(name):
    build, members = HIDDEN[name]
    model = net(lambda self, x: self.second(self.inner(self.first(x))), inner=build())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    graph = read(model, ROW)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    (node,) = (node for node in graph.nodes if node.kind == "opaque")
    assert node.name.startswith("inner")
    assert graph.nodes[node.inputs[0]].name == "first"
    assert members <= node.parameters.keys()
    assert not set(graph.unused) & {key for key, _ in model.named_parameters() if key.startswith("inner")}
    model.eval()
    graph, seen = read(model, ROW), []

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        seen.append(node.name)
        return torch.zeros_like(output) if node.kind == "opaque" else None

    result = run(model, ROW, graph, visit)
    assert seen == [node.name for node in graph.nodes]
    inside = nn.Sequential(nn.ReLU() if name == "nested" else nn.Identity(), model.second)
    assert torch.equal(result, inside(torch.zeros(3, 8)))


UNKNOWN = {
    "numpy": lambda self, x: self.second(torch.from_numpy(np.tanh(self.first(x).detach().numpy()))),
    "keyword": lambda self, x: self.second(input=torch.from_numpy(np.tanh(self.first(x).detach().numpy()))),
    "output": lambda self, x: torch.from_numpy(np.tanh(self.first(x).detach().numpy())),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_model_that_hides_what_it_does_is_refused(name):
    reader = {"numpy": "module 'second'", "keyword": "linear in module 'second'", "output": "its caller"}[name]
    message = rf"forward of Joined makes a tensor of shape \(3, 8\), read by {reader}, by something that is no torch"
    with pytest.raises(UnknownNodeError, match=message) as caught:
        read(net(UNKNOWN[name]), ROW)
    assert "write it with torch functions, or put it into a module of its own" in str(caught.value)
    assert isinstance(caught.value, MpeluError)


# --- the forward of the user


class Stateful(nn.Module):
    """Counts, caches and writes to what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.cache, self.seen = 0, {}, [1]
        self.table = torch.ones(8)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.cache["x"] = x
        self.seen.append(2)
        self.last = x
        self.table.add_(1)
        return x * self.table


@pytest.mark.parametrize("on_meta", [True, False])
def test_what_a_module_keeps_is_put_back(on_meta):
    inner = Stateful()
    model = net(lambda self, x: self.second(self.inner(self.first(x))), inner=inner)
    graph = read(model, ROW, on_meta=on_meta)
    assert (inner.count, inner.cache, inner.seen, hasattr(inner, "last")) == (0, {}, [1], False)
    assert torch.equal(graph["inner"].function(ROW), 2 * ROW)
    assert torch.equal(inner.table, torch.ones(8))


CONSTANTS = torch.linspace(0.5, 1.5, 8)

VALUES = {
    "branch": lambda self, x: self.first(x) if x.sum() > -100 else self.second(x),
    "item": lambda self, x: self.first(x) * x.mean().item(),
    "tolist": lambda self, x: self.first(x) * len(x.tolist()),
    "numpy": lambda self, x: self.first(x) * float(x.detach().numpy().max()),
    "number from a parameter": lambda self, x: self.first(x) * self.scalar.item(),
    "length": lambda self, x: self.first(x)[: int((x[:, 0] > -100).sum())],
    "constant from outside": lambda self, x: self.first(x) * CONSTANTS if bool((x < 100).all()) else x,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_forward_that_needs_values(name):
    model = net(VALUES[name])
    graph = read(model, ROW)
    assert [node.name for node in graph.weights] == ["first"]
    assert torch.equal(run(model, ROW, graph, lambda *_: None), model(ROW))
    with pytest.raises(UsageError, match=r"forward of Joined needs values.*meta device.*to_empty"):
        read(net(VALUES[name]).to("meta"), ROW)


def test_a_forward_that_differentiates():
    def forward(self, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(torch.tanh(self.first(x)).sum(), x, create_graph=True)[0]

    graph = read(net(forward), ROW, on_meta=False)
    assert [node.op for node in graph.nodes] == ["input", "linear", "tanh", "sum", "grad", "output"]


RANDOM = {
    "python": lambda self, x: self.first(x) if random.random() < 2 else x,
    "torch": lambda self, x: self.first(x) if torch.rand(()) < 2 else x,
    "generator": lambda self, x: self.first(x) * torch.rand((), generator=self.generator),
}


@pytest.mark.parametrize("on_meta", [True, False])
@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_in_the_forward(name, on_meta):
    model = net(RANDOM[name])
    model.generator = torch.Generator()
    states = model.generator.get_state(), torch.random.get_rng_state(), random.getstate()
    assert [node.name for node in read(model, ROW, on_meta=on_meta).weights] == ["first"]
    assert torch.equal(model.generator.get_state(), states[0])
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert random.getstate() == states[2]


def test_modules_that_other_threads_run_do_not_matter():
    other, results = nn.Linear(8, 8), []

    def forward(self, x):
        thread = threading.Thread(target=lambda: results.append(other(ROW)))
        thread.start()
        thread.join()
        return self.second(self.first(x))

    model = net(forward)
    graph = read(model, ROW)
    assert [node.name for node in graph.nodes] == ["input", "first", "second", "output"]
    assert torch.equal(run(model, ROW, graph, lambda *_: None), model(ROW))
    assert len(results) == 3


WRITES = {
    "clamp": lambda self, x: self.first(x) * self.gamma.data.clamp_(max=0.7),
    "fill": lambda self, x: self.first(x) * self.gamma.fill_(2.0),
    "setitem": lambda self, x: self.first(x) * written_at_0(self.gamma.detach()),
    "renorm": lambda self, x: self.first(F.embedding(x.long().abs(), self.matrix.T, max_norm=0.1).sum(1)),
}


def written_at_0(x: Tensor) -> Tensor:
    x[0] = 3.0
    return x


@pytest.mark.parametrize("on_meta", [True, False])
@pytest.mark.parametrize("name", WRITES)
def test_a_forward_that_writes_to_its_parameters(name, on_meta):
    model = net(WRITES[name]).requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model(ROW.clamp(-3, 3))
    assert any(not torch.equal(value, state[key]) for key, value in model.state_dict().items())
    state = {key: value.clone() + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    graph = read(model, ROW.clamp(-3, 3), on_meta=on_meta)
    for node in graph.nodes:
        if node.function is not None and "mul" in node.name:
            node.function(ROW)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_forward_that_trains():
    def forward(self, x):
        self.gamma.requires_grad_(False)
        result = self.second(self.first(x))
        result.sum().backward()
        return result

    model = net(forward)
    graph = read(model, ROW, on_meta=False)
    assert [node.name for node in graph.weights] == ["first", "second"]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_checkpoints_are_looked_through():
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(
            lambda y: self.second(torch.relu(self.first(y))), x, use_reentrant=False
        )

    assert [node.name for node in read(net(forward), ROW).nodes] == ["input", "first", "relu", "second", "output"]


def test_compiled_modules_run_uncompiled():
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = nn.Sequential(nn.Linear(8, 8), torch.compile(inner, backend="eager"))
    graph = read(model, ROW)
    assert [node.kind for node in graph.nodes] == ["input", "weight", "weight", "activation", "output"]
    result = run(model, ROW, graph, lambda *_: None)
    assert torch.equal(result, inner(model[0](ROW)))


def test_a_module_that_is_not_registered():
    loose = nn.Linear(8, 8)
    model = net(lambda self, x: self.second(loose(x)))
    graph = read(model, ROW)
    assert steps(graph)[0] == "Linear = weight(input)"
    assert graph["Linear"].options["fixed"]  # no parameter of the model


def test_an_error_that_the_model_catches():
    def forward(self, x):
        try:
            self.inner(x)
        except RuntimeError:
            return self.second(self.first(x))
        raise AssertionError

    model = net(forward, inner=nn.Sequential(nn.ReLU(), nn.Linear(5, 5)))
    assert [node.name for node in read(model, ROW).nodes] == ["input", "first", "second", "output"]


def test_one_example_is_enough_for_batch_normalization():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert read(model.train(), ROW[:1])["1"].shape == (2, 4)
    assert read(model.eval(), ROW[:1])["1"].shape == (1, 4)


def test_no_memory_is_needed():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**7, 10**7), nn.BatchNorm1d(10**7), nn.ReLU(), nn.Linear(10**7, 10**7))
    graph = read(model, torch.empty(64, 10**7, device="meta"))
    assert [node.name for node in graph.weights] == ["0", "3"]
    assert graph.nodes[-1].shape == (64, 10**7)


# --- errors


@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 3, 2, 2), torch.zeros(2, 4, 8, 8), torch.zeros(2, 3), torch.zeros(2, 3, 8, 8, dtype=torch.int64)],
    ids=["too small", "channels", "dimensions", "dtype"],
)
def test_an_example_that_the_model_does_not_accept(example):
    with pytest.raises(UsageError) as caught:
        read(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), example)
    message = str(caught.value)
    assert (
        f"Sequential does not accept an example of shape {tuple(example.shape)} and dtype {example.dtype}: " in message
    )
    assert "\n" not in message


def test_examples_of_the_wrong_kind():
    with pytest.raises(UsageError, match=r"tensor, a tuple .* or a dict .*, got list"):
        read(nn.ReLU(), [ROW])
    with pytest.raises(UsageError, match=r"Joined does not accept an example of .*wrong"):
        read(net(lambda self, x: x), {"wrong": ROW})
    with pytest.raises(UsageError, match=r"does not accept an example of shape \(3, 8\).*, shape \(2, 5, 8\)"):
        read(nn.Bilinear(8, 8, 2), (ROW, TOKENS))
    with pytest.raises(UsageError, match="does not accept an example of no tensors"):
        read(nn.ReLU(), ())


def test_parameters_without_a_shape():
    with pytest.raises(UsageError, match=r"1\.weight, 1\.bias have no shape yet; run the model once"):
        read(nn.Sequential(nn.ReLU(), nn.LazyLinear(4)), ROW)


def test_errors_of_the_graph():
    graph = read(nn.Sequential(nn.Linear(8, 8), MPELU(8)).to("meta"), ROW)
    with pytest.raises(UsageError, match="no node is called 'act'; there are input, 0, 1, output"):
        graph["act"]
    with pytest.raises(UsageError, match=r"1\.alpha is on the meta device and has no values"):
        graph["1"].function(torch.zeros(2, 8))


def test_an_error_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(8, 8), Stateful(), nn.Linear(5, 5))
    hooks = global_hooks()
    with pytest.raises(UsageError):
        read(model, ROW)
    assert model[1].count == 0
    assert global_hooks() == hooks
    assert torch.equal(torch.relu(torch.tensor(-1.0)), torch.tensor(0.0))


# --- run


def test_one_pass_can_set_the_weights_and_go_on_with_the_new_outputs():
    """Layer-sequential unit variance, as one pass."""
    model = create_model("plain15", width=4)
    x = normal(16, 1, 16, 16, dtype=torch.float32)
    graph = read(model, x)

    @torch.no_grad()
    def normalize(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if node.kind != "weight":
            return None
        factor = 1 / output.std()
        for name in (name for names in node.parameters.values() for name in names):
            model.get_parameter(name).mul_(factor)
        return output * factor

    stds = []
    run(model, x, graph, normalize)
    run(model, x, graph, lambda node, _, output: stds.append(output.std()) if node.kind == "weight" else None)
    torch.testing.assert_close(torch.stack(stds), torch.ones(15), rtol=1e-4, atol=0)  # float32, 15 layers


@pytest.mark.parametrize("forward", [
    lambda self, x: self.second(torch.relu(self.first(x))),
    lambda self, x: self.second(self.first(x).relu_()),
    lambda self, x: self.second(written(self.first(x))),
    lambda self, x: written(self.first(x)),
    lambda self, x: {"a": (written(self.first(x)),)},
    lambda self, x: self.second(torch.relu(self.first(x)).chunk(2, 1)[0].repeat(1, 2)),
])  # fmt: skip
def test_what_visit_returns_is_read_from_there_on(forward):
    model = net(forward)
    graph, before = read(model, ROW), []

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if node.kind == "activation":
            assert torch.equal(output, inputs[0].clamp(min=0))  # the input is not yet written over
            return output + 1
        before.append(output)
        return None

    result = run(model, ROW, graph, visit)
    model.first.register_forward_hook(lambda *_: None)
    hidden = torch.relu(model.first(ROW)) + 1
    if graph.nodes[-2].kind == "weight":
        hidden = model.second(hidden if "chunk" not in {n.op for n in graph.nodes} else hidden[:, :4].repeat(1, 2))
    assert equal(result, hidden)


def written(x: Tensor) -> Tensor:
    """Write over x, and go on with the tensor that the caller holds too."""
    x.relu_()
    return x


def test_inputs_constants_and_outputs_can_be_replaced():
    model, example = BY_NAME["vit"].build(), BY_NAME["vit"].example()
    graph = read(model, example)
    instead = {"input": torch.zeros_like(example), "positions": torch.zeros(1, 5, 8), "cls_token": torch.ones(2, 1, 8)}
    result = run(model, example, graph, lambda node, *_: instead.get(node.name))
    plain = deepcopy(model)
    with torch.no_grad():
        plain.positions.zero_()
        plain.cls_token.fill_(1.0)
    assert torch.equal(result, plain(torch.zeros_like(example)))
    model, example = BY_NAME["autoencoder"].build(), BY_NAME["autoencoder"].example()
    result = run(model, example, read(model, example), lambda node, _, y: y + 1 if node.kind == "output" else None)
    assert equal(result, {name: value + 1 for name, value in model(example).items()})


def test_gradients_flow_as_the_caller_has_it():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    graph, gradients = read(model, ROW), {}

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: gradients.update({node.name: grad}))

    run(model, ROW, graph, visit).sum().backward()
    assert list(gradients) == ["output", "2", "1", "0"] or list(gradients) == ["2", "output", "1", "0"]
    torch.testing.assert_close(gradients["1"], torch.ones(3, 2) @ model[2].weight)
    with torch.no_grad():
        assert not run(model, ROW, graph, lambda *_: None).requires_grad


def test_the_batch_may_have_another_size():
    model = BY_NAME["resnet"].build().eval()
    graph = read(model, image())
    x = normal(5, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(run(model, x, graph, lambda *_: None), model(x))


def test_visit_may_use_torch_and_modules_itself():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    graph = read(model, ROW)
    assert torch.equal(run(model, ROW, graph, lambda *_: print(model(ROW).relu().sum())), model(ROW))


def test_a_run_that_differs_from_the_graph_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    graph = read(model, ROW)
    model[1] = nn.Tanh()
    with pytest.raises(UsageError, match=r"at call 2: recorded was relu in module '1', now comes tanh"):
        run(model, ROW, graph, lambda *_: None)
    with pytest.raises(UsageError, match=r"at call 1: recorded was linear in module '0', now comes the end"):
        run(nn.Identity(), ROW, graph, lambda *_: None)
    longer = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2), nn.ReLU())
    with pytest.raises(UsageError, match=r"at call 5: recorded was the end, now comes relu"):
        run(longer, ROW, graph, lambda *_: None)


def test_a_run_on_values_that_take_another_path_is_refused():
    model = ControlFlow()
    graph = read(model, tokens()[:, 0])
    model.first.bias.data.fill_(-100.0)
    with pytest.raises(UsageError, match="where the path depends on the values, with this example"):
        run(net(lambda self, x: torch.tanh(self.first(x)) if x.sum() > 1e9 else x), ROW, graph, lambda *_: None)


# --- the models of the catalog


def test_the_plain_net():
    model = create_model("plain30", batch_norm=True, dropout=0.5)
    graph = read(model, torch.zeros(2, 1, 16, 16))
    layers = [*(f"conv{index}" for index in range(1, 28)), "fc1", "fc2", "fc3"]
    assert [node.name for node in graph.weights] == layers
    assert all(node.source is model.get_submodule(node.name) for node in graph.weights)
    activations = [node for node in graph.nodes if node.kind == "activation"]
    assert [graph.nodes[node.inputs[0]].name for node in activations] == [
        *(f"norm{index}" for index in range(1, 28)),
        "fc_norm1",
        "fc_norm2",
    ]
    assert [graph.is_head(node.index) for node in graph.weights] == [False] * 29 + [True]
    assert graph.unused == ()


def test_network_in_network():
    graph = read(create_model("nin"), torch.zeros(1, 3, 32, 32))
    kinds = [node.kind for node in graph.nodes]
    pair = ["weight", "activation"]
    stage = [*pair, *pair, *pair, "pool"]
    assert kinds == ["input", *stage, "dropout", *stage, "dropout", *stage, "shape", "output"]
    assert graph.unused == ()


def test_the_residual_net():
    model = create_model("nopre29")
    graph = read(model, torch.zeros(1, 3, 32, 32))
    feeds = {node.name: [graph.nodes[index].name for index in node.inputs] for node in graph.nodes}
    assert len(graph.weights) == 1 + 3 * 3 * 3 + 3 + 1  # stem, three convolutions in each block, shortcuts, fc
    assert feeds["stem"] == ["input"]
    assert feeds["stage1_block1.branch.conv1"] == feeds["stage1_block1.shortcut"] == ["act_first"]
    assert feeds["stage1_block1.branch.conv3"] == ["stage1_block1.branch.act2"]
    assert feeds["stage1_block1.add"] == ["stage1_block1.branch.conv3", "stage1_block1.shortcut"]
    assert feeds["stage1_block2.branch.conv1"] == ["stage1_block1.add"]
    assert feeds["stage1_block2.add"] == ["stage1_block2.branch.conv3", "stage1_block1.add"]
    assert feeds["norm_end"] == ["stage3_block3.add"]
    assert [node.name for node in graph.weights if graph.is_head(node.index)] == ["fc"]
    assert graph.unused == ()


@pytest.mark.parametrize("name", ["plain30", "nin", "nopre29"])
def test_the_models_of_the_catalog_run_as_they_are(name):
    model = create_model(name).eval()
    x = normal(1, 1 if name == "plain30" else 3, 16, 16, dtype=torch.float32)
    graph = read(model, x)

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if node.function is not None:
            torch.testing.assert_close(node.function(inputs[0]), output, rtol=1e-6, atol=1e-6)

    with torch.no_grad():
        assert torch.equal(run(model, x, graph, visit), model(x))


def test_a_module_under_two_names_has_the_first():
    act = MPELU(8)
    left = nn.Sequential(nn.Linear(8, 8), act)
    model = nn.Sequential(OrderedDict(left=left, middle=nn.Linear(8, 8), right=act, end=nn.Linear(8, 8)))
    names = ["input", "left.0", "left.1", "middle", "left.1#2", "end", "output"]
    assert [node.name for node in read(model, ROW).nodes] == names
