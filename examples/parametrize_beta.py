"""torch.nn.utils.parametrize: beta > 0 by construction, in the place of mpelu.keep_beta_positive."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mpelu


class Exponential(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        return original.exp()

    def right_inverse(self, beta: Tensor) -> Tensor:
        return beta.log()


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 4), mpelu.MPELU(4, init_beta=2.0), nn.Linear(4, 2))
parametrize.register_parametrization(net[1], "beta", Exponential())
print(net[1].beta)  # 2 as before

# Learning rate and decay of the group beta now act on log(beta); the paper's values were found for beta itself.
groups = mpelu.param_groups(net, lr=0.1, weight_decay=0.0)
print([(group["name"], len(group["params"]), group["lr"]) for group in groups])
optimizer = torch.optim.SGD(groups, lr=0.1)
for _ in range(20):
    optimizer.zero_grad()
    net(torch.randn(16, 8)).square().mean().backward()
    optimizer.step()
print(net[1].beta)
assert (net[1].beta > 0).all()

net[1].reset_parameters()  # goes through right_inverse
torch.testing.assert_close(net[1].beta, torch.full((4,), 2.0))
