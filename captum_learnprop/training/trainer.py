"""RuleTrainer: learns rules that all samples share, once per model; maps then cost one backward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_learnprop.errors import LearnpropError, TrainingWarning
from captum_learnprop.forward import training_mode
from captum_learnprop.plugins import get_manager, know_plugins_of
from captum_learnprop.progress import Progress
from captum_learnprop.training.announcement import Announcement, image_count
from captum_learnprop.training.data import read_batches, repeats_its_order
from captum_learnprop.training.defaults import FEATURE_OPTIONS, HELD_OUT, TrainingDefaults, training_defaults
from captum_learnprop.training.distributed import Processes, processes
from captum_learnprop.training.examples import LABELS, PREDICTED, Collection, Examples, collect
from captum_learnprop.training.masked_input import MaskedInput
from captum_learnprop.training.masks import Mask, MaxMask
from captum_learnprop.training.objectives import SampleObjective
from captum_learnprop.training.occlusion import IMAGES
from captum_learnprop.training.options import PRECISIONS, FitOptions, TrainingOptions
from captum_learnprop.training.parts import Part, held_out_images, split
from captum_learnprop.training.quantities import quantity as quantity_named
from captum_learnprop.training.run import Run
from captum_learnprop.training.smoothing_choice import chosen_smoothing
from captum_learnprop.training.starting_rules import SHOWN, shown_images, starting_rules
from captum_learnprop.training.task import TrainingTask
from captum_learnprop.training.terms import Objective, Term
from zennit_rules import RuleSet, composite_class, composite_name
from zennit_rules._moved import renamed
from zennit_rules.core.scalars import plain, plain_options
from zennit_rules.core.sites import refuse_unsupported


class RuleTrainer:
    """A trainer that fits the rule set of a trainable composite on a model.

    By default by *occlusion regression*: the model is evaluated once, without gradient, on random deletions of each
    training image, and the rules learn maps whose mass inside a deleted region correlates with what the explained class
    lost. Labels are not needed: the model's own prediction is explained.

        rules = RuleTrainer(model).fit(images)
        LearnedPropagation(model, rules=rules).attribute(x, target=y)

    Under ``torchrun`` every process takes its share of each batch, gradients are averaged, and rank 0 writes. But for
    rounding, the result depends neither on the number of processes nor on ``internal_batch_size``, with one exception:
    below 8 there, a box rule that was given no bounds reads them from fewer than 32 images.

    Source: the idea of learned propagation rules is that of Yang et al., ECCV 2020; occlusion regression for them is
    ours, the training form of sensitivity-n (Ancona et al., ICLR 2018) and infidelity (Yeh et al., NeurIPS 2019).

    Args:
        model: A model in evaluation mode that maps images ``(B, C, *spatial)``, or tables ``(B, F)``, to
            ``(B, classes)``. It comes back untouched.
        composite: Name of a trainable composite: ``"learned_gradient"``, ``"learned_guided_backprop"``,
            ``"learned_epsilon_gamma_box"`` (LRP), ``"learned_deeplift"``, and for transformers
            ``"learned_transformer"`` or ``"learned_attnlrp"``.
        gate: Name or class of the gates; they must be shared by all samples (``"channel"``, ``"quadrant"``,
            ``"feature"``), or ``"none"`` where the composite has other rules to learn: those of linear layers in LRP.
        objective: A `terms.Term` or a weighted sum of them, by default the `terms.OcclusionRegression` of
            `training_defaults`; an objective of per-sample learning such as `objectives.Agreement`, which judges the
            masked input; or the name of one, as ``learnprop plugins`` lists them.
        mask: The mask of such a per-sample objective, `masks.MaxMask` by default. Terms hold masks of their own.
        start: Rule the gates start at; the composite's own by default.
        pooling: ``"soft"`` learns at max-pools too, ``"exact"`` leaves them their gradient.
        gate_options: Further arguments of the gates; ``{"position": True}`` by default for feature gates. With
            ``"contrast": True`` they see a second signal, seeded with the other classes: one backward pass more.
        rule_options: Options of the composite's other rules, e.g. ``{"gamma": 0.25}``; see the composite.
        fusion: Whether to multiply relevance maps of several depths into the map, with learned exponents.
        quantity: What is explained and drops, one of `quantities.QUANTITIES`: ``"softmax"``, ``"sigmoid"``,
            ``"logit"``, ``"log_probability"``, ``"log_sigmoid"``, ``"contrastive_logit"``.
        sign: How an attribution becomes a map, see `maps.reduce_channels`; by default ``"absolute"``, and
            ``"signed"`` for LRP.
        smoothing: Gaussian smoothing of maps, as a fraction of the sides (see `maps.per_axis`); none for tables. None
            learns with 0.025, LRP with none, and finishes maps with the one of `smoothing_choice.SMOOTHINGS` that
            predicts small deletions of the held-out images best. ``rules.training`` keeps it: use the rules with it.
        outlines: Radius of the smoothing that follows the outlines of what the images show, as a fraction of the sides
            (see `maps.follow_outlines`); 0 for none. Maps are learned and finished with it.
        steps: Optimiser steps (Adam); None for as many as go 4.5 times over the rows, 20 at least and 80 at most.
        batch_size: Rows per step, over all processes; a row is one image with one target.
        lr: First learning rate, by default 0.03.
        schedule: ``"cosine"``, ``"linear"`` or ``"constant"``.
        warmup: Steps until the first learning rate is reached.
        clip: Largest norm of a gradient.
        deletions: Regions removed from each image.
        regions: What they are unions of: ``"boxes"``, ``"superpixels"`` or ``"both"`` by turns, which is boxes alone in
            images with a side below 96 pixels.
        fill: What replaces them: ``"images"``, what another training image shows there; ``"colours"``, a random colour
            with noise; or ``"mixed"``, one of them by chance.
        validate_every: Steps between validations.
        patience: Stop after this many validations without a better one; None goes on to the end.
        seed: Decides deletions, batches and whatever terms draw.
        internal_batch_size: Most rows that go through the model together; less takes less memory. On a processor large
            images are fewer (see `chunks.rows_together`).
        precision: ``"bfloat16"`` for autocast; None for the model's own.

    Raises:
        LearnpropError: The model is no module, or an option is out of range.
        RuleError: A name is unknown, or the composite does not have an option.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str = "learned_gradient",
        gate: str | type = "feature",
        objective: Term | Objective | SampleObjective | str | None = None,
        mask: Mask | None = None,
        *,
        start: str | None = None,
        pooling: str = "soft",
        gate_options: Mapping[str, Any] | None = None,
        rule_options: Mapping[str, Any] | None = None,
        fusion: bool = False,
        quantity: str = "logit",
        sign: str | None = None,
        smoothing: float | None = None,
        outlines: float | None = None,
        steps: int | None = None,
        batch_size: int = 12,
        lr: float | None = None,
        schedule: str = "cosine",
        warmup: int = 0,
        clip: float = 1.0,
        deletions: int = 96,
        regions: str = "both",
        fill: str = IMAGES,
        validate_every: int = 10,
        patience: int | None = None,
        seed: int = 0,
        internal_batch_size: int = 64,
        precision: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LearnpropError(
                f"RuleTrainer needs an nn.Module whose layers it can reach, got {type(model).__name__}"
            )
        refuse_unsupported(model)  # now: the measuring comes before the rules
        self.model = model
        know_plugins_of(composite, gate)
        composite = composite_name(composite)
        if gate_options is None:
            gate_options = FEATURE_OPTIONS if getattr(gate, "name", gate) == "feature" else {}
        self.build_options: dict[str, Any] = {
            "composite": composite, "gate": gate, "start": start, "pooling": pooling,
            "gate_options": plain_options(gate_options), "fusion": fusion,
            "rule_options": composite_class(composite).checked_options(plain_options(rule_options)),
        }  # fmt: skip
        defaults = training_defaults(composite)
        sign, lr = defaults.sign if sign is None else sign, defaults.lr if lr is None else lr
        outlines = defaults.outlines if outlines is None else outlines
        self.objective = _objective(objective, mask, defaults.term)
        self.quantity = quantity_named(quantity)
        self.options = TrainingOptions(
            quantity=quantity, sign=sign, smoothing=defaults.smoothing if smoothing is None else smoothing,
            chooses_smoothing=smoothing is None and self.objective.needs_deletions, outlines=outlines, steps=steps,
            batch_size=batch_size, lr=lr, schedule=schedule, warmup=warmup, clip=clip, deletions=deletions,
            regions=regions, fill=fill, validate_every=validate_every, patience=patience, seed=seed,
            internal_batch_size=internal_batch_size, precision=precision,
        )  # fmt: skip
        self.log: list[dict[str, float]] = []

    def __repr__(self) -> str:
        gate, options = self.build_options["gate"], self.options
        return (
            f"RuleTrainer({type(self.model).__name__}, composite={self.build_options['composite']!r}, "
            f"gate={getattr(gate, '__name__', gate)!r}, objective={self.objective!r}, steps={options.steps}, "
            f"batch_size={options.batch_size}, lr={options.lr:g}, seed={options.seed})"
        )

    def fit(
        self,
        data: Any,
        targets: str = PREDICTED,
        *,
        targets_per_image: int = 1,
        validation: float | Any = HELD_OUT,
        examples_dir: str | Path | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 20,
        log_dir: str | Path | None = None,
        show_progress: bool = False,
        on_step: Callable[[dict[str, float]], None] | None = None,
    ) -> RuleSet:
        """Trains, and returns the last rules with a validation loss that is not above the lowest by a standard error.

        Where none is below that of the start, the start is returned.

        Args:
            data: Images ``(N, C, *spatial)`` (sequences and volumes too) or a table ``(N, F)``; a pair of those and
                labels, a `Dataset` or a `DataLoader`. Of a table random features are deleted, and nothing is smoothed.
            targets: ``"predicted"``, the model's own highest classes; or ``"labels"``, those of the data.
            targets_per_image: How many classes of each image are explained.
            validation: Share of the images that are held out, 0 for none; or data of their own.
            examples_dir: Folder for images and deletions, measured once and used again. None keeps them in memory, or,
                when they take more than a gigabyte, in a temporary folder.
            checkpoint: File that a run is saved in and resumed from, to the same result. Delete it to begin anew.
            checkpoint_every: Steps between checkpoints.
            log_dir: Folder for ``training.csv`` and, where TensorBoard is installed, its events.
            show_progress: Whether the cost is announced and progress shown: as bars in a terminal, elsewhere as a line
                every half minute.
            on_step: Called after every step with its row of the log.

        Returns:
            A closed `RuleSet`; ``training`` says how it was made. The log of all steps is in ``self.log``.

        Raises:
            LearnpropError: The model is in training mode, the data cannot be trained on, there is nothing to learn,
                or the loss is not finite at the very start.
            CheckpointError: The checkpoint is one of another run, or damaged.

        Warns:
            TrainingWarning: The loss is not finite later on, and the best rules so far are returned; there are no
                images of some classes; or a checkpoint cannot be written.
        """
        if (said := training_mode(self.model, strict=True)) is not None:
            raise LearnpropError(said)
        targets_per_image, validation, checkpoint_every = map(plain, (targets_per_image, validation, checkpoint_every))
        fit_options = FitOptions(
            examples_dir=_path(examples_dir),
            checkpoint=_path(checkpoint),
            checkpoint_every=checkpoint_every,
            log_dir=_path(log_dir),
            show_progress=show_progress,
            on_step=on_step,
        )
        fit_options.make_folders()
        if targets not in (PREDICTED, LABELS):
            raise LearnpropError(f"unknown targets {targets!r}; choose {PREDICTED!r} or {LABELS!r}")
        what = self._collection(targets, targets_per_image)
        cost = self._announcement(data, what, validation, fit_options)
        cost.before()
        start = time.perf_counter()
        training, held_out = self._parts(data, validation, what, fit_options, cost)
        measuring_seconds = time.perf_counter() - start
        task = self._task(training, held_out, what)
        task.warn_of_missing_classes()
        run = Run(task, fit_options, cost)
        run.resume()
        run.train()
        self.log = run.log.rows
        rules = run.finish(measuring_seconds)
        if task.options.chooses_smoothing and task.has_held_out_images:
            rules.training["smoothing"] = chosen_smoothing(task, show_progress=show_progress)
        return rules

    def measure(
        self,
        data: Any,
        targets: str = PREDICTED,
        *,
        targets_per_image: int = 1,
        examples_dir: str | Path | None = None,
        show_progress: bool = False,
    ) -> Examples:
        """Returns what `fit` learns from, without learning: images, targets, and what random deletions cost them.

        Args:
            data: Images ``(N, C, *spatial)``, a table ``(N, F)``, or whatever else `fit` takes.
            targets: ``"predicted"`` or ``"labels"``.
            targets_per_image: How many classes of each image are explained.
            examples_dir: Folder for images and deletions; `fit` goes on from the same folder.
            show_progress: Whether progress is shown.

        Raises:
            LearnpropError: The data cannot be trained on.
        """
        fit_options = FitOptions(examples_dir=_path(examples_dir), show_progress=show_progress)
        return self._read(data, "training", self._collection(targets, targets_per_image), fit_options)

    @property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @property
    def _processes(self) -> Processes:
        return processes(self._device)

    def _collection(self, targets: str, targets_per_image: int) -> Collection:
        return Collection(
            quantity=self.quantity,
            name=self.options.quantity,
            targets=targets,
            targets_per_image=targets_per_image,
            deletions=self.options.deletions if self.objective.needs_deletions else 0,
            seed=self.options.seed,
            regions=self.options.regions,
            fill=self.options.fill,
            internal_batch_size=self.options.internal_batch_size,
        )

    def _announcement(self, data: Any, what: Collection, validation: Any, fit_options: FitOptions) -> Announcement:
        share = validation if isinstance(validation, (int, float)) else 0.0
        return Announcement(
            self.options, image_count(data), what.deletions, what.targets_per_image, share,
            shown=fit_options.show_progress and self._processes.main,
        )  # fmt: skip

    def _read(
        self, source: Any, name: str, what: Collection, fit_options: FitOptions, cost: Announcement | None = None
    ) -> Examples:
        group, folder = self._processes, fit_options.examples_dir
        if group.world > 1 and not repeats_its_order(source):
            raise LearnpropError(
                "under torchrun all processes must meet the images in the same order: pass the Dataset"
            )
        shown = fit_options.show_progress and group.main
        first: list[float] = []
        with Progress(image_count(source), f"measuring {name}", shown=shown) as bar:

            def progress(done: int) -> None:
                if done == 1:
                    first.append(time.perf_counter())
                elif done == 2 and first and cost is not None:  # the first image waits for much that is made once
                    cost.after_image(time.perf_counter() - first[0])
                bar.advance(done - bar.done)

            return collect(
                self.model, read_batches(source, labelled=what.targets == LABELS), what,
                processes=group,
                folder=None if folder is None else folder / name,
                progress=progress,
            )  # fmt: skip

    def _parts(
        self, data: Any, validation: Any, what: Collection, fit_options: FitOptions, cost: Announcement
    ) -> tuple[Part, Part]:
        """Returns the rows that are trained on and those that are held out."""
        share = isinstance(validation, (int, float))
        if share and not 0 <= validation < 1:
            raise LearnpropError(f"validation must be a share in [0, 1) or data, got {validation}")
        examples = self._read(data, "training", what, fit_options, cost)
        if share:
            return split(examples, validation, what.seed)
        other = self._read(validation, "validation", replace(what, seed=what.seed + 1), fit_options)
        shapes = [tuple(part.rows(torch.arange(1))["inputs"].shape[1:]) for part in (examples, other)]
        if shapes[0] != shapes[1]:
            raise LearnpropError(f"training images are {shapes[0]}, validation images {shapes[1]}; resize them")
        return Part.whole(examples), Part.whole(other)

    def _task(self, training: Part, held_out: Part, what: Collection) -> TrainingTask:
        shown = training.first_images(shown_images(self.options.internal_batch_size))
        return TrainingTask(
            model=self.model,
            rules=starting_rules(self.model, shown.to(self._device), self.build_options),
            build_options=self.build_options,
            objective=self.objective,
            options=replace(self.options, steps=self.options.steps_for(len(training))),
            what=what,
            training=training,
            held_out=held_out,
            processes=self._processes,
            device=self._device,
        )


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _objective(objective: Any, mask: Mask | None, default: Term) -> Objective:
    if objective is None:
        if mask is not None:
            raise LearnpropError(
                "mask= goes with an objective that judges the masked input, e.g. objective=Agreement(baseline='noise')"
            )
        return Objective.of(default)
    if isinstance(objective, str):
        objective = get_manager().create("objective", objective)
    if isinstance(objective, (Term, Objective)):
        if mask is not None:
            raise LearnpropError("terms hold masks of their own, e.g. Sufficiency(mask=...); leave mask= out")
        return Objective.of(objective)
    if not hasattr(objective, "apply") or not callable(objective):
        raise LearnpropError(
            f"objective must be a term, a sum of terms or an objective like Agreement(), got {objective!r}"
        )
    return Objective.of(MaskedInput(objective, MaxMask() if mask is None else mask))


__all__ = [
    "FEATURE_OPTIONS", "HELD_OUT", "PRECISIONS", "SHOWN", "RuleTrainer", "TrainingDefaults", "TrainingWarning",
    "held_out_images", "starting_rules", "training_defaults",
]  # fmt: skip

__getattr__ = renamed(
    __name__,
    {
        "FitError": "LearnpropError",
        "Options": "TrainingOptions",
        "Usual": "TrainingDefaults",
        "usual": "training_defaults",
    },
)
