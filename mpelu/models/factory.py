"""A user's own network: a function, in a module or a file, that returns an ``nn.Module``."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

from mpelu.errors import UsageError


def load_factory(name: str) -> Callable[..., nn.Module]:
    """Return the function that a name like ``package.module:build`` or ``folder/file.py:build`` stands for.

    The code of the module or file is run, as by an import; the current folder is searched first.

    Args:
        name: Module or file, a colon, and the function.

    Returns:
        A function with the same arguments that builds the network and checks that it is one.

    Raises:
        UsageError: If there is no such module, file or function.

    Example:
        >>> load_factory("torch.nn:Identity")()
        Identity()
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise UsageError(f"a factory is named module:function or file.py:function, got {name!r}")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    build = getattr(module, function, None)
    if not callable(build):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{place} has no function {function!r}; it has {', '.join(known[:10]) or 'none'}")

    @wraps(build)
    def checked(*args: Any, **kwargs: Any) -> nn.Module:
        model = build(*args, **kwargs)
        if not isinstance(model, nn.Module):
            raise UsageError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
        return model

    return checked


def source_sha256(name: str) -> str:
    """Return the digest of the file that a factory is written in, "" where it is in none.

    Raises:
        UsageError: As :func:`load_factory`.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(load_factory(name)))
    except TypeError:  # a class or function that is built in
        return ""
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _from_file(path: Path) -> object:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> object:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".", maxsplit=1)[0] and error.name != name:
            raise
        raise UsageError(f"there is no module {name!r}; give a file as path/to/file.py:function") from error
