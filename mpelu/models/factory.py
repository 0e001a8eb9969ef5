"""A user's own network: a function, in a module or a file, that returns an ``nn.Module``."""

import hashlib
import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

from mpelu.address import load_named
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
    build = load_named(name, kind="function")

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
