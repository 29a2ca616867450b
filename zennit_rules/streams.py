"""Streams: an attribution made of more than one backward signal.

Two options of a rule set need more than the signal that arrives at the input. Both are run by `attribute`:

* the *contrast stream*: a first backward pass, seeded with the softmax of the other classes, whose signal at each site
  the gates of the second pass may look at (``gate_options={"contrast": True}``);
* *fusion*: relevance maps of sites at several depths, multiplied into the map at the input (``fusion=True``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import RuleError

if TYPE_CHECKING:
    from .composites import LearnedComposite
    from .hook import SiteCall
    from .sites import Site


_WAY = (
    "rules with a contrast stream or fusion explain through captum_learnprop.LearnedPropagation(model, rules=rules) or "
    "zennit_rules.attribute(...), not through a plain gradient"
)


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
        self._contrast: dict[SiteCall, Tensor] = {}
        self._arrived: dict[str, Tensor] = {}

    def arrive(self, call: SiteCall, z: Tensor, g: Tensor) -> None:
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

    def contrast(self, call: SiteCall) -> Tensor | None:
        """Signal of the other classes at this call; None during their own pass.

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


def attribute(
    composite: LearnedComposite,
    output: Tensor,
    leaves: tuple[Tensor, ...],
    seed: Tensor,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """Signed attributions of ``sum(output * seed)`` to the leaves, with every stream the rules ask for.

    Args:
        composite: Registered on the model during the forward pass, and still active.
        output: What the model returned for the leaves; ``(B, classes)`` where there is a contrast stream.
        leaves: Inputs that require gradients.
        seed: Signal at the output, in its shape.
        create_graph: Make the result differentiable in the parameters of the rules.
        retain_graph: Keep the forward graph, for a further call; ``create_graph`` by default.

    Raises:
        RuleError: For a contrast stream, if the output has no other classes.
    """
    streams, rules = composite.streams, composite.rules
    fusion = rules.fusion
    start = composite.start_signal(output, seed)
    with streams.passes(() if fusion is None else fusion.names) as arrived, torch.enable_grad():
        if rules.contrast:
            with streams.other_classes():
                torch.autograd.grad(
                    output, leaves, composite.start_signal(output, other_classes(output, seed)),
                    retain_graph=True, create_graph=create_graph, allow_unused=True,
                )  # fmt: skip
        maps = torch.autograd.grad(
            output, leaves, start, retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
        )
    with torch.set_grad_enabled(create_graph):
        maps = composite.finish(maps, leaves)
        if fusion is None:
            return maps
        fused = fusion(maps, arrived)
    return fused if create_graph else tuple(part.detach() for part in fused)


def other_classes(output: Tensor, seed: Tensor) -> Tensor:
    """Softmax of the classes that ``seed`` leaves at 0, ``(B, classes)``: the seed of the contrast stream."""
    if output.ndim != 2 or output.shape[1] < 2:
        raise RuleError(
            f"a contrast stream needs an output (B, classes) with other classes, the model gave {tuple(output.shape)}"
        )
    return output.detach().masked_fill(seed != 0, float("-inf")).softmax(dim=1)


class Fusion(nn.Module):
    """Maps of several depths, multiplied into the attribution at the input.

    ``a * prod_l (e + m_l) ** w_l`` with ``m_l = max(sum_c relu(z) g, 0)`` of site ``l``, divided by its largest value
    in the sample and brought to the input's size; ``w_l = 2 tanh(raw_l)``, so that ``raw = 0`` leaves ``a`` as it is.
    A site without any positive relevance says nothing.

    Args:
        sites: Names of the fused sites.
    """

    floor = 0.02
    """``e``: what a pixel keeps where a depth sees nothing."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(sites)
        self.raw = nn.Parameter(torch.zeros(len(self.names)))

    @staticmethod
    def choose(sites: Sequence[Site], inputs: Sequence[Tensor]) -> list[str]:
        """Of each resolution, the last activation.

        Raises:
            RuleError: If there is not one input ``(B, C, *spatial)``, or no site of its kind.
        """
        shape = tuple(inputs[0].shape)
        if len(inputs) != 1 or not 3 <= len(shape) <= 5:
            raise RuleError(f"fusion needs one input (B, C, *spatial), got {[tuple(x.shape) for x in inputs]}")
        fitting = [
            site
            for site in sites
            if site.kind == "activation"
            and len(site.shape) == len(shape)
            and site.channel_dim == 1
            and site.shape[0] == shape[0]
            and max(site.shape[2:]) > 1
        ]
        if not fitting:
            raise RuleError("fusion needs activations (B, C, *spatial) with more than one position; there is none")
        return list({site.shape[2:]: site.name for site in fitting}.values())

    @property
    def weights(self) -> Tensor:
        """Exponents ``w``, one per site, in (-2, 2)."""
        return 2 * torch.tanh(self.raw)

    def forward(self, maps: tuple[Tensor, ...], arrived: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The attribution ``(B, C, *spatial)``, multiplied by the maps ``(B, *spatial_l)`` of the sites."""
        (attribution,) = maps
        exponent = torch.zeros((), device=attribution.device, dtype=attribution.dtype)
        for weight, name in zip(self.weights, self.names, strict=True):
            if name in arrived:
                exponent = exponent + weight.to(attribution.dtype) * self._log(arrived[name], attribution)
        return (attribution * exponent.exp(),)

    def _log(self, relevance: Tensor, attribution: Tensor) -> Tensor:
        dims = tuple(range(1, relevance.ndim))
        top = relevance.amax(dim=dims, keepdim=True)
        scaled = torch.where(top > 0, relevance / torch.where(top > 0, top, 1.0), torch.ones_like(relevance))
        mode = ("linear", "bilinear", "trilinear")[relevance.ndim - 2]
        size = attribution.shape[2:]
        sized = F.interpolate(scaled[:, None].to(attribution.dtype), size=size, mode=mode, align_corners=False)
        return (self.floor + sized).log()
