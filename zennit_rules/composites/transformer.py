"""Composites for transformers: gates at activations, norms, the softmax of attention and products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._compat import Hook
from ..core.dependence import depends_on_input
from ..core.registry import register_composite
from ..core.site_functions import ACTIVATION_TYPES
from ..core.sites import Site
from ..errors import RuleError
from ..gates import PlainGate
from ..rules.attention import NORMS, PRODUCTS, FunctionRule, LearnedSecant, MixedGate, ProductGate
from ..rules.written_attention import ATTENTION, SOFTMAX, attention_of
from .base import LearnedComposite


class LearnedTransformer(LearnedComposite):
    """Rules for transformers, and for other nets with norms and products, that start at the plain gradient.

    Sites are activations (GELU, SiLU, Hardswish, ... as modules or functions), LayerNorm and RMSNorm, the softmax of
    attention, and products of two signals: queries with keys, weights with values, gates with what they let through
    (squeeze and excitation, gated units). Attention that is computed in one call is written out. In the coverage report
    a site inside an attention module is named after it, ``<path>.scores``, ``<path>.softmax``, ``<path>.values``.

    ``"learned_transformer"`` in ``COMPOSITES``. While the rules are registered, weights of norms get no gradient.

    Args:
        rule_options: ``mix``: from 0, the derivative of activations and norms, to 1, AttnLRP's rule. ``product``: what
            each operand of a product gets, 1 for the gradient. See `attention`.
    """

    name = "learned_transformer"
    linearised = False
    default_options: ClassVar[Mapping[str, Any]] = {"mix": 0.0, "product": 1.0}

    def prepare(self) -> None:
        """Takes over the calls of functions."""
        self._functions = FunctionRule(self)
        self.functional_hooks.add(self._functions)
        self.tracker.on_call = self._call

    @classmethod
    def checked_options(cls, rule_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the options, which must be numbers in range."""
        options = super().checked_options(rule_options)
        for name, value in options.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise RuleError(f"rule option {name} must be a number, got {value!r}")
        MixedGate(PlainGate(), (1, 1), options["mix"])
        ProductGate(options["product"])
        return {name: float(value) for name, value in options.items()}

    @classmethod
    def make_gate(cls, config: Mapping[str, Any], site: Site, samples: int | None) -> nn.Module:
        """Makes the gate of a site: a product has one of its own, activations and norms are mixed."""
        options = config["rule_options"]
        if site.kind == "product":
            return ProductGate(options["product"], samples)
        gate: Any = super().make_gate(config, site, samples)
        return MixedGate(gate, site.shape, options["mix"]) if site.kind in ("activation", "norm") else gate

    def templates(self) -> list[tuple[tuple[type, ...], Hook]]:
        """Returns the hooks: activations have a secant rule."""
        return [(ACTIVATION_TYPES, LearnedSecant(self)), *super().templates()[1:]]

    def register(self, module: nn.Module) -> None:
        """Registers the composite on a model, and lets the rules of functions count."""
        self._functions.active = True
        super().register(module)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function called in the model's forward pass; NotImplemented if it is no site."""
        if not torch.is_grad_enabled():
            return NotImplemented
        if func in ATTENTION:
            return self._attention(func, args, kwargs)
        given = args[0] if args else kwargs.get("input")
        if not isinstance(given, Tensor) or not given.requires_grad or not given.is_floating_point():
            return NotImplemented
        if func in SOFTMAX:
            return self._functional_softmax(given, args[1:], kwargs)
        if func in NORMS:
            site = self.tracker.call_of("norm", nn.LayerNorm, nn.RMSNorm)
            gate = self.rules.gate_for(site, "norm", func.__name__, given, given.ndim - 1)
            return self._functions.norm(site, gate, func, args, kwargs)
        if func in PRODUCTS and len(args) == 2 and not kwargs:
            return self._two(*PRODUCTS[func], *args)
        return NotImplemented

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = iter(("scores", "values"))

        def product(left: Tensor, right: Tensor) -> Tensor:
            return self._product(left, right, torch.matmul, next(names))

        return attention_of(func, args, kwargs, lambda scores: self._softmax(scores, -1), product)

    def _functional_softmax(self, z: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dim = kwargs.get("dim", rest[0] if rest else None)
        kind = kwargs.get("dtype")
        if not isinstance(dim, int) or (kind is None and len(rest) > 1):
            return NotImplemented
        return self._softmax(z if kind is None else z.to(kind), dim)

    def _softmax(self, z: Tensor, dim: int) -> Tensor:
        if not z.requires_grad:
            return z.softmax(dim)
        site = self.tracker.call_of("softmax", nn.Softmax)
        gate = self.rules.gate_for(site, "softmax", "Softmax", z, min(1, z.ndim - 1))
        return self._functions.softmax(site, gate, z, dim)

    def _two(self, func: Any, inplace: bool, left: Any, right: Any) -> Any:
        """A product of two tensors that depend on the input; a weight is no operand."""
        both = [left, right]
        if not all(isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad for x in both):
            return NotImplemented
        if left.shape[:1] != right.shape[:1] or not all(map(depends_on_input, both)):
            return NotImplemented
        if not inplace:
            return self._product(left, right, func, "product")
        # A copy: the backward pass needs the operand that is overwritten here.
        kept = left.clone()
        return left.copy_(self._product(kept, kept if right is left else right, func, "product"))

    def _product(self, left: Tensor, right: Tensor, fn: Any, name: str) -> Tensor:
        if not (depends_on_input(left) and depends_on_input(right)):
            return fn(left, right)
        site = self.tracker.call_of(name)
        one = left.reshape(len(left), -1)[:, :1]  # the gate knows samples alone, so that images may have any size
        gate = self.rules.gate_for(site, "product", "Product", one, 1)
        return self._functions.product(site, gate, left, right, fn)


class LearnedAttnLRP(LearnedTransformer):
    """The same, starting at AttnLRP: maps are relevance, the signal times the input.

    ``"learned_attnlrp"`` in ``COMPOSITES``. Linear layers, sums and averages have the epsilon rule with epsilon 0,
    which for a signal that is multiplied by the input is the gradient; `LearnedTransformer` has the rest.

    Args:
        rule_options: Those of `LearnedTransformer`; here ``mix`` starts at 1 and ``product`` at 1/2.
    """

    name = "learned_attnlrp"
    ends_with_input = True
    default_options: ClassVar[Mapping[str, Any]] = {"mix": 1.0, "product": 0.5}

    def finish(self, maps: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Multiplies what arrived by the inputs, which makes it relevance."""
        return tuple(signal * leaf for signal, leaf in zip(maps, leaves, strict=True))


for _composite in (LearnedTransformer, LearnedAttnLRP):
    register_composite(_composite.name, _composite)

__all__ = ["LearnedAttnLRP", "LearnedTransformer"]
