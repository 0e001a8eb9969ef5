import pytest
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.models import CaffeMaxPool, CaffePyramidPool, PyramidPool, create_model, plain
from mpelu.nn import MPELU
from tests.cases import normal

DEPTHS = [9, 15, 30, 52]


def layers(model: nn.Sequential, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_children() if isinstance(module, kinds)]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_weight_layers(depth, batch_norm):
    model = create_model(f"plain{depth}", batch_norm=batch_norm)
    weights = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(weights) == depth
    assert sum(isinstance(module, nn.Linear) for module in weights) == 3
    assert sum(isinstance(module, MPELU) for module in model.modules()) == depth - 1
    assert all(module.bias is not None for module in weights)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("input_size", [8, 16, 21])
def test_maps_alternate_and_do_not_shrink(depth, input_size):
    model = create_model(f"plain{depth}", width=2, input_size=input_size)
    graph = read(model, torch.zeros(1, 1, input_size, input_size))
    sides = [node.shape[-1] for node in graph.weights if node.op == "conv2d"]
    pooled = (input_size + 1) // 2  # rounded up, as Caffe does
    early = [input_size, *[input_size - 1, input_size] * 2]
    late = [pooled - 1, pooled] * depth
    assert sides == (early + late)[: depth - 3]


def test_kernels():
    model = create_model("plain15")
    kernels = [(module.kernel_size, module.padding) for module in model if isinstance(module, nn.Conv2d)]
    assert kernels == [((3, 3), (1, 1)), *[((2, 2), (0, 0)), ((2, 2), (1, 1))] * 5, ((2, 2), (0, 0))]
    assert all(module.stride == (1, 1) for module in model if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_activation_follows_every_layer_but_the_last(batch_norm):
    model = create_model("plain15", batch_norm=batch_norm)
    names = list(dict(model.named_children()))
    weights = layers(model, nn.Conv2d, nn.Linear)
    for name in weights[:-1]:
        following = names[names.index(name) + 1 :]
        if batch_norm:
            norm = model.get_submodule(following.pop(0))
            assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            assert not list(norm.parameters())  # the Caffe nets have no scale and shift
        assert isinstance(model.get_submodule(following[0]), MPELU)
    assert weights[-1] == names[-1]
    assert bool(layers(model, nn.BatchNorm1d, nn.BatchNorm2d)) == batch_norm


def test_one_pooling_after_the_fifth_convolution():
    names = list(dict(create_model("plain15").named_children()))
    assert names[names.index("pool1") - 1] == "act5"
    assert names[names.index("pool1") + 1] == "conv6"


def test_dropout_only_where_it_is_asked_for():
    assert not layers(create_model("plain15"), nn.Dropout)
    model = create_model("plain15", dropout=0.5)
    names = list(dict(model.named_children()))
    assert [names[names.index(name) - 1] for name in layers(model, nn.Dropout)] == ["fc_act1", "fc_act2"]
    assert [model.get_submodule(name).p for name in layers(model, nn.Dropout)] == [0.5, 0.5]


def test_options_reach_the_layers():
    model = create_model("plain9", 7, in_channels=3, input_size=8, width=5)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert model.get_submodule("conv1").in_channels == 3
    assert {module.out_channels for module in model if isinstance(module, nn.Conv2d)} == {5}
    assert [(module.in_features, module.out_features) for module in model if isinstance(module, nn.Linear)] == [
        (5 * 21, 40),
        (40, 40),
        (40, 7),
    ]


def test_pyramid_pool_takes_the_maximum_of_each_bin():
    x = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    got = PyramidPool()(x)
    first = [15, 5, 7, 13, 15, *range(16)]  # 1x1, 2x2 and 4x4 bins of the first channel
    second = [value + 16 for value in first]
    wanted = first[:1] + second[:1] + first[1:5] + second[1:5] + first[5:] + second[5:]
    assert got.tolist() == [wanted]
    assert PyramidPool.bins() == 21
    assert PyramidPool()(torch.zeros(2, 3, 7, 9)).shape == (2, 63)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 8}, r"at least 9 layers \(15, 30, 52\), got 8"),
        ({"depth": 9, "input_size": 7}, "images of at least 8 pixels, got 7"),
        ({"depth": 9, "width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UsageError, match=message):
        plain(activation=lambda channels: nn.ReLU(), **options)


IMAGENET = {15: (111_956_456, 10_560), 30: (115_892_456, 14_400), 52: (121_665_256, 20_032)}
"""Weights and biases, and channels of activations: MPELU has two parameters for each."""
EARLY_SIDES = [109, 36, 37, 36, 37, 18, 19, 18, 19, 18, 19, 20]


@pytest.mark.parametrize(("activation", "each"), [("relu", 0), ("prelu", 1), ("mpelu", 2)])
@pytest.mark.parametrize("depth", IMAGENET)
def test_imagenet_nets_have_the_parameters_of_the_paper(depth, activation, each):
    weights, channels = IMAGENET[depth]
    with torch.device("meta"):
        model = create_model(f"imagenet{depth}", activation=activation)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights + each * channels
    normalized = depth == 15
    assert bool(layers(model, nn.BatchNorm1d, nn.BatchNorm2d)) == normalized
    assert len(layers(model, nn.Dropout)) == (0 if normalized else 2)
    assert all(not module.affine for module in model if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d))


@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("depth", IMAGENET)
def test_maps_of_imagenet_nets(depth, growing):
    with torch.device("meta"):
        model = create_model(f"imagenet{depth}", activation="relu", growing=growing)
    graph = read(model, torch.zeros(2, 3, 224, 224))
    sides = [node.shape[-1] for node in graph.weights if node.op == "conv2d"]
    late = list(range(21, 21 + depth - 15)) if growing else [21, 20] * depth
    assert sides == (EARLY_SIDES + late)[: depth - 3]
    assert graph["fc1"].shape == (2, 4096)
    assert graph["fc3"].shape == (2, 1000)


def caffe_max_pool(x: torch.Tensor, bins: int) -> torch.Tensor:
    """Pool as Caffe's two loops do: windows from -pad on, cut at the borders of the map, sizes rounded up."""
    side = x.shape[-1]
    size = -(-side // bins)
    pad = (bins * size - side + 1) // 2
    count = -(-(side + 2 * pad - size) // size) + 1
    if pad and (count - 1) * size >= side + pad:
        count -= 1
    windows = [slice(max(start, 0), min(start + size, side)) for start in range(-pad, count * size - pad, size)]
    return torch.stack([torch.stack([x[..., rows, columns].amax((-2, -1)) for columns in windows], -1)
                        for rows in windows], -2)  # fmt: skip


@pytest.mark.parametrize("bins", CaffePyramidPool.LEVELS)
@pytest.mark.parametrize("side", [8, 16, 20, 21, 35, 57])
def test_pyramid_windows_are_those_of_caffe(side, bins):
    x = normal(2, 3, side, side)
    assert torch.equal(CaffeMaxPool(bins)(x), caffe_max_pool(x, bins))
    assert CaffeMaxPool(bins)(x).shape == (2, 3, bins, bins)


def test_the_gradient_of_the_pyramid_is_finite_and_meets_each_map():
    x = normal(2, 3, 20, 20).requires_grad_()
    CaffePyramidPool()(x).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad.sum((-2, -1)) == 85).all()


def test_a_map_too_small_for_the_windows_is_refused():
    with pytest.raises(UsageError, match="a map of 9 pixels is too small for 8 bins; use larger images"):
        CaffeMaxPool(8)(torch.zeros(1, 1, 9, 9))
    with pytest.raises(UsageError, match="an ImageNet net has at least 15 layers"):
        create_model("imagenet14")
