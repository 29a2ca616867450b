"""Streams: an attribution made of more than one backward signal.

Two options of a rule set need more than the signal that arrives at the input. Both are run by `attribute` of a
composite:

* the *contrast stream*: a first backward pass, seeded with the softmax of the other classes, whose signal at each site
  the gates of the second pass may look at (``gate_options={"contrast": True}``);
* *fusion*: relevance maps of sites at several depths, multiplied into the map at the input (``fusion=True``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from ..errors import RuleError

_WAY = (
    "rules with a contrast stream or fusion explain through captum_learnprop.LearnedPropagation(model, rules=rules) or "
    "zennit_rules.attribute(...), not through a plain gradient"
)


class NamedCall(Protocol):
    """A call of a site, as far as streams look at it; `hook.SiteCall` is one."""

    name: str
    gate: nn.Module


class Streams:
    """Signals that the backward passes of one attribution leave for each other; one per composite.

    Args:
        fused: Whether maps of several depths are multiplied in the end, which a plain gradient would leave out.
    """

    def __init__(self, *, fused: bool = False) -> None:
        self._fused = fused
        self._open = False
        self._contrasting = False
        self._recorded: frozenset[str] = frozenset()
        self._contrast: dict[NamedCall, Tensor] = {}
        self._arrived: dict[str, Tensor] = {}

    def arrive(self, call: NamedCall, z: Tensor, g: Tensor) -> None:
        """Keep what a later pass needs of signal ``g`` at a call with pre-activation ``z``.

        Raises:
            RuleError: If maps are to be fused, but nobody will.
        """
        if self._fused and not self._open:
            raise RuleError(f"a plain gradient leaves out the fusion of these rules; {_WAY}")
        if self._contrasting:
            if getattr(call.gate, "contrast", False):
                self._contrast[call] = g
        elif call.name in self._recorded:
            self._arrived[call.name] = (z.clamp(min=0) * g).sum(dim=1).clamp(min=0)

    def contrast(self, call: NamedCall) -> Tensor | None:
        """Returns the signal of the other classes at this call; None during their own pass.

        Raises:
            RuleError: If there was no such pass.
        """
        if self._contrasting:
            return None
        if call not in self._contrast:
            raise RuleError(
                f"the gate at site {call.name!r} compares with the other classes, whose backward pass "
                f"has not been run: {_WAY}"
            )
        return self._contrast[call]

    @contextmanager
    def passes(self, recorded: Sequence[str] = ()) -> Iterator[dict[str, Tensor]]:
        """Keep signals inside the context; yields the maps of the recorded sites, filled by the second pass."""
        self._open, self._recorded = True, frozenset(recorded)
        try:
            yield self._arrived
        finally:  # signals with a graph refer to the calls that they are kept for: a cycle, unless it is cut here
            self._open, self._recorded = False, frozenset()
            self._contrast, self._arrived = {}, {}

    @contextmanager
    def other_classes(self) -> Iterator[None]:
        """The pass inside is that of the other classes."""
        self._contrasting = True
        try:
            yield
        finally:
            self._contrasting = False


def other_classes(output: Tensor, seed: Tensor) -> Tensor:
    """Returns the contrast stream's seed: the softmax of the classes that ``seed`` leaves at 0, ``(B, classes)``."""
    if output.ndim != 2 or output.shape[1] < 2:
        raise RuleError(
            f"a contrast stream needs an output (B, classes) with other classes, the model gave {tuple(output.shape)}"
        )
    return output.detach().masked_fill(seed != 0, float("-inf")).softmax(dim=1)
