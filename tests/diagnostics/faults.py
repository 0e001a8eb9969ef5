"""The one list of nets that verdicts are tested on: healthy ones, and ones with a fault planted in them.

Every builder is given a seed, from which weights, data and the place of the fault follow. Nets are narrow, so that all
of them together take seconds; wide ones are nearer to the theory, and easier.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpelu
from tests.architectures import BY_NAME
from tests.cases import normal

WIDTH = 32
BATCH = 16
UNITS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "mpelu": lambda: mpelu.MPELU(WIDTH),
}


@dataclass
class Built:
    """A net with its data, and the place of the fault."""

    model: nn.Module
    example: Any
    layer: str = ""
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class Case:
    """A net and the verdict that is right.

    Attributes:
        name: Of the test.
        build: Called with a seed.
        state: That the verdict must have.
        cause: That must be named.
        call: Whether the advice is a call, behind which the net is healthy.
    """

    name: str
    build: Callable[[int], Built]
    state: str = "healthy"
    cause: str = ""
    call: bool = True

    def __repr__(self) -> str:
        return self.name


def data(seed: int, *shape: int) -> Tensor:
    return normal(BATCH, *(shape or (WIDTH,)), seed=1000 + seed, dtype=torch.float32)


def pixels(seed: int, *shape: int) -> Tensor:
    """Numbers from 0 to 255."""
    stream = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(0, 256, (BATCH, *(shape or (WIDTH,))), generator=stream).float()


def mlp(unit: str, depth: int, seed: int, *, norm: bool = False, outputs: int = 10) -> nn.Sequential:
    """Build so many linear layers with torch's default weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(WIDTH, WIDTH), *([nn.BatchNorm1d(WIDTH)] if norm else []), UNITS[unit]()]
        return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))


def convolutions(unit: str, depth: int, seed: int, *, norm: bool = False) -> nn.Sequential:
    """Build so many convolutions of 8 channels on 8x8 positions, and a linear layer on all of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for index in range(depth - 1):
            layers += [nn.Conv2d(8 if index else 3, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else [])]
            layers += [mpelu.MPELU(8) if unit == "mpelu" else UNITS[unit]()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 10))


class Block(nn.Module):
    """x + linear(unit(linear(unit(x)))), with layer normalization in front or without."""

    def __init__(self, unit: str, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.unit1, self.linear1 = UNITS[unit](), nn.Linear(WIDTH, WIDTH)
        self.unit2, self.linear2 = UNITS[unit](), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear2(self.unit2(self.linear1(self.unit1(self.norm(x)))))


def residual(unit: str, blocks: int, seed: int, *, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = [Block(unit, norm=norm) for _ in range(blocks)]
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), *body, nn.Linear(WIDTH, 10))


class ConvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.unit = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.unit(self.conv1(x)))


def residual_convolutions(blocks: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = [ConvBlock() for _ in range(blocks)]
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *body, nn.Flatten(), nn.Linear(8 * 64, 10))


def weights(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with weights, by name, in the order of their registration."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def inner(model: nn.Module, seed: int) -> tuple[str, nn.Module]:
    """Choose a layer that is neither the first nor the last."""
    names = list(weights(model))
    name = names[1 + (7919 * (seed + 1)) % (len(names) - 2)]
    return name, model.get_submodule(name)


def kaiming_(model: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Fill all layers with N(0, gain^2 / fan_in) and biases of 0, from torch's default generator."""
    for module in weights(model).values():
        fan_in = module.weight[0].numel()
        nn.init.normal_(module.weight, std=gain / fan_in**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def drawn(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Call with torch's default generator at a seed, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


# --- the ways to make a net healthy


def as_built(make: Callable[[int], nn.Module], *shape: int) -> Callable[[int], Built]:
    return lambda seed: Built(make(seed), data(seed, *shape))


def tailored(make: Callable[[int], nn.Module], *shape: int) -> Callable[[int], Built]:
    def build(seed: int) -> Built:
        built = Built(make(seed), data(seed, *shape))
        mpelu.tailor(built.model, built.example, seed=seed)
        return built

    return build


def initialized(make: Callable[[int], nn.Module], *shape: int, **options: Any) -> Callable[[int], Built]:
    def build(seed: int) -> Built:
        built = Built(make(seed), data(seed, *shape))
        mpelu.initialize(built.model, built.example, seed=seed, **options)
        return built

    return build


def catalog(name: str, **options: Any) -> Callable[[int], nn.Module]:
    return lambda seed: drawn(seed, lambda: mpelu.create_model(name, **options))


def architecture(name: str) -> Callable[[int], Built]:
    return lambda seed: Built(drawn(seed, BY_NAME[name].build), BY_NAME[name].example())


def trained(seed: int) -> Built:
    """A small net behind 60 updates."""
    model, x = mlp("relu", 4, seed), data(seed)
    target = torch.arange(BATCH) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    model.zero_grad()
    return Built(model, x, optimizer=optimizer)


# --- the faults


Fault = Callable[[Built, int], None]


def planted(build: Callable[[int], Built], fault: Fault) -> Callable[[int], Built]:
    def faulty(seed: int) -> Built:
        built = build(seed)
        with torch.no_grad():
            fault(built, seed)
        return built

    return faulty


def scaled(factor: float, *, bias: bool = False) -> Fault:
    """One layer is so many times too large."""

    def plant(built: Built, seed: int) -> None:
        built.layer, module = inner(built.model, seed)
        module.weight.mul_(factor)
        if bias:
            module.bias.mul_(factor)

    return plant


def gains(factor: float) -> Fault:
    """All weights are so many times too large."""

    def plant(built: Built, seed: int) -> None:
        for module in weights(built.model).values():
            module.weight.mul_(factor)

    return plant


def no_biases(built: Built, seed: int) -> None:
    """All biases are 0."""
    for module in weights(built.model).values():
        module.bias.zero_()


def below_zero(built: Built, seed: int) -> None:
    """One layer has a bias that no pre-activation outweighs."""
    built.layer, module = inner(built.model, seed)
    module.bias.fill_(-10.0)


def negative(built: Built, seed: int) -> None:
    """One layer has negative weights only, and what it reads is positive."""
    built.layer, module = inner(built.model, seed)
    module.weight.copy_(-module.weight.abs() - module.weight.std())


def from_pixels(built: Built, seed: int) -> None:
    built.layer, built.example = "input", pixels(seed, *built.example.shape[1:])


def divided_twice(built: Built, seed: int) -> None:
    built.layer, built.example = "input", pixels(seed, *built.example.shape[1:]) / 255**2


def still(built: Built, seed: int) -> None:
    """One layer is frozen."""
    built.layer, module = inner(built.model, seed)
    module.requires_grad_(False)


def forgotten(built: Built, seed: int) -> None:
    """The optimizer does not hold one layer."""
    built.layer, module = inner(built.model, seed)
    left = [
        parameter for parameter in built.model.parameters() if not any(parameter is own for own in module.parameters())
    ]
    built.optimizer = torch.optim.SGD(left, lr=0.1)


def too_early(built: Built, seed: int) -> None:
    """The optimizer was made before the units had parameters."""
    units = {name: module for name, module in built.model.named_modules() if isinstance(module, mpelu.MPELU)}
    built.layer = next(iter(units))
    shapes = {id(parameter) for unit in units.values() for parameter in unit.parameters()}
    left = [parameter for parameter in built.model.parameters() if id(parameter) not in shapes]
    built.optimizer = torch.optim.SGD(left, lr=0.1)


def not_a_number(value: float) -> Fault:
    def plant(built: Built, seed: int) -> None:
        built.layer, module = inner(built.model, seed)
        module.weight.view(-1)[0] = value

    return plant


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def detached(seed: int) -> Built:
    """No gradient goes further back than the middle."""
    model = mlp("relu", 10, seed)
    mpelu.initialize(model, data(seed), seed=seed)
    layers = list(model)
    return Built(nn.Sequential(*layers[:8], Detach(), *layers[8:]), data(seed), layer="6")


def deep(unit: str, depth: int) -> Callable[[int], nn.Module]:
    return lambda seed: mlp(unit, depth, seed)


def conv(unit: str, depth: int) -> Callable[[int], nn.Module]:
    return lambda seed: convolutions(unit, depth, seed)


def blocks(unit: str, count: int, *, norm: bool = False) -> Callable[[int], nn.Module]:
    return lambda seed: residual(unit, count, seed, norm=norm)


def filled(make: Callable[[int], nn.Module], *shape: int, gain: float = 2**0.5) -> Callable[[int], Built]:
    return lambda seed: Built(drawn(seed, lambda: kaiming_(make(seed), gain)), data(seed, *shape))


CRITICAL = mpelu.gain(nn.Tanh(), "critical")

HEALTHY = [
    *(Case(f"tailored {unit} 50", tailored(deep(unit, 50))) for unit in UNITS),
    Case("tailored gelu 100", tailored(deep("gelu", 100))),
    Case("tailored relu 300", tailored(deep("relu", 300))),
    Case("tailored conv mpelu 30", tailored(conv("mpelu", 30), 3, 8, 8)),
    *(Case(f"initialized {unit} 20", initialized(deep(unit, 20))) for unit in UNITS),
    Case("initialized conv elu 12", initialized(conv("elu", 12), 3, 8, 8)),
    Case("kaiming relu 12", filled(deep("relu", 12))),
    *(Case(f"default relu {depth}", as_built(deep("relu", depth))) for depth in (2, 3, 4, 5)),
    Case("default conv relu 4", as_built(conv("relu", 4), 3, 8, 8)),
    Case("batch norm relu 30", as_built(lambda seed: mlp("relu", 30, seed, norm=True))),
    Case("batch norm conv relu 20", as_built(lambda seed: convolutions("relu", 20, seed, norm=True), 3, 8, 8)),
    Case("residual gelu 30 scaled", initialized(blocks("gelu", 30))),
    Case("residual relu 100 scaled", initialized(blocks("relu", 100))),
    Case("residual elu 30 zero", initialized(blocks("elu", 30), residual="zero")),
    Case("residual relu 30 fixup", initialized(blocks("relu", 30), residual="fixup")),
    Case("residual relu 30 tailored", tailored(blocks("relu", 30))),
    Case("pre-norm gelu 30", as_built(blocks("gelu", 30, norm=True))),
    Case("pre-norm relu 100", as_built(blocks("relu", 100, norm=True))),
    Case("plain30 eq22 mpelu", initialized(catalog("plain30"), 1, 16, 16, method="eq22")),
    Case("plain30 batch norm", as_built(catalog("plain30", batch_norm=True), 1, 16, 16)),
    Case("nopre29", as_built(catalog("nopre29"), 3, 16, 16)),
    Case("nopre29 initialized", initialized(catalog("nopre29"), 3, 16, 16)),
    Case("trained relu 4", trained),
    *(
        Case(f"default {name}", architecture(name))
        for name in ("vgg", "resnet", "pre-activation", "densenet", "unet", "mixer", "vit", "fused attention", "lstm")
    ),
]  # fmt: skip

FAULTY = [
    *(Case(f"{unit} 50, a layer x10", planted(tailored(deep(unit, 50)), scaled(10.0)), "exploding", "mis-scaled layer")
      for unit in UNITS),
    *(Case(f"{unit} 50, a layer x0.1", planted(tailored(deep(unit, 50)), scaled(0.1)), "vanishing", "mis-scaled layer")
      for unit in UNITS),
    Case("conv elu 12, a layer x10", planted(initialized(conv("elu", 12), 3, 8, 8), scaled(10.0, bias=True)),
         "exploding", "mis-scaled layer"),
    Case("conv relu 30, a layer x0.1", planted(tailored(conv("relu", 30), 3, 8, 8), scaled(0.1)),
         "vanishing", "mis-scaled layer"),
    Case("residual gelu 30, a layer x10", planted(initialized(blocks("gelu", 30)), scaled(10.0)),
         "exploding", "mis-scaled layer"),
    Case("residual relu 100, a layer x0.1", planted(initialized(blocks("relu", 100)), scaled(0.1)),
         "vanishing", "mis-scaled layer"),
    Case("relu 300, a layer x10", planted(tailored(deep("relu", 300)), scaled(10.0)), "exploding", "mis-scaled layer"),
    Case("gelu 5, a layer x10", planted(initialized(deep("gelu", 5)), scaled(10.0, bias=True)),
         "exploding", "mis-scaled layer"),
    *(Case(f"{unit} {depth}, gain x0.8", planted(tailored(deep(unit, depth)), gains(0.8)), "vanishing", "wrong gain")
      for unit, depth in (("relu", 30), ("elu", 30), ("gelu", 50), ("tanh", 100), ("mpelu", 50))),
    *(Case(f"{unit} {depth}, gain x1.2", planted(tailored(deep(unit, depth)), gains(1.2)), "exploding", "wrong gain")
      for unit, depth in (("relu", 30), ("elu", 60), ("gelu", 50), ("tanh", 60), ("mpelu", 60))),
    Case("conv relu 30, gain x0.8", planted(tailored(conv("relu", 30), 3, 8, 8), gains(0.8)),
         "vanishing", "wrong gain"),
    Case("gelu 60 filled for relu", filled(deep("gelu", 60)), "vanishing", "filled for ReLU"),
    Case("elu 100 filled for relu", filled(deep("elu", 100)), "exploding", "filled for ReLU"),
    Case("relu 30, torch's default", as_built(deep("relu", 30)), "vanishing", "torch's default"),
    Case("tanh 50, torch's default", as_built(deep("tanh", 50)), "vanishing", "torch's default"),
    Case("relu 50 without biases", planted(initialized(deep("relu", 50)), no_biases),
         "vanishing", "missing bias variance"),
    Case("gelu 50 without biases", planted(initialized(deep("gelu", 50)), no_biases),
         "vanishing", "missing bias variance"),
    Case("tanh 100 without biases", planted(initialized(deep("tanh", 100)), no_biases),
         "exploding", "missing bias variance"),
    Case("tanh 100 at the edge of chaos without biases", filled(deep("tanh", 100), gain=CRITICAL),
         "exploding", "missing bias variance"),
    Case("relu 20, dead by its bias", planted(initialized(deep("relu", 20)), below_zero), "dead units", "dead layer"),
    Case("elu 30, a bias of -10", planted(tailored(deep("elu", 30)), below_zero), "exploding", "bias is too large"),
    Case("relu 12, dead by its weights", planted(filled(deep("relu", 12)), negative), "dead units", "dead layer"),
    Case("conv relu 12, dead by its bias", planted(filled(conv("relu", 12), 3, 8, 8), below_zero),
         "dead units", "dead layer"),
    Case("residual relu 30 without scale", filled(blocks("relu", 30)), "exploding", "residual growth"),
    Case("residual gelu 100 without scale", filled(blocks("gelu", 100), gain=1.5), "exploding", "residual growth"),
    Case("residual conv 30 without scale", filled(lambda seed: residual_convolutions(30, seed), 3, 8, 8),
         "exploding", "residual growth"),
    Case("relu 20 on pixels", planted(initialized(deep("relu", 20)), from_pixels), "exploding", "input scale"),
    Case("tanh 30 on pixels", planted(tailored(deep("tanh", 30)), from_pixels), "exploding", "input scale"),
    Case("conv relu 5 on pixels", planted(as_built(conv("relu", 5), 3, 8, 8), from_pixels), "exploding", "input scale"),
    Case("elu 30 on pixels divided twice", planted(tailored(deep("elu", 30)), divided_twice),
         "vanishing", "input scale"),
    Case("gelu 30, a layer frozen", planted(tailored(deep("gelu", 30)), still), "dead gradient", "frozen layer"),
    Case("nopre29, a layer frozen", planted(as_built(catalog("nopre29"), 3, 16, 16), still),
         "dead gradient", "frozen layer"),
    Case("relu 20, a layer not in the optimizer", planted(initialized(deep("relu", 20)), forgotten),
         "dead gradient", "frozen layer"),
    Case("mpelu 20, made before the optimizer knew of alpha", planted(tailored(deep("mpelu", 20)), too_early),
         "dead gradient", "frozen activation"),
    Case("mpelu 2, made before the optimizer knew of alpha", planted(initialized(deep("mpelu", 2)), too_early),
         "dead gradient", "frozen activation"),
    Case("relu 10 with detach()", detached, "dead gradient", "no gradient reaches", call=False),
    Case("relu 100, NaN in a weight", planted(tailored(deep("relu", 100)), not_a_number(float("nan"))),
         "non-finite", "non-finite parameter"),
    Case("elu 20, infinity in a weight", planted(initialized(deep("elu", 20)), not_a_number(float("inf"))),
         "non-finite", "non-finite parameter"),
    Case("nopre29, NaN in a weight", planted(as_built(catalog("nopre29"), 3, 16, 16), not_a_number(float("nan"))),
         "non-finite", "non-finite parameter"),
    Case("relu 100, right gain", initialized(deep("relu", 100)), "collapsing", "too nonlinear"),
    Case("tanh 3, weights x20", planted(as_built(deep("tanh", 3)), gains(20.0)), "vanishing", "saturated activation"),
]  # fmt: skip
