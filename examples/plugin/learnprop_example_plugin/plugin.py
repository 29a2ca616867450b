"""What the entry point names: the hooks. Factories are lazy, so that listing them does not import torch."""

from __future__ import annotations

from collections.abc import Iterable

from captum_learnprop.plugins import CompositeRecord, GateRecord, hookimpl


@hookimpl
def learnprop_gates() -> Iterable[GateRecord]:
    """Add one gate."""
    yield GateRecord("blend", "learnprop_example_plugin.rules:BlendGate", "two weights for the whole layer")


@hookimpl
def learnprop_composites() -> Iterable[CompositeRecord]:
    """Add one composite, which uses that gate."""
    yield CompositeRecord(
        "blended_gradient",
        "learnprop_example_plugin.rules:BlendedGradient",
        "a blend gate at every activation",
    )
