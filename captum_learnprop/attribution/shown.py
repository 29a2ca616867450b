"""How methods and their results show themselves, in a log and in a notebook: a method as the call that makes it."""

from __future__ import annotations

import inspect
from html import escape
from typing import Any, ClassVar

from torch import Tensor, nn


class ShownAsCall:
    """A method that shows itself as the call that makes it: ``CDAM(model=VisionTransformer, layer='blocks.2')``.

    Arguments that are at their defaults are left out, but for those of `always_shown`.
    """

    model: Any
    always_shown: ClassVar[tuple[str, ...]] = ("model",)
    """Arguments that are shown at their defaults too."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor by name: the attributes of those names."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        given, parts = self.arguments(), []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = given.get(name, parameter.default)
            if name in self.always_shown or value != parameter.default:
                parts.append(f"{name}={_value_text(value, self.model)}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Returns the same call as code, for a notebook."""
        return f"<code>{escape(repr(self))}</code>"


def _value_text(value: Any, model: Any) -> str:
    """A module of the model by its path, another by its class, a function by its name; all else by its ``repr``."""
    if isinstance(value, nn.Module):
        paths = [path for path, module in model.named_modules() if module is value and path]
        return repr(paths[0]) if value is not model and paths else type(value).__name__
    if inspect.isfunction(value) or inspect.ismethod(value):
        return value.__qualname__
    return repr(value)


def numbers_text(values: Tensor, most: int = 6) -> str:
    """The first numbers of a tensor ``(N,)``, three digits each: ``0.1, 0.25, ...``."""
    shown = [f"{value:.3g}" for value in values[:most].tolist()]
    return ", ".join([*shown, "..."] if len(values) > most else shown)
