"""FSDP2 for the nets of hundreds of layers: weights, gradients and momentum in shards, activations computed again.

usage: fsdp_deep.py [DEPTH]; 1001 needs more memory and patience than the 29 layers that it takes by itself.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import mpelu
from mpelu.train.recompute import checkpoint_activations


def held(net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of weights, gradients and momentum that this process holds."""
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    tensors = [*net.parameters(), *(weight.grad for weight in net.parameters()), *state]
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in tensors)


def work(rank: int, folder: str, depth: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = mpelu.create_model(f"nopre{depth}", num_classes=10, alpha=0.25)
    mpelu.initialize(
        net, torch.zeros(1, 3, 32, 32), method="eq22", seed=0
    )  # before fully_shard: every process the same
    mesh = init_device_mesh("cpu", (2,))
    for child in net:  # gathered block by block; what needs a whole net at once gathers it whole
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)
    fully_shard(net, mesh=mesh)
    checkpoint_activations(net)
    optimizer = torch.optim.SGD(mpelu.param_groups(net, lr=0.1, weight_decay=1e-4), lr=0.1, momentum=0.9)
    mpelu.keep_beta_positive(optimizer, net)
    loss = nn.functional.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.arange(4))
    loss.backward()
    optimizer.step()
    whole = 3 * 4 * sum(weight.numel() for weight in net.parameters())
    print(
        f"process {rank}: {held(net, optimizer) / whole:.2f} of it in shards, of {whole / 1e6:.2f} MB; loss {loss:.2f}"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder, int(sys.argv[1]) if sys.argv[1:] else 29), nprocs=2)
