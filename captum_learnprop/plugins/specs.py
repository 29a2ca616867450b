"""Hook specifications and the records that plugins return.

A plugin is a module (or an object) that implements some of the ``learnprop_*`` functions below, marks each
with :data:`hookimpl`, and is named by an entry point in the group ``captum_learnprop``::

    [project.entry-points.captum_learnprop]
    my_plugin = "my_package.plugin"

Every hook takes no argument and returns (or yields) records. A record's factory may be a lazy
``"package.module:attribute"`` string: then loading the plugin imports nothing heavy. Hooks will grow by added
arguments only; an implementation may accept fewer than the specification lists.
"""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pluggy

from captum_learnprop.errors import PluginError
from captum_learnprop.plugins.containment import describe, loading

__all__ = [
    "API_VERSION",
    "METRIC_ARGUMENTS",
    "MODEL_METRIC",
    "NAME",
    "RECORD_TYPES",
    "SUPPORTED_API_VERSIONS",
    "CompositeRecord",
    "GateRecord",
    "MethodRecord",
    "MetricRecord",
    "ModelRecord",
    "ObjectiveRecord",
    "Record",
    "hookimpl",
    "hookspec",
]

#: Name of both pluggy markers, of the manager and of the entry-point group.
NAME = "captum_learnprop"

#: Version of the contract between the records below and this package.
API_VERSION = 1
SUPPORTED_API_VERSIONS = (1,)

hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)

_SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LAZY_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Record:
    """One thing that a plugin provides.

    Args:
        name: Lower-case snake identifier under which users ask for it.
        factory: A callable, or a lazy ``"package.module:attribute"`` string that is imported on demand.
        summary: One line for listings.
        api_version: The version of this contract that the plugin was written for. The loader checks it, and
            names the plugin.

    Raises:
        PluginError: If the name, the factory, the summary or the type of the version is malformed.
    """

    name: str
    factory: Callable[..., Any] | str
    summary: str
    api_version: int = API_VERSION

    kind: ClassVar[str] = ""
    hook: ClassVar[str] = ""

    def __post_init__(self) -> None:
        here = type(self).__name__
        if not isinstance(self.name, str) or not _SNAKE_CASE.fullmatch(self.name):
            raise PluginError(f"{here} name {self.name!r} is not a lower-case snake identifier like 'my_{self.kind}'")
        if isinstance(self.factory, str):
            if not _LAZY_PATH.fullmatch(self.factory):
                raise PluginError(f"{here} {self.name!r}: factory {self.factory!r} is not 'package.module:attribute'")
        elif not callable(self.factory):
            raise PluginError(f"{here} {self.name!r}: factory {self.factory!r} is neither a callable nor a string")
        if not isinstance(self.summary, str) or not self.summary.strip() or "\n" in self.summary:
            raise PluginError(f"{here} {self.name!r}: summary must be one line of text, got {self.summary!r}")
        if not isinstance(self.api_version, int) or isinstance(self.api_version, bool):
            raise PluginError(f"{here} {self.name!r}: api_version must be an integer, got {self.api_version!r}")

    def resolve(self) -> Callable[..., Any]:
        """Return the factory, importing it if it is a lazy string.

        Raises:
            PluginError: If the lazy string cannot be imported or names something that cannot be called.
        """
        if not isinstance(self.factory, str):
            return self.factory
        try:
            with loading():
                factory = pkgutil.resolve_name(self.factory)
        # A plugin's module may fail in any way while it is imported.
        except Exception as error:
            reason = f"cannot import {self.factory!r} ({describe(error)})"
            raise PluginError(f"{self.kind} {self.name!r}: {reason}") from error
        if not callable(factory):
            raise PluginError(f"{self.kind} {self.name!r}: {self.factory!r} is not callable")
        result: Callable[..., Any] = factory
        return result


@dataclass(frozen=True)
class CompositeRecord(Record):
    """A Zennit composite; the factory is a ``zennit.core.Composite`` class that needs no arguments."""

    kind: ClassVar[str] = "composite"
    hook: ClassVar[str] = "learnprop_composites"


@dataclass(frozen=True)
class GateRecord(Record):
    """A gate; the factory is a ``zennit_rules.gates.Gate`` class."""

    kind: ClassVar[str] = "gate"
    hook: ClassVar[str] = "learnprop_gates"


@dataclass(frozen=True)
class ObjectiveRecord(Record):
    """An objective; the factory builds what training minimises."""

    kind: ClassVar[str] = "objective"
    hook: ClassVar[str] = "learnprop_objectives"


@dataclass(frozen=True)
class MethodRecord(Record):
    """A method; the factory is a ``captum.attr.Attribution`` class, called with the model."""

    kind: ClassVar[str] = "method"
    hook: ClassVar[str] = "learnprop_methods"


MODEL_METRIC = ("model", "inputs", "maps", "targets")
"""What a metric is called with unless its record says otherwise."""

METRIC_ARGUMENTS: dict[str, str] = {
    "model": "the explained net, in evaluation mode: (B, C, H, W) to (B, classes)",
    "inputs": "what was explained, (B, C, H, W)",
    "maps": "one map per input, (B, H, W), higher is more relevant",
    "targets": "the explained class of each input, (B,) int64",
    "masks": "pixels of the asked object, (B, H, W) bool",
    "other_masks": "pixels of the other objects of the scene, (B, H, W) bool",
    "cells": "the cell of a mosaic that the asked object is in, (B,) int64",
    "parts": "visible pixels of each part of the object, (B, P, H, W) bool",
    "drops": "how much the net's output falls without each part, (B, P)",
    "attribute": "the method itself, (model, inputs, targets) -> attribution",
    "output_relevance": "what the backward pass started with, (B, ...)",
}
"""Everything that a metric can ask for, by the name of its argument. The last two are not known to
``learnprop evaluate``, which has maps only."""


@dataclass(frozen=True)
class MetricRecord(Record):
    """A metric; the factory is the metric function itself.

    It is called with tensors in the order of ``needs`` and returns one value per sample, ``(B,)``; NaN where it is not
    defined. ``learnprop evaluate --metric NAME`` calls it as ``metric(model, inputs, maps, targets)`` by default.

    Args:
        name: Lower-case snake identifier; that of the function.
        factory: The function, or a lazy ``"package.module:function"`` string.
        summary: One line for listings.
        api_version: The version of this contract that the plugin was written for.
        needs: What it is called with, in this order: keys of `METRIC_ARGUMENTS`. One that asks for ``"cells"``,
            ``"parts"`` or ``"other_masks"`` is scored on scenes that have them.
        bounds: Lowest and highest value; infinite where there is none.
        higher_is_better: Which way; None where neither, as for a share that should be 1. Such a metric has no place in
            the tables of ``learnprop evaluate``.

    Raises:
        PluginError: If a field is malformed.
    """

    needs: tuple[str, ...] = field(default=MODEL_METRIC, kw_only=True)
    bounds: tuple[float, float] = field(default=(-math.inf, math.inf), kw_only=True)
    higher_is_better: bool | None = field(default=True, kw_only=True)

    kind: ClassVar[str] = "metric"
    hook: ClassVar[str] = "learnprop_metrics"

    def __post_init__(self) -> None:
        super().__post_init__()
        here = f"MetricRecord {self.name!r}"
        if not isinstance(self.needs, tuple) or not self.needs or not set(self.needs) <= set(METRIC_ARGUMENTS):
            known = ", ".join(METRIC_ARGUMENTS)
            raise PluginError(
                f"{here}: needs must be a tuple of what a metric can ask for ({known}), got {self.needs!r}"
            )
        if not _is_range(self.bounds):
            raise PluginError(f"{here}: bounds must be two numbers, the lower one first, got {self.bounds!r}")
        if self.higher_is_better not in (True, False, None):
            raise PluginError(f"{here}: higher_is_better must be True, False or None, got {self.higher_is_better!r}")


def _is_range(bounds: Any) -> bool:
    numbers = isinstance(bounds, tuple) and all(isinstance(one, (int, float)) for one in bounds)
    return numbers and len(bounds) == 2 and bounds[0] < bounds[1]


@dataclass(frozen=True)
class ModelRecord(Record):
    """A source of models; ``factory(argument, weights, checkpoint)`` returns a module in evaluation mode.

    ``--model torchvision:resnet18`` asks the record ``torchvision`` with the argument ``"resnet18"``; each of
    the three may be ``None``.
    """

    kind: ClassVar[str] = "model"
    hook: ClassVar[str] = "learnprop_models"


#: Every kind of record, by the word that ``PluginManager.get(kind, name)`` takes.
RECORD_TYPES: dict[str, type[Record]] = {
    record.kind: record
    for record in (CompositeRecord, GateRecord, ObjectiveRecord, MethodRecord, MetricRecord, ModelRecord)
}


@hookspec
def learnprop_composites() -> Iterable[CompositeRecord]:
    """Add composites, which say which rule goes to which layer.

    The factory is a ``zennit.core.Composite`` class that needs no arguments. It can be named as ``--composite`` and
    ``composite=``, and scripts find it in ``zennit.composites.COMPOSITES``.

    Example::

        @hookimpl
        def learnprop_composites():
            yield CompositeRecord("calm_gradient", "my_package.rules:CalmGradient", "calm gates")

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def learnprop_gates() -> Iterable[GateRecord]:
    """Add gates, which weigh the backward signal at an activation.

    The factory is a class derived from ``zennit_rules.gates.Gate``. It can be named wherever a gate is asked for:
    ``LearnedGradient(gate="calm")``.

    Example::

        @hookimpl
        def learnprop_gates():
            yield GateRecord("calm", "my_package.rules:CalmGate", "one weight per layer")

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def learnprop_objectives() -> Iterable[ObjectiveRecord]:
    """Add objectives: what training minimises, from the original and the masked outputs.

    The factory makes a term of training, or an objective like ``captum_learnprop.training.objectives.Agreement``. It
    can be named as ``learnprop train --objective``.

    Example::

        @hookimpl
        def learnprop_objectives():
            yield ObjectiveRecord("margin", "my_package.losses:Margin", "keep the margin to the second class")

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def learnprop_methods() -> Iterable[MethodRecord]:
    """Add methods, which ``learnprop attribute --method`` can name.

    The factory is a ``captum.attr.Attribution`` class, or a function of the model that makes one; its ``attribute``
    takes ``target=``.

    Example::

        @hookimpl
        def learnprop_methods():
            yield MethodRecord("occlusion", "captum.attr:Occlusion", "drop of the output under a patch")

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def learnprop_metrics() -> Iterable[MetricRecord]:
    """Add metrics that ``learnprop evaluate --metric`` and `captum_learnprop.evaluation.find_metric` know by name.

    A metric returns one value per sample, ``(B,)``. It is called as ``metric(model, inputs, maps, targets)`` unless its
    record names other ``needs``.

    Example::

        @hookimpl
        def learnprop_metrics():
            yield MetricRecord(
                "sparseness", "my_package.metrics:gini", "Gini index of the map",
                needs=("maps",), bounds=(0.0, 1.0), higher_is_better=True,
            )

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def learnprop_models() -> Iterable[ModelRecord]:
    """Add sources of models, which ``--model record[:argument]`` can name.

    ``factory(argument, weights, checkpoint)`` returns an ``nn.Module`` in evaluation mode; each of the three may be
    None.

    Example::

        @hookimpl
        def learnprop_models():
            yield ModelRecord("clinic", "my_package.models:load", "our own classifiers, as clinic:<name>")

    .. versionadded:: 0.1
    """
    raise NotImplementedError
