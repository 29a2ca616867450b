"""Finding, checking and handing out what plugins provide.

The loader is our own and not ``pluggy.load_setuptools_entrypoints``, where one failing import ends the
program. Here a faulty plugin is left out as a whole, and a warning names it, its distribution and the error. A record
whose factory cannot be what it says is left out when gates and composites are installed, or by `PluginManager.check`.

Two environment variables steer it:

* ``CAPTUM_LEARNPROP_DISABLE_PLUGINS``: ``1`` leaves out every third-party plugin; otherwise a comma-separated
  list of the plugins to leave out.
* ``CAPTUM_LEARNPROP_STRICT_PLUGINS``: ``1`` turns every fault into a :class:`PluginError`.
"""

from __future__ import annotations

import functools
import inspect
import os
import traceback
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import pluggy

from captum_learnprop.errors import PluginError, PluginWarning, did_you_mean
from captum_learnprop.plugins import builtin, specs
from captum_learnprop.plugins.containment import describe, loading
from captum_learnprop.plugins.entry import Entry, label_of
from captum_learnprop.plugins.specs import NAME, RECORD_TYPES, SUPPORTED_API_VERSIONS, Record
from captum_learnprop.plugins.status import PluginStatus, RecordStatus, plugin_info
from captum_learnprop.tables import html
from captum_learnprop.wording import counted

__all__ = ["Entry", "PluginManager", "get_manager", "plugin_at_fault"]

_DISABLE = "CAPTUM_LEARNPROP_DISABLE_PLUGINS"
_STRICT = "CAPTUM_LEARNPROP_STRICT_PLUGINS"
_DISTRIBUTION = "captum-learnprop"
_LOADED: dict[str, str] = {}
"""Top-level packages of the plugins that this process has loaded, with what errors call them."""

_RENAMED = {("metric", "difull"): "difull_score"}
"""New names of our own records by kind and old name."""

_RENAMED_WARNING = "{} {!r} is {!r} now; the old name goes with the next release"

_HOOKS = {record.hook: record for record in RECORD_TYPES.values()}


class PluginManager:
    """Everything that can be asked for by name, with the plugin it comes from.

    Args:
        strict: Whether a faulty plugin raises :class:`PluginError` and not only warns. By default the
            environment variable ``CAPTUM_LEARNPROP_STRICT_PLUGINS`` decides.
    """

    def __init__(self, *, strict: bool | None = None) -> None:
        self.strict = _switched_on(os.environ.get(_STRICT, "")) if strict is None else strict
        self._pluggy = pluggy.PluginManager(NAME)
        self._pluggy.add_hookspecs(specs)
        self._plugins: list[PluginStatus] = []
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in RECORD_TYPES}

    def __repr__(self) -> str:
        listed = (
            f"{one.name} {one.version} ({one.status}, {counted(len(one.records), 'record')})" for one in self._plugins
        )
        return f"PluginManager({', '.join(listed)})"

    def _repr_html_(self) -> str:
        """Returns every plugin and every record as tables, for a notebook."""
        plugins = [[one.name, one.version, one.owner, one.status, one.error or ""] for one in self._plugins]
        records = [
            [one.name, row.record.kind, row.record.name, row.status, row.record.summary]
            for one in self._plugins for row in one.records
        ]  # fmt: skip
        return html(["plugin", "version", "owner", "status", "error"], plugins) + html(
            ["plugin", "kind", "name", "status", "summary"], records
        )

    @classmethod
    def discover(cls, *, strict: bool | None = None) -> PluginManager:
        """Return a manager with our own parts and every installed plugin.

        Lazy factories stay lazy and nothing is installed in other packages: enough for a listing.

        Raises:
            PluginError: In strict mode, if a plugin is faulty.
        """
        manager = cls(strict=strict)
        manager.register(builtin, "builtin", owner=_DISTRIBUTION, version=_own_version())
        manager.load_entry_points()
        return manager

    def register(self, plugin: object, name: str, *, owner: str = "", version: str = "") -> None:
        """Add a plugin object (a module, an instance, or a class without constructor arguments).

        Args:
            plugin: What implements the hooks.
            name: The plugin's name, unique among plugins.
            owner: The distribution it comes from.
            version: The version of that distribution.

        Raises:
            PluginError: In strict mode, if the plugin is faulty.
        """
        self._admit(PluginStatus(name, owner, version), lambda: plugin)

    def load_entry_points(self) -> None:
        """Add every plugin named in the entry-point group ``captum_learnprop`` by an installed distribution.

        Raises:
            PluginError: In strict mode, if a plugin is faulty.
        """
        all_off, names_off = _switched_off(os.environ.get(_DISABLE, ""))
        points = sorted(metadata.entry_points(group=NAME), key=lambda point: (_owner(point)[0], point.name))
        for point in points:
            status = PluginStatus(point.name, *_owner(point))
            if all_off or point.name in names_off:
                status.status = "disabled"
                self._plugins.append(status)
            else:
                self._admit(status, point.load)
        for name in sorted(names_off - {point.name for point in points}):
            hint = did_you_mean(name, (point.name for point in points))
            message = f"{_DISABLE} names {name!r}, which is not an installed plugin{hint}"
            warnings.warn(message, PluginWarning, stacklevel=2)

    def install(self) -> None:
        """Make gates and composites known to ``zennit_rules``, and so to ``zennit.composites.COMPOSITES``.

        Gates go first, because a composite may name its gate. Imports torch.

        Raises:
            PluginError: In strict mode, if a part cannot be imported or its name is taken.
        """
        from zennit_rules.composites import register_composite
        from zennit_rules.gates import register_gate

        targets: dict[str, Callable[[str, Any], object]] = {
            "gate": register_gate,
            "composite": register_composite,
        }
        for kind, register in targets.items():
            for entry in list(self._entries[kind].values()):
                try:
                    register(entry.name, self._checked(entry))
                except Exception as error:
                    self._withdraw(entry, error)

    def check(self) -> None:
        """Take out every record of a plugin whose factory cannot be what it says, and name it; nothing is installed.

        Imports the plugins' lazy factories, and what they import.

        Raises:
            PluginError: In strict mode, if there is such a record.
        """
        for entries in self._entries.values():
            for entry in list(entries.values()):
                if not entry.home:
                    continue  # our own have tests
                try:
                    self._checked(entry)
                except Exception as error:
                    self._withdraw(entry, error)

    @staticmethod
    def _checked(entry: Entry) -> Callable[..., Any]:
        """The factory of an entry that can be what it says."""
        factory = entry.record.resolve()
        if not entry.home:
            return factory
        from captum_learnprop.plugins.checks import check

        with loading():
            check(entry.kind, entry.name, factory)
        return entry.with_named_errors(factory)

    def available(self, kind: str) -> dict[str, Entry]:
        """Return everything of one kind by name.

        Args:
            kind: ``"composite"``, ``"gate"``, ``"objective"``, ``"method"``, ``"metric"`` or ``"model"``.

        Raises:
            PluginError: If there is no such kind.
        """
        if kind not in self._entries:
            raise PluginError(_unknown("kind of record", kind, self._entries))
        return dict(self._entries[kind])

    def get(self, kind: str, name: str) -> Entry:
        """Return one entry; ``get(kind, name).resolve()`` is its factory.

        Raises:
            PluginError: If there is no such kind or name; the message lists what there is.
        """
        entries = self.available(kind)
        if (kind, name) in _RENAMED and name not in entries:
            warnings.warn(_RENAMED_WARNING.format(kind, name, _RENAMED[kind, name]), DeprecationWarning, stacklevel=2)
            name = _RENAMED[kind, name]
        if name not in entries:
            raise PluginError(_unknown(kind, name, entries))
        return entries[name]

    def create(self, kind: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the factory of one entry.

        Raises:
            PluginError: If there is no such kind or name, or the factory cannot be imported, fails or makes nothing.
        """
        return self.get(kind, name).make(*args, **kwargs)

    def info(self) -> list[dict[str, Any]]:
        """Return what ``learnprop plugins --json`` prints: one dictionary per plugin, in loading order.

        Each has ``name``, ``version``, ``owner`` (the distribution), ``hooks``, ``records``, ``error`` and
        ``status``: ``"ok"``, ``"partial"`` (some records left out), ``"failed"`` (left out as a whole) or
        ``"disabled"``.
        """
        return [plugin_info(plugin) for plugin in self._plugins]

    def _admit(self, status: PluginStatus, load: Callable[[], object]) -> None:
        """Load one plugin and keep its records, or none of them if anything about it is faulty."""
        self._plugins.append(status)
        plugin: object = None
        try:
            with loading():
                plugin = _instance(load())
                self._check_name_is_free(status)
                self._pluggy.register(plugin, name=status.name)
                status.hooks = self._hooks(plugin)
                records = [record for hook in status.hooks for record in self._call(hook, plugin)]
        except Exception as error:
            if plugin is not None and self._pluggy.get_plugin(status.name) is plugin:
                self._pluggy.unregister(name=status.name)
            status.status, status.error = "failed", describe(error)
            self._report(f"{status.label} was left out: {status.error}", error)
            return
        status.home = _home(plugin)
        if status.home:
            _LOADED[status.home] = status.label
        for record in records:
            self._keep(status, record)

    def _check_name_is_free(self, status: PluginStatus) -> None:
        if not self._pluggy.has_plugin(status.name):
            return
        owner = next(plugin for plugin in self._plugins if plugin.name == status.name and plugin.status != "failed")
        raise PluginError(f"the name is already used by {owner.label}")

    def _hooks(self, plugin: object) -> list[str]:
        """Return the names of the hooks that a plugin implements, in the order of the specification."""
        callers = self._pluggy.get_hookcallers(plugin) or []
        for caller in callers:
            required = [each for each in caller.get_hookimpls() if each.plugin is plugin and not each.optionalhook]
            if not caller.has_spec() and required:
                raise PluginError(_unknown("hook", caller.name, _HOOKS))
        implemented = {caller.name for caller in callers}
        hooks = [hook for hook in _HOOKS if hook in implemented]
        if not hooks:
            raise PluginError(f"it implements no hook (is @hookimpl missing?); hooks: {', '.join(_HOOKS)}")
        return hooks

    def _call(self, hook: str, plugin: object) -> list[Record]:
        """Return the checked records of one hook of one plugin."""
        others = [other for other in self._pluggy.get_plugins() if other is not plugin]
        results = self._pluggy.subset_hook_caller(hook, others)()
        expected = _HOOKS[hook]
        records: list[Record] = []
        for result in results:
            if not isinstance(result, Iterable):
                raise PluginError(f"{hook} must return an iterable of {expected.__name__}, got {result!r}")
            for record in result:
                _check_record(record, hook, expected)
                records.append(record)
        return records

    def _keep(self, status: PluginStatus, record: Record) -> None:
        """Enter one record, unless its name is taken: the first stays."""
        row = RecordStatus(record)
        status.records.append(row)
        entries = self._entries[record.kind]
        first = entries.get(record.name)
        if first is None:
            entries[record.name] = Entry(record, status.name, status.owner, status.version, status.home)
            return
        owner = label_of(first.plugin, first.owner, first.version)
        row.status = "duplicate"
        row.error = f"{record.kind} {record.name!r} is provided by both {owner} and {status.label}"
        status.status, status.error = "partial", row.error
        self._report(f"{row.error}; the first is kept")

    def _withdraw(self, entry: Entry, error: BaseException) -> None:
        """Take one record out that could not be installed."""
        del self._entries[entry.kind][entry.name]
        status = next(plugin for plugin in self._plugins if any(row.record is entry.record for row in plugin.records))
        row = next(row for row in status.records if row.record is entry.record)
        row.status, row.error = "failed", describe(error)
        status.status, status.error = "partial", f"{entry.kind} {entry.name!r}: {row.error}"
        self._report(f"{entry.kind} {entry.name!r} of {status.label} was left out: {row.error}", error)

    def _report(self, message: str, error: BaseException | None = None) -> None:
        if self.strict:
            raise PluginError(message) from error
        warnings.warn(message, PluginWarning, stacklevel=2)


@functools.cache
def get_manager() -> PluginManager:
    """Return the manager of this process; the first call loads and installs every plugin.

    Raises:
        PluginError: In strict mode, if a plugin is faulty.
    """
    manager = PluginManager.discover()
    manager.install()
    return manager


def _instance(plugin: object) -> object:
    """Return a plugin whose hooks can be called: pluggy registers a class with its hooks unbound."""
    if not inspect.isclass(plugin):
        return plugin
    try:
        return plugin()
    except Exception as error:
        raise PluginError(
            f"it is the class {plugin.__qualname__}, which cannot be constructed without arguments "
            f"({describe(error)}); name an instance or a module"
        ) from error


def _check_record(record: object, hook: str, expected: type[Record]) -> None:
    if not isinstance(record, expected):
        raise PluginError(f"{hook} must give {expected.__name__} records, got {record!r}")
    if record.api_version not in SUPPORTED_API_VERSIONS:
        supported = ", ".join(map(str, SUPPORTED_API_VERSIONS))
        raise PluginError(
            f"{record.kind} {record.name!r} wants plugin API version {record.api_version}, "
            f"but this {_DISTRIBUTION} supports {supported}; install versions that fit each other"
        )


def plugin_at_fault(error: BaseException | None) -> str | None:
    """Return the plugin whose code was running when an error was raised; None if it was none's.

    The script of ``learnprop run`` is on its own.
    """
    while error is not None:
        frames = traceback.walk_tb(error.__traceback__)
        packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames]
        if "runpy" in packages:
            return None
        for package in reversed(packages):
            if package in _LOADED:
                return _LOADED[package]
        error = error.__cause__
    return None


def _home(plugin: object) -> str:
    """The top-level package of a plugin; empty for our own."""
    if plugin is builtin:
        return ""
    module: str = plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__
    return module.partition(".")[0]


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    return f"unknown {what} {name!r}{did_you_mean(name, names) or ';'} available: {', '.join(names) or 'none'}"


def _owner(point: metadata.EntryPoint) -> tuple[str, str]:
    """Return the name and version of the distribution of an entry point."""
    if point.dist is None:
        return "unknown", ""
    return point.dist.name, point.dist.version


def _own_version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def _switched_on(value: str) -> bool:
    return value.strip().lower() in {"1", "true", "yes", "on"}


def _switched_off(value: str) -> tuple[bool, set[str]]:
    """Read the off switch: whether every third-party plugin is off, and the names of those that are."""
    if _switched_on(value):
        return True, set()
    if value.strip().lower() in {"", "0", "false", "no", "off"}:
        return False, set()
    return False, {name.strip() for name in value.split(",") if name.strip()}


def know_plugins_of(composite: str, gate: str | type) -> None:
    """Load plugins if a composite or gate has a name that is not known yet: it may be one of theirs."""
    from zennit_rules._compat import COMPOSITES
    from zennit_rules.core.registry import SHORT_NAMES
    from zennit_rules.gates import GATES

    if composite not in {*COMPOSITES, *SHORT_NAMES} or (isinstance(gate, str) and gate not in GATES):
        get_manager()
