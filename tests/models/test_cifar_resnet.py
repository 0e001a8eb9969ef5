import pytest
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.models import DESIGNS, Block, create_model, residual
from mpelu.nn import MPELU
from tests.cases import normal


@pytest.mark.parametrize("depth", [11, 29, 164])
def test_depth_counts_three_convolutions_a_block(depth):
    blocks = (depth - 2) // 9
    with torch.device("meta"):
        model = create_model(f"nopre{depth}")
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Block) == 3 * blocks
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
    block = Block(DESIGNS["nopre"], channels, 16, 1, activation=MPELU).double().eval()
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
        residual(DESIGNS["nopre"], depth, activation=MPELU)


def test_other_images_and_classes():
    assert create_model("nopre11", 100, in_channels=1)(torch.zeros(2, 1, 16, 16)).shape == (2, 100)


FIGURES = {
    "resnet20": ("conv norm act conv norm", "sum act"),
    "nonbottleneck20": ("conv norm act conv norm", "sum"),
    "preact20": ("norm act conv norm act conv norm act conv", "sum"),
    "fig5a20": ("act conv norm act conv norm act conv norm", "sum"),
    "fig5b20": ("act conv norm act conv norm act conv", "sum"),
    "fig5c20": ("conv norm act conv norm act conv norm", "sum"),
    "nopre20": ("conv norm act conv norm act conv", "sum"),
    "fig5e20": ("conv act conv act conv", "sum"),
}
"""What the graph of a block reads from top to bottom, and from its sum on."""


@pytest.mark.parametrize("name", FIGURES)
def test_the_graph_of_a_block_is_that_of_the_figure(name):
    model = create_model(name)
    kinds = {"weight": "conv", "norm": "norm", "activation": "act", "sum": "sum"}
    nodes = read(model, torch.zeros(2, 3, 8, 8)).nodes
    branch, end = FIGURES[name]
    found = [kinds[node.kind] for node in nodes if node.name.startswith("stage1_block2.")]
    assert found == [*branch.split(), *end.split()]


@pytest.mark.parametrize("name", ["preact11", "fig5a11", "fig5b11"])
def test_where_the_shape_changes_the_shortcut_reads_what_the_leading_steps_give(name):
    graph = read(create_model(name), torch.zeros(2, 3, 8, 8))
    for stage in (2, 3):  # in the first, the activations of the stem and of the block are one behind the other
        read_by_shortcut = graph.nodes[graph[f"stage{stage}_block1.shortcut"].inputs[0]]
        assert read_by_shortcut.name == f"stage{stage}_block1.leading.act1"


@pytest.mark.parametrize("family", ["resnet", "nonbottleneck"])
def test_shortcut_a_takes_every_second_pixel_and_adds_channels_of_zeros(family):
    block = Block(DESIGNS[family], 16, 32, 2, activation=MPELU)
    x = normal(2, 16, 6, 6, dtype=torch.float32)
    found = block.shortcut(x)
    assert found.shape == (2, 32, 3, 3)
    assert torch.equal(found[:, :16], x[:, :, ::2, ::2])
    assert not found[:, 16:].any()
    assert not list(block.shortcut.parameters())


def test_variant_b_starts_the_units_behind_the_additions_near_the_identity():
    model = create_model("resnet20", alpha=1.0, after=(98.0, 0.01))
    starts = {
        name: (module.alpha.unique().tolist(), module.beta.unique().tolist())
        for name, module in model.named_modules()
        if isinstance(module, MPELU)
    }
    assert len(starts) == 1 + 2 * 9
    for name, start in starts.items():
        wanted = ([98.0], [pytest.approx(0.01)]) if ".after." in name else ([1.0], [1.0])
        assert start == wanted, name


@pytest.mark.parametrize(("option", "gone"), [("first_norm", "norm_first"), ("end_norm", "norm_end")])
def test_each_norm_of_nopre_can_be_left_out_alone(option, gone):
    whole, without = dict(create_model("nopre11").named_children()), create_model("nopre11", **{option: False})
    assert list(dict(without.named_children())) == [name for name in whole if name != gone]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nopre11", {"shortcut": "C"}, "shortcut must be A or B, got 'C'"),
        ("nopre11", {"after": (98.0, 0.01)}, "nothing follows the additions of Fig. 5d"),
        ("preact11", {"first_norm": False}, "Fig. 4c, 4d has no such normalization to leave out: first_norm"),
        ("resnet20", {"end_norm": False}, "no such normalization to leave out: end_norm"),
        ("resnet21", {}, r"Fig\. 4a is 6n \+ 2 \(8, 14, 20, 74, 110, \.\.\.\), got 21; the nearest are 20 and 26"),
    ],
)
def test_what_a_design_has_not_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        create_model(name, **options)
