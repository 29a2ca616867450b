"""LearnedGuidedBackprop: guided backprop with trainable rules, in the place of captum's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captum.log import log_usage
from torch import nn

from zennit_rules import LearnedGradient, RuleSet
from zennit_rules import LearnedGuidedBackprop as GuidedBackpropComposite

from .learned import LearnedPropagation, TensorOrTuple


class LearnedGuidedBackprop(LearnedPropagation):
    """Drop-in for ``captum.attr.GuidedBackprop``, which trained rules turn into a better one.

    Without ``rules`` it is guided backprop: at each activation only positive signals pass, on top of the gradient.
    Captum sees ReLU modules alone and silently takes the gradient elsewhere; here functional, in-place and reused
    activations count too, and so do others than ReLU: ``g * f'(z)`` passes where ``g > 0``. With ``rules`` one
    backward pass propagates by them.

    Captum's composed methods hold the method that they run; one line gives them this one::

        guided = GuidedGradCam(model, layer)
        guided.guided_backprop = LearnedGuidedBackprop(model, rules)

        neuron = NeuronGuidedBackprop(model, layer)
        neuron.guided_backprop = LearnedGuidedBackprop(model, rules)

    Source: guided backprop is that of Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for Simplicity", ICLR
    2015 workshop (https://arxiv.org/abs/1412.6806).

    Args:
        model: The model; returned untouched from every call.
        rules: A `RuleSet`, or the path of a saved one, of the composite ``"learned_guided_backprop"`` or
            ``"learned_gradient"``: both put the same gates at the activations, and differ in where training starts.

    Raises:
        LearnpropError: If ``model`` is no module.
        RuleError: For a rule set of another model, or of a composite with rules at other layers.
    """

    takes = (GuidedBackpropComposite, LearnedGradient)

    def __init__(self, model: nn.Module, rules: RuleSet | str | Path | None = None) -> None:
        if rules is None:
            super().__init__(model, "learned_guided_backprop", gate="channel")
            return
        super().__init__(model, rules=rules)

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
