"""Errors and warnings a user can act on."""

from __future__ import annotations

__all__ = ["LearnpropError", "PluginError", "PluginWarning", "PropagationRuleError", "TargetError"]


class LearnpropError(ValueError):
    """Something the user asked for cannot be done; the message says what and what would be right."""


class TargetError(LearnpropError, AssertionError, IndexError):
    """A target does not fit the model's output; also what captum raises in its place."""


class PropagationRuleError(LearnpropError, TypeError):
    """A ``module.rule`` is none that LRP knows; also what captum raises in its place."""


class PluginError(LearnpropError):
    """A plugin, or the name of something a plugin provides, is not usable."""


class PluginWarning(UserWarning):
    """A plugin, or one record of it, was left out; the program goes on without it."""
