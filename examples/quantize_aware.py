"""Quantization-aware training (eager mode): MPELU has no int8 kernel and computes in float between two int8 layers.

The stubs say so. Without them, the converted net stops with an error at MPELU, which is given an int8 tensor.
"""

import torch
from torch import nn
from torch.ao import quantization

import mpelu


def in_float(unit: nn.Module) -> nn.Module:
    """Leave int8 before a unit and go back to it behind, with a scale that the training observes."""
    unit.qconfig = None
    return nn.Sequential(quantization.DeQuantStub(), unit, quantization.QuantStub())


torch.manual_seed(0)
net = nn.Sequential(
    quantization.QuantStub(),
    nn.Conv2d(1, 4, 3), in_float(mpelu.MPELU(4)),
    nn.Flatten(), nn.Linear(4 * 36, 10),
    quantization.DeQuantStub(),
)  # fmt: skip
net.qconfig = quantization.get_default_qat_qconfig()
quantization.prepare_qat(net.train(), inplace=True)  # alpha and beta stay parameters that learn
optimizer = torch.optim.SGD(mpelu.param_groups(net, lr=0.05, weight_decay=1e-4), lr=0.05)
mpelu.keep_beta_positive(optimizer, net)

images, start = torch.randn(32, 1, 8, 8), net[2][1].alpha.detach().clone()
for _ in range(10):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(images), torch.arange(32) % 10).backward()
    optimizer.step()
assert not torch.equal(net[2][1].alpha, start)

wanted = net.eval()(images)
int8 = quantization.convert(net)
print(int8)
difference = (int8(images) - wanted).abs().max() / wanted.abs().max()
print(f"largest difference to the training: {100 * difference:.1f} % of the largest output")
assert difference < 0.15  # it is as large with nn.ReLU in the place of MPELU
