"""Captum methods with trainable propagation rules, the tools to train and judge them, plugins and a command line.

Names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import evaluation as evaluation
    from . import plugins as plugins
    from . import training as training
    from .attribution.learned import LearnedPropagation as LearnedPropagation
    from .errors import LearnpropError as LearnpropError
    from .training.masks import MaxMask as MaxMask
    from .training.objectives import Agreement as Agreement

_HOMES = {
    "Agreement": "training.objectives",
    "LearnedPropagation": "attribution.learned",
    "LearnpropError": "errors",
    "MaxMask": "training.masks",
}
_ROOMS = ("evaluation", "plugins", "training")

__all__ = ["Agreement", "LearnedPropagation", "LearnpropError", "MaxMask", "evaluation", "plugins", "training"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
