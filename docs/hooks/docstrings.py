"""Docstrings as Markdown: the roles and formulas that they are written with, and names that griffe does not see."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(func|class|meth|mod|data|attr|obj|math):`~?\.?([^`]+)`")
FORMULA = re.compile(r"^(?P<indent> *)\.\. math:: (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite what is reStructuredText in a docstring."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, obj)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Let ``mpelu.plan`` be the function: ``mpelu.init.plan`` is a function at run time, and a file to griffe."""
        for name, path in pkg.imports.items():
            found = pkg[path.removeprefix(f"{pkg.path}.")] if path.startswith(f"{pkg.path}.") else None
            if found is not None and not found.is_alias and found.is_module and name in found.members:
                pkg.set_member(name, griffe.Alias(name, found[name], parent=pkg))


def markdown(text: str, scope: griffe.Object) -> str:
    """Return a docstring with formulas between dollars, and roles as links where their name is on a page."""
    text = re.sub("^Example:$", "Examples:", text, flags=re.MULTILINE)  # the heading that griffe knows
    text = FORMULA.sub(lambda found: f"{found['indent']}$${' '.join(found['text'].split())}$$", text)
    return ROLE.sub(lambda found: _role(*found.groups(), scope), text)


def _role(role: str, target: str, scope: griffe.Object) -> str:
    if role == "math":
        return f"${target}$"
    name = target.rpartition(".")[2]
    return f'<autoref identifier="{_resolved(target, scope)}" optional>`{name}`</autoref>'


def _resolved(target: str, scope: griffe.Object) -> str:
    try:
        return scope.resolve(target)
    except griffe.NameResolutionError:
        return target
