import json
import math
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mpelu
from mpelu.errors import UsageError
from mpelu.graph import UnknownNodeError
from mpelu.init import METHODS, InitPlan, PlanRow, apply, initialize, plan
from mpelu.init.rows import AS_IS, THROUGH
from mpelu.models import create_model
from mpelu.nn import MPELU, SReLU
from tests.cases import normal, over_activations

IMAGE = torch.zeros(1, 3, 8, 8)
OF_THE_PAPER = ["eq22", "released", "msra", "xavier", "gaussian"]


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


def rows_of(init_plan: InitPlan) -> dict[str, PlanRow]:
    return {row.parameter: row for row in init_plan.rows}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# The methods of the paper.


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "average"])
@over_activations
def test_a_weight_gets_eq_22_with_the_slope_of_what_feeds_it(case, mode):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), case.build(8), nn.Conv2d(8, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    row = plan(model, IMAGE, method="eq22", mode=mode).weights[1]
    fan = {"fan_in": 72.0, "fan_out": 45.0, "average": 58.5}[mode]
    assert row.fan == fan
    assert row.std == pytest.approx(math.sqrt(2 / (fan * (1 + case.slope**2))), rel=2e-7)  # float32 alpha and beta
    assert row.gain == pytest.approx(row.std * math.sqrt(fan), rel=1e-12)


def test_rows_of_a_mixed_net():
    rows = plan(mixed(), IMAGE, method="eq22").weights
    assert [(row.parameter, row.layer, row.fed_by, row.slope, row.fan, row.output_shape) for row in rows] == [
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
    rows = plan(mixed(), IMAGE, method="eq22", mode="fan_out").weights
    assert [row.fan for row in rows] == [8 * 9, 8 * 9, 4, 24, 24]  # 16 / 2 groups * 9; the head reads 24


def test_an_activation_that_was_changed_before_the_plan():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x = torch.zeros(1, 8)
    assert plan(model, x, method="eq22").weights[1].slope == 0.0
    model[1] = MPELU(8)
    with torch.no_grad():
        model[1].alpha.fill_(3.0)
        model[1].beta.fill_(0.5)
    assert plan(model, x, method="eq22").weights[1].slope == 1.5


def test_methods():
    """Each of the paper's five, on the layer behind ReLU (fan_in 36, fan_out 72) and on the first and the last one."""
    wanted = {
        ("eq22", "fan_in"): (math.sqrt(1 / 27), math.sqrt(2 / 36), math.sqrt(1 / 24)),
        ("msra", "fan_in"): (math.sqrt(2 / 27), math.sqrt(2 / 36), math.sqrt(2 / 24)),
        ("xavier", "fan_in"): (math.sqrt(1 / 27), math.sqrt(1 / 36), math.sqrt(1 / 24)),
        ("xavier", "average"): (math.sqrt(1 / 49.5), math.sqrt(1 / 54), math.sqrt(1 / 17)),
        ("gaussian", "fan_in"): (0.02, 0.02, 0.02),
        ("released", "fan_in"): (math.sqrt(2 / 27), math.sqrt(2 / 36), None),
        ("released", "fan_out"): (math.sqrt(2 / 72), math.sqrt(2 / 72), None),
    }
    assert {method for method, _ in wanted} == set(OF_THE_PAPER)
    for (method, mode), stds in wanted.items():
        rows = plan(mixed(), IMAGE, method=method, mode=mode, std=0.02).weights
        assert [rows[index].std for index in (0, 1, -1)] == [
            value and pytest.approx(value, rel=1e-12) for value in stds
        ]


def test_released_uses_the_first_activation_for_every_convolution():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), MPELU(8, 0.5), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()
    )
    rows = plan(model, IMAGE, method="released").weights
    assert [row.slope for row in rows] == [0.5, 0.5, 0.5]


def test_the_residual_net_is_initialized_as_the_released_code_does():
    rows = plan(create_model("nopre29"), torch.zeros(1, 3, 32, 32), method="released", mode="fan_out").weights
    *convolutions, head = rows
    for row in convolutions:
        assert row.std == pytest.approx(math.sqrt(2 / (row.fan * 1.0625)), rel=1e-12)
    fans = {row.parameter: row.fan for row in rows}
    assert fans["stem.weight"] == 16 * 9
    assert fans["stage1_block1.branch.conv1.weight"] == 16
    assert fans["stage1_block1.branch.conv2.weight"] == 16 * 9
    assert fans["stage1_block1.branch.conv3.weight"] == fans["stage1_block1.shortcut.weight"] == 64
    assert (head.parameter, head.std) == ("fc.weight", None)


def test_eq_22_of_values_side_by_side_takes_the_root_mean_square_of_their_slopes():
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 2), nn.Linear(4, 6), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([torch.relu(self.a(x)), nn.functional.leaky_relu(self.b(x), 0.5)], 1))

    row = plan(Beside(), torch.zeros(1, 4), method="eq22").weights[-1]
    assert row.slope == pytest.approx(math.sqrt((2 * 0 + 6 * 0.25) / 8))


# Nothing is written before apply, and then what the rows say.


@pytest.mark.parametrize("method", METHODS)
def test_planning_writes_nothing(method):
    model = mixed().train()
    model[3].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    example = normal(2, 3, 8, 8, dtype=torch.float32)
    before, copied, rng, threads = state(model), example.clone(), torch.random.get_rng_state(), torch.get_num_threads()
    attributes = [dict(vars(module)) for module in model.modules()]
    plan(model, example, method=method, seed=3)
    assert not changed(model, before)
    assert torch.equal(example, copied)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert [module.training for module in model] == [index != 3 for index in range(13)]
    assert (model[0].weight.grad == 1).all()
    assert all(parameter.grad is None for parameter in model[1:].parameters())
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert [list(vars(module)) for module in model.modules()] == [list(old) for old in attributes]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("method", METHODS)
def test_initializing_writes_exactly_the_rows(method):
    model = mixed().train()
    model(normal(4, 3, 8, 8, dtype=torch.float32))  # running statistics move
    before, rng = state(model), torch.random.get_rng_state()
    init_plan = initialize(model, normal(16, 3, 8, 8, dtype=torch.float32), method=method, seed=3)
    rows = rows_of(init_plan)
    written = {name for name, row in rows.items() if row.std is not None}
    constants = {name for name in written if rows[name].fill == "constant"}
    assert changed(model, before) >= written - constants
    assert changed(model, before) <= written
    for name in constants:
        assert (model.state_dict()[name] == rows[name].std).all(), name
    assert {"3.weight", "3.bias", "3.running_mean", "3.running_var", "3.num_batches_tracked"} <= constants
    assert {name for name in rows if rows[name].fill == AS_IS} >= {"6.alpha", "6.beta"}
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(module.training for module in model.modules())
    assert ("12.weight" in written) == (method != "released")


@pytest.mark.parametrize(("name", "shape"), [("plain15", (1, 1, 16, 16)), ("nopre11", (1, 3, 32, 32))])
def test_written_weights_have_the_std_of_their_row(name, shape):
    model = create_model(name)
    init_plan = initialize(model, torch.zeros(shape), method="eq22", mode="fan_out", seed=1)
    for row in init_plan.weights:
        weight = model.get_parameter(row.parameter).detach().double()
        # the mean of squares of n normal numbers has a relative standard error of sqrt(2 / n), its root of half that
        standard_error = row.std / math.sqrt(2 * weight.numel())
        assert abs(weight.square().mean().sqrt().item() - row.std) < 5 * standard_error, row.parameter


def test_a_seed_means_the_same_weights():
    first, second, other = mixed(), mixed(), mixed()
    initialize(first, IMAGE, method="eq22", seed=3)
    torch.rand(7)  # the default generator moves on
    initialize(second, IMAGE, method="eq22", seed=3)
    initialize(other, IMAGE, method="eq22", seed=4)
    weights = [row.parameter for row in plan(first, IMAGE, method="eq22").weights]
    assert all(torch.equal(first.get_parameter(weight), second.get_parameter(weight)) for weight in weights)
    assert not any(torch.equal(first.get_parameter(weight), other.get_parameter(weight)) for weight in weights)
    once = state(first)
    initialize(first, IMAGE, method="eq22", seed=3)
    assert not changed(first, once)


def deep() -> nn.Sequential:
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(24, 24, 3, padding=1), nn.GELU())]
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), *layers, nn.Flatten(), nn.Linear(24 * 36, 16), nn.GELU(), nn.Linear(16, 8)
    )


def test_a_seed_means_the_same_calibrated_weights_for_any_number_of_threads():
    plans, weights, threads = [], [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            model = deep()
            plans.append(initialize(model, IMAGE, seed=5))
            weights.append(state(model))
        finally:
            torch.set_num_threads(threads)
    assert plans[0] == plans[1] == plans[2]
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


def test_registration_order_does_not_matter():
    class Net(nn.Module):
        def __init__(self, names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.relu(self.a(x)))))

    first, second = Net("abc"), Net("cba")
    plans = [initialize(model, torch.zeros(1, 8), seed=1) for model in (first, second)]
    assert [row.parameter for row in plans[1].weights] == ["a.weight", "b.weight", "c.weight"]
    assert plans[0].weights == plans[1].weights
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


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
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


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


# Residual branches, heads, what is skipped, distributions.


class Branches(nn.Module):
    """Three residual blocks of three weights and no normalization, and a head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
            )
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("residual", "targets", "head"),
    [
        ("scale", (1.0, 1.0, 1 / 3), 1.0),
        ("zero", (1.0, 1.0, 0.0), 1.0),
        ("none", (1.0, 1.0, 1.0), 1.0),
        # n^(-1 / (2 m - 2)) on the weights is n^(-1 / (m - 1)) on second moments, with n = m = 3
        ("fixup", (3**-0.5, 1 / 3, 0.0), 0.0),
    ],
)
def test_second_moments_of_residual_branches(residual, targets, head):
    rows = rows_of(plan(Branches(), torch.zeros(2, 8), method="second_moment", residual=residual, seed=0))
    for block in range(3):
        found = [rows[f"blocks.{block}.{layer}.weight"].second_moment for layer in (0, 2, 4)]
        assert found == pytest.approx(targets, rel=1e-9)
    assert rows["head.weight"].second_moment == pytest.approx(head)
    assert rows["stem.weight"].second_moment == pytest.approx(1.0)


def test_fixup_scales_the_other_weights_of_a_branch():
    rows, plain = (
        rows_of(plan(Branches(), torch.zeros(2, 8), method="second_moment", residual=residual, seed=0))
        for residual in ("fixup", "zero")
    )
    for name in ("blocks.0.0.weight", "blocks.0.2.weight", "blocks.2.2.weight"):
        assert rows[name].std / plain[name].std == pytest.approx(3 ** (-1 / 4), rel=1e-9)


def test_zero_branches_and_heads_are_written_as_zeros():
    model = Branches()
    initialize(model, torch.zeros(2, 8), residual="zero", heads="zero", seed=0)
    assert not model.blocks[1][4].weight.any()
    assert not model.head.weight.any()
    x = normal(2, 8, dtype=torch.float32)
    assert torch.equal(model(x), torch.zeros(2, 4))


def test_a_normalization_that_ends_a_branch_starts_at_zero_where_branches_do():
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.other = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.other(self.stem(x)))
            return x + self.norm(self.conv(x))

    rows = {
        residual: rows_of(plan(Normalized(), IMAGE, method="second_moment", residual=residual, seed=0))
        for residual in ("zero", "scale", "none")
    }
    assert [rows[residual]["norm.weight"].std for residual in ("zero", "scale", "none")] == [0.0, 1.0, 1.0]
    assert rows["zero"]["other.weight"].std == 1.0
    # what stands in front of a normalization keeps its size
    assert [row["conv.weight"].second_moment for row in rows.values()] == pytest.approx([1.0] * 3)


def test_the_share_of_a_branch_follows_from_where_its_trunk_begins():
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = 3.0 * self.first(x)
            return x + self.branch(torch.tanh(x))

    rows = plan(Large(), torch.zeros(2, 8), method="second_moment", seed=0).weights
    assert [row.second_moment for row in rows] == pytest.approx([1.0, 9.0])


def test_what_is_skipped_stays():
    model = mixed()
    before = state(model)
    init_plan = initialize(model, IMAGE, method="second_moment", skip=["5.*", "3.*", "10.bias"], seed=0)
    rows = rows_of(init_plan)
    for name in ("5.weight", "5.bias", "3.weight", "3.bias", "10.bias"):
        assert rows[name].fill == AS_IS
        assert rows[name].equation == "skipped"
    assert not any(name.startswith("3.running") for name in rows)
    assert not changed(model, before) & {"5.weight", "5.bias", "3.weight", "3.bias", "10.bias"}
    assert "behind 5 a second moment of" in rows["10.weight"].equation
    assert rows["10.weight"].second_moment is None


def test_skipping_a_weight_leaves_its_bias():
    rows = rows_of(plan(mixed(), IMAGE, skip=["5.weight"], seed=0))
    assert (rows["5.bias"].fill, rows["5.bias"].equation) == (AS_IS, "its weight is left as it is")


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform", "orthogonal", "delta_orthogonal"])
def test_distributions(distribution):
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    init_plan = initialize(model, torch.zeros(1, 16, 8, 8), method="second_moment", distribution=distribution, seed=0)
    assert {row.fill for row in init_plan.weights} == {distribution}
    weight = model[2].weight.detach()
    # 9216 entries: a standard error of 0.7 %; orthogonal ones have no error
    assert weight.square().mean().sqrt().item() == pytest.approx(init_plan.weights[1].std, rel=0.03)
    outside = weight.clone()
    outside[:, :, 1, 1] = 0
    assert (distribution == "delta_orthogonal") == (not outside.any())
    # only the middle tap: no zero padding is met
    assert (init_plan.weights[0].fan == 144) == (distribution == "delta_orthogonal")


def test_mode_is_for_the_methods_of_the_paper():
    assert plan(mixed(), IMAGE, method="second_moment", mode="fan_out", seed=0).weights == (
        plan(mixed(), IMAGE, method="second_moment", seed=0).weights
    )


# Weights that are computed from others.


def test_a_weight_normed_layer_gets_the_weight_that_it_would_have_without():
    def build(wrap) -> nn.Sequential:
        return nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.GELU(), nn.Flatten(), wrap(nn.Linear(288, 16)))

    plain, normed = build(lambda layer: layer), build(parametrizations.weight_norm)
    before = state(normed)
    init_plan = plan(normed, IMAGE, seed=2)
    assert not changed(normed, before)
    apply(init_plan, normed)
    initialize(plain, IMAGE, seed=2)
    for index in (0, 3):
        # g v / |v| in float32
        torch.testing.assert_close(normed[index].weight, plain[index].weight, rtol=1e-5, atol=1e-7)
    rows = rows_of(init_plan)
    assert rows["0.weight"].equation == "second moment, calibrated"
    for name in ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"):
        assert (rows[name].fill, rows[name].equation) == (THROUGH, "WeightNorm computes 0.weight from it")
    assert InitPlan.from_json(init_plan.to_json()) == init_plan


def hooked() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.nn.utils.weight_norm is deprecated
        return nn.utils.weight_norm(nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (hooked, "the hook WeightNorm computes the weight from weight_g and weight_v"),
        (lambda: nn.utils.spectral_norm(nn.Linear(8, 8)), "the hook SpectralNorm computes the weight from"),
        (lambda: parametrizations.spectral_norm(nn.Linear(8, 8)), "SpectralNorm computes weight and does not take"),
        (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), "Orthogonal computes weight and does not take"),
    ],
)
def test_a_computed_weight_is_left_with_the_reason(build, reason):
    model = nn.Sequential(build(), nn.ReLU(), nn.Linear(8, 4))
    before = state(model)
    init_plan = initialize(model, torch.zeros(2, 8), method="second_moment", seed=0)
    left = [row for row in init_plan.rows if row.parameter.startswith("0.") and not row.parameter.endswith("bias")]
    assert left
    for row in left:
        assert row.fill == AS_IS
        assert row.equation.startswith(reason), row.equation
    assert {name for name in changed(model, before) if name.startswith("0.")} == set()


def test_a_parametrization_that_stops_taking_values_is_an_error_and_writes_nothing_else():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    init_plan = plan(model, torch.zeros(2, 8), method="second_moment", seed=0)
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Softplus())
    with pytest.raises(UsageError, match=r"0\.weight does not take the values"):
        apply(init_plan, model)


# Meta device and shards.


def shardable() -> nn.Sequential:
    """Layers whose sizes two processes cannot halve, with buffers, a parametrization and a learnable activation."""
    linear = parametrizations.weight_norm(nn.Linear(9 * 36, 16))
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.GELU(), nn.Conv2d(7, 9, 3), nn.PReLU(9), nn.Flatten(),
        linear, nn.GELU(), nn.Linear(16, 16), MPELU(16, 0.3), nn.Linear(16, 3),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["second_moment", "critical", "eq22", "msra"])
def test_a_plan_made_on_the_meta_device_is_that_of_the_real_model(method):
    real = nn.Sequential(*[layer for layer in mixed() if not isinstance(layer, MPELU)])
    with torch.device("meta"):
        meta = nn.Sequential(*[layer for layer in mixed() if not isinstance(layer, MPELU)])
        in_context = plan(meta, torch.zeros(1, 3, 8, 8), method=method, refine="none", seed=3)
    planned = plan(real, IMAGE, method=method, refine="none", seed=3)
    on_meta = plan(meta, IMAGE, method=method, refine="none", seed=3)
    assert on_meta == planned == in_context
    meta.to_empty(device="cpu")
    for parameter in (*meta.parameters(), *meta.buffers()):
        parameter.data.fill_(float("nan") if parameter.is_floating_point() else -1)
    apply(on_meta, meta)
    apply(planned, real)
    assert all(torch.equal(value, meta.state_dict()[name]) for name, value in real.state_dict().items())


def test_learnable_activations_on_the_meta_device_start_as_their_modules_do():
    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(8, 8), MPELU(8, 0.5, 2.0), nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 8), SReLU(8)
        )

    with torch.device("meta"):
        meta = build()
    real, x = build(), torch.zeros(2, 8)
    on_meta, planned = (rows_of(plan(model, x, method="second_moment", seed=0)) for model in (meta, real))
    assert all(on_meta[name] == row for name, row in planned.items() if row.fan is not None)
    values = {"1.alpha": 0.5, "1.beta": 2.0, "3.weight": 0.25, "5.t_right": 1.0}
    for name, value in values.items():
        assert planned[name].fill == AS_IS
        assert (on_meta[name].fill, on_meta[name].std) == ("constant", value)


def test_what_would_be_left_without_values_is_warned_of():
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"1 parameters are on the meta device .* as they are: 0\.weight"):
        init_plan = plan(model, torch.zeros(2, 4, dtype=torch.long), method="second_moment", seed=0)
    assert rows_of(init_plan)["0.weight"].fill == AS_IS


def test_an_activation_without_values_is_an_error_where_a_weight_reads_it():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x * self.slope)

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), Bare(), nn.Linear(8, 8))
    with pytest.raises(UnknownNodeError, match=r"no reset_parameters\(\).*feeds 2\.weight"):
        plan(model, torch.zeros(2, 8), method="second_moment", seed=0)
    with pytest.warns(UserWarning, match=r"1\.slope"):
        assert plan(model, torch.zeros(2, 8), method="msra", seed=0).weights[1].std == pytest.approx(0.5)


def shard(rank: int, folder: str) -> tuple[dict[str, Tensor], str, str]:
    """Plan on the meta device, shard and apply, as one of two processes; returns the gathered model."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1 + rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        model = shardable()
    init_plan = plan(model, IMAGE, method="critical", seed=3)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    try:
        plan(model, IMAGE, method="critical", seed=3)
        refusal = ""
    except UsageError as error:
        refusal = str(error)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        local.data.fill_(float("nan") if local.is_floating_point() else -1)
    apply(init_plan, model)
    gathered = {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in model.state_dict().items()
    }
    dist.destroy_process_group()
    return gathered, init_plan.to_json(), refusal


@pytest.mark.slow
def test_two_processes_write_the_shards_of_the_weights_that_one_would(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        processes = [executor.submit(shard, rank, str(tmp_path)) for rank in (0, 1)]
        results = [process.result(timeout=120) for process in processes]
    with torch.device("meta"):
        meta = shardable()
    init_plan = plan(meta, IMAGE, method="critical", seed=3)
    whole = shardable()
    apply(init_plan, whole)
    for gathered, text, refusal in results:
        assert InitPlan.from_json(text) == init_plan
        assert "plan it before fully_shard" in refusal
        for name, value in whole.state_dict().items():
            assert torch.equal(gathered[name], value), name


def test_a_model_on_the_meta_device_is_not_calibrated_and_not_written():
    with torch.device("meta"):
        model = mixed()
    with pytest.raises(UsageError, match="calibration runs the model, and this one is on the meta device"):
        plan(model, IMAGE, seed=0)
    init_plan = plan(model, IMAGE, method="second_moment", seed=0)
    with pytest.raises(UsageError, match=r"0\.weight, .* are on the meta device .*to_empty"):
        apply(init_plan, model)


# Tables and JSON.


def test_print_has_a_line_for_each_weight_and_one_for_each_fate_of_the_others(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    init_plan = plan(mixed(), IMAGE, method="released")
    lines = str(init_plan).splitlines()
    assert lines[0].split() == ["weight", "layer", "fed", "by", "fan", "gain", "std", "q", "equation"]
    for line, row in zip(lines[1:], init_plan.weights, strict=False):
        assert line.startswith(row.parameter.removesuffix(".weight"))
        assert row.layer in line
        assert row.equation in line
        assert ("as it is" in line) == (row.std is None)
    columns = {line.index(row.layer) for line, row in zip(lines[1:], init_plan.weights, strict=False)}
    assert columns == {lines[0].index("layer")}
    rest = lines[1 + len(init_plan.weights) :]
    assert "2 x as it is: parameter of an activation (6.alpha, 6.beta)" in rest
    assert "2 x 1: normalization starts as the identity (3.weight, 11.weight)" in rest
    assert sum(int(line.split()[0]) for line in rest) == len(init_plan.rows) - len(init_plan.weights)


@pytest.mark.parametrize("columns", [40, 80, 120, 250])
@pytest.mark.parametrize("count", [1, 70, 71, 1000])
def test_a_table_fits_the_terminal(monkeypatch, columns, count):
    monkeypatch.setenv("COLUMNS", str(columns))
    row = plan(mixed(), IMAGE, method="critical", seed=0).weights[0]
    rows = [
        replace(
            row,
            parameter=f"encoder.layers.{index}.feed_forward.intermediate.dense_projection.weight",
            fed_by=f"encoder.layers.{index}.feed_forward.activation_function",
            equation="critical, rows sum to 0, calibrated; read 2 times, set for the first (q up to 1.32)",
        )
        for index in range(count)
    ]
    others = [replace(row, parameter=f"encoder.layers.{index}.bias", fan=None) for index in range(count)]
    text = str(InitPlan("critical", "fan_in", 0, (*rows, *others)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 1 + 70 + 1 + 12
    assert (f"... {count - 70} more" in text) == (count > 70)
    if columns >= 80:
        assert "fan" in lines[0]
        assert f"{row.std:.5f}" in lines[1]


def test_json_holds_the_same():
    init_plan = plan(mixed(), IMAGE, method="eq22", mode="average", seed=7)
    parsed = json.loads(init_plan.to_json())
    assert (parsed["method"], parsed["mode"], parsed["seed"]) == ("eq22", "average", 7)
    assert InitPlan.from_json(init_plan.to_json()) == init_plan
    assert init_plan.lr_multipliers == {}
    slow = replace(init_plan, rows=(replace(init_plan.rows[0], lr_multiplier=0.5), *init_plan.rows[1:]))
    assert InitPlan.from_json(slow.to_json()).lr_multipliers == {"0.weight": 0.5}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}]}', '{"rows": [], "method": "x"}', '{"rows": 3}'])
def test_what_is_no_plan_in_json(text):
    with pytest.raises(UsageError, match=r"no plan as InitPlan\.to_json writes it"):
        InitPlan.from_json(text)


# Errors.


class Opaque(nn.Module):
    """Leaves torch, so that nobody sees what it does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(2.0 * np.asarray(x.detach()))


def test_an_opaque_node_that_feeds_a_weight_is_an_error_with_two_ways_out():
    model = nn.Sequential(nn.Linear(8, 8), Opaque(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.zeros(2, 8)
    with pytest.raises(
        UnknownNodeError, match=r"not understood: '1', which feeds 3\.weight\. .*skip=\['3\.weight'\]"
    ) as error:
        plan(model, x, method="second_moment", seed=0)
    assert "refine='noise'" in str(error.value)
    skipped = plan(model, x, method="second_moment", skip=["3.weight"], seed=0).weights
    assert [row.parameter for row in skipped] == ["0.weight", "5.weight"]
    assert skipped[1].equation == "second moment; behind 3 a second moment of 0.5 is assumed"
    measured = initialize(model, x, method="second_moment", refine="noise", seed=0)
    assert [row.second_moment for row in measured.weights] == pytest.approx([1.0] * 3, rel=1e-6)
    for method in ("eq22", "msra"):  # they look at what feeds a weight, and at nothing behind that
        with pytest.raises(UnknownNodeError, match=r"'1', which feeds 2\.weight\."):
            plan(nn.Sequential(*model[:2], *model[3:]), x, method=method, seed=0)


def test_an_opaque_node_does_no_harm_where_no_weight_or_a_normalization_reads_it():
    model = nn.Sequential(nn.Linear(8, 8), Opaque(), nn.LayerNorm(8), nn.Linear(8, 8), Opaque())
    rows = plan(model, torch.zeros(2, 8), method="second_moment", seed=0).weights
    assert [row.second_moment for row in rows] == pytest.approx([1.0, 1.0], rel=1e-4)  # the eps of the norm


ERRORS = [
    ({"method": "eq23"}, r"method must be one of eq22, .*lsuv, got 'eq23'"),
    ({"mode": "fan_avg"}, "mode must be one of fan_in, fan_out, average, got 'fan_avg'"),
    ({"residual": "rezero"}, "residual must be one of scale, zero, fixup, none, got 'rezero'"),
    ({"refine": "batch"}, "refine must be one of none, noise, data, got 'batch'"),
    ({"heads": "small"}, "heads must be one of signal, zero, got 'small'"),
    ({"distribution": "cauchy"}, "distribution must be one of normal, .*, got 'cauchy'"),
    ({"seed": 1.5}, r"seed must be an integer or None, got 1\.5"),
    ({"skip": ["fc.*", "0.weight", "nothing"]}, r"skip: no parameter of the model matches 'fc\.\*', 'nothing'"),
    ({"method": "gaussian", "std": -1.0}, r"std must be a number >= 0, got -1\.0"),
]


@pytest.mark.parametrize("function", [plan, initialize])
@pytest.mark.parametrize(
    ("options", "message"), ERRORS, ids=lambda value: next(iter(value), "") if isinstance(value, dict) else ""
)
def test_wrong_arguments(function, options, message):
    model = mixed()
    before = state(model)
    with pytest.raises(UsageError, match=message) as error:
        function(model, IMAGE, **options)
    assert "\n" not in str(error.value)
    assert not changed(model, before)


@pytest.mark.parametrize("function", [plan, initialize])
def test_wrong_examples_and_models(function):
    model = mixed()
    before = state(model)
    with pytest.raises(UsageError, match=r"does not accept an example of shape \(1, 4, 8, 8\)"):
        function(model, torch.zeros(1, 4, 8, 8), method="eq22")
    with pytest.raises(UsageError, match=r"model must be a torch.nn.Module, got function"):
        function(mixed, IMAGE)
    model[1] = nn.GELU()
    with pytest.raises(UsageError, match=r"Eq\. 22 covers units .*got GELU"):
        function(model, IMAGE, method="eq22")
    assert not changed(model, before)


def test_a_signal_of_zero_cannot_be_restored():
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * x

    model = nn.Sequential(nn.Linear(8, 8), Zero(), nn.Linear(8, 8))
    with pytest.raises(UsageError, match=r"what '2\.weight' reads is 0"):
        plan(model, torch.zeros(2, 8), method="second_moment", seed=0)
    assert plan(model, torch.zeros(2, 8), method="msra", seed=0).weights[1].std == pytest.approx(0.5)


def test_a_plan_for_another_model_is_refused_before_anything_is_written():
    init_plan = plan(mixed(), IMAGE, method="second_moment", seed=0)
    wider = mixed()
    wider[12] = nn.Linear(24, 11)
    longer = nn.Sequential(*mixed(), nn.Linear(10, 10))
    for model, message in [
        (
            nn.Sequential(nn.Linear(3, 3)),
            r"plan is for another model: Sequential has no 2\.weight, .* more differences",
        ),
        (wider, r"12\.weight of shape \(11, 24\) instead of \(10, 24\)"),
        (longer, r"13\.weight, which has no row"),
        (nn.ModuleDict({"module": mixed()}), r"without wrappers"),
    ]:
        before = state(model)
        with pytest.raises(UsageError, match=message):
            apply(init_plan, model)
        assert not changed(model, before)


def test_a_model_without_parameters():
    init_plan = initialize(nn.Sequential(nn.ReLU()), torch.zeros(2, 3))
    assert init_plan.rows == ()
    assert str(init_plan).split()[0] == "weight"


def test_parameters_that_are_no_real_numbers_are_left_alone():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.real = nn.Linear(4, 4)
            self.complex = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
            self.count = nn.Parameter(torch.arange(4), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return (self.real(x).to(torch.complex64) @ self.complex).real + self.count

    model = Odd()
    before = state(model)
    rows = rows_of(initialize(model, torch.zeros(2, 4), method="second_moment", seed=0))
    assert rows["complex"].fill == rows["count"].fill == AS_IS
    assert "complex64" in rows["complex"].equation
    assert changed(model, before) == {"real.weight", "real.bias"}


def test_any_integer_is_a_seed():
    seeds = [-1, 0, 2**70]
    weights = []
    for seed in seeds:
        model = nn.Sequential(nn.Linear(8, 8))
        assert initialize(model, torch.zeros(1, 8), method="xavier", seed=seed).seed == seed
        weights.append(model[0].weight.detach())
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_an_example_of_any_form_and_place():
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(4, 8)

        def forward(self, x: Tensor, y: Tensor, *, scale: float = 1.0) -> dict[str, tuple[Tensor, ...]]:
            return {"out": (scale * self.a(x), self.b(y))}

    model = Several()
    x, y = torch.zeros(2, 8), torch.zeros(2, 4)
    plans = [plan(model, example, seed=0) for example in ((x, y), {"x": x, "y": y}, {"y": y, "x": x, "scale": 1.0})]
    assert plans[0].weights[0].std == pytest.approx(plans[1].weights[0].std, rel=0.02)
    assert [len(found.weights) for found in plans] == [2, 2, 2]
    on_meta = plan(model, (x.to("meta"), y.to("meta")), method="second_moment", seed=0)
    assert on_meta == plan(model, (x, y), method="second_moment", seed=0)


def test_an_example_without_a_batch():
    rows = initialize(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.zeros(8), seed=0).weights
    assert [row.second_moment for row in rows] == pytest.approx([1.0, 1.0])


def test_public_names():
    assert mpelu.plan is plan
    assert mpelu.initialize is initialize
    assert mpelu.InitPlan is InitPlan


@pytest.mark.parametrize("start", [initialize, mpelu.tailor], ids=["initialize", "tailor"])
def test_a_weight_is_factorized_once_for_calibration_and_model(monkeypatch, start):
    factorize, shapes = torch.linalg.qr, []

    def counted(numbers: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(numbers.shape))
        return factorize(numbers)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    model = nn.Sequential(nn.Linear(6, 5), nn.ELU(), nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 3))
    made = start(model, torch.zeros(2, 6), seed=0)
    assert shapes == [(1, 6, 5), (1, 5, 4), (1, 4, 3)]
    found = {name: values.clone() for name, values in model.named_parameters()}
    apply(made, model)
    assert all(torch.equal(values, found[name]) for name, values in model.named_parameters())
