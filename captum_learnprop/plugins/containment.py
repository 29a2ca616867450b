"""What is put around the code of plugins: their output keeps off stdout, and their errors come out with their name."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, FunctionType, TracebackType
from typing import Any

from captum_learnprop.errors import LearnpropError, PluginError

__all__ = ["NamedErrors", "describe", "loading", "with_named_errors"]


@contextmanager
def loading() -> Iterator[None]:
    """Puts a plugin's import and hooks on their own: what it prints goes to stderr, what it raises is an `Exception`.

    Raises:
        PluginError: The plugin raised what would end the program: ``SystemExit``, ``GeneratorExit``, a
            ``KeyboardInterrupt`` of its own.
        KeyboardInterrupt: Ctrl-C was pressed, also if the plugin keeps it to itself.
    """
    with _stdout_to_stderr(), _CtrlC() as ctrl_c:
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not ctrl_c.watching:
                raise
            raise PluginError(describe(error)) from error


def describe(error: BaseException) -> str:
    """Returns an error in one line, with its type unless it is one of ours."""
    text = str(error)
    if not isinstance(error, LearnpropError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    # pluggy's own errors span lines; a warning and a table take one.
    return " ".join(text.split())


class _CtrlC:
    """Watches whether Ctrl-C is pressed, and if so raises ``KeyboardInterrupt`` at the end whatever came in between.

    Attributes:
        watching: Whether it would be noticed, if it can come at all: not in another thread, nor if the signal is not
            Python's.
    """

    def __init__(self) -> None:
        self.watching = False
        self._pressed = False
        self._handler: Callable[[int, FrameType | None], Any] = self._note
        self._previous: Any = None

    def __enter__(self) -> _CtrlC:
        self._previous = signal.getsignal(signal.SIGINT)
        # Ctrl-C that is ignored, as by a job in the background, or ends the process raises nothing here.
        self.watching = self._previous in (signal.SIG_IGN, signal.SIG_DFL)
        if callable(self._previous) and threading.current_thread() is threading.main_thread():
            with suppress(ValueError):  # a sub-interpreter
                signal.signal(signal.SIGINT, self._handler)
                self.watching = True
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        self._previous(number, frame)

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        # A plugin may have put a handler of its own in the place of this one, which then stays.
        if self.watching and signal.getsignal(signal.SIGINT) is self._handler:
            signal.signal(signal.SIGINT, self._previous)
        if self._pressed:
            raise KeyboardInterrupt from error


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what Python, C code and child processes print to stdout."""
    _flush()
    swapped = None if _descriptor(sys.stdout) == 1 else sys.stdout  # notebooks, tests
    kept = _duplicate()
    if swapped is not None:
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        _flush()
        if swapped is not None:
            sys.stdout = swapped
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _duplicate() -> int | None:
    """Put stderr in the place of descriptor 1, and return a copy of what it was; None where one of them is closed."""
    try:
        os.fstat(2)
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        return None
    return kept


def _descriptor(stream: Any) -> int | None:
    try:
        found: int = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return found


def _flush() -> None:
    """Empty the buffers of Python and of C: text that waits there would come out where the other text belongs."""
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()  # type: ignore[union-attr]
    with suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        ctypes.CDLL(None).fflush(None)


class NamedErrors:
    """A context around the use of what a plugin made: errors come out as a `PluginError` that names it.

    They are chained to the first.

    Errors of memory and Ctrl-C are nobody's, and pass; so does an option that does not exist, the caller's mistake.

    Args:
        label: What names plugin and record.
        given: Names of options that the caller gives.
    """

    def __init__(self, label: str, given: Container[str] = ()) -> None:
        self.label = label
        self.given = given

    def __enter__(self) -> None:
        """Does nothing before."""

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """Names the plugin in an error."""
        if error is None or isinstance(error, (PluginError, MemoryError)) or type(error).__name__ == "OutOfMemoryError":
            return
        if isinstance(error, KeyboardInterrupt):
            error.during = self.label  # type: ignore[attr-defined]
            return
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown is not None and unknown[1] in self.given:
            return
        raise PluginError(f"{self.label}: {describe(error)}") from error


class _Named:
    """A function of a plugin, whose errors name it; looks like the function, and can be pickled if that can."""

    def __init__(self, function: Callable[..., Any], label: str, home: str) -> None:
        functools.update_wrapper(self, function)
        self._label, self._home = label, home

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with NamedErrors(self._label, kwargs):
            made = self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]
        with_named_errors(type(made), self._label, self._home)
        return made

    def __repr__(self) -> str:
        return repr(self.__wrapped__)  # type: ignore[attr-defined]


def with_named_errors(factory: Callable[..., Any], label: str, home: str) -> Callable[..., Any]:
    """Returns a factory whose errors, and those of the methods of its objects, name the plugin.

    A class stays the same class, so that it can be compared, pickled and inherited from: its own methods are wrapped in
    it. Classes of other packages that a plugin only passes on are left as they are.

    Args:
        factory: A class or another callable.
        label: What names plugin and record.
        home: The plugin's top-level package, below which methods are its own; empty to leave all classes alone.
    """
    if not isinstance(factory, type):
        return _Named(factory, label, home)
    if _package(factory) == home:
        for name, function in _own_functions(factory, home).items():
            setattr(factory, name, _wrapped(function, label))
    return factory


def _own_functions(cls: type, home: str) -> dict[str, FunctionType]:
    """The methods of a class that the plugin defines, also those in a base class of its own."""
    found: dict[str, FunctionType] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            found.pop(name, None)
            wanted = isinstance(value, FunctionType) and (not name.startswith("__") or name in ("__init__", "__call__"))
            if wanted and _package(base) == home:
                found[name] = value
    return found


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _wrapped(function: FunctionType, label: str) -> Callable[..., Any]:
    original: Any = getattr(function, "_learnprop_original", function)  # the class may be loaded once more

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        with NamedErrors(label, kwargs):
            return original(*args, **kwargs)

    method._learnprop_original = original  # type: ignore[attr-defined]
    return method
