"""Maps by the current rules, differentiable in them: one forward pass, then as many targets as asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import output_of
from captum_learnprop.maps import postprocess
from captum_learnprop.targets import require_finite, select_target
from zennit_rules import RuleSet


class RuleMaps:
    """Explains batches of one model by a rule set that is being trained.

    Args:
        model: in evaluation mode; hooked during a forward pass only.
        rules: what propagates, shared by all samples.
        sign: how an attribution becomes a map, see `evaluation.maps.reduce_channels`.
        smoothing: Gaussian smoothing of the map, as a fraction of the sides (see `per_axis`).
        precision: dtype of autocast, or None.
    """

    def __init__(
        self, model: nn.Module, rules: RuleSet, sign: str, smoothing: float, precision: torch.dtype | None = None
    ) -> None:
        self.model, self.rules = model, rules
        self.sign, self.smoothing, self.precision = sign, smoothing, precision
        self._composite = rules.composite()

    def plain(self, inputs: Tensor) -> Tensor:
        """The model without rules, in the same precision: ``(B, classes)``."""
        with torch.autocast(inputs.device.type, dtype=self.precision, enabled=self.precision is not None):
            output = output_of(self.model, (inputs,))
        return _at_least_single(output)

    def record(self, inputs: Tensor, *, create_graph: bool) -> RecordedMaps:
        """Run the model on inputs ``(B, C, *spatial)``."""
        return RecordedMaps(self, inputs, create_graph)


class RecordedMaps:
    """One forward pass, kept.

    Attributes:
        output: ``(B, classes)``, detached.
    """

    def __init__(self, maps: RuleMaps, inputs: Tensor, create_graph: bool) -> None:
        self._maps, self._create_graph = maps, create_graph
        self._leaf = inputs.detach().clone().requires_grad_()
        plain = sdpa_kernel(SDPBackend.MATH)  # the fused kernels have no second derivative
        with torch.enable_grad(), plain, self._autocast(), maps._composite.recorded(maps.model):
            self._live = output_of(maps.model, (self._leaf,))
        if not self._live.requires_grad:
            raise LearnpropError("the model's output does not depend on its input in a differentiable way")
        self.output = _at_least_single(self._live.detach())

    def _autocast(self) -> torch.autocast:
        precision = self._maps.precision
        return torch.autocast(self._leaf.device.type, dtype=precision, enabled=precision is not None)

    def explain(self, targets: Tensor) -> Tensor:
        """Maps ``(B, *spatial)`` of the targets ``(B,)``."""
        maps = self._maps
        with torch.enable_grad(), self._autocast():
            selected = require_finite(select_target(self._live, targets))
            (seed,) = torch.autograd.grad(selected.sum(), self._live, retain_graph=True)
            (attribution,) = maps._composite.attribute(
                self._live, (self._leaf,), seed, create_graph=self._create_graph, retain_graph=True
            )
        with torch.set_grad_enabled(self._create_graph):
            return postprocess(_at_least_single(attribution), maps.sign, maps.smoothing)


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
