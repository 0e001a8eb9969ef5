"""Dynamic quantization: linear layers become int8, MPELU between them stays in float32 and needs nothing."""

import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic

import mpelu

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 32), mpelu.MPELU(32), nn.Linear(32, 10))
quantized = quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
print(quantized)

images = torch.randn(8, 64)
difference = (quantized(images) - net(images)).abs().max() / net(images).abs().max()
print(f"largest difference: {100 * difference:.2f} % of the largest output")
assert type(quantized[1]) is mpelu.MPELU
assert difference < 0.05
