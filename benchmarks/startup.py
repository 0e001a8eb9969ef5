"""CPU seconds of ``mpelu --help``, ``import mpelu`` and ``import torch``: medians over interleaved processes.

python benchmarks/startup.py
"""

import resource
import statistics
import subprocess
import sys

ROUNDS = 7
COMMANDS = {
    "mpelu --help": [sys.executable, "-m", "mpelu", "--help"],
    "import mpelu, mpelu.MPELU": [sys.executable, "-c", "import mpelu; mpelu.MPELU"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = [{name: cpu_seconds(command) for name, command in COMMANDS.items()} for _ in range(ROUNDS + 1)][1:]
    for name in COMMANDS:
        print(f"{name:28} {statistics.median(row[name] for row in rounds):.2f} CPU s")
    ratio = statistics.median(row["import mpelu, mpelu.MPELU"] / row["import torch"] for row in rounds)
    print(f"import mpelu / import torch  {ratio:.2f}")


if __name__ == "__main__":
    main()
