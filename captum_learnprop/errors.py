"""Errors and warnings a user can act on."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "InputWarning", "LearnpropError", "PluginError", "PluginWarning", "PropagationRuleError", "SceneWarning",
    "TargetError", "TrainingWarning", "did_you_mean",
]  # fmt: skip


class LearnpropError(ValueError):
    """Something the user asked for cannot be done; the message says what and what would be right."""


class TargetError(LearnpropError, AssertionError, IndexError):
    """A target does not fit the model's output; also what captum raises in its place."""


class PropagationRuleError(LearnpropError, TypeError):
    """A ``module.rule`` is none that LRP knows; also what captum raises in its place."""


class PluginError(LearnpropError):
    """A plugin, or the name of something a plugin provides, is not usable."""


class InputWarning(UserWarning):
    """Inputs can be explained, but look like none that the model was trained on."""


class SceneWarning(UserWarning):
    """Scenes can be drawn, but what is measured on them says less than it seems to."""


class TrainingWarning(UserWarning):
    """A training went otherwise than asked for, such as an early end; what it gave can be used."""


class PluginWarning(UserWarning):
    """A plugin, or one record of it, was left out; the program goes on without it."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'saliency'?"`` for a misspelled name, to end an error's text with.

    It is empty where no known name is near. Upper and lower case count as alike, so that ``default`` finds ``DEFAULT``.
    """
    # zennit_rules imports torch, which the command line must not wait for; only who has erred does.
    from zennit_rules.core.names import did_you_mean as hint

    return hint(name, known)
