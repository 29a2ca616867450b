"""One record of a plugin as the manager hands it out: errors in its use name the plugin."""

from __future__ import annotations

from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from captum_learnprop.errors import PluginError
from captum_learnprop.plugins.containment import NamedErrors, with_named_errors
from captum_learnprop.plugins.specs import Record


@dataclass(frozen=True)
class Entry:
    """A record together with the plugin and the distribution it comes from.

    Errors while it is used name the plugin and the record, and are chained to the first; those of our own parts are as
    they are.
    """

    record: Record
    plugin: str
    owner: str
    version: str
    home: str = ""
    """The top-level package of the plugin; empty for our own parts."""

    @property
    def kind(self) -> str:
        """The kind of the record, one of ``RECORD_TYPES``."""
        return self.record.kind

    @property
    def name(self) -> str:
        """The name under which users ask for it."""
        return self.record.name

    @property
    def summary(self) -> str:
        """One line for listings."""
        return self.record.summary

    @property
    def label(self) -> str:
        """Plugin, distribution and record, as errors name them."""
        return f"{label_of(self.plugin, self.owner, self.version)}: {self.kind} {self.name!r}"

    def resolve(self) -> Callable[..., Any]:
        """Return the factory, imported if it is lazy.

        Raises:
            PluginError: If it cannot be imported; the message names the plugin.
        """
        try:
            factory = self.record.resolve()
        except PluginError as error:
            raise PluginError(f"{label_of(self.plugin, self.owner, self.version)}: {error}") from error
        return self.with_named_errors(factory) if self.home else factory

    def with_named_errors(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        """Return the factory with errors that name the plugin; models are the user's and stay as they are."""
        return with_named_errors(factory, self.label, "" if self.kind == "model" else self.home)

    def make(self, *args: Any, **kwargs: Any) -> Any:
        """Call the factory.

        Raises:
            PluginError: If it cannot be imported, fails or makes nothing; the message names the plugin.
        """
        factory = self.resolve()
        with self.used(kwargs):
            made = factory(*args, **kwargs)
        if made is None and self.home:
            raise PluginError(f"{self.label}: it made nothing (None)")
        return made

    def used(self, given: Container[str] = ()) -> AbstractContextManager[None]:
        """Give what is put around the use of what this makes, so that errors name the plugin.

        Args:
            given: Names of options; one that does not exist is the caller's mistake.
        """
        return NamedErrors(self.label, given) if self.home else nullcontext()


def label_of(name: str, owner: str, version: str) -> str:
    """Return what errors call a plugin: its name, and where known the distribution with its version."""
    distribution = " ".join(part for part in (owner, version) if part)
    return f"plugin {name!r} ({distribution})" if distribution else f"plugin {name!r}"
