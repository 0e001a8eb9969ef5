"""What a number depends on besides its recipe."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import mpelu


def describe_environment(device: torch.device, *, processes: int) -> dict[str, Any]:
    """Return what a number depends on besides the recipe: versions, device, threads, commit."""
    return {
        "mpelu": mpelu.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _commit() -> str | None:
    """Return the commit of the checkout that the package lies in, None for an installed wheel."""
    root = Path(mpelu.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(  # noqa: S603  # fixed arguments
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def processor() -> str:
    """Return the name of the CPU."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
