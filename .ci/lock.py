"""Write requirements/*.lock: what mpelu needs at runtime, in the versions of constraints.txt, with hashes.

``python .ci/lock.py [WHEEL ...]`` is given the CPU builds of torch, which are not on the package index.
"""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
COMPILE = (
    "uv pip compile pyproject.toml --constraint constraints.txt --universal --python-version 3.11 "
    "--generate-hashes --no-header --no-annotate --quiet"
)
WITH_TORCH = ("cuda-", "nvidia-", "torch=", "triton=")
"""How the lines begin of torch and of what its CUDA builds ask for."""

COMMON = "# What mpelu needs beside torch. Made by `make lock`; cpu.lock and cuda.lock are what is installed.\n"
CPU = """\
# Everything that mpelu needs at runtime, with the CPU build of torch for Linux. Made by `make lock`.
#   pip install --require-hashes --requirement requirements/cpu.lock --extra-index-url https://download.pytorch.org/whl/cpu
#   pip install --no-deps mpelu
-r common.lock
"""
CUDA = """\
# Everything that mpelu needs at runtime, with torch of the package index: on Linux with CUDA. Made by `make lock`.
#   pip install --require-hashes --requirement requirements/cuda.lock
#   pip install --no-deps mpelu
-r common.lock
"""


def resolve() -> list[str]:
    """Return one requirement for each package, each of several lines."""
    command = [sys.executable, "-m", *COMPILE.split()]
    text = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    requirements = re.split(r"\n(?! )", text.strip())
    return [each for each in requirements if "sys_platform == 'emscripten'" not in each]  # there is no torch


def cpu_build(version: str, wheels: list[Path]) -> str:
    """Return the requirement of the CPU build of torch, with the hashes of these wheels, or of those before."""
    pin = f"torch=={version}+cpu"
    if not wheels:
        kept = (FOLDER / "cpu.lock").read_text().removeprefix(CPU).rstrip()
        if not kept.startswith(f"{pin} "):
            raise SystemExit(f"cpu.lock is not of {pin}; name its wheels: make lock WHEELS=...")
        return kept
    others = [wheel.name for wheel in wheels if not wheel.name.startswith(f"torch-{version}+cpu-")]
    if others:
        raise SystemExit(f"wanted wheels of {pin}, got {', '.join(others)}")
    digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
    return " \\\n    --hash=sha256:".join([pin, *sorted(digests)])


def main() -> None:
    requirements = resolve()
    common = [each for each in requirements if not each.startswith(WITH_TORCH)]
    cuda = [each for each in requirements if each.startswith(WITH_TORCH)]
    (version,) = (each.split()[0].removeprefix("torch==") for each in cuda if each.startswith("torch="))
    cpu = [cpu_build(version, [Path(name) for name in sys.argv[1:]])]
    for name, head, lines in (("common", COMMON, common), ("cpu", CPU, cpu), ("cuda", CUDA, cuda)):
        (FOLDER / f"{name}.lock").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
