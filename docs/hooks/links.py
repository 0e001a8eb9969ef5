"""Links that lead out of docs/: to the page that is made of the file, or to its name where there is no such page.

There they are read on the host of the repository, which knows all files. The site knows those of docs/ only.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples": "examples.md",
}
LINK = re.compile(
    r"^ *(?P<fence>```+)[^\n]*\n.*?^ *(?P=fence) *$|`+[^`\n]+`+(?!\])"  # code: what looks like a link there is none
    r"|(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL | re.MULTILINE,
)
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead every link to a page of the site, or make it a name."""
    return LINK.sub(lambda found: link(found, page) if found["path"] else found[0], markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads something from another host: the site is read without a network."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found[0]}")
    return output


def link(found: re.Match[str], page: Page) -> str:
    """Return one link as the site has it."""
    source = PurePosixPath(page.file.src_uri)
    # pages that are made of a file of the root have links that start there
    folder = "" if page.file.generated_by else f"docs/{source.parent}"
    path = os.path.normpath(f"{folder}/{found['path']}" if folder else found["path"])
    if path.startswith("docs/"):
        target, anchor = path.removeprefix("docs/"), found["anchor"] or ""
    elif path in PAGES:
        target, anchor = PAGES[path], ""
    elif path.startswith("examples/"):
        target, anchor = "examples.md", "#" + PurePosixPath(path).name.replace(".", "")
    elif (ROOT / path).exists():
        name = found["text"] if found["text"].strip("`") == path else f"{found['text']} (`{path}`)"
        return name if "`" in name else f"`{name}`"
    else:
        raise PluginError(f"{page.file.src_uri}: there is no file {path}, which is linked as [{found['text']}]")
    text = title(target) if found["text"].endswith(".md") else found["text"]
    return f"[{text}]({os.path.relpath(target, source.parent)}{anchor})"


def title(page: str) -> str:
    """Return the heading of a page: a link that shows the name of its file is for readers of the files."""
    path = ROOT / "docs" / page
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), Path(page).stem.capitalize())
