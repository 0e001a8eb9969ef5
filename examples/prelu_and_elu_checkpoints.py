"""Checkpoints of nets with nn.PReLU or nn.ELU: load them as they are, then convert; the function stays."""

import torch
from torch import nn

import mpelu


def build(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Flatten(), nn.Linear(8 * 36, 10))


torch.manual_seed(0)
images = torch.randn(16, 3, 8, 8)

net = build(nn.ELU(alpha=1.5))
net.load_state_dict(build(nn.ELU(alpha=1.5)).state_dict())  # yours
conversion = mpelu.convert(net, nn.ELU, example=images)
print(conversion)
assert conversion.largest_difference < 1e-6  # ELU(a) is MPELU with alpha a and beta 1

trained = build(nn.PReLU(8, init=0.1)).state_dict()  # yours; its slopes differ by channel
trained["1.weight"] = torch.linspace(0.05, 0.4, 8)
net = build(nn.PReLU(8))
net.load_state_dict(trained)
# A straight line is the limit of beta to 0 with alpha = slope / beta: as near as smallest_beta allows
conversion = mpelu.convert(net, nn.PReLU, example=images, smallest_beta=0.001)
print(conversion)
print(net[1].alpha * net[1].beta)  # the slopes
assert conversion.largest_difference < 1e-2
assert {"1.alpha", "1.beta"} <= net.state_dict().keys()
