"""Do very deep plain nets train? Steps until the training loss is below 0.05, on the built-in digits.

    python benchmarks/bench_tailor.py --depth 52 100 --activation elu gelu tanh relu mpelu --csv results/tailor.csv

There is no normalization, no shortcut and no warm-up: SGD with momentum 0.9 on batches of 128. The weights are
orthogonal (``--weights gaussian`` draws them), biases are 0, and one forward pass over a training batch rescales each
weight so that its pre-activations have second moment 1, except for the methods ``default`` and ``eq22``.

``steps``      updates done before the first batch whose loss, taken before its own update, is below 0.05
``mean of 5``  the same for the mean over that batch and the four before it, which is stricter
``final``      mean loss of the last ten batches

Of the learning rates, the one with the smallest median of ``steps`` is shown; if none got there, the one with the
smallest median of ``final``. Diverged runs count as infinite. Every single run is a row of the CSV file.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.data import digits
from mpelu.init import taylor_normal_
from mpelu.init.shape import ETA, TailoredShape, tailored_shape, tailored_slope
from mpelu.init.shape import TAU as TAU_SHAPE
from mpelu.init.transform import TAU, Transformed, tailored
from mpelu.moments import moments
from mpelu.nn import MPELU
from mpelu.optim import keep_beta_positive

LEARNED = 0.05
MOMENTUM = 0.9
RATES = (0.1, 0.15, 0.2, 0.25, 0.3)
"""Learning rates times the depth: all layers together move the output depth times as much as one."""
SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def _of_any_width(kind: Callable[[], nn.Module], _: int) -> nn.Module:
    return kind()


UNITS: dict[str, Callable[[int], nn.Module]] = {
    **{name: partial(_of_any_width, kind) for name, kind in SMOOTH.items()},
    "relu": lambda _: nn.ReLU(),
    "mpelu": MPELU,
}
"""Called with the number of channels."""
SLOPES = {"relu": 0.0, "mpelu": 0.25, "gelu": 0.5, "silu": 0.5, "mish": 0.6, "softplus": 0.5}
"""Slopes at 0, for Eq. 22; 1 for the others."""
METHODS = ("tailored", "wrapped", "exact", "eq22", "default")


@dataclass(frozen=True)
class Run:
    """One training: everything that it follows from, and what came out."""

    net: str
    width: int
    depth: int
    activation: str
    method: str
    setting: str
    """What the method chose."""
    weights: str
    head: float
    batch: int
    updates: int
    lr: float
    alpha_lr: float
    beta_lr: float
    seed: int
    steps: float
    """inf where the loss never got there."""
    mean_of_5_steps: float
    final_loss: float
    test_error_percent: float
    torch: str


@dataclass(frozen=True)
class Unit:
    """How an activation starts."""

    build: Callable[[int], nn.Module]
    gain: float
    slope: float
    """Of the negative side at 0, for Eq. 22."""
    setting: str = ""
    alpha_lr: float = 1.0
    beta_lr: float = 1.0


def unit(activation: str, method: str, depth: int, *, tau: float | None, eta: float) -> Unit:
    """Return the activation of a net with ``depth`` weight layers, which has depth - 1 activations."""
    if method in ("tailored", "wrapped"):
        return _tailored_unit(activation, method, depth - 1, tau=tau, eta=eta)
    build = UNITS[activation]
    return Unit(build, 1 / math.sqrt(moments(build(1)).second_moment), SLOPES.get(activation, 1.0))


def _tailored_unit(activation: str, method: str, depth: int, *, tau: float | None, eta: float) -> Unit:
    if activation == "relu":
        leaky = tailored_slope(depth, eta=eta)
        slope = leaky.negative_slope
        return Unit(lambda _: nn.LeakyReLU(slope), leaky.gain, slope, f"eta {eta:g}: slope {slope:.4f}")
    if (activation, method) == ("mpelu", "tailored"):
        tau = TAU_SHAPE if tau is None else tau
        shape = tailored_shape(depth, tau=tau)
        setting = f"tau {tau:g}: alpha {shape.alpha:.3f}, beta {shape.beta:.4f}"
        return Unit(_mpelu(shape), shape.gain, 1.0, setting, shape.alpha_lr, shape.beta_lr)
    tau = TAU if tau is None else tau
    setting, rates, build = f"tau {tau:g}", (1.0, 1.0), UNITS[activation]
    if activation == "mpelu":
        shape = tailored_shape(depth, tau=tau)
        setting += f", alpha {shape.alpha:.3f}, beta {shape.beta:.4f}"
        rates, build = (shape.alpha_lr, shape.beta_lr), _mpelu(shape)
    wrapper = tailored(build(1), depth, tau=tau)
    numbers = (wrapper.input_scale, wrapper.input_shift, wrapper.output_scale, wrapper.output_shift)
    setting += ": a {:.4f} b {:.4f} s {:.3f} d {:.4f}".format(*numbers)
    return Unit(lambda width: Transformed(build(width), *numbers), 1.0, 1.0, setting, *rates)


def _mpelu(shape: TailoredShape) -> Callable[[int], nn.Module]:
    return partial(MPELU, init_alpha=shape.alpha, init_beta=shape.beta)


def mlp(depth: int, width: int, activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """Linear layers on 8 x 8 pixels."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width)]
    for _ in range(depth - 2):
        layers += [activation(width), nn.Linear(width, width)]
    return nn.Sequential(*layers, activation(width), nn.Linear(width, 10))


def conv(depth: int, width: int, activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """3x3 convolutions with zero padding on 16 x 16 pixels, averaged to 8 x 8 and 4 x 4, and a linear layer."""
    layers: list[nn.Module] = []
    for index in range(depth - 1):
        layers += [nn.Conv2d(width if index else 1, width, 3, padding=1), activation(width)]
        if index in ((depth - 1) // 3, 2 * (depth - 1) // 3):
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


NETS = {"mlp": (mlp, 64, 128, 300), "conv": (conv, 16, 64, 200)}
"""Builder, width, batch size and number of updates."""


@cache
def data(net: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the training and the test images, standardized by one mean and one deviation, each with its labels."""
    if net == "conv":
        decoded = digits.decode(digits.find().files["all"][0])
        images = torch.cat([decoded.train.images, decoded.test.images]).float()
        labels = torch.cat([decoded.train.labels, decoded.test.labels])
    else:
        rows = torch.from_numpy(np.loadtxt(digits.find().files["all"][0], delimiter=",", dtype=np.float32))
        images, labels = rows[:, :64], rows[:, 64].long()
    train = images[: digits.TRAIN_ROWS]
    images = (images - train.mean()) / train.std()
    size = digits.TRAIN_ROWS
    return images[:size], labels[:size], images[size:], labels[size:]


def initialize(
    model: nn.Sequential, unit: Unit, method: str, images: Tensor, *, weights: str, head: float, seed: int
) -> None:
    """Fill the weights in place; ``head`` is a factor of the last one."""
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for layer in model if isinstance(layer, nn.Linear | nn.Conv2d)]
    for index, layer in enumerate(layers):
        gain = unit.gain if index else 1.0
        if method == "default":
            _torch_default_(layer, generator)
        elif method == "eq22":
            taylor_normal_(layer.weight, unit.slope if index else 1.0, generator=generator)
        elif weights == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain, generator=generator)
        elif weights == "delta" and isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            with torch.no_grad():
                nn.init.orthogonal_(layer.weight[:, :, 1, 1], gain, generator=generator)
        else:
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(fan_in), generator=generator)
        if method != "default" and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if method not in ("default", "eq22"):
        _calibrate(model, images)
    with torch.no_grad():
        layers[-1].weight.mul_(head)


def _torch_default_(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(layer.weight[0].numel())  # what reset_parameters does, with a generator
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


@torch.no_grad()
def _calibrate(model: nn.Sequential, signal: Tensor) -> None:
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.div_(layer(signal).square().mean().sqrt())
        signal = layer(signal)


def train(model: nn.Sequential, net: str, unit: Unit, *, lr: float, batch: int, updates: int, seed: int) -> list[float]:
    """Return the loss of each batch; after divergence, infinity."""
    images, labels, _, _ = data(net)
    rates = {"alpha": lr * unit.alpha_lr, "beta": lr * unit.beta_lr}
    groups = [
        {"params": [parameter], "lr": rates.get(name.rpartition(".")[2], lr)}
        for name, parameter in model.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr, momentum=MOMENTUM, foreach=True)
    keep_beta_positive(optimizer, model)
    generator = torch.Generator().manual_seed(1000 + seed)
    losses: list[float] = []
    order = torch.empty(0, dtype=torch.long)
    while len(losses) < updates:
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:batch], order[batch:]
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        losses.append(loss.item())
        if not losses[-1] < 30.0:  # ten times that of an untrained net: it does not come back
            return losses[:-1] + [math.inf] * (updates - len(losses) + 1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return losses


def first_below(losses: Sequence[float], window: int) -> float:
    """Return the index of the first batch at which the mean over ``window`` batches is below LEARNED."""
    for index in range(window - 1, len(losses)):
        if statistics.fmean(losses[index - window + 1 : index + 1]) < LEARNED:
            return index
    return math.inf


@torch.no_grad()
def test_error_percent(model: nn.Module, net: str) -> float:
    _, _, images, labels = data(net)
    return 100.0 * float((model(images).argmax(1) != labels).float().mean())


def one_run(
    net: str, depth: int, activation: str, method: str, lr: float, seed: int, options: argparse.Namespace
) -> Run:
    build, width, batch, updates = NETS[net]
    updates = options.updates or updates
    start = unit(activation, method, depth, tau=options.tau, eta=options.eta)
    model = build(depth, width, start.build)
    images = data(net)[0][:256]
    initialize(model, start, method, images, weights=options.weights, head=options.head, seed=seed)
    losses = train(model, net, start, lr=lr, batch=batch, updates=updates, seed=seed)
    return Run(
        net=net,
        width=width,
        depth=depth,
        activation=activation,
        method=method,
        setting=start.setting,
        head=options.head,
        weights="uniform" if method == "default" else "gaussian" if method == "eq22" else options.weights,
        batch=batch,
        updates=updates,
        lr=lr,
        alpha_lr=lr * start.alpha_lr,
        beta_lr=lr * start.beta_lr,
        seed=seed,
        steps=first_below(losses, 1),
        mean_of_5_steps=first_below(losses, 5),
        final_loss=statistics.fmean(losses[-10:]),
        test_error_percent=test_error_percent(model, net),
        torch=torch.__version__,
    )


def append(path: Path, runs: Sequence[Run]) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Run)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in asdict(run).items()} for run in runs)


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def summary(runs: Sequence[Run]) -> str:
    """Return a row of the table for runs that differ in learning rate and seed only."""
    rates = sorted({run.lr for run in runs})
    at = {lr: [run for run in runs if run.lr == lr] for lr in rates}

    def rank(lr: float) -> tuple[float, float]:
        return statistics.median(r.steps for r in at[lr]), statistics.median(r.final_loss for r in at[lr])

    best = at[min(rates, key=rank)]
    first = best[0]
    least = min(rates, key=lambda lr: statistics.median(run.final_loss for run in at[lr]))
    cells = [
        first.net,
        str(first.depth),
        first.activation,
        first.method,
        first.setting + f", head {first.head:g}" * (first.head != 1) + f", {first.weights}" * (first.net == "conv"),
        f"{first.lr:.3g}",
        _median_and_range([run.steps for run in best], ".0f"),
        _median_and_range([run.mean_of_5_steps for run in best], ".0f"),
        _median_and_range([run.final_loss for run in best], ".3f"),
        _median_and_range([run.final_loss for run in at[least]], ".3f") + f" at {least:.3g}",
        f"{statistics.median(run.test_error_percent for run in best):.1f}",
        str(len(best)),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "net",
    "depth",
    "activation",
    "method",
    "start",
    "lr",
    "steps",
    "mean of 5",
    "final",
    "smallest final",
    "test error, %",
    "seeds",
)


def _median_and_range(values: Sequence[float], form: str) -> str:
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="mlp")
    parser.add_argument("--depth", type=int, nargs="+", default=[52, 100], help="number of weight layers")
    parser.add_argument("--activation", choices=UNITS, nargs="+", default=list(UNITS))
    parser.add_argument(
        "--method",
        choices=METHODS,
        nargs="+",
        default=["tailored"],
        help="tailored: MPELU by alpha and beta, ReLU by a leaky slope, others by a wrapper; wrapped: MPELU by a "
        "wrapper; exact: the activation as it is, with the gain that keeps the second moment; eq22; default: torch's",
    )
    parser.add_argument("--weights", choices=("orthogonal", "delta", "gaussian"), default="orthogonal")
    parser.add_argument("--head", type=float, default=1.0, help="factor of the last layer's weights")
    parser.add_argument("--tau", type=float, help="curvature of the stack of smooth activations")
    parser.add_argument("--eta", type=float, default=ETA, help="correlation behind the stack of leaky units")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates times the depth")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--updates", type=int, help="instead of 300 (mlp) or 200 (conv)")
    parser.add_argument("--csv", type=Path, help="append every run to this file")
    options = parser.parse_args()
    if "wrapped" in options.method and options.activation != ["mpelu"]:
        parser.error("--method wrapped is for --activation mpelu; the other smooth activations are always wrapped")
    torch.set_num_threads(1)
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    for depth in options.depth:
        for activation in options.activation:
            for method in options.method:
                runs = [
                    one_run(options.net, depth, activation, method, rate / depth, seed, options)
                    for rate in options.rates
                    for seed in range(options.seeds)
                ]
                if options.csv:
                    append(options.csv, runs)
                print(summary(runs), flush=True)


if __name__ == "__main__":
    main()
