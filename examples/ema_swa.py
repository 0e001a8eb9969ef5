"""Averages of the weights (EMA, SWA): alpha and beta are averaged with them; averages of betas > 0 are > 0."""

import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import mpelu

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), mpelu.MPELU(4), nn.Flatten(), nn.Linear(4 * 36, 10))
ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
swa = AveragedModel(net)
optimizer = torch.optim.SGD(mpelu.param_groups(net, lr=0.05, weight_decay=1e-4), lr=0.05)
mpelu.keep_beta_positive(optimizer, net)
# SWALR takes one rate for all groups, unless it is given one for each: keep alpha and beta at 5 times the weights'
rates = [0.01 * group["lr_multiplier"] for group in optimizer.param_groups]
schedule = SWALR(optimizer, swa_lr=rates, anneal_epochs=5)

batches = [torch.randn(16, 1, 8, 8) for _ in range(10)]
for images in batches:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(images), torch.arange(16) % 10).backward()
    optimizer.step()
    ema.update_parameters(net)
    swa.update_parameters(net)
    schedule.step()
update_bn(batches, swa)
for name, average in (("last", net), ("EMA", ema.module), ("SWA", swa.module)):
    print(name, average[2].alpha.tolist())
    assert (average[2].beta > 0).all()
assert not torch.equal(net[2].alpha, ema.module[2].alpha)
print([(group["name"], round(group["lr"], 4)) for group in optimizer.param_groups])
