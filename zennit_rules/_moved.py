"""Modules that have moved and names that have changed: the old ones keep working for one release, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["keep_old_names", "renamed"]


class _OldNames(MetaPathFinder, Loader):
    """Finds modules under the names they had, after every other finder has failed.

    Args:
        homes: New name by old name, both whole.
    """

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = homes

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name, None for any other."""
        return ModuleSpec(name, self) if name in self._homes else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module at its new name in the place of the empty one that was made for the old name."""
        home = self._homes[module.__name__]
        message = f"{module.__name__} is {home} now; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(home)


def keep_old_names(package: str, homes: Mapping[str, str]) -> None:
    """Let modules that left a package be imported from it, with a ``DeprecationWarning``.

    Args:
        package: Whole name of the package that they left.
        homes: New whole name by old name in the package, ``{"sites": "zennit_rules.core.sites"}``.
    """
    sys.meta_path.append(_OldNames({f"{package}.{old}": home for old, home in homes.items()}))


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module whose functions or classes have other names now, or another home.

    Args:
        module: Its whole name.
        names: New name by old name; a whole one, with its module, for what has moved.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        message = f"{module}.{name} is {names[name]} now; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        home, _, new = names[name].rpartition(".")
        return getattr(import_module(home or module), new)

    return __getattr__
