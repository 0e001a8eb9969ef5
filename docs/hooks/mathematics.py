"""Formulas as MathML, made when the site is built: browsers draw it without scripts and without a network."""

import html
import importlib.resources
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FONT = importlib.resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
"""STIX Two Math, under the Open Font License: many phones have no font with large brackets."""

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
PRIMES = re.compile(r"([A-Za-z]'+)\^")
"""f''^2, which LaTeX allows and latex2mathml refuses without braces."""
TEXT = re.compile(r"\\text\{[^}]*\}")
"""Where latex2mathml shows the backslash of an underscore."""
LEFT_OVER = re.compile(r"<m[a-z]+>(?:\\|&(?!#|amp;|lt;|gt;))")
"""A command or an ampersand that was taken for a symbol."""

SIGN = re.compile(r"(<mo[^>]*>(?!&#x00029;|&#x0005D;)[^<]*</mo>)<mo>(?=&#x02212;</mo>)")
"""A minus behind an operator that closes nothing: a sign, which stands close to its number."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the font that style.css names."""
    files.append(File.generated(config, f"fonts/{FONT.name}", content=FONT.read_bytes()))
    return files


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Replace each formula that arithmatex has marked."""
    return FORMULA.sub(lambda found: mathml(html.unescape(found[3]), page, block=found[2] == "["), content)


def mathml(latex: str, page: Page, *, block: bool) -> str:
    """Return a formula as MathML."""
    latex = TEXT.sub(lambda found: found[0].replace(r"\_", "_"), latex)
    latex = PRIMES.sub(r"{\1}^", " ".join(latex.split()).replace("{aligned}", "{align*}"))
    try:
        result = convert(latex, display="block" if block else "inline")
    except Exception as error:
        raise PluginError(f"{page.file.src_uri}: {type(error).__name__} in ${latex}$") from error
    if LEFT_OVER.search(result):
        raise PluginError(f"{page.file.src_uri}: latex2mathml does not know a command of ${latex}$")
    return SIGN.sub(r'\1<mo form="prefix">', result)
