"""LearnedPropagation: attributions by trainable propagation rules, as a captum method."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from zennit_rules import LearnedComposite, RuleError, RuleSet, composite_class, composite_name
from zennit_rules.core.interpose import is_interposed
from zennit_rules.core.protocols import TrainableComposite
from zennit_rules.core.scalars import plain, plain_options

from ..._compat import _format_output, compute_gradients
from ...errors import LearnpropError
from ...forward import output_of
from ...maps import postprocess
from ...plugins import know_plugins_of
from ...training.defaults import FEATURE_OPTIONS, training_defaults
from ...training.joint_descent import LENGTH, REFINING_LENGTH, JointDescent
from ...training.masks import Mask, MaxMask
from ...training.objectives import Agreement, SampleObjective
from ...training.pass_by_rules import RulePass, in_training_mode, leaves_of, left_as_found, rules_in_place
from ...training.per_sample import Descent, OriginalPass, Step, learn
from ...training.sample_deletions import TOGETHER
from ...training.sample_occlusion import OcclusionStep, SampleOcclusion, finished
from ..checked_inputs import checked_inputs
from ..shown import ShownAsCall
from .given_rules import built_at, given_rules
from .neuron_gradient import maps_of_neuron

TensorOrTuple = TypeVar("TensorOrTuple", Tensor, tuple[Tensor, ...])

DEFAULT_STEPS = 8
MASKING_STEPS = 30
"""The steps for objectives that judge the masked input."""
DEFAULT_LR = 0.03
# Chosen on validation scenes: the plain form (no smoothing, zero baseline) lets gates find adversarial masks.
DEFAULT_MASK = MaxMask("sum", sigma=0.02, power=0.5)
DEFAULT_OBJECTIVE = Agreement(baseline="noise")


class LearnedPropagation(ShownAsCall, GradientAttribution):
    """Gradient attribution whose backward pass uses trainable rules at the non-linear layers.

    Without ``rules`` they are learned for each sample anew. Random parts of the sample are filled, and what the output
    loses is kept (`training.sample_occlusion.SampleOcclusion`); then gates at every activation, which weigh the
    backward signal, are moved until the map's mass in a part goes with that loss. Some of the deletions are held out:
    they choose among the maps met on the way, the start's included. The forward pass with rules is run once per call.
    With ``rules`` (a trained `RuleSet`) the attribution takes one backward pass; with ``rules`` and ``n_steps`` they
    are refined for each sample first, and the given rule set is left as it is. With an objective like
    `training.objectives.Agreement` the map masks the input instead, and gates are moved so that the masked input keeps
    the model's output while the mask stays small.

    The idea (plug-in modules in the backward pass, learned by double backpropagation, guided by the output for the
    masked input) is that of Yang, Qiu, Song, Tao and Wang, "Learning Propagation Rules for Attribution Map Generation",
    ECCV 2020 (https://arxiv.org/abs/2010.07210). Their equations are not known to us: the form of the gates, the
    mask, the objective and the optimiser are our reconstruction, not the paper's.

    Warning:
        Rules learned per sample are fitted to the model they explain: by default to what deletions of the very sample
        cost, filled with its blur. Judge them by other measures than the objective they were learned with.

    Args:
        model: The model; returned untouched from every call.
        composite: Name of a trainable composite: ``"learned_gradient"``, ``"learned_guided_backprop"``,
            ``"learned_epsilon_gamma_box"`` (LRP), ``"learned_deeplift"``, ``"learned_transformer"`` or
            ``"learned_attnlrp"``; or a short one: ``"gates"``, ``"guided_backprop"``, ``"lrp"``, ``"deeplift"``, ...
        rules: A `RuleSet`, or the path of a saved one.
        gate: Name or class of the gates to learn: ``"element"``, ``"position"``, ``"channel"``, ``"quadrant"``,
            ``"feature"``.
        start: Rule they start at; the composite's own by default.
        pooling: ``"exact"`` or ``"soft"``: whether max-pools have a trainable rule as well.
        rule_options: Options of the composite's other rules, e.g. ``{"baseline": 0.5}``; see the composite.

    Raises:
        LearnpropError: If ``model`` is no module.
        RuleError: For unknown names, or a rule set of another model.
    """

    takes: ClassVar[tuple[type[LearnedComposite], ...]] = ()
    """Composites whose rules it can be given; none for all."""

    always_shown = ("model", "composite")

    def __init__(
        self,
        model: nn.Module,
        composite: str = "learned_gradient",
        rules: RuleSet | str | Path | None = None,
        gate: str | type = "feature",
        start: str | None = None,
        pooling: str = "exact",
        *,
        rule_options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LearnpropError(
                f"{type(self).__name__} needs an nn.Module whose layers it can reach, got {type(model).__name__}"
            )
        super().__init__(model)
        self.model = model
        self.options: dict[str, Any] = {
            "gate": gate, "start": start, "pooling": pooling, "rule_options": plain_options(rule_options),
        }  # fmt: skip
        know_plugins_of(composite, gate)
        self.composite = composite_name(composite)
        if rules is None:
            composite_class(composite)(**self.options)  # names are checked here rather than at the first call
        else:
            rules = given_rules(rules, model, type(self).__name__, *self.takes)
            self._refuse_other_options(rules)
            self.composite = rules.composite_name
        self.rules = rules

    def arguments(self) -> dict[str, Any]:
        """Arguments by name, for ``repr``."""
        return {"model": self.model, "composite": self.composite, "rules": self.rules, **self.options}

    @property
    def _given(self) -> TrainableComposite | None:
        """The given rules as a composite: one for each call, since a composite is on one model at a time."""
        return None if self.rules is None else self.rules.composite()

    def _refuse_other_options(self, rules: RuleSet) -> None:
        """Options that differ from their defaults must be those of the given rule set."""
        given = {"composite": self.composite, **self.options}
        usual = {
            "composite": "learned_gradient", "gate": "feature", "start": None, "pooling": "exact", "rule_options": None,
        }  # fmt: skip
        for option, value in given.items():
            has: Any = rules.composite_name if option == "composite" else rules.config.get(option)
            if option == "rule_options" and value is not None:
                has = {name: one for name, one in (has or {}).items() if name in value}
            if value != usual[option] and (getattr(value, "name", "") or value) != has:
                raise RuleError(f"{option}={value!r} was given, but the rule set has {has!r}; leave {option} out")

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        n_steps: int | None = None,
        objective: SampleObjective | SampleOcclusion | None = None,
        mask: Mask | None = None,
        lr: float | None = None,
        seed: int | None = None,
        show_progress: bool = False,
        create_graph: bool = False,
    ) -> TensorOrTuple:
        """Attribute the target's output to the inputs.

        Args:
            inputs: ``(B, ...)`` floating-point tensor or tuple of them.
            target: Explained entry of the output, by captum's conventions: class index, list or 1-D tensor of one per
                sample, tuples for outputs of more dimensions; None for one output per sample.
            additional_forward_args: Further arguments of the model, after ``inputs``; not differentiated.
            n_steps: Learning steps; without ``rules`` 8, and 30 for objectives that judge the masked input; with
                ``rules`` 0.
            objective: What learning minimises; `SampleOcclusion` by default, and ``Agreement(baseline="noise")`` where
                a ``mask`` is given.
            mask: Turns a map into a mask, for objectives that judge the masked input; ``MaxMask("sum", sigma=0.02,
                power=0.5)`` by default. ``Agreement()`` with ``MaxMask()`` is the plain LPR-reconstruction.
            lr: Step size of the gates' raw parameters: the greatest length of a step over all gates of a sample, by
                default 2, and 0.3 for given rules; for objectives that judge the masked input the root mean square of
                each gate, 0.03.
            seed: Seeds whatever the objective draws, 0 by default; the caller's random state is untouched.
            show_progress: Draw a progress bar over the steps.
            create_graph: Keep the graph of the result, so that it can be differentiated with respect to the given
                ``rules`` (and to ``inputs`` that require gradients). Not for learned-per-sample maps.

        Returns:
            Signed maps in the shapes and the container of ``inputs``: what the backward pass delivers there.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: For empty, non-finite or integer inputs, arguments the model does not take, and the like.
            RuleError: If the model has no site, or is compiled or scripted.
        """
        objective = _objective(objective, mask)
        steps, seed = self._steps(n_steps, objective, create_graph), plain(seed)
        tensors, additional = checked_inputs(self.model, inputs, additional_forward_args)
        leaves = leaves_of(tensors, create_graph=create_graph)
        draws = steps > 0 or in_training_mode(self.model)  # objectives and dropout do
        with left_as_found(self.model, leaves, seed=seed, draws=draws):
            if steps:
                maps = self._learn(leaves, target, additional, steps, objective, mask, lr, seed or 0, show_progress)
            else:
                maps = self._propagate(leaves, target, additional, create_graph)
        return _format_output(isinstance(inputs, tuple), maps)

    def maps(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        outlines: float | None = None,
        n_steps: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Maps with the sign and the outlines of the training, and the smoothing that it chose.

        Args:
            inputs: ``(B, C, *spatial)``, or a table ``(B, F)``.
            target: Explained entry of the output, by captum's conventions.
            additional_forward_args: Further arguments of the model, after ``inputs``.
            outlines: Radius of a smoothing that follows the outlines in the inputs, as a fraction of the sides (see
                `captum_learnprop.maps.follow_outlines`); None for that of the training, 0 for none.
            n_steps: Learning steps, as `attribute` takes them.
            seed: Seeds the deletions that are learned from.

        Returns:
            ``(B, *spatial)``: one value per position; of a table ``(B, F)``. Higher is more relevant.

        Raises:
            LearnpropError: For rules that no `RuleTrainer` made, or several inputs.
        """
        summary = {} if self.rules is None else self.rules.training
        if self.rules is not None and ("sign" not in summary or "smoothing" not in summary):
            raise LearnpropError("maps() needs rules that RuleTrainer made, which keep how their maps were finished")
        if not isinstance(inputs, Tensor) or inputs.ndim < 2:
            raise LearnpropError("maps() needs one input (B, C, *spatial) or (B, F); use attribute()")
        attribution = self.attribute(inputs, target, additional_forward_args, n_steps=n_steps, seed=seed)
        return self.postprocess(attribution, inputs, outlines=outlines)

    def postprocess(self, attribution: Tensor, inputs: Tensor, *, outlines: float | None = None) -> Tensor:
        """Finishes attributions of this method as `maps` does, with the sign, smoothing and outlines of the training.

        Args:
            attribution: What `attribute` gave for one input, ``(B, C, *spatial)`` or ``(B, F)``.
            inputs: What was explained, in the same shape.
            outlines: As `maps` takes it.

        Returns:
            ``(B, *spatial)``, or ``(B, F)``: what `captum_learnprop.maps.postprocess` makes of it. Of rules that no
            `RuleTrainer` made, with the sign and smoothing that training on their composite has by default.
        """
        if outlines is None:
            outlines = 0.0 if self.rules is None else self.rules.training.get("outlines", 0.0)
        return postprocess(attribution, *self._finish(SampleOcclusion()), outlines, inputs)

    def attribute_future(self) -> None:
        """Not implemented, as in captum's own gradient methods."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

    def _steps(self, n_steps: int | None, objective: SampleObjective | SampleOcclusion, create_graph: bool) -> int:
        n_steps = plain(n_steps)
        if n_steps is None:
            usual = DEFAULT_STEPS if isinstance(objective, SampleOcclusion) else MASKING_STEPS
            n_steps = usual if self.rules is None else 0
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 0:
            raise LearnpropError(f"n_steps must be an integer of at least 0, got {n_steps!r}")
        if create_graph and n_steps:
            raise LearnpropError(
                "create_graph=True needs fixed rules to differentiate: pass rules= and leave n_steps at 0"
            )
        return n_steps

    def _propagate(
        self, leaves: tuple[Tensor, ...], target: Any, additional: tuple[Any, ...], create_graph: bool
    ) -> tuple[Tensor, ...]:
        composite = self._open_composite() if self._given is None else self._given
        with rules_in_place(self.model, composite, create_graph=create_graph):
            if self.gradient_func is not compute_gradients:
                maps = maps_of_neuron(self, composite, leaves, target, additional, create_graph=create_graph)
                self._check_reach(composite, None, leaves)
                return maps
            return self._explain(composite, leaves, target, additional, create_graph)[0]

    def _explain(
        self, composite: Any, leaves: tuple[Tensor, ...], target: Any, additional: tuple[Any, ...], create_graph: bool
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Maps by a composite that is registered on the model, and the explained entries of the output ``(B,)``."""
        run = RulePass.of(
            self.model, composite, leaves, additional, forward=self.forward_func, known=built_at(self.rules)
        )
        self._check_reach(composite, run.output, leaves)
        selected = run.select(target)
        return run.attributions(run.seed_of(selected), create_graph=create_graph), selected

    def _check_reach(self, composite: Any, output: Any, leaves: tuple[Tensor, ...]) -> None:
        """Refuse a model without a site; rules that were given have been built for its sites."""
        if not composite.rules.closed:
            composite.rules.close(self.model, output, leaves)

    def _learn(
        self,
        leaves: tuple[Tensor, ...],
        target: Any,
        additional: tuple[Any, ...],
        n_steps: int,
        objective: SampleObjective | SampleOcclusion,
        mask: Mask | None,
        lr: float | None,
        seed: int,
        show_progress: bool,
    ) -> tuple[Tensor, ...]:
        lr = plain(lr)
        self._check_learning(lr)

        def forward(changed: tuple[Tensor, ...]) -> Tensor:
            return output_of(self.forward_func, changed, additional, model=self.model)

        if not isinstance(objective, SampleOcclusion):
            original = self._kept_pass(leaves, target, additional)
            descent = Descent(DEFAULT_LR if lr is None else lr)
            masking = Step(original, forward, target, DEFAULT_MASK if mask is None else mask, objective, descent)
            return learn(masking, n_steps, show_progress=show_progress)
        samples, inputs = len(leaves[0]), tuple(leaf.detach() for leaf in leaves)
        # Further arguments may have a row per sample: these go with passes of just these samples.
        together = samples if any(isinstance(one, Tensor) for one in additional) else TOGETHER
        deletions = objective.measured(forward, inputs, target, seed=seed, together=together)
        original = self._kept_pass(leaves, target, additional)
        usual = LENGTH if self.rules is None else REFINING_LENGTH
        joint = JointDescent(usual if lr is None else lr, samples)
        sign, smoothing = self._finish(objective)
        deletions = deletions if sign == "signed" else deletions.losses()
        step = OcclusionStep(original, deletions, objective, partial(finished, sign=sign, smoothing=smoothing), joint)
        return learn(step, n_steps, show_progress=show_progress)

    def _check_learning(self, lr: float | None) -> None:
        """Refuse to learn where rules cannot be learned."""
        if self.gradient_func is not compute_gradients:
            raise LearnpropError(
                "gradient_func was replaced (by a Neuron* or Layer* class): rules cannot be learned for it; pass rules="
            )
        if lr is not None and not 0 < lr < float("inf"):
            raise LearnpropError(f"lr must be positive and finite, got {lr}")
        if is_interposed(self.model):
            raise LearnpropError(
                "rules are applied to this model already, and changed inputs must see the plain model: "
                "learn outside of rules.applied(model)"
            )

    def _finish(self, objective: SampleOcclusion) -> tuple[str, float]:
        """The sign and the smoothing of maps: those asked for, those of the training, or those of the composite."""
        trained = {} if self.rules is None else self.rules.training
        usual = training_defaults(self.composite)
        sign, smoothing = objective.sign, objective.smoothing
        return (
            trained.get("sign", usual.sign) if sign is None else sign,
            trained.get("smoothing", usual.smoothing) if smoothing is None else smoothing,
        )

    def _kept_pass(self, leaves: tuple[Tensor, ...], target: Any, additional: tuple[Any, ...]) -> OriginalPass:
        """The forward pass of the original input, with rules of its own for each sample."""
        rules = self.rules
        composite = self._open_composite() if rules is None else rules.for_samples(len(leaves[0])).composite()
        original = OriginalPass(self.model, composite, leaves, target, additional)
        if not original.rules.parameters():
            raise LearnpropError(
                f"nothing to learn: gate={self.options['gate']!r} has no parameters; choose another gate, or n_steps=0"
            )
        return original

    def _open_composite(self) -> Any:
        gate = self.options["gate"]
        options = FEATURE_OPTIONS if getattr(gate, "name", gate) == "feature" else {}
        return composite_class(self.composite)(**self.options, gate_options=options, per_sample=True)


def _objective(
    objective: SampleObjective | SampleOcclusion | None, mask: Mask | None
) -> SampleObjective | SampleOcclusion:
    """Returns what learning minimises.

    Raises:
        LearnpropError: For anything that is no objective or no mask, or a mask of an objective that takes none.
    """
    if objective is None:
        objective = SampleOcclusion() if mask is None else DEFAULT_OBJECTIVE
    for name, value in (("objective", objective), ("mask", mask)):
        if value is not None and not callable(value) and not isinstance(value, SampleOcclusion):
            raise LearnpropError(f"{name} must be callable (see training.{name}s), got {value!r}")
    if isinstance(objective, SampleOcclusion) and mask is not None:
        raise LearnpropError("mask= goes with an objective that judges the masked input, such as Agreement()")
    return objective


__all__ = ["DEFAULT_LR", "DEFAULT_STEPS", "LearnedPropagation", "RuleError"]
