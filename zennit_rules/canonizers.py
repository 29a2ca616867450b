"""Canonizers: zennit's LRP composites conserve relevance in models with skip connections, without code per model.

``EpsilonPlus(canonizers=canonizers_for(model, inputs))`` is all it takes for ResNet, DenseNet, MobileNet, EfficientNet,
ConvNeXt and others: sums, products, means, pools, normalisations and activations in the forward passes of the model's
own modules get the rules of `relevance`, and batch norms are merged into the layers they follow in the computation, in
whatever order the model defines them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._compat import (
    Canonizer,
    Hook,
    LayerMapComposite,
    RemovableHandle,
    RemovableHandleList,
)
from .batch_norm_canonizer import MergeBatchNormPairs, batch_norm_pairs
from .core.buffers import buffers_kept
from .core.dependence import current, forward_pass
from .core.interpose import interpose
from .errors import RuleWarning
from .linear_canonizer import LINEAR_TYPES, LinearCanonizer, linear_functions
from .rules.relevance_nodes import node_name, nodes_without_rule
from .skip_canonizer import SkipCanonizer


def canonizers_for(model: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> list[Canonizer]:
    """Canonizers with which any LRP composite of zennit conserves relevance in ``model``.

    Args:
        model: Model in evaluation mode; returned untouched.
        example_inputs: What its forward takes, one sample is enough.

    Returns:
        A `LinearCanonizer` if the model calls linear functions by itself, a `SkipCanonizer`, and a
        `MergeBatchNormPairs` if there are batch norms to merge; for the ``canonizers`` argument of a composite.

    Warns:
        RuleWarning: Of what zennit's rules do not reach even so: layers that make their weights of others, and
            functions without a rule.

    Raises:
        RuleError: For compiled or scripted models, which hooks cannot reach.
    """
    pairs = batch_norm_pairs(model, example_inputs)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    training = any(module.training for module in model.modules())
    with buffers_kept(model), torch.random.fork_rng(enabled=training):
        calls, wrong = linear_functions(model, inputs)
        found: list[Canonizer] = [*([LinearCanonizer(calls)] if calls else []), SkipCanonizer()]
        _warn_of_unreached(model, found, inputs, wrong)
    return [*found, *([MergeBatchNormPairs(pairs)] if pairs else [])]


def _warn_of_unreached(
    model: nn.Module, canonizers: list[Canonizer], inputs: tuple[Any, ...], wrong: dict[str, str]
) -> None:
    leaves = [x.detach().clone().requires_grad_() if _is_float(x) else x for x in inputs]
    # Any rule on the layers that zennit knows: what matters is which functions have none.
    rules = LayerMapComposite([(LINEAR_TYPES, _AnyRule())], canonizers=canonizers)
    with forward_pass(leaves) as depends, rules.context(model), torch.enable_grad():
        missed = nodes_without_rule(model(*leaves), depends)
    counts = Counter(node_name(node) for node in missed)
    reasons = [f"{path!r}: {reason}" for path, reason in wrong.items()]
    reasons += [f"{count} x {name}: relevance passes by the plain gradient" for name, count in counts.items()]
    if reasons:
        more = "; ..." if len(reasons) > 6 else ""
        warnings.warn(
            f"zennit's rules do not reach everything in {type(model).__name__}: {'; '.join(reasons[:6])}{more}. "
            "The composite 'learned_epsilon_gamma_box' goes by what is computed",
            RuleWarning,
            stacklevel=3,
        )


class _AnyRule(Hook):
    """Stands for any rule of a layer: a custom autograd Function on the way out."""

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Puts itself around the whole module, so that nothing in it is looked at."""
        handle = interpose(module, partial(self._around, module))
        return RemovableHandleList([RemovableHandle(self), module.register_forward_pre_hook(self.pre_forward), handle])

    def pre_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Marks the module as one that has a rule."""

    def copy(self) -> _AnyRule:
        """Returns another one."""
        return type(self)()

    @staticmethod
    def _around(module: nn.Module, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = call_next(*args, **kwargs)
        current().cover(out, (args, kwargs))
        return out


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


__all__ = ["MergeBatchNormPairs", "SkipCanonizer", "batch_norm_pairs", "canonizers_for"]
