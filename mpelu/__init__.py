"""MPELU: a learnable activation, initializations that fit it, and the very deep networks that they train.

Names are looked up when they are first used, so that the command line can start without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpelu.conversion import Conversion, convert
    from mpelu.deploy import from_pretrained, push_to_hub, save_pretrained
    from mpelu.diagnostics import Diagnosis, diagnose, watch
    from mpelu.errors import DataError, MpeluError, UsageError
    from mpelu.init import InitPlan, fold, gain, initialize, plan, tailor
    from mpelu.models import create_model, list_models
    from mpelu.nn import MPELU
    from mpelu.optim import keep_beta_positive, param_groups

__version__ = "0.1.0"

_HOME = {
    "Conversion": "mpelu.conversion",
    "Diagnosis": "mpelu.diagnostics",
    "convert": "mpelu.conversion",
    "diagnose": "mpelu.diagnostics",
    "fold": "mpelu.init",
    "from_pretrained": "mpelu.deploy",
    "push_to_hub": "mpelu.deploy",
    "save_pretrained": "mpelu.deploy",
    "watch": "mpelu.diagnostics",
    "DataError": "mpelu.errors",
    "InitPlan": "mpelu.init",
    "MPELU": "mpelu.nn",
    "MpeluError": "mpelu.errors",
    "UsageError": "mpelu.errors",
    "create_model": "mpelu.models",
    "gain": "mpelu.init",
    "initialize": "mpelu.init",
    "keep_beta_positive": "mpelu.optim",
    "list_models": "mpelu.models",
    "param_groups": "mpelu.optim",
    "plan": "mpelu.init",
    "tailor": "mpelu.init",
}
_MODULES = (
    "conversion",
    "data",
    "deploy",
    "diagnostics",
    "functional",
    "graph",
    "init",
    "models",
    "moments",
    "nn",
    "optim",
)

__all__ = [  # spelled out for type checkers
    "MPELU",
    "Conversion",
    "DataError",
    "Diagnosis",
    "InitPlan",
    "MpeluError",
    "UsageError",
    "convert",
    "create_model",
    "diagnose",
    "fold",
    "from_pretrained",
    "gain",
    "initialize",
    "keep_beta_positive",
    "list_models",
    "param_groups",
    "plan",
    "push_to_hub",
    "save_pretrained",
    "tailor",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"mpelu.{name}")
    raise AttributeError(f"module 'mpelu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
