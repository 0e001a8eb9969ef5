"""Every file of examples/ runs, where the library that it is about is installed."""

import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
NEEDS = {
    "accelerate_loop": "accelerate",
    "lightning_module": "lightning",
    "timm_act_layer": "timm",
    "transformers_trainer": "transformers",
}
"""The library that an example needs beside torch."""
SHOWS = {
    "accelerate_loop": "beta moved by",
    "authors_checkpoint": "All keys matched successfully",
    "copy_and_pickle": "All keys matched successfully",
    "ema_swa": "EMA [",
    "fsdp2": "1.alpha: 4 of 7 here",
    "fsdp_deep": "of it in shards",
    "lightning_module": "alpha moved by",
    "parametrize_beta": "('alpha', 1, 0.5), ('beta', 1, 0.5)",
    "prelu_and_elu_checkpoints": "8 (dim 1)  1.5              1",
    "quantize_aware": "QuantizedConv2d",
    "quantize_dynamic": "DynamicQuantizedLinear",
    "sequential": "Conv 3x3(1 -> 8)",
    "timm_act_layer": "largest difference of the outputs: 0",
    "torch_compile": "largest difference of the outputs:",
    "transformers_trainer": "alpha moved by",
}
"""What each example prints, among others."""
SLOW = {"fsdp2", "fsdp_deep", "torch_compile", "lightning_module", "transformers_trainer"}


def why_not(library: str) -> str:
    """Return why a library cannot be used, "" if it can: timm is no use without torchvision."""
    missing = [name for name in (library, "torchvision" if library == "timm" else library) if not _installed(name)]
    return f"{' and '.join(dict.fromkeys(missing))} not installed" if missing else ""


def squeezed(text: str) -> str:
    """Return a text with single blanks in its tables."""
    return re.sub(" +", " ", text)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("name", [name for name in SHOWS if name not in {*NEEDS, *SLOW}])
def test_example_runs(name, capsys):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an example is about its library, as it is
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert squeezed(SHOWS[name]) in squeezed(capsys.readouterr().out)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SHOWS if name in {*NEEDS, *SLOW}]
)
def test_example_runs_in_a_process_of_its_own(name, tmp_path):
    if name in NEEDS and why_not(NEEDS[name]):
        pytest.skip(why_not(NEEDS[name]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FOLDER / f"{name}.py")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert squeezed(SHOWS[name]) in squeezed(done.stdout)


def test_every_example_is_run_here_and_described_in_the_docs():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SHOWS)
    written = "".join((FOLDER.parent / "docs" / page).read_text() for page in ("ecosystem.md", "scale.md"))
    for name in SHOWS:
        assert f"`examples/{name}.py`" in written, name


@pytest.mark.parametrize("name", SHOWS)
def test_example_is_short_says_what_it_is_about_and_imports_what_the_table_says(name):
    text = (FOLDER / f"{name}.py").read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert 10 <= len([line for line in text.splitlines() if line.strip()]) <= 45
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module).partition(".")[0]
        for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    others = {library for library in imported if library not in sys.stdlib_module_names} - {"torch", "mpelu"}
    assert others == ({NEEDS[name]} if name in NEEDS else set())
