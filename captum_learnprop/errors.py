"""Errors and warnings a user can act on."""

from __future__ import annotations

__all__ = ["InputWarning", "LearnpropError", "PluginError", "PluginWarning", "TargetError"]


class LearnpropError(ValueError):
    """Something the user asked for cannot be done; the message says what and what would be right."""


class TargetError(LearnpropError, AssertionError, IndexError):
    """A target does not fit the model's output; also what captum raises in its place."""


class PluginError(LearnpropError):
    """A plugin, or the name of something a plugin provides, is not usable."""


class InputWarning(UserWarning):
    """Inputs can be explained, but look like none that the model was trained on."""


class PluginWarning(UserWarning):
    """A plugin, or one record of it, was left out; the program goes on without it."""
