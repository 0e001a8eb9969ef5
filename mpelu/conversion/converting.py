"""Converting a model: its activations are found in its graph, matched, and replaced where they are computed."""

import copy as copying
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from torch import nn

from mpelu.conversion.choosing import Chosen, Source
from mpelu.conversion.installing import Installer
from mpelu.conversion.passes import in_mode, largest_difference, outputs
from mpelu.conversion.planning import Plan, Wish
from mpelu.conversion.record import Conversion, Left
from mpelu.conversion.survey import Survey
from mpelu.errors import UsageError
from mpelu.graph import Example
from mpelu.graph.capture import capture
from mpelu.nn import MPELU

SMALLEST_BETA = 0.01
"""The smallest start value of beta in the paper, (98, 0.01); :data:`mpelu.optim.MIN_BETA` is the border of training."""


def convert(
    model: nn.Module,
    source: Source | Collection[Source],
    to: Callable[[int], nn.Module] = MPELU,
    *,
    example: Example,
    start: tuple[float, float] | None = None,
    approximate: bool = False,
    channel_dim: int | None = None,
    channels: int | None = None,
    smallest_beta: float = SMALLEST_BETA,
    copy: bool = False,
) -> Conversion:
    r"""Replace activations of a working model by learnable ones that start as the same function.

    What is replaced is found by running the model (:func:`mpelu.graph.read`), in eval and in training mode: modules,
    and calls of functions in any spelling, ``F.relu(x)``, ``torch.relu(x)``, ``x.relu_()``. A module is replaced
    wherever it is held. A call is answered by a new submodule (``relu_1``) of the module whose forward makes it.

    The start values of MPELU are those that match the old function:

    - ReLU: alpha 0, exactly. As long as alpha is 0, beta has no gradient; alpha has one, so that the first step of
      training ends this. No other alpha gives ReLU.
    - ELU(a): (a, 1) and CELU(a): (a, 1 / a), exactly.
    - Everything else that is x for x > 0 (LeakyReLU, PReLU channel by channel, MPELU, what a model writes itself):
      the nearest alpha and beta by least squares over the inputs that the example gives.
    - What is not x for x > 0 (GELU, SiLU, SELU, tanh, ReLU6) is refused, since no MPELU comes near it there, unless
      ``approximate``.

    A module that is used with several numbers of channels becomes one unit for each of them. Calls in a forward have a
    unit each; those in which the same weights make the input, steps in time, share one.

    Args:
        model: Any module, also on the meta device.
        source: What to replace: a module type (``nn.ReLU``), a function (``F.relu``, ``torch.relu``, ``Tensor.relu``:
            they mean the same), a name (``"relu"``: modules and calls of this function), a pattern for the names of
            nodes (``"layer1.*"``), a predicate on :class:`mpelu.graph.Node`, or a list of these.
        to: ``MPELU``, ``SPELU``, or anything that is called with the number of channels and returns a module that
            takes them in dim 1. Only MPELU and SPELU are matched to the old function.
        example: As for :func:`mpelu.graph.read`, on the device of the model. Its values decide what is nearest.
        start: (alpha, beta) to use everywhere instead of those that match.
        approximate: Convert also what is not x for x > 0; the error says how far off it is.
        channel_dim: Dim of the channels in every activation; by default as the layers say
            (:func:`mpelu.conversion.channels.channel_dim`).
        channels: 1 for one alpha and beta that serve all channels.
        smallest_beta: What beta is at least, where it is searched. A straight line is the limit of 0: smaller comes
            nearer to a LeakyReLU, with an alpha that grows as 1 / beta and is harder to train.
        copy: Whether to convert a deep copy and leave the model as it is.

    Returns:
        The converted model, a row for each activation, what was left and why, the largest difference of the outputs,
        and ``undo``.

    Raises:
        UsageError: If nothing could be converted (it names what there is and why), the model does not accept the
            example, or an argument makes no sense. The model is unchanged then.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> conversion = convert(model, nn.ReLU, example=torch.randn(16, 8))
        >>> model[1], conversion.largest_difference
        (MPELU(num_parameters=4, init_alpha=0.0, init_beta=1.0), 0.0)
        >>> conversion.undo()[1]
        ReLU()
    """
    wish = Wish(to, start, approximate, channel_dim, channels, smallest_beta)
    chosen = Chosen(source)
    model = copying.deepcopy(model) if copy else model
    survey = Survey(model, example, chosen)
    plans = [Plan(group, wish, survey) for group in survey.groups]
    accepted = [plan for plan in plans if not plan.refusal]
    left = (*(plan.left for plan in plans if plan.refusal), *survey.others())
    if not accepted:
        raise UsageError(_nothing(left))
    before = outputs(model, example) if survey.has_values else None
    with ExitStack() as stack:
        installer = Installer(model)
        stack.callback(installer.take_back)
        installer.put({plan.group: plan.unit for plan in accepted}, survey.graphs)
        _check_uses(model, example, survey, accepted)
        difference = None if before is None else largest_difference(before, outputs(model, example))
        stack.pop_all()
    shown = [(site, plan) for plan in accepted for site in plan.shown]
    shown.sort(key=lambda pair: (pair[0].training, pair[0].calls[0].index))
    rows = tuple(plan.row(site, installer.path(plan.group)) for site, plan in shown)
    return Conversion(model, rows, left, difference, installer.steps_back)


def _check_uses(model: nn.Module, example: Example, survey: Survey, accepted: Sequence[Plan]) -> None:
    """Read the converted model and count how often each unit is called.

    Raises:
        UsageError: If a unit is called more or less often than what it takes the place of.
    """
    for training in survey.graphs:
        with in_mode(model, training=training):
            uses = Counter(id(frame.module) for frame in capture(model, example).frames)
        for plan in accepted:
            sites = [site for site in plan.group.sites if site.training == training]
            if uses[id(plan.unit)] != len(sites):
                raise UsageError(
                    f"{plan.group.first.name} ({plan.group.first.old}) is used {len(sites)} times, and its unit was "
                    f"called {uses[id(plan.unit)]} times: the model holds it outside of its modules, or takes another "
                    f"path now. Leave it out of the source"
                )


def _nothing(left: Sequence[Left]) -> str:
    """Return why nothing was converted, reason by reason."""
    by_reason: dict[str, list[str]] = {}
    for item in left:
        by_reason.setdefault(item.reason, []).append(f"{item.name} ({item.old})")
    lines = [f"{', '.join(names[:8])}{', ...' * (len(names) > 8)}: {reason}" for reason, names in by_reason.items()]
    return "nothing was converted; " + (
        "\n".join(["the model has", *lines]) if lines else "the model has no activation"
    )
