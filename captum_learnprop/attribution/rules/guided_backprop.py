"""LearnedGuidedBackprop: guided backprop with trainable rules, in the place of captum's."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zennit_rules import LearnedGradient, RuleSet
from zennit_rules import LearnedGuidedBackprop as GuidedBackpropComposite

from .one_pass import PropagationInOnePass


class LearnedGuidedBackprop(PropagationInOnePass):
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
