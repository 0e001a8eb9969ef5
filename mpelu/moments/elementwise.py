"""The user's activation as a plain function of float64 points, and its derivative."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError

Activation = nn.Module | Callable[[Tensor], Tensor]
"""An elementwise function; a module may have one set of parameters for each channel."""
PROBES = (-1.3, 0.4, 2.1)


@dataclass(frozen=True)
class Elementwise:
    """An activation that is evaluated on float64 points, for all channels at once.

    Attributes:
        function: What is called. Of a module it is a float64 copy on the CPU, in eval mode.
        channels: Number of channels; the points are repeated along dim 1, which is also the last one.
        name: Of the activation, for messages.
    """

    function: Activation
    channels: int
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function returns, so that it can stand wherever an activation can."""
        values: Tensor = self.function(x)
        return values

    def values(self, points: Tensor) -> Tensor:
        """Return f at points of shape ``(n,)``, shape ``(n, channels)``."""
        with torch.inference_mode(False), torch.no_grad():
            return self._call(self._repeated(points))

    def values_and_slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return f and f', the latter by autograd, each of shape ``(n, channels)``.

        Where autograd sees no path from the output to the input (``sign``, comparisons), the derivative is 0: that of
        the smooth pieces, without the jumps.
        """
        with torch.inference_mode(False), torch.enable_grad():
            repeated = self._repeated(points).requires_grad_()
            values = self._call(repeated)
            if not values.requires_grad:
                return values, torch.zeros_like(values)
            try:
                (slopes,) = torch.autograd.grad(values.sum(), repeated, allow_unused=True)
            except RuntimeError as error:
                raise UsageError(f"{self.name} has no derivative: {error}") from error
        return values.detach(), torch.zeros_like(values) if slopes is None else slopes

    def _repeated(self, points: Tensor) -> Tensor:
        return points.detach()[:, None].repeat(1, self.channels)

    def _call(self, repeated: Tensor) -> Tensor:
        try:
            values = self.function(repeated.clone())  # some activations write over their input
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UsageError(
                f"{self.name} could not be evaluated on float64 points of shape {tuple(repeated.shape)}: {error}. "
                "It has to be elementwise; parameters per channel must broadcast to (n, channels), see channels="
            ) from error
        if not isinstance(values, Tensor) or values.shape != repeated.shape:
            came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(f"{self.name} must be elementwise: shape {tuple(repeated.shape)} went in, {came} came out")
        return values.double()


def elementwise(activation: Activation, channels: int | None = None) -> Elementwise:
    """Wrap an activation; the user's module is copied and not changed.

    The result can be given to every function of :mod:`mpelu.moments` in place of the activation: so a plain function
    gets its number of channels.

    Args:
        activation: A module, or a function of a tensor.
        channels: Number of channels; None reads it off the sizes of a module's parameters, and is 1 for a function.

    Raises:
        UsageError: If it cannot be called, its parameters have no values (meta device) or sizes that disagree, or its
            value at one point changes with other points: then it is not elementwise, or random.

    Example:
        >>> slopes = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> f = elementwise(lambda x: torch.nn.functional.prelu(x, slopes), channels=2)
        >>> f.values(torch.tensor([-3.0], dtype=torch.float64))
        tensor([[-0., -3.]], dtype=torch.float64)
    """
    if isinstance(activation, Elementwise):
        return activation
    if not callable(activation):
        raise UsageError(f"an activation must be a module or a function of a tensor, got {activation!r}")
    if isinstance(activation, nn.Module):
        found = _from_module(activation, channels)
    else:
        found = Elementwise(activation, channels or 1, getattr(activation, "__name__", repr(activation)))
    probes = torch.tensor(PROBES, dtype=torch.float64, device="cpu")
    together = found.values(probes)
    alone = torch.cat([found.values(probes[i : i + 1]) for i in range(len(PROBES))])
    if not torch.allclose(together, alone, rtol=1e-3, equal_nan=True):  # 1e-3 is for functions in half precision
        raise UsageError(
            f"{found.name} must be elementwise: its value at one point changes with other points, or by chance"
        )
    return found


def _from_module(activation: nn.Module, channels: int | None) -> Elementwise:
    name = type(activation).__name__
    tensors = [*activation.parameters(), *activation.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise UsageError(f"{name} is on the meta device, where its parameters have no values; give one that has them")
    sizes = {tensor.numel() for tensor in tensors} - {0, 1}
    if channels is None and len(sizes) > 1:
        raise UsageError(f"{name} has parameters of {sorted(sizes)} entries: give the number of channels, channels=")
    with torch.inference_mode(False):
        frozen = copy.deepcopy(activation).requires_grad_(False).to("cpu", torch.float64).eval()
    return Elementwise(frozen, channels or max(sizes, default=1), name)
