"""Files for other programs, each compared with the network it came from before it is written."""

import importlib.util
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mpelu.deploy.config import to_config
from mpelu.deploy.images import inputs
from mpelu.deploy.network import RUN_CONFIG, Description, Network, folded
from mpelu.deploy.pretrained import WEIGHTS, digest, load, write
from mpelu.errors import MpeluError, UsageError
from mpelu.init import FoldReport
from mpelu.train.checkpoint import write_atomically

TOLERANCE = 1e-5
"""Of the largest output that is at least 1. ONNX has no expm1: its exp - 1 is off by 2^-24 in each activation."""
BATCHES = (1, 3)
"""Sizes that are compared; the file is made with another one, so that they show whether the size is free."""
EXAMPLE = 2
CONFIG = "config.json"


@dataclass(frozen=True)
class Export:
    """What was written, and how far it is from the network.

    Attributes:
        path: The file, or the folder.
        format: ``safetensors``, ``onnx`` or ``program``.
        bytes: Its size (of a folder, that of the weights).
        largest_difference: Between its outputs and the network's, over all that were compared.
        largest_output: Of the network, in absolute value, over the same.
        compared_with: What computed the outputs.
        wall_seconds: How long it took, the check included.
        fold: What was folded, and how much that changed the outputs; None if nothing was asked for.
        fold_difference: None likewise.
    """

    path: Path
    format: str
    bytes: int
    largest_difference: float
    largest_output: float
    compared_with: str
    wall_seconds: float
    fold: FoldReport | None = None
    fold_difference: float | None = None


def export(network: Network, path: Path, *, format: str, fold: bool = False) -> Export:  # noqa: A002  # as users say it
    """Write a network in another form, after comparing the two.

    Args:
        network: The network; with ``fold``, it is folded in place.
        path: Of ``safetensors``, a folder; of the others, a file. What is there is replaced.
        format: ``safetensors``: weights, config and card; ``onnx``: for onnxruntime and the like; ``program``: for
            ``torch.export.load``. The last two take any number of images at once.
        fold: Absorb the wrappers of tailored activations into the weights; see :func:`mpelu.fold`.

    Raises:
        UsageError: If the format is unknown or packages for it are missing.
        MpeluError: If the network cannot be exported, the result computes something else, or it cannot be written.
    """
    if format not in WRITERS:
        raise UsageError(f"--format must be {', '.join(WRITERS)}, got {format!r}")
    started = time.perf_counter()
    if format == "onnx":
        _require_onnx()
    if format != "safetensors" and not path.parent.is_dir():
        raise MpeluError(f"no folder {path.parent} to write {path.name} in; create it or give another one")
    if format != "safetensors" and path.is_dir():
        raise UsageError(f"{path} is a folder, and {format} is one file; give a name such as {path / 'network'}")
    report, change = None, None
    if fold:
        before = _outputs(network)
        network, report = folded(network)
        change = max(_difference(a, b) for a, b in zip(before, _outputs(network), strict=True))
    size, difference, compared_with = WRITERS[format](network, path)
    largest = max(float(output.abs().max()) for output in _outputs(network))
    return Export(path, format, size, difference, largest, compared_with, time.perf_counter() - started, report, change)


def _write_safetensors(network: Network, path: Path) -> tuple[int, float, str]:
    if path.exists() and not path.is_dir():
        raise UsageError(
            f"{path} is a file, and safetensors is a folder with weights, config and card; give another name"
        )
    if (path / RUN_CONFIG).is_file():
        raise UsageError(f"{path} is the folder of a run, which would no longer be read as one; give another name")
    write(network, path)
    size = (path / WEIGHTS).stat().st_size
    if ":" in network.description.recipe.model:  # to build it again would need the code of its author
        read = safetensors.torch.load_file(path / WEIGHTS)
        same = all(torch.equal(read[name], tensor) for name, tensor in network.net.state_dict().items())
        difference, compared_with = 0.0 if same else math.inf, "the weights, read back"
    else:
        again = load(path)
        difference = max(map(_difference, _outputs(network), _outputs(again)))
        same, compared_with = digest(again.net) == digest(network.net), "the folder, read back"
    if not same or difference > 0:
        raise MpeluError(f"the network that was read back from {path} is not the one that was written; report this")
    return size, difference, compared_with


def _write_program(network: Network, path: Path) -> tuple[int, float, str]:
    example = _inputs(network.description, EXAMPLE)
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(network.net, (example,), dynamic_shapes=({0: batch},))
    except (RuntimeError, ValueError, TypeError) as error:  # torch's own errors for this are among them
        raise MpeluError(f"torch.export does not take this network: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CONFIG: json.dumps(to_config(network.description))})
    content = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()
    difference = _checked(network, loaded, what="the program", path=path)
    write_atomically(path, content)
    return len(content), difference, "torch.export.load"


def _write_onnx(network: Network, path: Path) -> tuple[int, float, str]:
    import onnxruntime

    from mpelu.deploy.onnx import to_onnx

    notes = {"mpelu": json.dumps(to_config(network.description))}
    content = to_onnx(network.net, _inputs(network.description, EXAMPLE), notes=notes)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def computed(images: Tensor) -> Tensor:
        (found,) = session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(found)

    difference = _checked(network, computed, what="the ONNX file", path=path)
    write_atomically(path, content)
    return len(content), difference, f"onnxruntime {onnxruntime.__version__}"


WRITERS: dict[str, Callable[[Network, Path], tuple[int, float, str]]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "program": _write_program,
}


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--format onnx needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install 'mpelu[onnx]'"
        )


def _checked(network: Network, computed: Callable[[Tensor], Tensor], *, what: str, path: Path) -> float:
    """Return the largest difference, or raise where it is more than rounding."""
    pairs = []
    for count, wanted in zip(BATCHES, _outputs(network), strict=True):
        with torch.no_grad():
            found = computed(_inputs(network.description, count))
        if found.shape != wanted.shape:
            raise MpeluError(
                f"{what} returns shape {tuple(found.shape)} for {count} images, wanted {tuple(wanted.shape)}; {path} "
                f"was not written"
            )
        pairs.append((found, wanted))
    difference = max(_difference(found, wanted) for found, wanted in pairs)
    largest = max(1.0, *(float(wanted.abs().max()) for _, wanted in pairs))
    if not difference <= TOLERANCE * largest:
        raise MpeluError(
            f"{what} computes something else than the network: outputs differ by up to {difference:.2g}, allowed is "
            f"{TOLERANCE * largest:.2g}; {path} was not written"
        )
    return difference


def _outputs(network: Network) -> list[Tensor]:
    with torch.no_grad():
        return [network.net(_inputs(network.description, count)) for count in BATCHES]


def _inputs(description: Description, count: int) -> Tensor:
    """Return what the network is given of images of random pixels; for whitened ones, of N(0, 1)."""
    generator = torch.Generator().manual_seed(count)
    if description.recipe.preprocess != "none":
        return torch.randn(count, *description.input_shape, generator=generator)
    channels, height, width = description.data.image_shape
    pixels = torch.randint(256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
    # a copy: of one channel, channels_last images count as contiguous, and the exporters would trace their strides
    return inputs(list(pixels.numpy()), description).clone(memory_format=torch.contiguous_format)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
