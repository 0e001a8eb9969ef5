"""What users name as ``module:name`` or ``file.py:name``: networks, data sets and recipes of their own."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mpelu.errors import UsageError


def load_named(address: str, *, kind: str, accepts: Callable[[object], bool] = callable) -> Any:
    """Return what a name like ``package.module:build`` or ``folder/file.py:build`` stands for.

    The code of the module or file is run, as by an import; the current folder is searched first.

    Args:
        address: Module or file, a colon, and the name in it.
        kind: What it is called in an error, e.g. ``function``.
        accepts: True for what is of that kind.

    Raises:
        UsageError: If there is no such module, file or name.

    Example:
        >>> load_named("math:gcd", kind="function")(12, 18)
        6
    """
    place, _, name = address.rpartition(":")
    if not place or not name:
        raise UsageError(f"a {kind} of your own is named module:name or file.py:name, got {address!r}")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    found = getattr(module, name, None)
    if not accepts(found):
        known = [key for key, value in vars(module).items() if accepts(value) and not key.startswith("_")]
        raise UsageError(f"{place} has no {kind} {name!r}; it has {', '.join(known[:10]) or 'none'}")
    return found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".", maxsplit=1)[0] and error.name != name:
            raise
        raise UsageError(f"there is no module {name!r}; give a file as path/to/file.py:name") from error
