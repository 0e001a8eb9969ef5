"""FSDP2: two processes hold half of every weight, alpha and beta each, and take the steps that one would."""

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mpelu


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 7), mpelu.MPELU(7), nn.Linear(7, 4), mpelu.MPELU(), nn.Linear(4, 3))


def step(net: nn.Module, images: torch.Tensor) -> None:
    # after fully_shard, so that optimizer and projection hold the shards
    optimizer = torch.optim.SGD(mpelu.param_groups(net, lr=0.5, weight_decay=0.5), lr=0.5)
    mpelu.keep_beta_positive(optimizer, net, minimum=0.9)
    net(images).square().mean().backward()
    optimizer.step()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net, alone = build(), build()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    images = torch.randn(4, 16)
    step(net, images[2 * rank : 2 * rank + 2])
    step(alone, images)
    for (name, shard), whole in zip(net.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(shard.full_tensor(), whole)
        if rank == 0:
            print(f"{name}: {shard.to_local().numel()} of {whole.numel()} here")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder,), nprocs=2)
