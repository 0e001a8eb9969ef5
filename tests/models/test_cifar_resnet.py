import pytest
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.models import Bottleneck, create_model, nopre
from mpelu.nn import MPELU
from tests.cases import normal


@pytest.mark.parametrize("depth", [11, 29, 164])
def test_depth_counts_three_convolutions_a_block(depth):
    blocks = (depth - 2) // 9
    with torch.device("meta"):
        model = create_model(f"nopre{depth}")
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Bottleneck) == 3 * blocks
    assert kinds.count(nn.Conv2d) == 1 + 9 * blocks + 3  # the stem and one shortcut a stage
    assert kinds.count(MPELU) == kinds.count(nn.BatchNorm2d) == 2 + 6 * blocks
    assert kinds.count(nn.Linear) == 1


def test_order_inside_a_block_and_around_them():
    model = create_model("nopre11")
    assert list(dict(model.named_children())) == [
        "stem",
        "norm_first",
        "act_first",
        "stage1_block1",
        "stage2_block1",
        "stage3_block1",
        "norm_end",
        "act_end",
        "pool",
        "flatten",
        "fc",
    ]
    branch = model.get_submodule("stage1_block1").get_submodule("branch")
    assert [type(module) for module in branch] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        MPELU,
        nn.Conv2d,
        nn.BatchNorm2d,
        MPELU,
        nn.Conv2d,
    ]
    assert [module.kernel_size for module in branch if isinstance(module, nn.Conv2d)] == [(1, 1), (3, 3), (1, 1)]


def test_convolutions_have_no_bias_and_norms_are_affine():
    model = create_model("nopre11")
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Conv2d))
    assert all(module.affine for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert model.get_submodule("fc").bias is not None


def test_strides_and_shapes():
    layers = {node.name: node for node in read(create_model("nopre29"), torch.zeros(2, 3, 32, 32)).weights}
    for stage, (channels, side) in enumerate([(64, 32), (128, 16), (256, 8)], start=1):
        for block in (1, 2, 3):
            name = f"stage{stage}_block{block}"
            inner = [layers[f"{name}.branch.conv{index}"].shape[1:] for index in (1, 2, 3)]
            # the stride sits on the first 1x1
            assert inner == [(channels // 4, side, side)] * 2 + [(channels, side, side)]
            assert (f"{name}.shortcut" in layers) == (block == 1)
    strides = {name: node.options["stride"] for name, node in layers.items() if node.op == "conv2d"}
    assert {name for name, stride in strides.items() if stride == (2, 2)} == {
        f"stage{stage}_block1.{layer}" for stage in (2, 3) for layer in ("branch.conv1", "shortcut")
    }
    assert layers["fc"].shape == (2, 10)


@pytest.mark.parametrize("channels", [16, 64])
def test_a_block_is_its_branch_plus_its_shortcut_and_nothing_after(channels):
    block = Bottleneck(channels, 16, 1, activation=MPELU).double().eval()
    x = normal(2, channels, 4, 4)
    assert isinstance(block.shortcut, nn.Identity if channels == 64 else nn.Conv2d)
    shortcut = x if channels == 64 else torch.einsum("oi,nihw->nohw", block.shortcut.weight[:, :, 0, 0], x)
    y = x
    for module in block.branch:
        y = module(y)
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-12, atol=1e-12)  # sums of 64 float64 products
    assert (block(x) < 0).any()


@pytest.mark.parametrize(
    ("depth", "nearest"), [(0, (11, 20)), (10, (11, 20)), (12, (11, 20)), (30, (29, 38)), (165, (164, 173))]
)
def test_a_depth_that_is_not_9n_plus_2_is_answered_with_the_nearest(depth, nearest):
    with pytest.raises(UsageError, match=rf"9n \+ 2 .*got {depth}; the nearest are {nearest[0]} and {nearest[1]}$"):
        nopre(depth, activation=MPELU)


def test_other_images_and_classes():
    assert create_model("nopre11", 100, in_channels=1)(torch.zeros(2, 1, 16, 16)).shape == (2, 100)
