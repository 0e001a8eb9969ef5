"""deepcopy, pickle, torch.save of a module, and a state dict that is loaded without running code."""

import copy
import io
import pickle

import torch
from torch import nn

import mpelu

net = nn.Sequential(nn.Linear(8, 4), mpelu.MPELU(4, init_alpha=0.5), nn.Linear(4, 2))
x = torch.randn(3, 8)

copied = copy.deepcopy(net)
pickled = pickle.loads(pickle.dumps(net))  # noqa: S301  # runs code: only for what you wrote yourself
for other in (copied, pickled):
    assert torch.equal(other(x), net(x))
    assert other[1].alpha is not net[1].alpha

file = io.BytesIO()
torch.save(net.state_dict(), file)
file.seek(0)
fresh = nn.Sequential(nn.Linear(8, 4), mpelu.MPELU(4), nn.Linear(4, 2))
print(fresh.load_state_dict(torch.load(file, weights_only=True)))
assert torch.equal(fresh(x), net(x))
