"""What the pages point to is there, and every public name has its place in the reference."""

import importlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import mpelu

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
SHOWN = {
    *re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE),
    *re.findall(r"^ +heading: (\S+)$", REFERENCE, re.MULTILINE),
}
MODULES = ["conversion", "data", "deploy", "diagnostics", "graph", "init", "models", "moments", "recipes"]


def prose(page: Path) -> str:
    """Return a page without its code."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`(?!\])", "", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_or_are_well_formed(page):
    made = {"examples.md", "changelog.md", "contributing.md", "security.md"}  # by the site
    for link in LINK.findall(prose(page)):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link
            assert parts.netloc != "arxiv.org" or re.fullmatch(r"/abs/\d{4}\.\d{4,5}", parts.path), link
        elif parts.path:
            assert (page.parent / parts.path).exists() or parts.path in made, link


def test_every_public_name_is_in_the_reference():
    names = {f"mpelu.{name}" for name in mpelu.__all__}
    objects = {id(getattr(mpelu, name)) for name in mpelu.__all__}
    for module in (importlib.import_module(f"mpelu.{name}") for name in MODULES):
        names |= {f"{module.__name__}.{name}" for name in module.__all__ if id(getattr(module, name)) not in objects}
    assert len(names) > 100
    assert names - SHOWN == set()


def test_example_of_the_readme_is_short():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
