"""torch.compile: one graph without a break; forward and backward as in eager mode."""

import torch
from torch import nn

import mpelu

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), mpelu.MPELU(8), nn.Flatten(), nn.Linear(8 * 36, 10))
compiled = torch.compile(net, fullgraph=True)  # the parameters are those of net: give net to param_groups
images = torch.randn(4, 3, 8, 8)

gradients = []
for call in (net, compiled):
    net.zero_grad()
    call(images).square().mean().backward()
    gradients.append(net[1].beta.grad.clone())
print("largest difference of the outputs:", (compiled(images) - net(images)).abs().max().item())
torch.testing.assert_close(compiled(images), net(images))
torch.testing.assert_close(*gradients)
