"""Do very deep plain nets train? Updates until the training loss is below 0.05, on the built-in digits.

    python benchmarks/bench_tailor.py --depth 52 100 --activation elu gelu tanh relu mpelu --csv results/tailor.csv
    python benchmarks/bench_tailor.py --net cifar --data FOLDER --depth 50 --activation elu gelu --updates 1000
    python benchmarks/bench_tailor.py --table results/tailor.csv

There is no normalization, no shortcut and no warm-up: SGD with momentum 0.9 on batches of 128 (convolutions: 64), with
the groups of :func:`mpelu.param_groups`. The nets are started by :func:`mpelu.tailor` or :func:`mpelu.initialize`;
their example is a batch of training images.

``steps``      updates done before the first batch whose loss, taken before its own update, is below 0.05
``mean of 5``  the same for the mean over that batch and the four before it, which is stricter
``final``      mean loss of the last ten batches
``curve``      mean loss over each tenth of the updates

Of the learning rates, the one with the smallest median of ``steps`` is shown; if none got there, the one with the
smallest median of ``final``. Diverged runs count as infinite. Every single run is a row of the CSV file. Rows whose
``state`` is ``superseded`` come from rules that were given up, and ``--superseded`` shows them.
"""

import argparse
import csv
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpelu
from mpelu.data import digits
from mpelu.init import Transformed
from mpelu.init.shape import ETA
from mpelu.init.shape import TAU as TAU_SHAPE
from mpelu.init.tailor import HEAD_GAIN
from mpelu.init.transform import TAU

LEARNED = 0.05
MOMENTUM = 0.9
RATES = (0.1, 0.15, 0.2, 0.25, 0.3)
"""Learning rates times the depth: all layers together move the output depth times as much as one."""


def _of_any_width(kind: Callable[[], nn.Module], _: int) -> nn.Module:
    return kind()


UNITS: dict[str, Callable[[int], nn.Module]] = {
    "elu": partial(_of_any_width, nn.ELU),
    "gelu": partial(_of_any_width, nn.GELU),
    "silu": partial(_of_any_width, nn.SiLU),
    "mish": partial(_of_any_width, nn.Mish),
    "tanh": partial(_of_any_width, nn.Tanh),
    "softplus": partial(_of_any_width, nn.Softplus),
    "relu": partial(_of_any_width, nn.ReLU),
    "mpelu": partial(mpelu.MPELU, init_alpha=1.0, init_beta=1.0),
}
"""Called with the number of channels."""
METHODS = ("tailored", "wrapped", "auto", "second_moment", "eq22", "lsuv", "default")


@dataclass(frozen=True)
class Run:
    """One training: everything that it follows from, and what came out."""

    net: str
    data: str
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
    curve: str
    torch: str
    state: str = ""


def start(
    model: nn.Sequential, method: str, images: Tensor, seed: int, options: argparse.Namespace
) -> mpelu.InitPlan | None:
    """Initialize a model in place; torch's own initialization it has already."""
    if method in ("tailored", "wrapped"):
        return mpelu.tailor(
            model,
            images,
            seed=seed,
            eta=options.eta,
            tau=options.tau,
            wrap=method == "wrapped",
            head_gain=options.head,
            refine=options.refine,
        )
    return None if method == "default" else mpelu.initialize(model, images, method=method, seed=seed)


def setting(model: nn.Sequential, method: str, options: argparse.Namespace) -> str:
    """Say what tailoring chose."""
    if method not in ("tailored", "wrapped"):
        return ""
    unit = next(layer for layer in model if isinstance(layer, Transformed | nn.LeakyReLU | mpelu.MPELU))
    if isinstance(unit, nn.LeakyReLU):
        return f"eta {options.eta:g}: slope {unit.negative_slope:.4f}"
    if isinstance(unit, Transformed):
        numbers = (unit.input_scale, unit.input_shift, unit.output_scale, unit.output_shift)
        return f"tau {TAU if options.tau is None else options.tau:g}: " + "a {:.4f} b {:.4f} s {:.3f} d {:.4f}".format(
            *numbers
        )
    tau = TAU_SHAPE if options.tau is None else options.tau
    return f"tau {tau:g}: alpha {unit.alpha[0].item():.3f}, beta {unit.beta[0].item():.4f}"


def mlp(depth: int, width: int, activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """Linear layers on 8 x 8 pixels."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width)]
    for _ in range(depth - 2):
        layers += [activation(width), nn.Linear(width, width)]
    return nn.Sequential(*layers, activation(width), nn.Linear(width, 10))


def conv(depth: int, width: int, activation: Callable[[int], nn.Module], *, channels: int = 1) -> nn.Sequential:
    """3x3 convolutions with zero padding on 16 x 16 pixels, averaged to 8 x 8 and 4 x 4, and a linear layer."""
    layers: list[nn.Module] = []
    for index in range(depth - 1):
        layers += [nn.Conv2d(width if index else channels, width, 3, padding=1), activation(width)]
        if index in ((depth - 1) // 3, 2 * (depth - 1) // 3):
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


NETS: dict[str, tuple[Callable[..., nn.Sequential], int, int, int]] = {
    "mlp": (mlp, 64, 128, 300),
    "conv": (conv, 16, 64, 200),
    "cifar": (partial(conv, channels=3), 16, 64, 200),
}
"""Builder, width, batch size and number of updates; cifar is conv on CIFAR-10, averaged to 16 x 16 pixels."""


@dataclass(frozen=True)
class Images:
    """Training and test images, standardized by one mean and one deviation, with their labels."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@cache
def data(net: str, folder: Path | None = None) -> Images:
    if net == "cifar":
        dataset = mpelu.data.load(str(folder))
        splits = (dataset.train, dataset.test)
        train, test = (F.avg_pool2d(split.images.float(), 2) for split in splits)
        name, (train_labels, test_labels) = dataset.name, (split.labels for split in splits)
    elif net == "conv":
        decoded = digits.decode(digits.find().files["all"][0])
        name, train, test = "digits", decoded.train.images.float(), decoded.test.images.float()
        train_labels, test_labels = decoded.train.labels, decoded.test.labels
    else:
        rows = torch.from_numpy(np.loadtxt(digits.find().files["all"][0], delimiter=",", dtype=np.float32))
        name, labels = "digits", rows[:, 64].long()
        train, test = rows[: digits.TRAIN_ROWS, :64], rows[digits.TRAIN_ROWS :, :64]
        train_labels, test_labels = labels[: digits.TRAIN_ROWS], labels[digits.TRAIN_ROWS :]
    mean, std = train.mean(), train.std()
    return Images(name, (train - mean) / std, train_labels, (test - mean) / std, test_labels)


def train(
    model: nn.Sequential, images: Images, plan: mpelu.InitPlan | None, *, lr: float, batch: int, updates: int, seed: int
) -> tuple[list[float], dict[str, float]]:
    """Return the loss of each batch, infinity after divergence, and the learning rates of alpha and beta."""
    groups = mpelu.param_groups(model, lr=lr, weight_decay=0.0, plan=plan)
    rates = {group["name"].partition("*")[0]: group["lr"] for group in groups}
    optimizer = torch.optim.SGD(groups, lr, momentum=MOMENTUM, foreach=True)
    mpelu.keep_beta_positive(optimizer, model)
    generator = torch.Generator().manual_seed(1000 + seed)
    losses: list[float] = []
    order = torch.empty(0, dtype=torch.long)
    while len(losses) < updates:
        if len(order) < batch:
            order = torch.randperm(len(images.train), generator=generator)
        chosen, order = order[:batch], order[batch:]
        loss = F.cross_entropy(model(images.train[chosen]), images.train_labels[chosen])
        losses.append(loss.item())
        if not losses[-1] < 30.0:  # ten times that of an untrained net: it does not come back
            return losses[:-1] + [math.inf] * (updates - len(losses) + 1), rates
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return losses, rates


def first_below(losses: Sequence[float], window: int) -> float:
    """Return the index of the first batch at which the mean over ``window`` batches is below LEARNED."""
    for index in range(window - 1, len(losses)):
        if statistics.fmean(losses[index - window + 1 : index + 1]) < LEARNED:
            return index
    return math.inf


def curve(losses: Sequence[float]) -> str:
    """Return the mean loss over each tenth of the updates."""
    ends = [len(losses) * tenth // 10 for tenth in range(11)]
    return " ".join(f"{statistics.fmean(losses[a:b]):.3f}" for a, b in itertools.pairwise(ends))


@torch.no_grad()
def test_error_percent(model: nn.Module, images: Images) -> float:
    parts = zip(torch.split(images.test, 1000), torch.split(images.test_labels, 1000), strict=True)
    wrong = sum(int((model(part).argmax(1) != labels).sum()) for part, labels in parts)
    return 100.0 * wrong / len(images.test)


def one_run(
    net: str, depth: int, activation: str, method: str, lr: float, seed: int, options: argparse.Namespace
) -> Run:
    build, width, batch, updates = NETS[net]
    updates = options.updates or updates
    images = data(net, options.data)
    torch.manual_seed(seed)  # of torch's own initialization
    model = build(depth, width, UNITS[activation])
    plan = start(model, method, images.train[:256], seed, options)
    chosen = setting(model, method, options)
    losses, rates = train(model, images, plan, lr=lr, batch=batch, updates=updates, seed=seed)
    return Run(
        net=net,
        data=images.name,
        width=width,
        depth=depth,
        activation=activation,
        method=method,
        setting=chosen,
        weights="" if plan is None else plan.weights[1].fill,
        head=options.head if method in ("tailored", "wrapped") else 1.0,
        batch=batch,
        updates=updates,
        lr=lr,
        alpha_lr=rates.get("alpha", math.nan),
        beta_lr=rates.get("beta", math.nan),
        seed=seed,
        steps=first_below(losses, 1),
        mean_of_5_steps=first_below(losses, 5),
        final_loss=statistics.fmean(losses[-10:]),
        test_error_percent=test_error_percent(model, images),
        curve=curve(losses),
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


def stored(path: Path) -> list[Run]:
    """Read the rows of a file."""
    kinds: dict[str, Callable[[str], object]] = {"int": int, "float": lambda text: float(text or "nan"), "str": str}
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Mapping[str, str]] = list(csv.DictReader(file))
    parse = {field.name: kinds[getattr(field.type, "__name__", "")] for field in fields(Run)}
    return [Run(**{name: convert(row[name]) for name, convert in parse.items()}) for row in rows]  # type: ignore[arg-type]


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs together that differ in learning rate and seed only, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        key = (run.net, run.depth, run.activation, run.method, run.setting, run.weights, run.head, run.updates)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def best(runs: Sequence[Run]) -> list[Run]:
    """Return the runs at the best learning rate, of runs that differ in learning rate and seed only."""
    at = by_rate(runs)

    def rank(lr: float) -> tuple[float, float]:
        return statistics.median(run.steps for run in at[lr]), statistics.median(run.final_loss for run in at[lr])

    return at[min(at, key=rank)]


def by_rate(runs: Sequence[Run]) -> dict[float, list[Run]]:
    return {lr: [run for run in runs if run.lr == lr] for lr in sorted({run.lr for run in runs})}


def name(run: Run) -> list[str]:
    """Return the cells that say which net it is."""
    head = f", head {run.head:g}" * (run.head != HEAD_GAIN and run.method in ("tailored", "wrapped"))
    return [
        run.net,
        str(run.depth),
        run.activation,
        run.method,
        run.setting + head + ", delta" * (run.weights == "delta"),
    ]


def summary(runs: Sequence[Run]) -> list[str]:
    """Return a row of the table for runs that differ in learning rate and seed only."""
    chosen = best(runs)
    finals = {lr: statistics.median(run.final_loss for run in some) for lr, some in by_rate(runs).items()}
    least = min(finals, key=finals.__getitem__)
    return [
        *name(chosen[0]),
        str(chosen[0].updates),
        f"{chosen[0].lr:.3g}",
        _median_and_range([run.steps for run in chosen], ".0f"),
        _median_and_range([run.mean_of_5_steps for run in chosen], ".0f"),
        _median_and_range([run.final_loss for run in chosen], ".3f"),
        f"{finals[least]:.3f} at {least:.3g}",
        f"{statistics.median(run.test_error_percent for run in chosen):.1f}",
        str(len(chosen)),
    ]


def curves(runs: Sequence[Run]) -> list[str]:
    """Return a row of the table of curves: the median over the seeds, at the best learning rate."""
    chosen = best(runs)
    tenths = zip(*(map(float, run.curve.split()) for run in chosen), strict=True)
    return [
        *name(chosen[0]),
        str(chosen[0].updates),
        f"{chosen[0].lr:.3g}",
        *(f"{statistics.median(t):.2f}" for t in tenths),
    ]


NAME = ("net", "depth", "activation", "method", "start", "updates", "lr")
HEAD = (*NAME, "steps", "mean of 5", "final", "smallest final", "test error, %", "seeds")
HEAD_OF_CURVES = (*NAME, *(f"{tenth}/10" for tenth in range(1, 11)))


def _median_and_range(values: Sequence[float], form: str) -> str:
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def print_tables(options: argparse.Namespace) -> None:
    """Print what a file holds."""
    wanted = "superseded" if options.superseded else ""
    runs = [run for run in stored(options.table) if run.state == wanted]
    if options.curves:
        runs = [run for run in runs if run.net == options.curves]
    groups = sorted(grouped(runs), key=lambda some: (list(NETS).index(some[0].net), some[0].depth))
    head, row = (HEAD_OF_CURVES, curves) if options.curves else (HEAD, summary)
    print("\n".join(map(_line, [head, ["---"] * len(head), *map(row, groups)])))


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
        "wrapper; default: torch's initialization; the others are methods of mpelu.initialize",
    )
    parser.add_argument("--head", type=float, default=HEAD_GAIN, help="head_gain of mpelu.tailor")
    parser.add_argument("--tau", type=float, help="curvature of the stack of smooth activations")
    parser.add_argument("--eta", type=float, default=ETA, help="correlation behind the stack of leaky units")
    parser.add_argument("--refine", choices=("noise", "data"), default="noise", help="what mpelu.tailor calibrates on")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates times the depth")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the smallest of them")
    parser.add_argument("--updates", type=int, help="instead of 300 (mlp) or 200 (conv, cifar)")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, for --net cifar")
    parser.add_argument("--csv", type=Path, help="append every run to this file")
    parser.add_argument("--table", type=Path, help="only print what such a file holds")
    parser.add_argument("--superseded", action="store_true", help="the rows of rules that were given up instead")
    parser.add_argument("--curves", choices=NETS, help="the losses over the updates instead, for one kind of net")
    options = parser.parse_args()
    if options.table:
        print_tables(options)
        return
    if "wrapped" in options.method and options.activation != ["mpelu"]:
        parser.error("--method wrapped is for --activation mpelu; the other smooth activations are always wrapped")
    if options.net == "cifar" and options.data is None:
        parser.error("--net cifar needs --data, a folder of CIFAR-10")
    torch.set_num_threads(1)
    print(f"{_line(HEAD)}\n{_line(['---'] * len(HEAD))}", flush=True)
    for depth in options.depth:
        for activation in options.activation:
            for method in options.method:
                runs = [
                    one_run(options.net, depth, activation, method, rate / depth, seed, options)
                    for rate in options.rates
                    for seed in range(options.first_seed, options.first_seed + options.seeds)
                ]
                if options.csv:
                    append(options.csv, runs)
                print(_line(summary(runs)), flush=True)


if __name__ == "__main__":
    main()
