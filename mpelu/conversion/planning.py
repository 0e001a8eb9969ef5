"""What will take the place of the activations of a group, or why nothing can."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from mpelu.conversion.channels import channel_dim as channel_dim_of
from mpelu.conversion.fit import FAR, errors, is_identity, known, mpelu, nearest, values
from mpelu.conversion.record import Left, Row
from mpelu.conversion.sites import Group, Site
from mpelu.conversion.survey import Survey
from mpelu.conversion.units import Apart, Routed
from mpelu.errors import UsageError
from mpelu.nn import MPELU, SPELU


@dataclass(frozen=True)
class Wish:
    """The arguments of :func:`mpelu.convert` that say what the units are like."""

    to: Callable[[int], nn.Module]
    start: tuple[float, float] | None
    approximate: bool
    channel_dim: int | None
    channels: int | None
    smallest_beta: float

    def __post_init__(self) -> None:
        if not callable(self.to):
            raise UsageError(f"to is MPELU, SPELU or a function of the number of channels, got {self.to!r}")
        if self.start is not None and not self.start[1] > 0:
            raise UsageError(f"start is (alpha, beta) with beta > 0, got {self.start}")
        if self.channels not in (None, 1):
            raise UsageError(
                f"channels is 1 (one alpha and beta for all) or None (as many as the graph says), got {self.channels}"
            )
        if not self.smallest_beta > 0:
            raise UsageError(f"smallest_beta must be > 0, got {self.smallest_beta}")


@dataclass(frozen=True)
class _Channels:
    """Where the channels of a site lie; ``dim`` is None where one parameter serves all entries."""

    count: int
    dim: int | None
    rule: str


class Plan:
    """The unit of a group.

    Attributes:
        group: What it takes the place of.
        refusal: Why there is none, "" where there is one.
        unit: The module that is put in place.
    """

    def __init__(self, group: Group, wish: Wish, survey: Survey) -> None:
        self.group = group
        self._wish = wish
        self._survey = survey
        self._alpha: Tensor | None = None
        self._beta: Tensor | None = None
        self._errors: tuple[float, float] | None = None
        self._measured = False
        self.unit: nn.Module = nn.Identity()
        self.refusal = survey.reasons[group]
        if not self.refusal:
            self._channels = [self._channels_of(site) for site in group.sites]
            self.refusal = self._mixed() or self._make()

    @property
    def left(self) -> Left:
        """The row of what is not converted."""
        return Left(self.group.first.name, self.group.first.old, self.refusal)

    @property
    def shown(self) -> list[Site]:
        """The sites that get a row: those in eval mode, or in training mode where there are no others."""
        return [site for site in self.group.sites if not site.training] or self.group.sites

    def row(self, site: Site, path: str) -> Row:
        """Return the row of a site whose unit is at a path."""
        channels = self._channels[self.group.sites.index(site)]
        return Row(
            name=site.name,
            old=site.old,
            new=type(self._inner[channels.count]).__name__,
            unit=path,
            channels=channels.count,
            channel_dim=channels.dim,
            channel_rule=channels.rule,
            alpha=None if self._alpha is None else tuple(self._alpha.tolist()),
            beta=None if self._beta is None else tuple(self._beta.tolist()),
            error=None if self._errors is None else self._errors[0],
            largest_error=None if self._errors is None else self._errors[1],
            measured=self._measured,
        )

    def _channels_of(self, site: Site) -> _Channels:
        shape, own = site.node.shape, site.function.channel_dim
        if self._wish.channels == 1:
            return _Channels(1, None, "channels=1")
        if len(shape) < 2:
            return _Channels(1, None, "no dim of channels")
        if own is not None:
            return _Channels(shape[own], own, "its own parameters")
        if self._wish.channel_dim is None:
            dim, rule = channel_dim_of(site.graph, site.node)
        elif -len(shape) <= self._wish.channel_dim < len(shape):
            dim, rule = self._wish.channel_dim % len(shape), "channel_dim"
        else:
            raise UsageError(f"channel_dim={self._wish.channel_dim}, but {site.name} has the shape {shape}")
        return _Channels(shape[dim], dim, rule)

    def _mixed(self) -> str:
        """Return why one unit cannot serve all sites; "" where it can."""
        dims: dict[int, set[int | None]] = {}
        for site, channels in zip(self.group.sites, self._channels, strict=True):
            dims.setdefault(len(site.node.shape), set()).add(channels.dim)
        for size, found in dims.items():
            if len(found) > 1:
                return (
                    f"it is used on inputs of {size} dims with the channels in dims "
                    f"{' and '.join(sorted(str(dim) for dim in found))}; say which with channel_dim="
                )
        if self._wish.channels == 1 and self.group.first.function.channel_dim is not None:
            return "it has a slope for each channel, which channels=1 cannot keep"
        return ""

    def _make(self) -> str:
        """Make the unit; return why there is none."""
        counts = sorted({channels.count for channels in self._channels})
        self._inner = {count: self._built(count) for count in counts}
        first = self._inner[counts[0]]
        if isinstance(first, MPELU | SPELU):
            refusal = self._match(fixed_beta=isinstance(first, SPELU), count=counts[0])
            if refusal:
                return refusal
        self._settle()
        pairs = zip(self.group.sites, self._channels, strict=True)
        dims = {len(site.node.shape): channels.dim for site, channels in pairs if channels.dim is not None}
        routed = len(counts) > 1 or any(dim != 1 for dim in dims.values())
        self.unit = Routed(self._inner, dims) if routed else first
        writes_back, overwritten = self._survey.writes_back(self.group), self._survey.is_overwritten(self.group)
        if writes_back or overwritten:
            self.unit = Apart(self.unit, write_back=writes_back)
        self.unit.train(self.group.first.holder.training)
        return ""

    def _built(self, count: int) -> nn.Module:
        unit = self._wish.to(count)
        if not isinstance(unit, nn.Module):
            raise UsageError(f"to({count}) is to return a module, got {type(unit).__name__}")
        like = self._like()
        return unit if like is None else unit.to(device=like.device, dtype=like.dtype)

    def _like(self) -> Tensor | None:
        """Return the parameter whose device and dtype a unit takes over: one of the layer before, or of the model."""
        site = self.group.first
        model = site.graph.trace.model
        near = [model.get_parameter(name) for name in sorted(site.makers)]
        candidates = chain(site.holder.parameters(recurse=False), near, model.parameters())
        return next((item for item in candidates if item.is_floating_point()), None)

    def _match(self, *, fixed_beta: bool, count: int) -> str:
        """Choose alpha and beta; return why there are none."""
        site, wish = self.group.first, self._wish
        inputs = self._survey.inputs(self.group)
        try:
            old = values(site, inputs.points, count)
        except UsageError as error:  # its parameters are on the meta device
            if wish.start is None:
                return str(error)
            self._alpha, self._beta = (torch.tensor([number], dtype=torch.float64) for number in wish.start)
            return ""
        if not bool(old.isfinite().all()):
            return "it is not finite on its inputs"
        if wish.start is None and not wish.approximate and not is_identity(site, count):
            points = torch.tensor(FAR, dtype=torch.float64)
            far = int((values(site, points, count) - points[:, None]).abs().amax(1).argmax())
            found = float(values(site, points, count)[far, 0])
            return f"it is not x for x > 0, as MPELU is: f({FAR[far]:g}) = {found:.4g}; approximate=True takes it still"
        pair = wish.start or known(site)
        if pair is None or (fixed_beta and wish.start is None and pair[1] != 1.0):
            self._alpha, self._beta = nearest(
                old, inputs, smallest_beta=wish.smallest_beta, beta=1.0 if fixed_beta else None
            )
        else:
            self._alpha, self._beta = (torch.tensor([number], dtype=torch.float64) for number in pair)
        if fixed_beta:
            self._beta = torch.ones_like(self._alpha)
        self._errors = errors(mpelu(inputs.points, self._alpha, self._beta), old, inputs)
        self._measured = inputs.measured
        return ""

    def _settle(self) -> None:
        """Write alpha and beta into the units."""
        for unit in self._inner.values():
            if isinstance(unit, MPELU | SPELU):
                assert self._alpha is not None
                assert self._beta is not None
                _write(unit, "alpha", self._alpha)
                if isinstance(unit, MPELU):
                    _write(unit, "beta", self._beta)
        if any(isinstance(unit, SPELU) for unit in self._inner.values()):
            self._beta = None


def _write(unit: nn.Module, name: str, numbers: Tensor) -> None:
    """Set a parameter and the start value that it is reset to."""
    parameter = unit.get_parameter(name)
    if len(numbers) not in (1, len(parameter)):
        raise UsageError(f"{type(unit).__name__} has {len(parameter)} {name}s, and {len(numbers)} are needed")
    setattr(unit, f"init_{name}", float(numbers.mean()))
    if not parameter.is_meta:
        with torch.no_grad():
            parameter.copy_(numbers.to(parameter.device, parameter.dtype).expand_as(parameter))
