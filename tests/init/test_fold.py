import copy
import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mpelu.errors import UsageError
from mpelu.init import tailor
from mpelu.init.fold import fold
from mpelu.init.transform import Transformed, tailored
from mpelu.nn import MPELU
from tests.cases import normal


def unit(activation: nn.Module | None = None) -> Transformed:
    return tailored(activation or nn.GELU(), 10)


class Residual(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.act1 = nn.Linear(8, 8), unit(activation())
        self.second, self.act2 = nn.Linear(8, 8), unit(activation())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.first(x))
        return self.head(x + self.act2(self.second(x)))


class Shared(nn.Module):
    """One wrapper used three times, one linear layer used twice before it and one twice behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3), unit()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.again(x))
        return self.head(x) + self.head(self.act(self.again(x)))


class WeightUsedTwice(nn.Module):
    """A linear layer that one wrapper and something else feed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.again, self.head = nn.Linear(8, 8), unit(), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.act(self.first(x))).relu() + self.again(x))


class Branches(nn.Module):
    """One wrapper with five readers, through views; two wrappers that end in a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(8, 8), unit()
        self.left, self.act_left = nn.Linear(8, 8), unit()
        self.right, self.act_right = nn.Linear(8, 8, bias=False), unit()
        self.points, self.halves = nn.Conv1d(8, 2, 1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        points = self.points(x[..., None]).flatten(1)
        halves = self.halves(x.view(-1, 4, 2)).flatten(1)
        return torch.cat([self.act_left(self.left(x)), self.act_right(self.right(x)), points, halves], 1)


class ReadBefore(nn.Module):
    """What feeds the wrapper is read by something else too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(8, 8), unit(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.act(x)) + x[:, :3]


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    left: dict[str, set[str]]
    """By the name of a wrapper: which of its numbers stay."""


SHIFT = {"output_shift"}
OUTPUT = {"output_scale", "output_shift"}
INPUT = {"input_scale", "input_shift"}
IMAGE = (5, 3, 10, 10)

CASES = [
    Case(
        "chain",
        lambda: nn.Sequential(nn.Linear(8, 6), unit(), nn.Linear(6, 7, bias=False), unit(nn.Tanh()), nn.Linear(7, 3)),
        (5, 8),
        {},
    ),
    Case(
        "mpelu",
        lambda: nn.Sequential(
            nn.Linear(8, 6), unit(MPELU(6, 1.0, 1.0)), nn.Linear(6, 7), unit(MPELU(1, 1.0, 1.0)), nn.Linear(7, 3)
        ),
        (5, 8),
        {},
    ),
    Case("nothing behind", lambda: nn.Sequential(nn.Linear(8, 8), unit()), (5, 8), {"1": OUTPUT}),
    Case("nothing before", lambda: nn.Sequential(unit(), nn.Linear(8, 8)), (5, 8), {"0": INPUT}),
    Case(
        "nothing behind mpelu", lambda: nn.Sequential(nn.Linear(8, 8), unit(MPELU(8, 1.0, 1.0))), (5, 8), {"1": SHIFT}
    ),
    Case(
        "convolutions",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            unit(),
            nn.Conv2d(8, 6, 3, groups=2, stride=2),
            unit(),
            nn.Conv2d(6, 8, 3, padding=1),
            unit(),
            nn.MaxPool2d(2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        IMAGE,
        {"3": SHIFT},
    ),
    Case(
        "other padding",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            unit(),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
            unit(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(8, 4, 3),
            unit(),
            nn.ZeroPad2d(1),
            nn.Conv2d(4, 2, 3),
        ),
        IMAGE,
        {"6": OUTPUT},
    ),
    Case(
        "padded pools",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            unit(),
            nn.AvgPool2d(3, padding=1),
            nn.Conv2d(8, 8, 1),
            unit(),
            nn.AvgPool2d(3, padding=1, count_include_pad=False),
            nn.Conv2d(8, 8, 1),
            unit(),
            nn.MaxPool2d(3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (5, 3, 13, 13),
        {"1": OUTPUT},
    ),
    Case(
        "transposed and dropout",
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 8, 3, bias=False),
            unit(),
            nn.ConvTranspose2d(8, 4, 3, stride=2),
            unit(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4 * 25 * 25, 3),
        ),
        IMAGE,
        {"1": SHIFT, "3": SHIFT},
    ),
    Case(
        "norms",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            unit(),
            nn.Conv2d(8, 8, 3),
            unit(),
            nn.BatchNorm2d(8, affine=False),
            nn.Conv2d(8, 8, 1),
            unit(),
            nn.GroupNorm(2, 8),
            unit(),
            nn.Flatten(),
            nn.LayerNorm(8 * 36, bias=False),
            unit(),
            nn.Linear(8 * 36, 3),
        ),
        IMAGE,
        {},
    ),
    Case(
        "norms that cannot take it",
        lambda: nn.Sequential(
            nn.Linear(8, 8),
            unit(),
            nn.RMSNorm(8),
            nn.Linear(8, 8),
            nn.LayerNorm(8, elementwise_affine=False),
            unit(),
            nn.Linear(8, 3),
        ),
        (5, 8),
        {"1": OUTPUT, "5": INPUT},
    ),
    Case("sum", lambda: Residual(nn.GELU), (5, 8), {"act1": OUTPUT, "act2": OUTPUT}),
    Case("sum of mpelus", lambda: Residual(lambda: MPELU(8, 1.0, 1.0)), (5, 8), {"act1": SHIFT, "act2": SHIFT}),
    Case("shared", Shared, (5, 8), {}),
    Case("weight used twice", WeightUsedTwice, (5, 8), {"act": OUTPUT}),
    Case("branches", Branches, (5, 8), {"act_left": OUTPUT, "act_right": OUTPUT}),
    Case("input read by another", ReadBefore, (5, 8), {"act": INPUT}),
    Case(
        "weight normalization",
        lambda: nn.Sequential(nn.Linear(8, 8), unit(), weight_norm(nn.Linear(8, 8)), unit(), nn.Linear(8, 3)),
        (5, 8),
        {"1": OUTPUT, "3": INPUT},
    ),
]
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def stirred(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give all parameters and statistics values that no default has."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 1.0, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
    return model.to(dtype)


def output(model: nn.Module, x: Tensor, *, training: bool) -> Tensor:
    model = copy.deepcopy(model).train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for dropout
        return model(x).detach()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5)],  # a few roundings, each magnified by s |d| < 3
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@over_cases
def test_the_folded_net_computes_the_same(case, training, dtype, tolerance):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stirred(case.build(), dtype)
    x = normal(*case.shape, dtype=dtype)
    folded = copy.deepcopy(model).train(training)
    fold(folded, x)
    expected = output(model, x, training=training)
    deviation = (output(folded, x, training=training) - expected).abs().max() / expected.abs().max()
    assert deviation <= tolerance
    assert folded.training == training
    assert all(parameter.requires_grad and parameter.dtype == dtype for parameter in folded.parameters())


@over_cases
def test_what_stays_is_reported_with_a_reason(case):
    model = case.build()
    wrappers = {name for name, module in model.named_modules() if isinstance(module, Transformed)}
    report = fold(model, normal(*case.shape, dtype=torch.float32))
    assert {row.name: set(row.kept) for row in report.rows} == {name: case.left.get(name, set()) for name in wrappers}
    assert {name for name, module in model.named_modules() if isinstance(module, Transformed)} == set(case.left)
    assert report.complete == (not case.left)
    for name in case.left:
        assert name in str(report)
    assert all(reason for row in report.rows for reason in row.kept.values())


def test_folding_twice_changes_nothing_more():
    x = normal(5, 3, 10, 10)
    model = next(case for case in CASES if case.name == "convolutions").build().double()
    fold(model, x)
    before = copy.deepcopy(model.state_dict())
    report = fold(model, x)
    assert [(row.name, row.folded) for row in report.rows] == [("3", ())]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("activation", "tolerance"),
    # a hundred roundings of 6e-8, magnified by s |d| = 4.7 and 11, add up like a random walk: 3e-6 and 7e-6; 3 of them
    [(nn.GELU, 1e-5), (nn.Tanh, 2e-5), (nn.Softplus, 2e-5)],
)
def test_a_deep_net_in_float32(activation, tolerance):
    depth, width = 100, 32
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(width, width)
        nn.init.orthogonal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, tailored(activation(), depth)]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    x = normal(64, width, dtype=torch.float32)
    expected = output(copy.deepcopy(model).double(), x.double(), training=False)
    assert fold(model, x).complete
    assert (output(model, x, training=False) - expected).abs().max() <= tolerance * expected.abs().max()
    # most of it comes from the sums of the layers: the folded numbers themselves are closer, whatever the activation
    exactly = output(model.double(), x.double(), training=False)
    assert (exactly - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_mpelu_takes_the_scales_so_that_the_weights_keep_their_size():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, tailored(MPELU(8, 1.0, 1.0), 100), nn.Linear(8, 8))
    before = [model[0].weight.norm().item(), model[2].weight.norm().item()]
    fold(model, torch.zeros(1, 8))
    after = [model[0].weight.norm().item(), model[2].weight.norm().item()]
    assert after == pytest.approx(before, rel=0.2)
    gelu = nn.Sequential(nn.Linear(8, 8), tailored(nn.GELU(), 100), nn.Linear(8, 8))
    norm = gelu[0].weight.norm().item()
    fold(gelu, torch.zeros(1, 8))
    assert gelu[0].weight.norm().item() < 0.1 * norm


def test_a_wrapper_inside_of_another_function_stays():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.head = nn.Linear(8, 8), unit(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(2 * self.act(self.first(x)) + 1)

    model = Doubled()
    report = fold(model, torch.zeros(1, 8))
    assert isinstance(model.act, Transformed)
    assert set(report.rows[0].kept) == INPUT | OUTPUT
    assert "alone" in str(report)


def test_a_net_without_wrappers():
    report = fold(nn.Sequential(nn.Linear(8, 8), nn.GELU()), torch.zeros(1, 8))
    assert report.complete
    assert str(report) == "no wrappers"


def tailored_net(kind: str) -> tuple[nn.Module, tuple[int, ...], dict[str, set[str]]]:
    """Return a net that was tailored on one example, the shape of that, and which numbers stay when it is folded."""
    kind, _, padding = kind.partition(" ")
    if kind == "residual":
        model: nn.Module = nn.Sequential(
            nn.Linear(32, 32), *[PlusBranch() for _ in range(6)], nn.GELU(), nn.Linear(32, 4)
        )
        left = {f"{block}.branch.0": INPUT for block in range(1, 7)} | {"7": INPUT}
    elif kind == "conv":
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding)]
        for _ in range(10):
            layers += [nn.GELU(), nn.Conv2d(8, 8, 3, padding=1, padding_mode=padding)]
        model = nn.Sequential(*layers, nn.GELU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(8, 4))
        left = {str(2 * place + 1): SHIFT for place in range(10)} if padding == "zeros" else {}
    else:
        layers = []
        for _ in range(int(padding) - 1):
            layers += [nn.Linear(32, 32), nn.GELU() if kind == "gelu" else MPELU(32, 1.0, 1.0)]
        model, left = nn.Sequential(*layers, nn.Linear(32, 4)), {}
    shape = (3, 8, 8) if kind == "conv" else (32,)
    tailor(model, torch.zeros(1, *shape), seed=0, wrap=True)
    return model, shape, left


class PlusBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


@pytest.mark.parametrize(
    "kind", ["gelu 20", "gelu 100", "mpelu 100", "conv zeros", "conv circular", "conv replicate", "residual"]
)
def test_a_tailored_net_is_folded_without_an_example(kind):
    model, shape, left = tailored_net(kind)
    x = normal(64, *shape, dtype=torch.float32)
    expected = output(copy.deepcopy(model).double(), x.double(), training=False)
    given, double = copy.deepcopy(model), copy.deepcopy(model).double()
    report = fold(model)
    assert {row.name: set(row.kept) for row in report.rows if row.kept} == left
    assert fold(given, x[:1]) == report
    assert all(value.equal(given.state_dict()[name]) for name, value in model.state_dict().items())
    largest = expected.abs().max()
    assert (output(model, x, training=False) - expected).abs().max() <= 1e-5 * largest  # what the docstring promises
    fold(double)  # the shapes are those of an example in float32
    assert (output(double, x.double(), training=False) - expected).abs().max() <= 4e-14 * largest


def tailored_chain(width: int = 4) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    tailor(model, torch.zeros(1, width), seed=0)
    return model


def test_what_is_needed_to_fold_goes_along_with_the_model_and_not_with_its_state():
    model = tailored_chain()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    bigger = nn.ModuleDict({"net": copy.deepcopy(model)})["net"]
    for copied in (copy.deepcopy(model), loaded, bigger, copy.deepcopy(model).to(torch.bfloat16)):
        assert fold(copied).complete
    assert not any("example" in name for name in model.state_dict())
    assert not any(isinstance(value, Tensor) for value in vars(model[1]).values())


def test_keyword_arguments_and_integers_are_kept_as_what_they_are():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.first, self.act, self.head = (
                nn.Embedding(9, 8),
                nn.Linear(8, 8),
                nn.Tanh(),
                nn.Linear(8, 2),
            )

        def forward(self, tokens: Tensor, scale: Tensor, *, times: int) -> Tensor:
            return self.head(self.act(self.first(self.embedding(tokens) * scale * times)))

    model = Masked()
    tailor(model, {"tokens": torch.zeros(2, 5, dtype=torch.int64), "scale": torch.ones(2, 5, 1), "times": 2}, seed=0)
    assert fold(model).complete


def test_a_model_that_was_not_tailored_needs_an_example():
    by_hand = nn.Sequential(nn.Linear(4, 4), unit(), nn.Linear(4, 2))
    loaded = nn.Sequential(nn.Linear(4, 4), Transformed(nn.Tanh()), nn.Linear(4, 2))
    loaded.load_state_dict(tailored_chain().state_dict())
    for model in (by_hand, loaded):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(
            UsageError, match=r"'1' was not made by mpelu\.tailor.*Give an example: fold\(model, example\)"
        ):
            fold(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert fold(model, torch.zeros(1, 4)).complete


def test_parts_with_different_examples_need_one():
    model = nn.Sequential(tailored_chain(4), nn.Linear(2, 3), tailored_chain(3))
    with pytest.raises(UsageError, match=r"tailored with different examples, TensorShape\(shape=\(1, 4\).*\(1, 3\)"):
        fold(model)
    assert fold(model, torch.zeros(1, 4)).complete


def test_a_part_that_takes_something_else_needs_an_example():
    model = nn.Sequential(nn.Linear(3, 4), *tailored_chain(4))
    with pytest.raises(UsageError, match=r"does not run on the shapes of the example.*Give an example"):
        fold(model)
    assert fold(model, torch.zeros(1, 3)).complete


def test_a_forward_that_looks_at_values_needs_an_example():
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if x.sum().item() < 100 else x

    model = Looking()
    tailor(model, torch.zeros(1, 4), seed=0)
    with pytest.raises(UsageError, match=r"Give an example"):
        fold(model)
    assert fold(model, torch.zeros(1, 4)).complete
