"""Pages that are made of other files: the changelog, how to contribute, the examples, and the help of every command."""

import ast
import contextlib
import io
import os
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mpelu.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
COPIED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
HELP = "<!-- help of every command -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/."""
    for page, source in COPIED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "examples.md", content=examples()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the help of every command in its place."""
    return markdown.replace(HELP, commands()) if page.file.src_uri == "reference/command_line.md" else markdown


def examples() -> str:
    """Return every file of examples/, each below its name and what it says of itself."""
    parts = [
        "# Examples\n\nThe files of `examples/`, as the tests run them. About each: [ecosystem](docs/ecosystem.md)."
    ]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(text)) or ""
        code = text.split('"""', 2)[2].strip()
        parts.append(f"## {path.name}\n\n{about}\n\n```python\n{code}\n```")
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Return what ``--help`` prints, for ``mpelu`` itself and for each command."""
    calls = [[], *([name] for name in COMMANDS)]
    return "\n\n".join(f"## {' '.join(['mpelu', *words])}\n\n```text\n{printed(words)}\n```" for words in calls)


def printed(words: list[str]) -> str:
    """Return the help of a command, as wide as a page."""
    text = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="88"), contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return text.getvalue().rstrip()
