"""``learnprop plugins``: what is installed, from whom, and whether it works."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import click

from captum_learnprop.errors import PluginWarning
from captum_learnprop.plugins.manager import PluginManager
from captum_learnprop.tables import columns

__all__ = ["command"]


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List plugins: name, version, owner, status, hooks and records, and why one of them is broken.

    CAPTUM_LEARNPROP_DISABLE_PLUGINS=1 (or a comma-separated list of names) leaves plugins out;
    CAPTUM_LEARNPROP_STRICT_PLUGINS=1 turns a faulty plugin into an error.
    """
    with warnings.catch_warnings():
        # The listing itself shows every fault.
        warnings.simplefilter("ignore", PluginWarning)
        manager = PluginManager.discover()
        manager.check()
        plugins = manager.info()
    click.echo(json.dumps(plugins, indent=2) if as_json else "\n".join(_table(plugins)))


def _table(plugins: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield columns(["name", "version", "owner", "status", "hooks"], [_row(plugin) for plugin in plugins])
    for plugin in plugins:
        faults = [_fault(row) for row in plugin["records"] if row["error"] is not None]
        if plugin["error"] is not None:
            yield "".join(f"\n{plugin['name']}: {fault}" for fault in faults or [plugin["error"]])
        if plugin["records"]:
            yield f"\nrecords of {plugin['name']}"
            names = ["kind", "name", "status", "summary"]
            yield columns(names, [[record[name] for name in names] for record in plugin["records"]])


def _fault(record: dict[str, Any]) -> str:
    name, error = f"{record['kind']} {record['name']!r}", str(record["error"])
    return error if error.startswith(name) else f"{name}: {error}"


def _row(plugin: dict[str, Any]) -> list[str]:
    hooks = [hook.removeprefix("learnprop_") for hook in plugin["hooks"]]
    return [plugin["name"], plugin["version"], plugin["owner"], plugin["status"], ", ".join(hooks)]
