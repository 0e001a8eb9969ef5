"""MPELU inside of nn.Sequential: made with the number of channels, as nn.PReLU is, and trained at rates of its own."""

import torch
from torch import nn

import mpelu

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    mpelu.MPELU(8),  # one alpha and one beta for each channel; alpha starts at 0.25, beta at 1
    nn.Flatten(),
    nn.Linear(8 * 16 * 16, 10),
)
images, labels = torch.randn(32, 1, 16, 16), torch.arange(32) % 10
print(mpelu.initialize(net, images))  # what each weight is filled with, and why

# alpha and beta at 5 times the rate of the weights, as in the paper
optimizer = torch.optim.SGD(mpelu.param_groups(net, lr=0.02, weight_decay=1e-4), lr=0.02, momentum=0.9)
mpelu.keep_beta_positive(optimizer, net)

losses = []
for _ in range(20):
    loss = nn.functional.cross_entropy(net(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
assert losses[-1] < losses[0]
