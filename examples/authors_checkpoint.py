"""A state dict of the authors' PyTorch module: the names, shapes and start values are the same, alpha 0.25 and beta 1.

Early versions of their file call the two a and b.
"""

import torch
from torch import nn

import mpelu


class TheirMPELU(nn.Module):
    """What their module holds; its forward pass needs their CUDA extension."""

    def __init__(self, num_channels: int, names: tuple[str, str]) -> None:
        super().__init__()
        for name, value in zip(names, (0.25, 1.0), strict=True):
            self.register_parameter(name, nn.Parameter(torch.full((num_channels,), value)))


net = nn.Sequential(nn.Conv2d(3, 8, 3), mpelu.MPELU(8))
newer = nn.Sequential(nn.Conv2d(3, 8, 3), TheirMPELU(8, ("alpha", "beta"))).state_dict()
print(net.load_state_dict(newer))
assert net[1].alpha.eq(0.25).all()
assert net[1].beta.eq(1.0).all()

older = nn.Sequential(nn.Conv2d(3, 8, 3), TheirMPELU(8, ("a", "b"))).state_dict()
names = {"a": "alpha", "b": "beta"}
renamed = {}
for name, tensor in older.items():
    path, _, last = name.rpartition(".")
    renamed[f"{path}.{names.get(last, last)}"] = tensor
print(net.load_state_dict(renamed))
assert torch.equal(net[0].weight, older["0.weight"])
