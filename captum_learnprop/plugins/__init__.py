"""Plugins: what other distributions add, and how it is found.

The hooks and records are in :mod:`captum_learnprop.plugins.specs`; a whole plugin is in ``examples/plugin``.
"""

from captum_learnprop.errors import PluginError
from captum_learnprop.plugins.manager import PluginManager, get_manager, know_plugins_of
from captum_learnprop.plugins.specs import (
    API_VERSION,
    CompositeRecord,
    GateRecord,
    MethodRecord,
    MetricRecord,
    ModelRecord,
    ObjectiveRecord,
    hookimpl,
)

__all__ = [
    "API_VERSION",
    "CompositeRecord",
    "GateRecord",
    "MethodRecord",
    "MetricRecord",
    "ModelRecord",
    "ObjectiveRecord",
    "PluginError",
    "PluginManager",
    "get_manager",
    "hookimpl",
    "know_plugins_of",
]
