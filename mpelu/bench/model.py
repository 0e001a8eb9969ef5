"""Time the training step of whole networks with different activations, and count the memory that it needs."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mpelu.bench.timing import Row, clock, ratio, setting, take_turns
from mpelu.models import FAMILIES, create_model, parse_name
from mpelu.nn import MPELU

NETWORKS = {"nopre164": 16, "nin": 16, "plain30": 128}
"""Network and batch size: about a second a step on one core."""
ACTIVATIONS = ("relu", "prelu", "elu", "mpelu")
ROUNDS = 15


def network(name: str, activation: str) -> nn.Module:
    """Build a network; ``mpelu inplace`` has MPELUs that write over their input."""
    channels = FAMILIES[parse_name(name)[0]].image_shape[0]
    if activation == "mpelu inplace":
        return create_model(name, activation=lambda width: MPELU(width, inplace=True), in_channels=channels)
    return create_model(name, activation=activation, in_channels=channels)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> tuple[float]:
    """Return the seconds of one training step."""
    start = clock()
    optimizer.zero_grad()
    loss: Tensor = F.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return (clock() - start,)


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that autograd keeps for the backward pass, parameters left out, each memory counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)  # the graph holds what it keeps, so no address occurs twice
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    del output
    return sum(size for address, size in kept.items() if address not in own)


def peak_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> int:
    """Return the most bytes that a training step holds at a time, of those that it allocates itself.

    These are activations, gradients and what operators need for a while; weights, images and the state of the optimizer
    are there before. torch's profiler records each block that torch's allocator gives out or takes back, so the number
    is exact and repeats. A CPU has no counter as CUDA devices have, the size of the process depends on what the C
    library gives back, and a mode that watches every operator would take MPELU off its kernels. Scratch memory that
    oneDNN allocates by itself is not seen.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes to stderr that it starts and stops
    optimizer.zero_grad()  # the profiler cannot count what was allocated before it started and is freed then
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model, optimizer, images, labels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    blocks = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(int(size) for _, size in blocks))


def bench(
    *,
    networks: Sequence[str] = tuple(NETWORKS),
    activations: Sequence[str] = (*ACTIVATIONS, "mpelu inplace"),
    rounds: int = ROUNDS,
) -> Iterator[list[Row]]:
    """Time the training step of every network with every activation; yields the rows of one network at a time."""
    for name in networks:
        batch = NETWORKS.get(name, 16)
        shape = FAMILIES[parse_name(name)[0]].image_shape
        torch.manual_seed(0)
        images = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (batch,))
        models = {
            activation: network(name, activation).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for activation in dict.fromkeys(["mpelu", *activations])
        }
        steps = {
            activation: (model, torch.optim.SGD(model.parameters(), lr=1e-3), images, labels)
            for activation, model in models.items()
        }
        seconds = take_turns({activation: partial(step, *arguments) for activation, arguments in steps.items()}, rounds)
        yield [
            Row("model", f"{name}, batch {batch}", "channels_last", "float32", activation, metric, value, **setting())  # type: ignore[arg-type]
            for activation, times in seconds.items()
            for metric, value in (
                ("images/s", batch / min(times)[0]),
                ("mpelu / it", ratio(seconds["mpelu"], times)),
                ("kept MB", kept_bytes(models[activation], images) / 1e6),
                ("peak MB", peak_bytes(*steps[activation]) / 1e6),
            )
        ]
