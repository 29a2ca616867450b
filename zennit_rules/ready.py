"""Rule sets that ship with the package, by name: ``RuleSet.load("efficientnet_lite0/gates", model)``.

They were trained by ``examples/train_ready_rules.py``. A name is the net's and the rules', ``net/rules``; the file is
``ready_rules/<net>/<rules>.safetensors`` beside this module, and knows the fingerprint of the very weights it is for.
"""

from __future__ import annotations

from pathlib import Path

from .core.names import did_you_mean
from .errors import RuleError

FOLDER = Path(__file__).with_name("ready_rules")
SUFFIX = ".safetensors"


def ready_rules() -> tuple[str, ...]:
    """Returns the names of the rule sets that ship with the package, sorted; `RuleSet.load` takes them.

    Example:
        >>> ready_rules()
        ('efficientnet_lite0/gates', 'efficientnet_lite0/lrp')
    """
    return tuple(
        sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob(f"*/*{SUFFIX}"))
    )  # fmt: skip


def located(path: Path) -> Path:
    """Returns the file that a path or a ready name stands for: a file of that path comes first.

    Args:
        path: What the user gave; it need not exist.

    Returns:
        The path itself, unless there is nothing under it and a rule set of that name ships with the package.

    Raises:
        RuleError: There is neither, and it looks like a name: two parts without a suffix.
    """
    if path.exists():
        return path
    known, name = ready_rules(), path.as_posix()
    if name in known:
        return FOLDER / f"{name}{SUFFIX}"
    if len(path.parts) == 2 and not path.suffix:
        raise RuleError(
            f"no rule set at {name}, and none of that name ships with the package; ready ones: "
            f"{', '.join(known) or 'none'}{did_you_mean(name, known)}"
        )
    return path


__all__ = ["located", "ready_rules"]
