"""What docs/extending.md says is done: its files are written down and its commands run."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mpelu.cli import main
from mpelu.data import load
from mpelu.data.catalog import CATALOG
from mpelu.models import FAMILIES, create_model
from mpelu.recipes import catalog

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# ([^\n]*)\n(.*?)```", TEXT, re.S))
ROWS = BLOCKS.pop("rows in the catalogs")
COMMANDS = [line.split() for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()]


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPELU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    for path, code in BLOCKS.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(f"# {path}\n{code}")
    before = set(sys.modules)
    yield
    for name in {name for name in sys.modules if name.partition(".")[0] in ("stripes", "recipes")} - before:
        del sys.modules[name]


def test_files_and_commands_are_there():
    assert list(BLOCKS) == ["stripes/net.py", "stripes/data.py", "stripes/recipes.py"]
    assert len(COMMANDS) > 3


def test_commands_run(capsys):
    for program, *words in COMMANDS:
        assert program == "mpelu"
        assert main(words) == 0, words
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("run folder: ") == 3
    assert "on stripes" in printed.out


def test_rows_make_them_names(monkeypatch, capsys):
    monkeypatch.setitem(FAMILIES, "stripes", None)  # for its removal afterwards
    monkeypatch.setitem(CATALOG, "stripes", None)
    module = ModuleType("mpelu.recipes.stripes")
    exec(compile(ROWS, "docs/extending.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(catalog, "MODULES", (*catalog.MODULES, "stripes"))
    assert create_model("stripes", 2, "elu", width=4)(load("stripes").train.images[:3] / 255).shape == (3, 2)
    words = "train --recipe stripes-mpelu --scale cpu --model stripes --data stripes --model_options.width 4"
    assert main(words.split()) == 0
    assert "on stripes" in capsys.readouterr().out
