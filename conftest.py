"""The blocks of code in README.md, CONTRIBUTING.md and docs/ are run as they stand there, page by page."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).parent
SHOWN = {"text", "json", "yaml", "toml"}
"""Languages of blocks that are for reading only."""
FENCED = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n{ ]*)[^\n]*\n"))
REASON = re.compile(r"^ *<!-- not run:?(?P<reason>(?:(?!-->).)*)-->(?:[ \t]*\n)+", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"\]\((?:docs/)?pictures/(?P<name>[\w-]+\.svg)\)")
HASH = re.compile(r"\b[mp][0-9a-f]{10}\b")
"""Names that matplotlib gives to shapes and clips, after their numbers."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TESTED = {"train-loss.svg"}
"""Pictures that are drawn from results/, where tests/test_results.py draws them again."""
FILE = re.compile(r"# (?P<path>[\w/]+\.py)\n")
python = PythonEvaluator()


def blocks(document: Document) -> Iterator[Region]:
    """Yield every fenced block of a page with what it is for."""
    reasons = {found.end(): found for found in REASON.finditer(document.text)}
    for region in FENCED(document):
        reason = reasons.pop(region.start, None)
        region.parsed = region.lexemes["source"]
        region.evaluator = skipped(reason["reason"].strip()) if reason else RUN.get(region.lexemes["language"], unknown)
        yield region
    if PICTURE.search(document.text):
        yield Region(len(document.text), len(document.text), parsed=None, evaluator=compare_pictures)
    for reason in reasons.values():
        raise ValueError(f"{document.path}: {reason[0].strip()} stands before no block")


def skipped(reason: str) -> Any:
    """Return what skips a block, for a reason that has to be given."""

    def skip(_: Example) -> None:
        assert reason, "write <!-- not run: the reason -->"
        pytest.skip(reason)

    return skip


def unknown(example: Example) -> None:
    """Refuse a block of which nobody says whether it is to be run."""
    language = example.region.lexemes["language"]
    pytest.fail(
        f"a block must say ```python or ```sh if it is to be run, and else ```{', ```'.join(SHOWN)}, not {language!r}"
    )


def run_python(example: Example) -> None:
    """Run a block in the namespace of its page, or write it down if its first line is the name of a file."""
    file = FILE.match(example.parsed)
    if file:
        Path(file["path"]).parent.mkdir(parents=True, exist_ok=True)
        Path(file["path"]).write_text(example.parsed)
    else:
        python(example)


def run_shell(example: Example) -> None:
    """Run a block as a script that stops at the first command that fails."""
    command = ["bash", "-e", "-u", "-o", "pipefail", "-c", example.parsed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.fail(f"exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}", pytrace=False)


def show(_: Example) -> None:
    """Leave a block that is for reading only."""


def compare_pictures(example: Example) -> None:
    """Compare each picture of a page with the one that its blocks have drawn; with PICTURES=write take that one."""
    for name in sorted({*PICTURE.findall(example.document.text)} - TESTED):
        drawn, shown = Path(name), ROOT / "docs" / "pictures" / name
        assert drawn.exists(), f"no block of this page writes {name}"
        if os.environ.get("PICTURES") == "write":
            shown.write_text(drawn.read_text())
        assert shown.exists(), f"docs/pictures/{name} is missing: PICTURES=write make docs puts it there"
        old, new = (HASH.sub("", path.read_text()) for path in (shown, drawn))
        assert NUMBER.sub("", new) == NUMBER.sub("", old), f"{name} is drawn otherwise: PICTURES=write make docs"
        numbers = ([float(number) for number in NUMBER.findall(text)] for text in (new, old))
        # other processors round otherwise; what they draw differs by less than the width of a line
        assert next(numbers) == pytest.approx(next(numbers), abs=1.0, rel=0.02), f"{name}: PICTURES=write make docs"


RUN = {"python": run_python, "sh": run_shell} | dict.fromkeys(SHOWN, show)


class Page:
    """An empty folder for each page, offline, with one thread and ``mpelu`` on the path."""

    def enter(self, namespace: dict[str, Any]) -> None:
        import torch

        from mpelu.data import CATALOG
        from mpelu.models import FAMILIES

        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.chdir(self.folder.name)
        self.patch.syspath_prepend(self.folder.name)
        self.patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        self.patch.setenv("MPELU_CACHE", str(Path(self.folder.name, ".cache")))
        self.patch.setenv("HF_HUB_OFFLINE", "1")
        self.patch.setenv("OMP_NUM_THREADS", "1")
        self.modules = set(sys.modules)
        self.catalogs: list[tuple[dict[str, Any], dict[str, Any]]] = [(each, {**each}) for each in (CATALOG, FAMILIES)]
        torch.set_num_threads(1)
        torch.manual_seed(0)
        namespace["__name__"] = "__main__"

    def leave(self, _: dict[str, Any]) -> None:
        own = [name for name in set(sys.modules) - self.modules if self._holds(sys.modules[name])]
        for name in own:
            del sys.modules[name]
        for catalog, before in self.catalogs:  # a page says how rows are added
            catalog.clear()
            catalog.update(before)
        self.patch.undo()
        self.folder.cleanup()

    def _holds(self, module: Any) -> bool:
        return str(getattr(module, "__file__", "")).startswith(self.folder.name)


page = Page()
pytest_collect_file = Sybil(
    parsers=[blocks],
    path=str(ROOT),
    patterns=["docs/*.md", "README.md", "CONTRIBUTING.md"],
    setup=page.enter,
    teardown=page.leave,
).pytest()
