"""What became of each plugin and of each of its records, as listings show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from captum_learnprop.plugins.entry import label_of
from captum_learnprop.plugins.specs import Record


@dataclass
class RecordStatus:
    """What became of one record: ``"ok"``, ``"duplicate"`` or ``"failed"``, and the error."""

    record: Record
    status: str = "ok"
    error: str | None = None


@dataclass
class PluginStatus:
    """What became of one plugin: ``"ok"``, ``"partial"``, ``"failed"`` or ``"disabled"``, its records and the error."""

    name: str
    owner: str
    version: str
    home: str = ""
    status: str = "ok"
    error: str | None = None
    hooks: list[str] = field(default_factory=list)
    records: list[RecordStatus] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The plugin as errors call it."""
        return label_of(self.name, self.owner, self.version)


def plugin_info(plugin: PluginStatus) -> dict[str, Any]:
    """Return what ``learnprop plugins --json`` prints of one plugin; see `PluginManager.info` for the keys."""
    return {
        "name": plugin.name,
        "version": plugin.version,
        "owner": plugin.owner,
        "hooks": list(plugin.hooks),
        "records": [_record_info(row) for row in plugin.records],
        "status": plugin.status,
        "error": plugin.error,
    }


def _record_info(row: RecordStatus) -> dict[str, Any]:
    factory = row.record.factory
    return {
        "kind": row.record.kind,
        "name": row.record.name,
        "summary": row.record.summary,
        "factory": factory if isinstance(factory, str) else _import_path(factory),
        "api_version": row.record.api_version,
        "status": row.status,
        "error": row.error,
    }


def _import_path(factory: Callable[..., Any]) -> str:
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    return f"{module}:{name}" if module and name else repr(factory)
