import json
import math

import pytest
import torch
from torch import Tensor, nn

import mpelu
from mpelu.errors import UsageError
from mpelu.graph import UnknownNodeError
from mpelu.init import METHODS, InitPlan, PlanRow, apply, initialize, negative_slope, plan
from mpelu.models import create_model
from mpelu.nn import MPELU
from tests.cases import normal, over_activations

IMAGE = torch.zeros(1, 3, 8, 8)


def mixed() -> nn.Sequential:
    """Convolutions with another activation behind each; every fan_in differs from its fan_out."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 0: fed by the image
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=2),  # 2: fed by ReLU
        nn.BatchNorm2d(16),
        nn.ELU(),
        nn.Conv2d(16, 4, 1),  # 5: fed by ELU
        MPELU(4, 0.5, 0.5),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(36, 24),  # 10: fed by MPELU, through pooling, dropout and flattening
        nn.BatchNorm1d(24),
        nn.Linear(24, 10),  # 12: fed by a norm, and the head
    )


def rows_by_weight(init_plan: InitPlan) -> dict[str, PlanRow]:
    return {row.weight: row for row in init_plan.rows}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@over_activations
def test_slope_of_an_activation(case):
    assert negative_slope(case.build(4)) == pytest.approx(case.slope if case.slope >= 0 else -case.slope, rel=2e-7)


def test_slope_is_the_root_mean_square_over_channels():
    module = MPELU(2)
    module.load_state_dict({"alpha": torch.tensor([3.0, -1.0]), "beta": torch.tensor([1.0, 1.0])})
    assert negative_slope(module) == pytest.approx(math.sqrt(5), rel=1e-7)
    prelu = nn.PReLU(2)
    prelu.load_state_dict({"weight": torch.tensor([0.0, 1.0])})
    assert negative_slope(prelu) == pytest.approx(math.sqrt(0.5), rel=1e-7)


def test_slope_of_another_module_is_refused():
    with pytest.raises(UsageError, match=r"Eq\. 22 covers MPELU, SPELU, ReLU, LeakyReLU, PReLU, ELU, got GELU"):
        negative_slope(nn.GELU())


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "average"])
@over_activations
def test_a_weight_gets_eq_22_with_the_slope_of_what_feeds_it(case, mode):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), case.build(8), nn.Conv2d(8, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    row = plan(model, IMAGE, method="eq22", mode=mode).rows[1]
    fan = {"fan_in": 72.0, "fan_out": 45.0, "average": 58.5}[mode]
    assert row.fan == fan
    assert row.std == pytest.approx(math.sqrt(2 / (fan * (1 + case.slope**2))), rel=2e-7)  # float32 alpha and beta
    assert row.gain == pytest.approx(row.std * math.sqrt(fan), rel=1e-12)


def test_rows_of_a_mixed_net():
    rows = plan(mixed(), IMAGE, method="eq22").rows
    assert [(row.weight, row.layer, row.fed_by, row.slope, row.fan, row.output_shape) for row in rows] == [
        ("0.weight", "Conv 3x3(3 -> 8)", "input", 1.0, 27, (8, 8, 8)),
        ("2.weight", "Conv 3x3(8 -> 16)", "1", 0.0, 36, (16, 6, 6)),
        ("5.weight", "Conv 1x1(16 -> 4)", "4", 1.0, 16, (4, 6, 6)),
        ("10.weight", "Linear(36 -> 24)", "6", 0.25, 36, (24,)),
        ("12.weight", "Linear(24 -> 10)", "11", 1.0, 24, (10,)),
    ]
    for row in rows:
        assert row.std == pytest.approx(math.sqrt(2 / (row.fan * (1 + row.slope**2))), rel=1e-12)
        assert "Eq. 22" in row.equation


def test_fan_out_mode_is_that_of_each_layer_but_the_head():
    rows = plan(mixed(), IMAGE, method="eq22", mode="fan_out").rows
    assert [row.fan for row in rows] == [8 * 9, 8 * 9, 4, 24, 24]  # 16 / 2 groups * 9; the head reads 24


def test_an_activation_that_was_changed_before_the_plan():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x = torch.zeros(1, 8)
    assert plan(model, x, method="eq22").rows[1].slope == 0.0
    model[1] = MPELU(8)
    with torch.no_grad():
        model[1].alpha.fill_(3.0)
        model[1].beta.fill_(0.5)
    assert plan(model, x, method="eq22").rows[1].slope == 1.5


def test_methods():
    """Each of the five, on the layer behind ReLU (fan_in 36, fan_out 72) and on the first and the last one."""
    wanted = {
        ("eq22", "fan_in"): (math.sqrt(1 / 27), math.sqrt(2 / 36), math.sqrt(1 / 24)),
        ("msra", "fan_in"): (math.sqrt(2 / 27), math.sqrt(2 / 36), math.sqrt(2 / 24)),
        ("xavier", "fan_in"): (math.sqrt(1 / 27), math.sqrt(1 / 36), math.sqrt(1 / 24)),
        ("xavier", "average"): (math.sqrt(1 / 49.5), math.sqrt(1 / 54), math.sqrt(1 / 17)),
        ("gaussian", "fan_in"): (0.02, 0.02, 0.02),
        ("released", "fan_in"): (math.sqrt(2 / 27), math.sqrt(2 / 36), None),
        ("released", "fan_out"): (math.sqrt(2 / 72), math.sqrt(2 / 72), None),
    }
    assert {method for method, _ in wanted} == set(METHODS)
    for (method, mode), stds in wanted.items():
        rows = plan(mixed(), IMAGE, method=method, mode=mode, std=0.02).rows
        assert [rows[index].std for index in (0, 1, -1)] == [
            value and pytest.approx(value, rel=1e-12) for value in stds
        ]


def test_released_uses_the_first_activation_for_every_convolution():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), MPELU(8, 0.5), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()
    )
    rows = plan(model, IMAGE, method="released").rows
    assert [row.slope for row in rows] == [0.5, 0.5, 0.5]


def test_the_residual_net_is_initialized_as_the_released_code_does():
    rows = plan(create_model("nopre29"), torch.zeros(1, 3, 32, 32), method="released", mode="fan_out").rows
    *convolutions, head = rows
    for row in convolutions:
        assert row.std == pytest.approx(math.sqrt(2 / (row.fan * 1.0625)), rel=1e-12)
    fans = {row.weight: row.fan for row in rows}
    assert fans["stem.weight"] == 16 * 9
    assert fans["stage1_block1.branch.conv1.weight"] == 16
    assert fans["stage1_block1.branch.conv2.weight"] == 16 * 9
    assert fans["stage1_block1.branch.conv3.weight"] == fans["stage1_block1.shortcut.weight"] == 64
    assert (head.weight, head.std) == ("fc.weight", None)


@pytest.mark.parametrize("method", METHODS)
def test_planning_writes_nothing(method):
    model = mixed().train()
    example = normal(2, 3, 8, 8, dtype=torch.float32)
    before, copied, rng = state(model), example.clone(), torch.random.get_rng_state()
    plan(model, example, method=method, seed=3)
    assert not changed(model, before)
    assert torch.equal(example, copied)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_initializing_writes_exactly_the_rows(method):
    model = mixed().train()
    before, rng = state(model), torch.random.get_rng_state()
    init_plan = initialize(model, IMAGE, method=method, seed=3)
    written = {row.weight for row in init_plan.rows if row.std is not None}
    assert changed(model, before) == written | {weight.replace("weight", "bias") for weight in written}
    for weight in written:
        assert (model.get_parameter(weight.replace("weight", "bias")) == 0).all()
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(module.training for module in model.modules())
    assert ("12.weight" in written) == (method != "released")


@pytest.mark.parametrize(("name", "shape"), [("plain15", (1, 1, 16, 16)), ("nopre11", (1, 3, 32, 32))])
def test_written_weights_have_the_std_of_their_row(name, shape):
    model = create_model(name)
    init_plan = initialize(model, torch.zeros(shape), method="eq22", mode="fan_out", seed=1)
    for row in init_plan.rows:
        weight = model.get_parameter(row.weight).detach().double()
        # the mean of squares of n normal numbers has a relative standard error of sqrt(2 / n), its root of half that
        standard_error = row.std / math.sqrt(2 * weight.numel())
        assert abs(weight.square().mean().sqrt().item() - row.std) < 5 * standard_error, row.weight


def test_a_seed_means_the_same_weights():
    first, second, other = mixed(), mixed(), mixed()
    initialize(first, IMAGE, method="eq22", seed=3)
    torch.rand(7)  # the default generator moves on
    initialize(second, IMAGE, method="eq22", seed=3)
    initialize(other, IMAGE, method="eq22", seed=4)
    weights = [row.weight for row in plan(first, IMAGE, method="eq22").rows]
    assert all(torch.equal(first.get_parameter(weight), second.get_parameter(weight)) for weight in weights)
    assert not any(torch.equal(first.get_parameter(weight), other.get_parameter(weight)) for weight in weights)
    once = state(first)
    initialize(first, IMAGE, method="eq22", seed=3)
    assert not changed(first, once)


def test_equal_layers_get_different_weights():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    initialize(model, torch.zeros(1, 8), method="eq22", seed=0)
    assert not torch.equal(model[2].weight, model[4].weight)


def test_without_a_seed_the_default_generator_decides():
    weights = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(8, 8))
            torch.manual_seed(seed)
            initialize(model, torch.zeros(1, 8), method="eq22")
            weights.append(model[0].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_applying_a_plan_that_was_made_before():
    first, second = mixed(), mixed()
    init_plan = plan(first, IMAGE, method="eq22", seed=3)
    apply(init_plan, second)
    initialize(first, IMAGE, method="eq22", seed=3)
    assert all(torch.equal(first.get_parameter(row.weight), second.get_parameter(row.weight)) for row in init_plan.rows)


def test_signal_keeps_its_size_through_forty_rectified_layers():
    """What Eq. 22 is for, and what swapping fans or reading the wrong activation would break."""
    layers: list[nn.Module] = [nn.Linear(64, 96, bias=False)]
    for index in range(40):
        inputs, outputs = (96, 160) if index % 2 == 0 else (160, 96)
        layers += [nn.LeakyReLU(0.5) if index % 3 else nn.ReLU(), nn.Linear(inputs, outputs, bias=False)]
    model = nn.Sequential(*layers).double()
    x = normal(64, 64)
    logarithms = []
    for seed in range(20):
        initialize(model, x, method="eq22", seed=seed)
        with torch.no_grad():
            logarithms.append(model(x).square().mean().log().item())
    values = torch.tensor(logarithms, dtype=torch.float64)
    # the mean over weights is 1 exactly; the logarithm wanders by about 5 / width a layer: 40 * 5 / 120, and its mean
    # lies half of that variance below 0
    standard_error = (values.std() / math.sqrt(len(logarithms))).item()
    assert values.std() < 2.0
    assert abs(values.mean().item() + values.var().item() / 2) < 4 * standard_error


def test_print_is_a_table_with_a_line_for_each_row():
    init_plan = plan(mixed(), IMAGE, method="released")
    lines = str(init_plan).splitlines()
    assert len(lines) == 1 + len(init_plan.rows)
    assert lines[0].split() == ["weight", "layer", "fed", "by", "slope", "fan", "gain", "std", "equation"]
    for line, row in zip(lines[1:], init_plan.rows, strict=True):
        assert line.startswith(row.weight)
        assert row.layer in line
        assert row.equation in line
        assert ("as is" in line) == (row.std is None)
    columns = {line.index(row.layer) for line, row in zip(lines[1:], init_plan.rows, strict=True)}
    assert columns == {lines[0].index("layer")}


def test_json_holds_the_same():
    init_plan = plan(mixed(), IMAGE, method="eq22", mode="average", seed=7)
    parsed = json.loads(init_plan.to_json())
    assert (parsed["method"], parsed["mode"], parsed["seed"]) == ("eq22", "average", 7)
    rows = tuple(PlanRow(**{**row, "output_shape": tuple(row["output_shape"])}) for row in parsed["rows"])
    assert rows == init_plan.rows


@pytest.mark.parametrize("function", [plan, initialize])
def test_errors(function):
    model = mixed()
    before = state(model)
    with pytest.raises(
        UsageError, match="unknown initialization 'eq23'; known: eq22, released, msra, xavier, gaussian"
    ):
        function(model, IMAGE, method="eq23")
    with pytest.raises(UsageError, match="mode must be one of fan_in, fan_out, average, got 'fan_avg'"):
        function(model, IMAGE, method="eq22", mode="fan_avg")
    with pytest.raises(UsageError, match=r"does not accept an example of shape \(1, 4, 8, 8\)"):
        function(model, torch.zeros(1, 4, 8, 8), method="eq22")
    model[1] = nn.GELU()
    with pytest.raises(UnknownNodeError, match="module GELU"):
        function(model, IMAGE, method="eq22")
    assert not changed(model, before)


def test_public_names():
    assert mpelu.plan is plan
    assert mpelu.initialize is initialize
    assert mpelu.InitPlan is InitPlan
