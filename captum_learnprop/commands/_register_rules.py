"""Trained rule sets as composites of their own, for ``learnprop run``."""

from __future__ import annotations

from pathlib import Path

from captum_learnprop.errors import LearnpropError
from zennit_rules import register_trained


def register_rules(name: str, path: Path) -> None:
    """Makes the rule set in a file known to zennit as a composite.

    Args:
        name: The name of the composite.
        path: The file.

    Raises:
        LearnpropError: The file cannot be used, or the name is taken.
    """
    try:
        register_trained(name, path)
    except (ValueError, OSError) as error:
        raise LearnpropError(f"--trained {name}={path}: {error}") from error
