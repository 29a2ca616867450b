"""The document in the file of a rule set: read, and checked part by part before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from torch import Tensor

from . import rule_file
from .core.coverage import CoverageRow
from .core.hook import SiteHook
from .core.registry import composite_class
from .core.sites import Site
from .errors import RuleError

FORMAT_VERSION = 1
KEY = "captum-learnprop"
"""Says in the metadata of a file whose document it has."""
_COMPOSITE_KINDS = ("activation", "pooling", "linear", "first", "softmax", "norm", "product")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the document and the tensors of a file.

    Raises:
        RuleError: Missing, truncated, changed or foreign file, or a newer format.
    """
    if not path.is_file():
        raise RuleError(f"no rule set at {path}")
    try:
        document, tensors = rule_file.read(path, KEY, "a rule set")
    except rule_file.FileFault as error:
        raise RuleError(f"{path} {error}; save the rule set again") from error
    version = document.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise RuleError(f"{path} is damaged (its format version is {version!r}); save the rule set again")
    if version > FORMAT_VERSION:
        raise RuleError(
            f"{path} has format {version}, newer than this version reads ({FORMAT_VERSION}): upgrade captum-learnprop"
        )
    return document, tensors


def by_site(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of each site by their own names; a file has them as ``<site>::<name>``."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        site, _, name = key.rpartition("::")
        found.setdefault(site, {})[name] = tensor
    return found


def checked_config(composite: Any, config: Any) -> dict[str, Any]:
    """Returns the configuration in a file.

    Raises:
        TypeError: If it is none.
        RuleError: For options that the composite does not have, or out of range.
    """
    known = ("gate", "start", "pooling", "gate_options", "rule_options", "per_sample")
    options = {name: value for name, value in config.items() if name != "fusion"}
    odd = sorted(options.keys() - set(known))
    if odd or not isinstance(options.get("per_sample", False), bool):
        raise RuleError(f"the configuration has {odd or 'per_sample=' + repr(options['per_sample'])}")
    if not {"gate", "start", "pooling"} <= options.keys():
        raise RuleError(f"the configuration {options} lacks gate, start or pooling")
    checked = composite_class(composite)(**options).rules.config  # with options that came after the file
    return {**checked, **({"fusion": config["fusion"]} if "fusion" in config else {})}


def _kinds() -> set[str]:
    """Returns the kinds of sites: those that composites of this package name, and those of all hooks."""
    hooks: list[type[SiteHook]] = [SiteHook]
    for hook in hooks:
        hooks.extend(hook.__subclasses__())
    return {*_COMPOSITE_KINDS, *(hook.kind for hook in hooks if hook.kind)}


def site_of(fields: Any) -> Site:
    """Returns a site as a file has it.

    Raises:
        TypeError: If it is none.
        RuleError: If a value is out of range.
    """
    site = Site(**{**fields, "shape": tuple(fields["shape"])})
    as_strings([site.name, site.kind, site.function])
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in site.shape):
        raise RuleError(f"site {site.name!r} has the shape {site.shape}")
    if site.kind not in _kinds():
        raise RuleError(f"site {site.name!r} is of the unknown kind {site.kind!r}")
    if type(site.channel_dim) is not int or not min(len(site.shape), 1) - 1 <= site.channel_dim < max(
        len(site.shape), 1
    ):
        raise RuleError(f"site {site.name!r} of shape {site.shape} has its channels in dimension {site.channel_dim!r}")
    return site


def row_of(fields: Any) -> CoverageRow:
    """Returns a row of the coverage as a file has it.

    Raises:
        TypeError: If it is none.
    """
    row = CoverageRow(**fields)
    as_strings([getattr(row, field.name) for field in dataclass_fields(row) if field.type == "str"])
    return row


def as_list(values: Any) -> list[Any]:
    """Returns a list as it is.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(values, list):
        raise TypeError(f"{values!r} should be a list")
    return values


def as_strings(values: Any) -> list[str]:
    """Returns a list of texts as it is.

    Raises:
        TypeError: If it is none.
    """
    if not all(isinstance(value, str) for value in as_list(values)):
        raise TypeError(f"{values!r} should be texts")
    return values


def as_string(value: Any) -> str | None:
    """Returns a text, or None, as it is.

    Raises:
        TypeError: If it is neither.
    """
    return None if value is None else as_strings([value])[0]


__all__ = [
    "FORMAT_VERSION", "KEY", "as_list", "as_string", "as_strings", "by_site", "checked_config", "read", "row_of",
    "site_of",
]  # fmt: skip
