"""The verdict: what is wrong with a net, where it starts, why, and what mends it."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from mpelu.diagnostics import local, whole
from mpelu.diagnostics.layers import Net
from mpelu.diagnostics.records import STATES, Finding, LayerRecord, Verdict
from mpelu.graph import Example, Graph


def judge(
    records: Sequence[LayerRecord],
    *,
    loss: float | None,
    graph: Graph,
    model: nn.Module,
    example: Example,
    optimizer: torch.optim.Optimizer | None = None,
) -> Verdict:
    """Say what is wrong with a net, from what was measured in one pass.

    Causes come before their consequences. Where numbers are not finite nothing else is said; faults of single layers
    (dead, mis-scaled, frozen, cut off) and of the input are looked for next; what all layers do together (drift of
    signal and gradient, residual growth, collapse) is judged only where no such fault explains it. So a net may have to
    be mended and diagnosed again.

    Args:
        records: In execution order.
        loss: Its value, if there was one.
        graph: Of the model.
        model: Its parameters are looked at.
        example: What it was run on.
        optimizer: That is to train it: parameters that it does not hold are found.

    Returns:
        ``healthy``, or the worst of the findings by the order of :data:`STATES`.
    """
    net = Net(tuple(records), graph, model, example, optimizer)
    findings = sorted(_findings(net, loss), key=lambda finding: -STATES.index(finding.state))
    if not findings:
        return Verdict("healthy", (), _healthy(net))
    return Verdict(findings[0].state, tuple(findings), _summary(findings[0]))


def _findings(net: Net, loss: float | None) -> list[Finding]:
    found = list(local.non_finite(net))
    if found:
        return found
    if loss is not None and not math.isfinite(loss):
        last = net.records[-1].name
        cause = f"the outputs are finite, and the loss is {loss}"
        return [Finding("non-finite", last, None, cause, "use a loss that takes any finite output, such as "
                        "torch.nn.functional.cross_entropy on the scores before softmax", "a finite loss")]  # fmt: skip
    stopped = list(local.dead(net))
    sized = [*local.misscaled(net), *local.inputs(net)]
    known = {finding.layer for finding in (*stopped, *sized)}
    sized += [finding for finding in local.biased(net) if finding.layer not in known]
    asleep = list(local.frozen(net))
    if stopped or sized:
        return [*stopped, *sized, *asleep]
    together = list(whole.growth(net)) or list(whole.steady_drift(net))
    together = together or [*whole.collapse(net), *whole.saturation(net)]
    if not together and not any("no weight of the model" in finding.cause for finding in asleep):
        asleep += list(local.cut(net))
    return [*together, *asleep]


def _healthy(net: Net) -> str:
    layers = [layer.record for layer in net.layers]
    if not layers:
        return "Nothing is wrong, as far as can be said of a net without weights."
    sizes = [record.second_moment for record in layers if record.second_moment > 0]
    between = f" between {min(sizes):.2g} and {max(sizes):.2g}" if sizes else ""
    return f"The signal passes: over {len(layers)} weights its second moment stays{between}."


SENTENCES = {
    "vanishing": "The signal vanishes",
    "exploding": "The signal explodes",
    "collapsing": "The inputs become alike",
    "dead units": "Units are dead",
    "dead gradient": "A layer does not train",
    "non-finite": "The numbers are not finite",
}


def _summary(finding: Finding) -> str:
    cause = finding.cause[0].upper() + finding.cause[1:]
    return f"{SENTENCES[finding.state]}, from {finding.layer} on. {cause}."
