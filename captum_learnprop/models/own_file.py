"""A model from a Python file of one's own, as ``FILE.py:FUNCTION``, or a module, ``package.module:FUNCTION``."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.models.checkpoints import load_into, read_state

_OPTIONS = ("argument", "weights", "checkpoint")
"""What a function may ask for, under the names that a plugin's factory has for them."""


def is_file(spec: str) -> bool:
    """Returns whether ``--model`` names a Python file, with or without a function, and no record."""
    return spec.rpartition(":")[0].endswith(".py") or spec.endswith(".py")


def is_module(spec: str) -> bool:
    """Returns whether ``--model`` names a function in a module that Python finds, also in the current folder."""
    name, colon, function = spec.partition(":")
    if not colon or not function.isidentifier() or not all(part.isidentifier() for part in name.split(".")):
        return False
    with folder_on_path(Path()):
        try:
            return find_spec(name) is not None
        except (ImportError, ValueError):
            return False


def model_of_module(spec: str, weights: str | None = None, checkpoint: str | Path | None = None) -> nn.Module:
    """Returns the model that a function in an installed module, or one in the current folder, makes.

    Args:
        spec: ``"package.module:FUNCTION"``; what is called is as for `model_of_file`.
        weights: Whatever the function means by it.
        checkpoint: A file of parameters; loaded into the model where the function does not take it.

    Raises:
        LearnpropError: The module or the function fails, or gives no module; the error names the line.
    """
    name, _, function = spec.partition(":")
    with folder_on_path(Path()):
        path = file_of_module(spec)
        with made_in(path, f"{name} cannot be imported"):
            module = import_module(name)
        return _made(module, path, function, weights, checkpoint)


def file_of_module(spec: str) -> Path:
    """Returns the file of the module in ``package.module:FUNCTION``."""
    name = spec.partition(":")[0]
    with folder_on_path(Path()):
        found = find_spec(name)
    return Path(found.origin if found is not None and found.origin else name)


def model_of_file(spec: str, weights: str | None = None, checkpoint: str | Path | None = None) -> nn.Module:
    """Returns the model that a function in a Python file makes.

    The file is run once per call, with its folder on the path, as ``python FILE`` would have it.

    Args:
        spec: ``"FILE.py:FUNCTION"``. The function, or class, is called without arguments, or with those of ``weights``
            and ``checkpoint`` that it has a parameter for; a module under that name is taken as it is.
        weights: Whatever the function means by it.
        checkpoint: A file of parameters; loaded into the model where the function does not take it.

    Raises:
        LearnpropError: The file or the function is missing or fails, or gives no module; the error names the line.
    """
    path, name = _split(spec)
    with folder_on_path(path.parent):
        return _made(run_file(path), path, name, weights, checkpoint)


def _made(module: ModuleType, path: Path, name: str, weights: str | None, checkpoint: str | Path | None) -> nn.Module:
    """Returns what a function of a module makes, with the parameters of a checkpoint where it does not load them."""
    maker = _find(module, name, path)
    model = maker if isinstance(maker, nn.Module) else _call(maker, path, name, weights, checkpoint)
    if not isinstance(model, nn.Module):
        raise LearnpropError(f"{name} in {path} must return a torch.nn.Module, not {type(model).__name__}")
    if checkpoint is not None and "checkpoint" not in _asked_for(maker):
        load_into(model, f"what {name} in {path} makes", Path(checkpoint), read_state(Path(checkpoint)))
    return model


def _split(spec: str) -> tuple[Path, str]:
    file, _, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise LearnpropError(f"--model {spec}: there is no file {file}")
    if not name:
        raise LearnpropError(f"--model {spec}: which function of {file}? Name it as in '{file}:make_model'")
    return path, name


@contextmanager
def folder_on_path(folder: Path) -> Iterator[None]:
    """Lets the file import what lies beside it."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def run_file(path: Path) -> ModuleType:
    """Returns a Python file as a module, run anew."""
    # Two files of one name must not be taken for each other, and neither for an installed package.
    name = f"learnprop_model_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    found = spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise LearnpropError(f"{path} cannot be run as Python")
    module = module_from_spec(found)
    sys.modules[name] = module  # dataclasses and the like look up their module
    with made_in(path, f"{path} cannot be run"):
        found.loader.exec_module(module)
    return module


def _find(module: ModuleType, name: str, path: Path) -> Any:
    found = getattr(module, name, None)
    if found is None:
        known = [
            key for key, value in vars(module).items()
            if not key.startswith("_") and (isinstance(value, nn.Module) or _made_here(value, module))
        ]  # fmt: skip
        hint = did_you_mean(name, known) or (f"; it has {', '.join(known[:5])}" if known else "")
        raise LearnpropError(f"{path} has no function {name!r}{hint}")
    if not callable(found):
        raise LearnpropError(f"{name} in {path} is no function that returns a model, but {type(found).__name__}")
    return found


def _made_here(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _asked_for(maker: Any) -> tuple[str, ...]:
    """Returns which options a function has parameters for."""
    if isinstance(maker, nn.Module):
        return ()
    parameters = inspect.signature(maker).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()) and not inspect.isclass(maker):
        return _OPTIONS
    return tuple(name for name in _OPTIONS if name in parameters)


def _call(maker: Callable[..., Any], path: Path, name: str, weights: str | None, checkpoint: str | Path | None) -> Any:
    asked = _asked_for(maker)
    if weights is not None and "weights" not in asked:
        raise LearnpropError(f"{name} in {path} has no parameter 'weights'; leave out {weights!r}")
    given = {"argument": None, "weights": weights, "checkpoint": checkpoint}
    # A value of None may stand for the function's own default.
    options = {key: given[key] for key in asked if given[key] is not None or _required(maker, key)}
    missing = [
        key for key, one in inspect.signature(maker).parameters.items()
        if one.default is one.empty and key not in options
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]  # fmt: skip
    if missing:
        raise LearnpropError(
            f"{name} in {path} needs {', '.join(map(repr, missing))}: it must be callable without arguments, or with "
            "'weights' and 'checkpoint'; give the others a default, or write a function that fills them in"
        )
    with made_in(path, f"{name} in {path} failed"):
        return maker(**options)


def _required(maker: Callable[..., Any], key: str) -> bool:
    parameter = inspect.signature(maker).parameters.get(key)
    return parameter is not None and parameter.default is parameter.empty


@contextmanager
def made_in(path: Path, what: str) -> Iterator[None]:
    """Raises whatever the user's file raises as one error that names its line."""
    try:
        yield
    except LearnpropError:
        raise
    # The file is the user's code; it may raise anything.
    except Exception as error:
        line = _line(error, path)
        where = f" at line {line}" if line is not None else ""
        raise LearnpropError(f"{what}{where}: {type(error).__name__}: {error}") from error


def _line(error: Exception, path: Path) -> int | None:
    """Returns the last line of the file that an error passed through."""
    if (
        isinstance(error, SyntaxError)
        and error.filename is not None
        and Path(error.filename).resolve() == path.resolve()
    ):
        return error.lineno
    line, step = None, error.__traceback__
    while step is not None:
        if Path(step.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = step.tb_lineno
        step = step.tb_next
    return line
