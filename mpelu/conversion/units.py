"""What stands round a learnable unit where one module with channels in dim 1 is not enough."""

from collections.abc import Mapping

from torch import Tensor, nn

from mpelu.errors import UsageError


class Routed(nn.Module):
    """A unit for each number of channels, along dim 1 or another one.

    A module that a model uses with several numbers of channels has parameters for each of them. Which unit computes
    follows from the shape of the input alone, so that no order of calls has to be kept.

    Args:
        units: Number of channels to the unit; a unit takes its channels in dim 1.
        dims: Number of dims of the input to the dim of its channels; others have them in dim 1 if that is where the
            listed ones have them, else in the last one.

    Shape:
        Any with at least two dims; output the same.

    Example:
        >>> import torch
        >>> from mpelu.nn import MPELU
        >>> unit = Routed({4: MPELU(4)}, {3: 2})
        >>> unit(torch.zeros(2, 7, 4)).shape
        torch.Size([2, 7, 4])
    """

    def __init__(self, units: Mapping[int, nn.Module], dims: Mapping[int, int]) -> None:
        super().__init__()
        self.units = nn.ModuleDict({str(channels): unit for channels, unit in units.items()})
        self.dims = dict(dims)
        self.other_dim = 1 if set(dims.values()) == {1} else -1

    def forward(self, x: Tensor) -> Tensor:
        dim = self.dims.get(x.dim(), self.other_dim) % x.dim()
        key = str(x.shape[dim])
        if key not in self.units:
            raise UsageError(
                f"this activation was converted for {', '.join(self.units)} channels; dim {dim} of an input of shape "
                f"{tuple(x.shape)} has {key}. Convert the model with an example that has this shape"
            )
        unit = self.units[key]
        result: Tensor
        if dim == 1:
            result = unit(x)
        elif dim == x.dim() - 1:
            result = unit(x.flatten(0, -2)).view_as(x)
        else:
            result = unit(x.movedim(dim, 1)).movedim(1, dim)
        return result

    def extra_repr(self) -> str:
        return f"dims={self.dims}"


class Apart(nn.Module):
    """A unit that computes on a copy of its input, because the model writes over the input afterwards.

    Args:
        unit: Any module.
        write_back: Whether the result is written over the input, as an activation in place does.

    Shape:
        Those of the unit.
    """

    def __init__(self, unit: nn.Module, *, write_back: bool) -> None:
        super().__init__()
        self.unit = unit
        self.write_back = write_back

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.unit(x.clone())
        return x.copy_(result) if self.write_back else result

    def extra_repr(self) -> str:
        return f"write_back={self.write_back}"
