"""Time and memory of a training step whose activations are computed again in the backward pass:

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/bench_recompute.py [--model nopre1001] [--batch 32] [--rounds 5]

Each way runs in a process of its own, so that its peak is its own; they take turns, and CPU times are compared.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def measure(name: str, batch: int, *, again: bool) -> dict[str, float]:
    import torch

    from mpelu.models import FAMILIES, create_model, parse_name
    from mpelu.train.recompute import checkpoint_activations

    torch.set_num_threads(1)
    shape = FAMILIES[parse_name(name)[0]].image_shape
    net = create_model(name, 10, in_channels=shape[0])
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    if again:
        checkpoint_activations(net)
    x = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    seconds = []
    for _ in range(3):
        started = time.process_time()
        torch.autograd.backward(torch.nn.functional.cross_entropy(net(x), labels))
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    return {"seconds": min(seconds[1:]), "gigabytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nopre1001")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=["kept", "again"], help="What a process of its own measures.")
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(options.model, options.batch, again=options.measure == "again")))
        return
    found: dict[str, list[dict[str, float]]] = {"kept": [], "again": []}
    command = [sys.executable, __file__, "--model", options.model, "--batch", str(options.batch), "--measure"]
    for _ in range(options.rounds):
        for way, rows in found.items():
            rows.append(json.loads(subprocess.run([*command, way], capture_output=True, check=True).stdout))
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(found["kept"], found["again"], strict=True))
    for way, rows in found.items():
        seconds, peak = (statistics.median(row[key] for row in rows) for key in ("seconds", "gigabytes"))
        sys.stdout.write(f"{options.model}, batch {options.batch}, {way}: {seconds:.2f} CPU s, {peak:.2f} GB\n")
    sys.stdout.write(f"time of computing again / keeping: {ratio:.2f}\n")


if __name__ == "__main__":
    main()
