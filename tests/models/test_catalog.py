import pytest
import torch
from torch import nn

import mpelu
from mpelu.errors import UsageError
from mpelu.init import plan
from mpelu.models import FAMILIES, ModelInfo, activation_factory, create_model, list_models, parse_name
from mpelu.models.catalog import names
from mpelu.nn import MPELU
from tests.cases import ACTIVATIONS, normal, over_activations

PARAMETERS = {
    ("nopre164", 10, "mpelu"): 1_696_250,
    ("nopre164", 100, "mpelu"): 1_719_380,
    ("nopre164", 10, "relu"): 1_687_642,
    ("nopre164", 10, "prelu"): 1_691_946,
    ("nopre164", 100, "relu"): 1_710_772,
    ("nopre164", 100, "prelu"): 1_715_076,
    ("nopre1001", 10, "mpelu"): 10_279_034,
    ("nopre1001", 100, "mpelu"): 10_302_164,
    ("preact164", 10, "relu"): 1_703_258,
    ("preact164", 100, "relu"): 1_726_388,
    ("preact164", 10, "mpelu"): 1_727_482,
    ("preact164", 100, "mpelu"): 1_750_612,
    ("preact1001", 10, "relu"): 10_327_706,
    ("preact1001", 100, "relu"): 10_350_836,
    ("preact1001", 10, "mpelu"): 10_476_922,
    ("preact1001", 100, "mpelu"): 10_500_052,
    ("resnet20", 10, "relu"): 269_722,
    ("resnet32", 10, "relu"): 464_154,
    ("resnet44", 10, "relu"): 658_586,
    ("resnet56", 10, "relu"): 853_018,
    ("resnet110", 10, "relu"): 1_727_962,
    ("resnet20", 10, "mpelu"): 271_098,
    ("resnet32", 10, "mpelu"): 466_426,
    ("resnet44", 10, "mpelu"): 661_754,
    ("resnet56", 10, "mpelu"): 857_082,
    ("resnet110", 10, "mpelu"): 1_736_058,
    ("nonbottleneck20", 10, "mpelu"): 270_426,
    ("nonbottleneck32", 10, "mpelu"): 465_306,
    ("nonbottleneck44", 10, "mpelu"): 660_186,
    ("nonbottleneck56", 10, "mpelu"): 855_066,
    ("nonbottleneck110", 10, "mpelu"): 1_732_026,
}
"""1.696 M and 10.28 M are in the authors' tables, which are those for 10 classes; the others follow from the layers."""
PROJECTED = {20: 272_474, 32: 466_906, 44: 661_338, 56: 855_770, 110: 1_730_714}
"""ResNets with ReLU and shortcuts of type B."""


@pytest.mark.parametrize(("name", "num_classes", "activation"), PARAMETERS)
def test_parameter_counts(name, num_classes, activation):
    with torch.device("meta"):
        model = create_model(name, num_classes, activation)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name, num_classes, activation]


@pytest.mark.parametrize("depth", PROJECTED)
def test_parameter_counts_with_projections(depth):
    with torch.device("meta"):
        model = create_model(f"resnet{depth}", activation="relu", shortcut="B")
    assert sum(parameter.numel() for parameter in model.parameters()) == PROJECTED[depth]


SMALL = {"plain9": (2, 1, 8, 8), "nopre11": (2, 3, 8, 8), "resnet8": (2, 3, 8, 8), "preact11": (2, 3, 8, 8)}


@pytest.mark.parametrize("name", SMALL)
@over_activations
def test_every_activation_builds_and_learns_in_every_family(case, name):
    options = {"input_size": 8, "width": 4} if name.startswith("plain") else {}
    model = create_model(name, 5, **case.catalog, **options)
    x = normal(*SMALL[name], dtype=torch.float32)
    output = model(x)
    assert output.shape == (2, 5)
    output.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", SMALL)
@over_activations
def test_every_activation_of_a_model_is_the_one_asked_for(case, name):
    model = create_model(name, **case.catalog)
    wanted = type(case.build(1))
    kinds = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, MPELU)
    units = [module for module in model.modules() if isinstance(module, kinds)]
    assert {type(unit) for unit in units} == {wanted}
    x = torch.linspace(-3, 3, 30, dtype=torch.float64).reshape(-1, 1)
    for unit in units:
        channels = unit.num_parameters if isinstance(unit, MPELU | nn.PReLU) else 4
        got = unit.double()(x.expand(30, channels).clone())
        # float32 alpha and beta: relative 6e-8 each
        torch.testing.assert_close(got, case.formula(x).expand(30, channels), rtol=2e-7, atol=1e-13)


def test_activations_are_channel_wise():
    model = create_model("nopre11")
    for name, module in model.named_modules():
        if isinstance(module, MPELU):
            norm = model.get_submodule(name.replace("act", "norm"))
            assert module.num_parameters == norm.num_features, name


def test_an_activation_may_be_a_callable():
    seen = []

    def factory(channels: int) -> nn.Module:
        seen.append(channels)
        return nn.Hardtanh()

    model = create_model("plain9", activation=factory, width=4)
    assert seen == [4] * 6 + [32] * 2
    assert sum(isinstance(module, nn.Hardtanh) for module in model) == 8


DEFAULTS = {"relu": {}, "lrelu": {"negative_slope": 0.1}, "elu": {"alpha": 1.0}, "mpelu": {}, "prelu": {}}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_an_activation(name):
    unit = activation_factory(name)(6)
    for attribute, value in DEFAULTS[name].items():
        assert getattr(unit, attribute) == value
    if name == "prelu":
        assert unit.weight.tolist() == [0.25] * 6
    if name == "mpelu":
        assert (unit.alpha.tolist(), unit.beta.tolist()) == ([0.25] * 6, [1.0] * 6)


def test_every_activation_name_has_a_case():
    assert {case.catalog["activation"] for case in ACTIVATIONS} == set(DEFAULTS)


def test_activation_errors():
    with pytest.raises(
        UsageError, match="unknown activation 'gelu'; known: relu, lrelu, prelu, elu, spelu, mpelu, srelu"
    ):
        create_model("plain15", activation="gelu")
    with pytest.raises(UsageError, match=r"'relu' has no alpha, got alpha=0\.5; leave it out"):
        create_model("plain15", activation="relu", alpha=0.5)
    for name in ("relu", "lrelu", "prelu", "elu"):
        with pytest.raises(UsageError, match=f"'{name}' has no beta, got beta=0.5; leave it out"):
            create_model("plain15", activation=name, beta=0.5)
    with pytest.raises(UsageError, match="init_beta must be > 0"):
        create_model("plain15", beta=0.0)


@pytest.mark.parametrize(
    ("name", "wanted"), [("plain30", ("plain", 30)), ("nopre164", ("nopre", 164)), ("plain17", ("plain", 17))]
)
def test_names(name, wanted):
    assert parse_name(name) == wanted


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("nopres164", "nopre164"), ("plan30", "plain30"), ("Plain52", "plain52"), ("nopre", "nopre")],
)
def test_an_unknown_name_is_answered_with_a_known_one(name, suggestion):
    with pytest.raises(
        UsageError, match=rf"unknown model '{name}'; did you mean {suggestion}\d*\?.*plain15.*nopre1001"
    ):
        create_model(name)


@pytest.mark.parametrize("name", ["xyz", "", "164"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UsageError) as caught:
        create_model(name)
    assert "did you mean" not in str(caught.value) or name == "164"
    for family, entry in FAMILIES.items():
        assert f"{family}{entry.depths[0] if entry.depths else ''}" in str(caught.value)


def test_unknown_options_are_refused_with_the_known_ones():
    with pytest.raises(
        UsageError,
        match="nopre11 has no option dropout, width; it has after, end_norm, first_norm, in_channels, shortcut",
    ):
        create_model("nopre11", width=3, dropout=0.1)
    with pytest.raises(
        UsageError, match="has no option depth; it has batch_norm, dropout, in_channels, input_size, width"
    ):
        create_model("plain15", depth=3)


def multiply_adds_of_nopre(depth: int, side: int = 32) -> int:
    """Count as on paper: for each layer the weights times the positions of its output."""
    total, channels = 3 * 16 * 9 * side**2, 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 9):
            if block == 0 and stage > 0:
                side //= 2
            total += (channels * width + 9 * width * width + width * 4 * width) * side**2
            if block == 0:
                total += channels * 4 * width * side**2  # the shortcut
            channels = 4 * width
    return total + channels * 10


@pytest.fixture(scope="module")
def rows() -> dict[str, ModelInfo]:
    return {row.name: row for row in list_models()}


def test_the_list_has_every_depth_of_the_paper(rows):
    assert list(rows)[:7] == [
        *(f"{family}{depth}" for family in ("plain", "imagenet") for depth in (15, 30, 52)),
        "nin",
    ]
    assert list(rows)[7:] == [
        *(f"{family}{depth}" for family in ("resnet", "nonbottleneck") for depth in (20, 32, 44, 56, 110)),
        *("preact164", "preact1001", "nopre29", "nopre47", "nopre164", "nopre1001"),
        *("fig5a164", "fig5b164", "fig5c164", "fig5e164"),
    ]
    for name, row in rows.items():
        assert (row.name, row.depth) == (name, parse_name(name)[1] or 9)
        assert row.about


def test_counts_of_the_list(rows):
    assert rows["nopre164"].multiply_adds == 244_500_992
    assert rows["nopre164"].parameters == PARAMETERS["nopre164", 10, "mpelu"]
    assert rows["nopre1001"].parameters == PARAMETERS["nopre1001", 10, "mpelu"]
    for name in ("nopre29", "nopre47", "nopre164", "nopre1001"):
        assert rows[name].multiply_adds == multiply_adds_of_nopre(rows[name].depth)
        assert rows[name].image_shape == (3, 32, 32)


def test_kept_bytes_are_those_of_a_training_step(rows):
    model = create_model("nopre29").train()
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(4, 3, 32, 32))
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 4
    # a training step keeps the statistics of each batch normalization too: under 1 % of the maps
    assert rows["nopre29"].activation_bytes == pytest.approx(found, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_network_takes_a_step_at_its_size(name):
    shape = FAMILIES[parse_name(name)[0]].image_shape
    model = create_model(name, in_channels=shape[0])
    output = model(normal(2, *shape, dtype=torch.float32))
    loss = torch.nn.functional.cross_entropy(output, torch.tensor([0, 1]))
    assert loss.isfinite()
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ["plain15", "plain30", "plain52"])
def test_counts_of_plain_nets_are_those_of_their_plan(rows, name):
    model = create_model(name)
    total = 0
    for row in plan(model, torch.zeros(1, *rows[name].image_shape), method="eq22").weights:
        positions = row.output_shape[1] * row.output_shape[2] if len(row.output_shape) == 3 else 1
        total += model.get_parameter(row.parameter).numel() * positions
    assert rows[name].multiply_adds == total
    assert rows[name].parameters == sum(parameter.numel() for parameter in model.parameters())


def test_public_names():
    assert mpelu.create_model is create_model
    assert mpelu.list_models is list_models
