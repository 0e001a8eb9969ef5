"""The 30-layer net at the start: what reaches its layers, how far Eq. 15 holds there, and what starting it costs.

Source:   Li et al., arXiv:1606.00305, sections 4.3 and 4.4, Tables 7 and 8; their numbers are not in the text.
Command:  mpelu reproduce table7 (table8, claim27, claim29, claim33)

Both scales run the convolutions of the paper's own net, on raw pixels of 224 x 224: what the tables say depends on the
scale of the pixels. Scale cpu takes fewer images, and other ones.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mpelu.report.finding import Interval
from mpelu.report.grid import Cell, Grid
from mpelu.report.paper import lines
from mpelu.report.summary import Record, spread
from mpelu.studies.jobs import SEEDS, Measurement, Setting, key_of
from mpelu.studies.measured import QUIET, Conclusion, claim, seconds_in_turns, there
from mpelu.studies.statistic import all_of, compared, mean, outcome_of, outcome_within, paired_difference, ratio
from mpelu.studies.study import Exhibit, Results

if TYPE_CHECKING:
    from torch import Tensor

HERE = "mpelu.studies.starting"
LAYERS = ("conv1", "conv7", "conv14", "conv20", "conv27")
NETS = {"relu": "ReLU 30-layer no BN", "mpelu": "MPELU 30-layer no BN"}
IMAGES = {"cpu": 8, "paper": 16}
KEPT = 10.0
"""A variance that changes by less than this factor over 26 layers is kept, one that falls by more is shrunk."""
NORMAL = 2.0
"""About N(0, 1): the variance is within this factor of 1, and the mean within 0.2 of 0."""


def raw_images(data: str, count: int, size: int, *, seed: int) -> "Tensor":
    """Return training images as the paper's ImageNet nets see them: pixels 0 to 255 less the mean of each channel.

    Args:
        data: Name or path: of images in memory, which are resized (grey ones become three equal channels), or of
            photographs, of which the centre is cut as in :class:`mpelu.data.View`.
        count: Number of images.
        size: Height and width.
        seed: Of the choice of the images.

    Returns:
        float32, shape ``(count, 3, size, size)``.
    """
    import torch
    from torch.nn import functional as F

    from mpelu.data import load
    from mpelu.errors import DataError, UsageError

    draw = torch.Generator().manual_seed(seed)
    try:
        images = load(data).train.images
    except (DataError, UsageError):
        pixels = _photographs(data, count, size, draw)
    else:
        chosen = images[torch.randperm(len(images), generator=draw)[:count]].float()
        pixels = F.interpolate(chosen, size=(size, size), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    return pixels - pixels.mean((0, 2, 3), keepdim=True)


def _photographs(data: str, count: int, size: int, draw: Any) -> "Tensor":
    import torch

    from mpelu.data import View, find_photographs
    from mpelu.data.view import cut

    photographs = find_photographs(data).train
    view = View(size=round(size * 256 / 224), crop=size)
    found = []
    for index in torch.randperm(len(photographs.labels), generator=draw)[:count].tolist():
        block = int(torch.searchsorted(photographs.starts, index, right=True)) - 1
        encoded = photographs.read_block(block)[index - int(photographs.starts[block])]
        found.append(torch.tensor(cut(encoded, view)[0]).permute(2, 0, 1))
    return torch.stack(found).float()


def layer_statistics(*, seed: int, data: str, activation: str, images: int, size: int = 224) -> dict[str, Any]:
    """Measure the convolutions of the 30-layer ImageNet net behind its initialization: MSRA for ReLU, Eq. 22 for MPELU.

    Returns:
        By layer: ``mean`` and ``variance`` of its output, ``above``, the shares above the thresholds of Table 8, and,
        for MPELU (1, 1), ``below``, the shares whose residual itself is below the bounds of Table 8.
    """
    from collections import OrderedDict
    from itertools import accumulate, takewhile

    from torch import nn

    from mpelu.diagnostics.distribution import PAPER_LAYERS, distributions
    from mpelu.diagnostics.linearization import residuals
    from mpelu.init import initialize
    from mpelu.models import create_model

    options = {"alpha": 1.0, "beta": 1.0} if activation == "mpelu" else {}
    whole = create_model("imagenet30", 1, activation, **options)
    net = nn.Sequential(OrderedDict(takewhile(lambda child: child[0] != "pyramid", whole.named_children())))
    del whole  # nothing is measured behind the convolutions, and it has 94 % of the weights
    x = raw_images(data, images, size, seed=seed)
    initialize(net, x[:1], method="msra" if activation == "relu" else "eq22", seed=seed)
    found: dict[str, dict[str, Any]] = {
        each.layer: {"mean": each.mean, "variance": each.variance, "above": list(each.above)}
        for each in distributions(net, x, layers=PAPER_LAYERS)
    }
    if activation == "mpelu":
        for unit in residuals(net, x):
            layer = found.get(unit.layer.replace("act", "conv"))
            if layer is not None:
                layer["below"] = [min(share, 1.0) for share in accumulate(unit.histogram[:-1])]
    return found


def starting_seconds(
    *,
    seed: int,
    data: str,  # noqa: ARG001
    model: str,
    options: Mapping[str, Any],
    size: int,
    batch: int,
    rounds: int,
) -> dict[str, Any]:
    """Time the initialization of an MPELU net by Eq. 22 and by LSUV on one core; they take turns.

    Returns:
        ``seconds``, by method, for each round.
    """
    from functools import partial

    import torch

    from mpelu.bench.timing import clock
    from mpelu.init import initialize
    from mpelu.models import create_model

    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=draw)
    net = create_model(model, 10, "mpelu", alpha=1.0, beta=1.0, in_channels=3, **options)

    def start(method: str, example: "Tensor") -> tuple[float]:
        begun = clock()
        initialize(net, example, method=method, seed=seed)
        return (clock() - begun,)

    return seconds_in_turns(
        {"eq22": partial(start, "eq22", images[:1]), "lsuv": partial(start, "lsuv", images)}, rounds
    )


def _data(setting: Setting) -> str:
    return "imagenet" if setting.scale == "paper" else setting.data


def _jobs(setting: Setting, activation: str) -> tuple[Measurement, ...]:
    paper = setting.scale == "paper"
    return tuple(
        Measurement(
            f"{HERE}:layer_statistics",
            {"activation": activation, "images": IMAGES[setting.scale]},
            seed=seed,
            data=_data(setting),
            seconds=24.0 if paper else 12.0,
        )
        for seed in range(setting.seeds or SEEDS)
    )


def _both(setting: Setting) -> tuple[Measurement, ...]:
    return _jobs(setting, "relu") + _jobs(setting, "mpelu")


def _of(records: Sequence[Record], activation: str) -> list[Mapping[str, Any]]:
    return [record["values"] for record in records if record["options"].get("activation") == activation]


def _differs(setting: Setting) -> str:
    images = f"{IMAGES[setting.scale]} images"
    if setting.scale == "paper":
        return f"{images} of ImageNet at the start; the text does not say on how many the paper measured."
    kind = "handwritten digits, grey" if setting.data == "digits" else setting.data
    return f"{images} ({kind}) at 224 x 224 pixels, 0 to 255 less the channel means; the paper measured on ImageNet."


def _depth_ratio(runs: Sequence[Mapping[str, Any]], label: str) -> Interval | None:
    last, first = ([run[layer]["variance"] for run in runs] for layer in (LAYERS[-1], LAYERS[0]))
    return ratio(f"variance at conv27 over conv1, {label}", last, first)


def _variance(records: Sequence[Record]) -> Conclusion:
    relu, mpelu = (_depth_ratio(_of(records, name), label) for name, label in (("relu", "ReLU"), ("mpelu", "MPELU")))
    if relu is None or mpelu is None:
        return Conclusion("not run", "It takes two seeds of each net.", ())
    fallen = compared(mpelu, 1 / KEPT)
    kept = all_of([outcome_of(relu, "above", 1 / KEPT), outcome_of(relu, "below", KEPT)])
    return Conclusion(
        all_of([kept, outcome_of(fallen, "below")]),
        f"From conv1 to conv27 the variance is multiplied by {relu.estimate:.2g} with ReLU "
        f"({_variances(records, 'relu')}) and by {mpelu.estimate:.1e} with MPELU "
        f"({_variances(records, 'mpelu')}). Held to be kept: by no more than {KEPT:g} times over 26 layers; to be "
        "shrunk: by more.",
        (relu, fallen),
    )


def _variances(records: Sequence[Record], activation: str) -> str:
    runs = _of(records, activation)
    means = [statistics.geometric_mean([run[layer]["variance"] for run in runs]) for layer in LAYERS]
    return ", ".join(f"{value:.3g}" for value in means)


def _linear(records: Sequence[Record]) -> Conclusion:
    runs = _of(records, "mpelu")
    shares = {layer: [100 * run[layer]["above"][1] for run in runs] for layer in LAYERS}
    rises = [
        paired_difference(f"units of {deep} less units of {shallow} with y > -1", shares[deep], shares[shallow])
        for shallow, deep in pairwise(LAYERS)
    ]
    most = compared(mean("units of conv14 with y > -1", shares["conv14"], unit="%"), 50.0)
    variance = ratio("variance at conv14 over 1", [run["conv14"]["variance"] for run in runs], [1.0] * len(runs))
    centre = mean("mean at conv14", [run["conv14"]["mean"] for run in runs])
    if most is None or variance is None:
        return Conclusion("not run", "It takes two seeds.", ())
    spans = [outcome_of(variance, "above", 1 / NORMAL), outcome_of(variance, "below", NORMAL)]
    normal = all_of([*spans, outcome_within(centre, 0.2)])
    itself = statistics.fmean(100 * run["conv14"]["below"][1] for run in runs)
    parts = {
        "deeper is closer to linear": all_of([outcome_of(rise, "above") for rise in rises]),
        "most units from conv14 on": outcome_of(most, "above"),
        "conv14 about N(0, 1)": normal,
    }
    told = "; ".join(f"{part}: {outcome}" for part, outcome in parts.items())
    means = ", ".join(f"{statistics.fmean(shares[layer]):.1f} % ({layer})" for layer in LAYERS)
    return Conclusion(
        all_of(list(parts.values())),
        f"Units with y > -1, where Eq. 27 promises a residual below 0.5: {means}; at conv14 the residual itself is "
        f"below 0.5 for {itself:.1f} %. The variance at conv14 is {variance.estimate:.2f}, that of raw pixels "
        f"brought down layer by layer. {told}. Held to be about N(0, 1): variance within {NORMAL:g} times of "
        "1, mean within 0.2 of 0.",
        there((*rises, most, variance, centre)),
    )


NETS_TO_START: dict[str, dict[str, Any]] = {
    "cpu": {"model": "plain30", "options": {"width": 64, "input_size": 32}, "size": 32, "batch": 64, "rounds": 7},
    "paper": {"model": "imagenet30", "options": {}, "size": 224, "batch": 64, "rounds": 3},
}


def _start_jobs(setting: Setting) -> tuple[Measurement, ...]:
    seconds = {"cpu": 25.0, "paper": 600.0}[setting.scale]
    return (Measurement(f"{HERE}:starting_seconds", NETS_TO_START[setting.scale], seconds=seconds, version=QUIET),)


def _cost(records: Sequence[Record]) -> Conclusion:
    seconds = records[0]["values"]["seconds"]
    times = ratio("seconds of LSUV over Eq. 22", seconds["lsuv"], seconds["eq22"])
    medians = {method: statistics.median(found) for method, found in seconds.items()}
    return Conclusion(
        outcome_of(times, "above"),
        f"Eq. 22 starts the net in {medians['eq22']:.3f} s, LSUV in {medians['lsuv']:.3f} s: it draws orthonormal "
        "weights and runs a batch through the net.",
        there((times,)),
    )


def _cost_differs(setting: Setting) -> str:
    net = NETS_TO_START[setting.scale]
    return (
        f"{net['model']} at {net['size']} pixels, a batch of {net['batch']}, one core of a CPU. Our LSUV scales all "
        "layers in one pass; the published one repeats passes for each layer until its variance is met, and costs "
        "more. Our Eq. 22 reads the net's graph first, which the paper's filler has no need of, and so costs more than "
        "that."
    )


CLAIMS = (
    claim(
        27,
        "ReLU keeps the variance from layer to layer, MPELU shrinks it (30 layers, no BN).",
        _both,
        _variance,
        differs=_differs,
        data=_data,
    ),
    claim(
        29,
        "Deeper layers are closer to linear: from conv14 on most units have residuals below 0.5, and conv14 is about "
        "standard normal.",
        lambda setting: _jobs(setting, "mpelu"),
        _linear,
        differs=_differs,
        data=_data,
    ),
    claim(33, "Eq. 22 costs less than LSUV.", _start_jobs, _cost, differs=_cost_differs),
)


def _cell(line: Mapping[str, str], column: str, records: Sequence[Record], ours: Sequence[float], digits: int) -> Cell:
    paper = line[column]
    cell = Cell(paper=paper, source=line["source"] if paper else "", ours=spread(ours), digits=digits)
    return replace(cell, runs=tuple(key_of(record) for record in records))


def _places(values: Sequence[float]) -> int:
    """Return the decimal places that show three digits of the largest of some values."""
    largest = max(map(abs, values), default=0.0)
    return max(0, 2 - math.floor(math.log10(largest))) if largest else 2


def _table7(results: Results) -> Grid:
    rows: list[tuple[str | Cell, ...]] = []
    for activation, network in NETS.items():
        records = results.present(_jobs(results.setting, activation))
        for layer in LAYERS:
            cells = []
            for statistic in ("mean", "variance"):
                line = next(
                    each
                    for each in lines("table07")
                    if (each["network"], each["layer"], each["statistic"]) == (network, layer, statistic)
                )
                ours = [record["values"][layer][statistic] for record in records]
                cells.append(_cell(line, "value", records, ours, _places(ours)))
            rows.append((network, layer, *cells))
    return Grid(
        name="table7",
        title="Mean and variance of convolutions of the 30-layer nets at the start",
        columns=("network", "layer", "mean", "variance"),
        rows=tuple(rows),
        scale=results.setting.scale,
        data=_data(results.setting),
        notes=(_differs(results.setting), "ReLU starts from MSRA, MPELU (1, 1) from Eq. 22, both with fan_in."),
    )


def _table8(results: Results) -> Grid:
    records = results.present(_jobs(results.setting, "mpelu"))
    ranges = list(dict.fromkeys(line["residual_range"] for line in lines("table08")))
    rows: list[tuple[str | Cell, ...]] = []
    for layer in LAYERS:
        cells = []
        for index, residual_range in enumerate(ranges):
            line = next(
                each for each in lines("table08") if (each["layer"], each["residual_range"]) == (layer, residual_range)
            )
            ours = [100 * record["values"][layer]["above"][index] for record in records]
            cells.append(_cell(line, "percent_of_units", records, ours, 2))
        rows.append((layer, *cells))
    return Grid(
        name="table8",
        title="Percent of units by residual of the linearization, 30-layer MPELU net at the start",
        columns=("layer", *ranges),
        rows=tuple(rows),
        scale=results.setting.scale,
        data=_data(results.setting),
        notes=(
            _differs(results.setting),
            "Counted as in Eq. 27, by y above -0.1414, -1, -2 and -3: that bounds the residual by the range's end.",
            "The text prints 2.5 for 4.5.",
        ),
    )


EXHIBITS = (
    Exhibit("table7", "Mean and variance of activations of the 30-layer nets", _both, _table7),
    Exhibit("table8", "Units by residual of the linearization", lambda setting: _jobs(setting, "mpelu"), _table8),
)
