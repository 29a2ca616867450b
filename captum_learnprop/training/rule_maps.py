"""Maps by the current rules, differentiable in them: one forward pass, then as many targets as asked for."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import output_of
from captum_learnprop.maps import postprocess
from captum_learnprop.training.linearised import doubly_differentiated, linearised_map
from captum_learnprop.training.pass_by_rules import RulePass, RunsAgainError, leaves_of, rules_recorded
from zennit_rules import RuleSet
from zennit_rules.core.constant_weights import constant_weights
from zennit_rules.core.tangent import record


class RuleMaps:
    """Explains batches of one model by a rule set that is being trained.

    Args:
        model: The model, in evaluation mode; hooked during a forward pass only.
        rules: The rule set that propagates, shared by all samples.
        sign: How an attribution becomes a map, one of `captum_learnprop.maps.SIGNS`.
        smoothing: Gaussian smoothing of the map, as a fraction of the sides (see `per_axis`).
        precision: The dtype of autocast, or None.
        outlines: Radius of the smoothing that follows the images, as a fraction of the sides (see `follow_outlines`).
    """

    def __init__(
        self,
        model: nn.Module,
        rules: RuleSet,
        sign: str,
        smoothing: float,
        precision: torch.dtype | None = None,
        outlines: float = 0.0,
    ) -> None:
        self.model, self.rules = model, rules
        self.sign, self.smoothing, self.outlines, self.precision = sign, smoothing, outlines, precision
        self.composite = rules.composite()
        # Further streams are no part of the one backward pass that can be transposed.
        streams = rules.contrast or rules.fusion is not None
        self.runs_again = False
        """Whether a part of the model was seen to run again in backward passes."""
        self.linearised = self.composite.linearised and not streams and precision is None

    def plain(self, inputs: Tensor) -> Tensor:
        """The model without rules, in the same precision: ``(B, classes)``."""
        with self.autocast(inputs):
            output = output_of(self.model, (inputs,))
        return _at_least_single(output)

    def autocast(self, like: Tensor) -> torch.autocast:
        """The precision of passes, on the device of a tensor."""
        return torch.autocast(like.device.type, dtype=self.precision, enabled=self.precision is not None)

    def record(self, inputs: Tensor, *, create_graph: bool) -> RecordedMaps:
        """Run the model on inputs ``(B, C, *spatial)``; with ``create_graph`` its maps are differentiable in the rules.

        Raises:
            LearnpropError: If the output does not depend on the inputs in a differentiable way.
        """
        return RecordedMaps(self, inputs, create_graph)


class RecordedMaps:
    """A forward pass of a batch that is kept, to explain as many targets as asked for.

    Attributes:
        output: What the model gave, ``(B, classes)``, detached and in single precision at least.
    """

    def __init__(self, maps: RuleMaps, inputs: Tensor, create_graph: bool) -> None:
        self._maps, self._create_graph = maps, create_graph
        self._record(inputs)
        if not self._pass.output.requires_grad:
            raise LearnpropError("the model's output does not depend on its input in a differentiable way")
        self.output = _at_least_single(self._pass.output.detach())

    def _record(self, inputs: Tensor) -> None:
        maps, create_graph = self._maps, self._create_graph
        leaves = leaves_of((inputs,))
        watched = record(leaves) if create_graph and maps.linearised else nullcontext()
        around = constant_weights() if create_graph and not maps.linearised and not maps.runs_again else nullcontext()
        with rules_recorded(maps.model, maps.composite), maps.autocast(inputs), around, watched as tape:
            self._pass = RulePass.of(maps.model, maps.composite, leaves)
        if tape is not None:
            tape.finish(self._pass.output)
        self._tape = tape

    def explain(self, targets: Tensor) -> Tensor:
        """Maps ``(B, *spatial)`` of the targets ``(B,)``."""
        maps, run = self._maps, self._pass
        with torch.enable_grad(), maps.autocast(self.output):
            seed = run.seed_of(run.select(targets))
            if not self._create_graph:
                (attribution,) = run.attributions(seed, keep=True)
            elif self._tape is not None and self._tape.unsupported is None:
                attribution = linearised_map(run, self._tape, maps.rules, seed)
            else:
                try:
                    attribution = doubly_differentiated(run, seed)
                except RunsAgainError:
                    if maps.runs_again:
                        raise
                    maps.runs_again = True  # without what `constant_weights` stands in for, which would not run again
                    self._record(run.leaves[0].detach())
                    return self.explain(targets)
        with torch.set_grad_enabled(self._create_graph):
            (inputs,) = run.leaves
            return postprocess(_at_least_single(attribution), maps.sign, maps.smoothing, maps.outlines, inputs.detach())


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
