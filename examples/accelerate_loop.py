"""Accelerate: make groups and projection from the model itself, then prepare both."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpelu

net = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), mpelu.MPELU(32), nn.Linear(32, 10))
mpelu.initialize(net, torch.zeros(1, 1, 16, 16))
optimizer = torch.optim.SGD(mpelu.param_groups(net, lr=0.02, weight_decay=1e-4), lr=0.02)
mpelu.keep_beta_positive(optimizer, net)  # a hook of the optimizer, which stays when Accelerate wraps it
batches = DataLoader(TensorDataset(torch.randn(64, 1, 16, 16), torch.arange(64) % 10), batch_size=8)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, prepared, batches = accelerator.prepare(net, optimizer, batches)
start = net[2].beta.detach().clone()
for images, labels in batches:
    with accelerator.accumulate(model):
        accelerator.backward(nn.functional.cross_entropy(model(images), labels))
        prepared.step()
        prepared.zero_grad()
print("beta moved by", (net[2].beta - start).abs().max().item())
assert not torch.equal(net[2].beta, start)
