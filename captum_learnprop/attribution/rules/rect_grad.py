"""RectGrad: rectified gradients as a Captum method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from zennit_rules import RectGradComposite, RuleSet
from zennit_rules.rules.rect_grad import PERCENTILE

from .one_pass import PropagationInOnePass


class RectGrad(PropagationInOnePass):
    """The gradient of which only the strongest ``activation x signal`` pass at each activation, times the input.

    Functional, in-place and reused activations count like any. The constant ``threshold=0`` is guided backprop.

    Warning:
        Keeping positive contributions of active units makes maps redraw the input, whatever the later layers say: see
        `evaluation.alignment`. Low percentiles (below about 25) let inactive units pass in the authors' form.

    Source: Kim et al., "Why are Saliency Maps Noisy?", ICCV workshop 2019 (https://arxiv.org/abs/1902.04893).

    Args:
        model: The model; returned untouched from every call.
        percentile: What is below this percentile of ``activation x signal`` over a layer does not pass; in [0, 100],
            for each sample.
        threshold: A constant threshold in its place.
        derivative: Multiply by the activation's derivative too, as one published implementation does.
        pool: ``"gradient"`` or ``"proportional"`` redistribution at max-pools.
        multiply_by_inputs: Whether maps are multiplied by the input in the end.
        rules: A trained `RuleSet` of the composite ``"rect_grad"``, or its path, instead of the above.

    Raises:
        LearnpropError: If ``model`` is no module.
        RuleError: For options out of range, or a rule set of another model or composite.
    """

    takes = (RectGradComposite,)

    def __init__(
        self,
        model: nn.Module,
        percentile: float = PERCENTILE,
        *,
        threshold: float | None = None,
        derivative: bool = False,
        pool: str = "gradient",
        multiply_by_inputs: bool = True,
        rules: RuleSet | str | Path | None = None,
    ) -> None:
        if rules is not None:
            super().__init__(model, "rect_grad", rules=rules)
            return
        options = {
            "percentile": percentile, "threshold": threshold, "derivative": derivative, "pool": pool,
            "multiply_by_inputs": multiply_by_inputs,
        }  # fmt: skip
        super().__init__(model, "rect_grad", gate="none", rule_options=options)

    @property
    def _rule_options(self) -> dict[str, Any]:
        options: dict[str, Any] = (self.options if self.rules is None else self.rules.config)["rule_options"]
        return options

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether maps are multiplied by the input."""
        return bool(self._rule_options["multiply_by_inputs"])

    def arguments(self) -> dict[str, Any]:
        """Arguments by name, for ``repr``; given rules have options of their own."""
        return {**super().arguments(), **(self._rule_options if self.rules is None else {})}
