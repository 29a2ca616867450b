"""How pictures become inputs, as a function of one's own: ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from captum_learnprop.errors import LearnpropError
from captum_learnprop.models.own_file import file_of_module, folder_on_path, is_module, made_in, run_file


def transform_named(spec: str) -> Callable[..., Any]:
    """Returns a function from a picture of PIL to an input ``(C, H, W)``.

    Args:
        spec: ``"FILE.py:NAME"`` or ``"package.module:NAME"``. What has that name is the function, such as a ``Compose``
            of torchvision; or, if it takes no argument, it is called and returns the function.

    Raises:
        LearnpropError: There is no such file, module or name, it fails, or gives nothing that can be called.
    """
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise LearnpropError(f"transform {spec}: there is no file {place}")
        with folder_on_path(path.parent):
            return _function(vars(run_file(path)), name, path)
    if not is_module(spec):
        raise LearnpropError(
            f"transform {spec!r} is neither FILE.py:FUNCTION nor package.module:FUNCTION that Python finds"
        )
    with folder_on_path(Path()):
        path = file_of_module(spec)
        with made_in(path, f"{place} cannot be imported"):
            module = import_module(place)
        return _function(vars(module), name, path)


def _function(names: dict[str, Any], name: str, path: Path) -> Callable[..., Any]:
    found = names.get(name)
    if not callable(found):
        what = "has no" if found is None else f"has a {type(found).__name__} for the"
        raise LearnpropError(
            f"{path} {what} transform {name!r}: a function from a picture of PIL to a tensor (C, H, W)"
        )
    if not _takes_nothing(found):
        return found
    with made_in(path, f"{name} in {path} failed"):
        made = found()
    if not callable(made):
        raise LearnpropError(
            f"{name} in {path} takes no picture, so that it must return a function that does, and not "
            f"{type(made).__name__}"
        )
    return made


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions in C do not say what they take
        return False
    return not any(one.kind is not one.KEYWORD_ONLY for one in parameters)
