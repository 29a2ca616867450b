"""Methods whose rules are given or fixed: one forward and one backward pass, and nothing is learned per sample."""

from __future__ import annotations

from typing import Any

from captum.log import log_usage

from .learned import LearnedPropagation, TensorOrTuple


class PropagationInOnePass(LearnedPropagation):
    """The base of methods that propagate once, by given rules or by those that they start with."""

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        create_graph: bool = False,
    ) -> TensorOrTuple:
        """Attribute the target's output to the inputs.

        Args:
            inputs: ``(B, ...)`` floating-point tensor or tuple of them.
            target: Explained entry of the output, by captum's conventions.
            additional_forward_args: Further arguments of the model, after ``inputs``; not differentiated.
            create_graph: Keep the graph of the result, so that it can be differentiated with respect to the rules (and
                to ``inputs`` that require gradients).

        Returns:
            Signed maps in the shapes and the container of ``inputs``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: For empty, non-finite or integer inputs, arguments the model does not take, and the like.
            RuleError: If the model has no activation, or is compiled or scripted.
        """
        return super().attribute.__wrapped__(
            self, inputs, target, additional_forward_args, n_steps=0, create_graph=create_graph
        )
