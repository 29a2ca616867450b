"""RuleTrainer: learns rules that all samples share, once per model; maps then cost one backward pass."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import training_mode
from captum_learnprop.maps import SIGNS
from captum_learnprop.plugins import get_manager, know_plugins_of
from captum_learnprop.training import checkpoint as checkpoints
from captum_learnprop.training.data import DataError, read_batches, repeats_its_order
from captum_learnprop.training.distributed import Processes, processes
from captum_learnprop.training.draws import Draws
from captum_learnprop.training.examples import LABELS, PREDICTED, Collection, Examples, collect
from captum_learnprop.training.log import TrainingLog
from captum_learnprop.training.masked_input import MaskedInput
from captum_learnprop.training.masks import Mask, MaxMask
from captum_learnprop.training.objectives import SampleObjective
from captum_learnprop.training.occlusion import generator_of, regions_of
from captum_learnprop.training.quantities import quantity as quantity_named
from captum_learnprop.training.random_nets import random_nets
from captum_learnprop.training.rule_maps import RuleMaps
from captum_learnprop.training.terms import Batch, Objective, OcclusionRegression, Term
from zennit_rules import LearnedEpsilonGammaBox, RuleSet, composite_class, composite_name
from zennit_rules._moved import renamed
from zennit_rules.core import fingerprint
from zennit_rules.core.scalars import plain, plain_fields, plain_options

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""Learning rate as a share of the first one, by the share of the steps that are done."""

PRECISIONS: dict[str | None, torch.dtype | None] = {None: None, "float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingDefaults:
    """How rules of a composite are trained where nothing else is asked for; chosen on validation scenes.

    Attributes:
        sign: How an attribution becomes a map.
        smoothing: Of maps, as a fraction of the sides (see `per_axis`).
        lr: First learning rate.
        density: Of the occlusion regression.
    """

    sign: str = "absolute"
    smoothing: float = 0.025
    lr: float = 0.03
    density: float = 0.5
    """Against 0: equal average precision, lower deletion."""

    @property
    def term(self) -> OcclusionRegression:
        """The objective."""
        return OcclusionRegression(density=self.density)


_DEFAULTS = {LearnedEpsilonGammaBox: TrainingDefaults("signed", 0.0, 0.01, 1.0)}
"""Relevance says what speaks against a class as well, and is smooth by itself. Average precision on validation scenes
of the VGG-like net: .88 from positive maps, .90 from signed ones, .92 with density 1; gates diverge at three times the
learning rate."""


def training_defaults(composite: str) -> TrainingDefaults:
    """How rules of a composite are trained by default.

    Raises:
        RuleError: for an unknown composite.
    """
    known = composite_class(composite)
    return next((options for base, options in _DEFAULTS.items() if issubclass(known, base)), TrainingDefaults())


HELD_OUT = 0.2
"""Share of the images that is held out by default."""

FEATURE_OPTIONS = {"position": True}
"""Options of feature gates that none are given for: weighing positions raised average precision on validation
scenes (.82 to .84)."""

_EPS = 1e-5
"""Of Adam. Gradients are around 1e-3 and rounding noise below 1e-8: what is only noise must not become a full step."""

SHOWN = 32
"""Images that rules see when they are made: some read the range of the inputs there, as the box rule does."""

_SHOWN_PER_ROW = 4
"""Of these at most so many for each of ``internal_batch_size``: training holds about as many times a forward pass."""

_RECALIBRATION = 32
"""Rows that the batch norms of re-initialised nets are measured on."""

_VALIDATION = 2**31 - 1
"""Stands for a step in the random numbers of a validation, which are the same each time."""


class FitError(LearnpropError):
    """Rules that cannot be learned from what was given."""


class TrainingWarning(UserWarning):
    """Training ended before its time, with the best rules so far."""


@dataclass(frozen=True)
class Options:
    """How rules are trained; see `RuleTrainer`."""

    quantity: str = "logit"
    sign: str = "absolute"
    smoothing: float = 0.025
    steps: int = 80
    batch_size: int = 12
    lr: float = 0.03
    schedule: str = "cosine"
    warmup: int = 0
    clip: float = 1.0
    deletions: int = 48
    validate_every: int = 20
    patience: int | None = None
    seed: int = 0
    internal_batch_size: int = 64
    precision: str | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, low in (("steps", 1), ("batch_size", 1), ("validate_every", 1), ("internal_batch_size", 1)):
            if getattr(self, name) < low:
                raise FitError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not (self.lr > 0 and self.clip > 0 and self.warmup >= 0 and self.seed >= 0 and self.smoothing >= 0):
            raise FitError(
                f"lr and clip must be positive, warmup, seed and smoothing not negative, got lr={self.lr}, "
                f"clip={self.clip}, warmup={self.warmup}, seed={self.seed}, smoothing={self.smoothing}"
            )
        for name, known in (("schedule", SCHEDULES), ("sign", SIGNS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise FitError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(map(str, known))}")
        if self.deletions < 3:
            raise FitError(f"deletions must be at least 3, a correlation needs them, got {self.deletions}")
        if self.patience is not None and self.patience < 1:
            raise FitError(f"patience must be at least 1 validation, got {self.patience}")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        return self.lr * SCHEDULES[self.schedule]((step - self.warmup) / max(self.steps - self.warmup, 1))

    def passes(self, training_rows: int, validation_rows: int) -> int:
        """Attribution passes of a whole training; one is a forward and a backward pass of one image.

        A row of a step counts two, its map and the gradient of that; a row of a validation counts one.
        """
        validations = 1 + math.ceil(self.steps / self.validate_every)  # before the first step, and after the last
        return 2 * self.steps * min(self.batch_size, training_rows) + validations * validation_rows


class RuleTrainer:
    """Fits the rule set of a trainable composite on a model.

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
        model: in evaluation mode; maps images ``(B, C, *spatial)``, or tables ``(B, F)``, to ``(B, classes)``. It comes
            back untouched.
        composite: name of a trainable composite: ``"learned_gradient"``, ``"learned_guided_backprop"``,
            ``"learned_epsilon_gamma_box"`` (LRP), ``"learned_deeplift"``, and for transformers
            ``"learned_transformer"`` or ``"learned_attnlrp"``.
        gate: name or class of the gates; they must be shared by all samples (``"channel"``, ``"quadrant"``,
            ``"feature"``), or ``"none"`` where the composite has other rules to learn: those of linear layers in LRP.
        objective: a `terms.Term` or a weighted sum of them, by default the `terms.OcclusionRegression` of
            `training_defaults`; an objective of per-sample learning such as `objectives.Agreement`, which judges the
            masked input; or the name of one, as ``learnprop plugins`` lists them.
        mask: of such a per-sample objective, `masks.MaxMask` by default. Terms hold masks of their own.
        start: rule the gates start at; the composite's own by default.
        pooling: ``"soft"`` learns at max-pools too, ``"exact"`` leaves them their gradient.
        gate_options: further arguments of the gates; ``{"position": True}`` by default for feature gates. With
            ``"contrast": True`` they see a second signal, seeded with the other classes: one backward pass more.
        rule_options: options of the composite's other rules, e.g. ``{"gamma": 0.25}``; see the composite.
        fusion: multiply relevance maps of several depths into the map, with learned exponents.
        quantity: what is explained and drops, see `quantities.QUANTITIES`: ``"softmax"``, ``"sigmoid"``, ``"logit"``,
            ``"log_probability"``, ``"log_sigmoid"``, ``"contrastive_logit"``.
        sign: how an attribution becomes a map, see `evaluation.maps.reduce_channels`; by default ``"absolute"``, and
            ``"signed"`` for LRP.
        smoothing: Gaussian smoothing of maps, as a fraction of the sides (see `evaluation.maps.per_axis`), by default
            0.025, and none for LRP; none for tables. Use the rules with the same; ``rules.training`` keeps it.
        steps: optimiser steps (Adam).
        batch_size: rows per step, over all processes; a row is one image with one target.
        lr: first learning rate, by default 0.03, and 0.01 for LRP.
        schedule: ``"cosine"``, ``"linear"`` or ``"constant"``.
        warmup: steps until the first learning rate is reached.
        clip: largest norm of a gradient.
        deletions: regions removed from each image.
        validate_every: steps between validations.
        patience: stop after this many validations without a better one; None goes on to the end.
        seed: of deletions, batches and whatever terms draw.
        internal_batch_size: rows that go through the model together; less takes less memory.
        precision: ``"bfloat16"`` for autocast; None for the model's own.

    Raises:
        FitError: for a model in training mode or options out of range.
        RuleError: for unknown names, or options that the composite does not have.
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
        steps: int = 80,
        batch_size: int = 12,
        lr: float | None = None,
        schedule: str = "cosine",
        warmup: int = 0,
        clip: float = 1.0,
        deletions: int = 48,
        validate_every: int = 20,
        patience: int | None = None,
        seed: int = 0,
        internal_batch_size: int = 64,
        precision: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise FitError(f"RuleTrainer needs an nn.Module whose layers it can reach, got {type(model).__name__}")
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
        smoothing = defaults.smoothing if smoothing is None else smoothing
        self.objective = _objective(objective, mask, defaults.term)
        self.quantity = quantity_named(quantity)
        self.options = Options(
            quantity, sign, smoothing, steps, batch_size, lr, schedule, warmup, clip, deletions, validate_every,
            patience, seed, internal_batch_size, precision,
        )  # fmt: skip
        self.log: list[dict[str, float]] = []

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
        """Train, and return the rules with the lowest validation loss.

        Args:
            data: images ``(N, C, *spatial)`` (sequences and volumes too) or a table ``(N, F)``; a pair of those and
                labels, a `Dataset` or a `DataLoader`. Of a table random features are deleted, and nothing is smoothed.
            targets: ``"predicted"``, the model's own highest classes; or ``"labels"``, those of the data.
            targets_per_image: how many classes of each image are explained.
            validation: share of the images that are held out, 0 for none; or data of their own.
            examples_dir: folder for images and deletions, measured once and used again. None keeps them in memory, or,
                when they take more than a gigabyte, in a temporary folder.
            checkpoint: file that a run is saved in and resumed from, to the same result. Delete it to begin anew.
            checkpoint_every: steps between checkpoints.
            log_dir: folder for ``training.csv`` and, where TensorBoard is installed, its events.
            show_progress: draw progress bars.
            on_step: called after every step with its row of the log.

        Returns:
            A closed `RuleSet`; ``training`` says how it was made. The log of all steps is in ``self.log``.

        Raises:
            FitError: nothing to learn, or a loss that is not finite at the very start.
            DataError: data that cannot be trained on.
            CheckpointError: a checkpoint of another run.

        Warns:
            TrainingWarning: a loss that is not finite later on; the best rules so far are returned.
        """
        if (said := training_mode(self.model, strict=True)) is not None:
            raise FitError(said)
        targets_per_image, validation, checkpoint_every = map(plain, (targets_per_image, validation, checkpoint_every))
        self._check_folders(checkpoint, log_dir, examples_dir)
        if targets not in (PREDICTED, LABELS):
            raise FitError(f"unknown targets {targets!r}; choose {PREDICTED!r} or {LABELS!r}")
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        group = processes(device)
        what = self._collection(targets, targets_per_image)
        folder = None if examples_dir is None else Path(examples_dir)
        start = time.perf_counter()
        training_part, held_out = self._examples(data, validation, what, group, folder, show_progress)
        run = _Run(self, training_part, held_out, group, device, what)
        run.measuring_seconds = time.perf_counter() - start
        run.warn_of_missing_classes()
        run.resume(None if checkpoint is None else Path(checkpoint), checkpoint_every)
        run.train(None if log_dir is None else Path(log_dir), show_progress, on_step)
        self.log = run.log.rows
        return run.finish()

    def measure(
        self,
        data: Any,
        targets: str = PREDICTED,
        *,
        targets_per_image: int = 1,
        examples_dir: str | Path | None = None,
        show_progress: bool = False,
    ) -> Examples:
        """What `fit` learns from, without learning: images, targets, and what random deletions cost them.

        Args:
            data: see `fit`.
            targets: see `fit`.
            targets_per_image: see `fit`.
            examples_dir: see `fit`, which goes on from the same folder.
            show_progress: draw a progress bar.

        Raises:
            DataError: data that cannot be trained on.
        """
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        folder = None if examples_dir is None else Path(examples_dir)
        what = self._collection(targets, targets_per_image)
        return self._read(data, "training", what, processes(device), folder, show_progress)

    def _collection(self, targets: str, targets_per_image: int) -> Collection:
        return Collection(
            self.quantity, self.options.quantity, targets, targets_per_image,
            self.options.deletions if self.objective.needs_deletions else 0, self.options.seed,
            self.options.internal_batch_size,
        )  # fmt: skip

    def _read(
        self, source: Any, name: str, what: Collection, group: Processes, folder: Path | None, show_progress: bool
    ) -> Examples:
        if group.world > 1 and not repeats_its_order(source):
            raise DataError("under torchrun all processes must meet the images in the same order: pass the Dataset")
        with tqdm(desc=f"measuring {name}", unit="image", disable=not (show_progress and group.main)) as bar:
            return collect(
                self.model, read_batches(source, labelled=what.targets == LABELS), what,
                processes=group,
                folder=None if folder is None else folder / name,
                progress=lambda done: bar.update(done - bar.n) and None,
            )  # fmt: skip

    @staticmethod
    def _check_folders(checkpoint: str | Path | None, *folders: str | Path | None) -> None:
        """Refuse now what would fail after the measuring."""
        for folder in folders:
            try:
                if folder is not None:
                    Path(folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FitError(f"cannot make the folder {folder}: {error}") from error
        if checkpoint is not None and not Path(checkpoint).parent.is_dir():
            raise FitError(
                f"cannot write the checkpoint {checkpoint}: the folder {Path(checkpoint).parent} does not exist"
            )

    def _examples(
        self,
        data: Any,
        validation: Any,
        what: Collection,
        group: Processes,
        folder: Path | None,
        show_progress: bool,
    ) -> tuple[_Part, _Part]:
        share = isinstance(validation, (int, float))
        if share and not 0 <= validation < 1:
            raise FitError(f"validation must be a share in [0, 1) or data, got {validation}")
        examples = self._read(data, "training", what, group, folder, show_progress)
        if not share:
            other = self._read(
                validation, "validation", replace(what, seed=what.seed + 1), group, folder, show_progress
            )
            shapes = [tuple(part.rows(torch.arange(1))["inputs"].shape[1:]) for part in (examples, other)]
            if shapes[0] != shapes[1]:
                raise DataError(f"training images are {shapes[0]}, validation images {shapes[1]}; resize them")
            return _Part(examples, torch.arange(len(examples))), _Part(other, torch.arange(len(other)))
        generator = torch.Generator().manual_seed(what.seed)
        order = torch.randperm(examples.images, generator=generator)
        held_out = held_out_images(examples.images, validation)
        rows = order[:, None] * what.targets_per_image + torch.arange(what.targets_per_image)
        return _Part(examples, rows[held_out:].flatten()), _Part(examples, rows[:held_out].flatten())


def held_out_images(images: int, share: float) -> int:
    """How many of some images a share of them holds out: at least one, but not all; none for a share of 0."""
    return min(max(1, round(share * images)), images - 1) if share else 0


@dataclass(frozen=True)
class _Part:
    """Some rows of examples."""

    examples: Examples
    index: Tensor

    def rows(self, positions: Tensor) -> dict[str, Tensor]:
        return self.examples.rows(self.index[positions])

    def __len__(self) -> int:
        return len(self.index)


class _Run:
    """One call of `RuleTrainer.fit`."""

    def __init__(
        self,
        trainer: RuleTrainer,
        training: _Part,
        held_out: _Part,
        group: Processes,
        device: torch.device,
        what: Collection,
    ) -> None:
        self.what = what
        self.measuring_seconds = 0.0
        self.trainer, self.training, self.held_out = trainer, training, held_out
        self.group, self.device, self.options = group, device, trainer.options
        self.objective = trainer.objective
        self.rules = starting_rules(trainer.model, self._first_images(), trainer.build_options)
        self.parameters = self.rules.parameters()
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.options.lr, eps=_EPS)
        self.maps = self._maps(trainer.model)
        self.random_maps: list[RuleMaps] = []
        if self.objective.needs_randomized:
            some = training.rows(torch.arange(min(_RECALIBRATION, len(training))))["inputs"].to(device)
            self.random_maps = [self._maps(net) for net in random_nets(trainer.model, self.options.seed, some)]
        self.state = checkpoints.TrainingState(0, {}, {}, self._snapshot(), 0, math.inf, 0)
        self.checkpoint: Path | None = None
        self.checkpoint_every = 1
        self.log = TrainingLog(None)
        self.seconds = 0.0
        self.stopped: str | None = None
        self.between_steps = True

    def _first_images(self) -> Tensor:
        """The first images of the training part, each once."""
        step = self.what.targets_per_image  # rows of one image are neighbours
        count = min(SHOWN, _SHOWN_PER_ROW * self.options.internal_batch_size)
        return self.training.rows(torch.arange(0, len(self.training), step)[:count])["inputs"].to(self.device)

    def _maps(self, model: nn.Module) -> RuleMaps:
        o = self.options
        return RuleMaps(model, self.rules, o.sign, o.smoothing, PRECISIONS[o.precision])

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.rules.state_dict().items()}

    def config(self) -> dict[str, Any]:
        """What a checkpoint must share with this run."""
        build_options = {**self.trainer.build_options, "gate": self.rules.config["gate"]}
        options = {**vars(self.options), "precision": self.options.precision or "float32"}
        del options["internal_batch_size"]  # decides memory, not the result
        return {
            **options, **{name: str(value) for name, value in build_options.items()}, **self.what.config(),
            "objective": self.objective.config(), "training rows": len(self.training),
            "validation rows": len(self.held_out), "architecture": self.rules.architecture,
            "weights": fingerprint.weights(self.trainer.model), "data": self.training.examples.digest,
            "validation data": self.held_out.examples.digest,
        }  # fmt: skip

    def warn_of_missing_classes(self) -> None:
        """Labels say which classes are meant; rules are shared by all, but some were never seen."""
        seen = set(self._trained_targets().tolist())
        missing = [c for c in range(self.training.examples.classes) if c not in seen]
        if missing and self.what.targets == LABELS:
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            warnings.warn(
                f"no training image of {len(missing)} of {self.training.examples.classes} classes ({some}): "
                "maps of these rest on rules learned from the others",
                TrainingWarning,
                stacklevel=3,
            )

    def _trained_targets(self) -> Tensor:
        return self.training.examples.targets()[self.training.index]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def resume(self, path: Path | None, every: int) -> None:
        """Go on from a checkpoint, if there is one."""
        self.checkpoint, self.checkpoint_every = path, max(1, every)
        if path is None:
            return
        try:
            json.dumps(self.config())
        except TypeError as error:
            raise FitError(f"options of the objective cannot be kept in a checkpoint: {error}") from error
        if path.is_file():
            self.state = checkpoints.read(path, self.config())
            self.rules.load_state_dict(self.state.rules)
            checkpoints.restore_optimizer(self.optimizer, self.state.optimizer)
            self._stop_if_waited()
        self.group.barrier()

    def save(self) -> None:
        """Write a checkpoint; a disk that is full costs the checkpoint, not the training."""
        if self.checkpoint is None or not self.group.main:
            return
        self.state.rules = self._snapshot()
        self.state.optimizer = checkpoints.optimizer_tensors(self.optimizer)
        self.state.rows = self.log.rows
        try:
            checkpoints.write(self.checkpoint, self.state, self.config())
        except OSError as error:
            warnings.warn(
                f"cannot write the checkpoint {self.checkpoint}: {error}; training goes on",
                TrainingWarning,
                stacklevel=2,
            )

    # -- training ----------------------------------------------------------------------------------------------------

    def train(
        self, log_dir: Path | None, show_progress: bool, on_step: Callable[[dict[str, float]], None] | None
    ) -> None:
        """All steps that are left."""
        self.log = TrainingLog(log_dir if self.group.main else None, self.state.rows)
        start = time.perf_counter()
        try:
            if self.state.step == 0 and not self.log.rows:
                self._validate_start()
            shown = show_progress and self.group.main
            with tqdm(
                total=self.options.steps, initial=self.state.step, desc="training rules", disable=not shown
            ) as bar:
                while self.state.step < self.options.steps and self.stopped is None:
                    row = self._step(self.state.step)
                    bar.update()
                    bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
                    if on_step is not None:
                        on_step(row)
        except KeyboardInterrupt:
            if self.between_steps:  # else the last checkpoint stands: half a step would not end alike
                self.save()
            raise
        finally:
            self.seconds = time.perf_counter() - start
            self.log.close()
            for parameter in self.parameters:
                parameter.grad = None

    def _validate_start(self) -> None:
        self.between_steps = False
        first = self._validate(0)
        if first:
            self.log.add({"step": 0.0, **first})
        self.between_steps = True

    def _step(self, step: int) -> dict[str, float]:
        positions = self._positions(step)
        gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        values: dict[str, float] = {}
        for loss, parts in self._losses(self.training, positions, step, create_graph=True):
            found = torch.autograd.grad(loss / len(positions), self.parameters, allow_unused=True)
            del loss
            for total, gradient in zip(gradients, found, strict=True):
                if gradient is not None:
                    total += gradient
            for name, value in parts.items():
                values[name] = values.get(name, 0.0) + value / len(positions)
        gradients, values = self._averaged(gradients, values)
        row = {"step": float(step + 1), "lr": self.options.rate(step), **values}
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if not math.isfinite(values["loss"]) or not bool(norm.isfinite()):
            self._stop_at(step + 1, f"loss or gradient is not finite at step {step + 1} (loss {values['loss']:g})")
            self.log.add(row)
            return row
        row["gradient norm"] = float(norm)
        scale = min(1.0, self.options.clip / max(float(norm), 1e-30))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient * scale
        self.optimizer.param_groups[0]["lr"] = self.options.rate(step)
        self.between_steps = False
        self.optimizer.step()
        self.state.step = step + 1
        if self.state.step % self.options.validate_every == 0 or self.state.step == self.options.steps:
            row |= self._validate(self.state.step)
        self.log.add(row)
        self.between_steps = True
        if self.state.step % self.checkpoint_every == 0 or self.state.step == self.options.steps:
            self.save()
            self.log.flush()
        return row

    def _positions(self, step: int) -> Tensor:
        """Rows of a step: each is used once before any is used again; made anew from the seed, so nothing is stored."""
        count = len(self.training)
        size = min(self.options.batch_size, count)
        wanted = torch.arange(step * size, (step + 1) * size)
        orders = {
            epoch: torch.randperm(count, generator=generator_of(self.options.seed, epoch))
            for epoch in (wanted // count).unique().tolist()
        }
        return torch.stack([orders[place // count][place % count] for place in wanted.tolist()])

    def _losses(
        self, part: _Part, positions: Tensor, step: int, *, create_graph: bool
    ) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Summed loss, and its parts as numbers, of each chunk of this process's share of some rows."""
        mine = torch.arange(len(positions))[self.group.rank :: self.group.world]
        if not len(mine):  # more processes than rows; torch.split gives one empty chunk
            return
        for chunk in mine.split(self.options.internal_batch_size):
            batch = self._batch(part.rows(positions[chunk]), step, chunk.tolist(), create_graph)
            with torch.set_grad_enabled(create_graph):
                values = self.objective.values(batch)
                loss = self.objective.combine(values).sum()
            yield loss, {"loss": loss.item(), **{name: value.sum().item() for name, value in values.items()}}
            del batch, values, loss  # the graph of one chunk must be gone before that of the next is recorded

    def _batch(self, rows: dict[str, Tensor], step: int, places: list[int], create_graph: bool) -> Batch:
        rows = {name: tensor.to(self.device) for name, tensor in rows.items()}
        inputs, targets = rows["inputs"], rows["targets"]
        recorded = self.maps.record(inputs, create_graph=create_graph)

        def explain_randomized() -> Tensor:
            maps = self.random_maps[step % len(self.random_maps)]
            return maps.record(inputs, create_graph=create_graph).explain(targets)

        return Batch(
            inputs=inputs,
            targets=targets,
            maps=recorded.explain(targets),
            outputs=recorded.output,
            quantity=self.trainer.quantity,
            model=self.maps.plain,
            explain=recorded.explain,
            draws=Draws(self.options.seed, step, places),
            regions=regions_of(rows["boxes"], tuple(inputs.shape[1:])) if "boxes" in rows else None,
            drops=rows.get("drops"),
            explain_randomized=explain_randomized if self.random_maps else None,
        )

    def _averaged(self, gradients: list[Tensor], values: dict[str, float]) -> tuple[list[Tensor], dict[str, float]]:
        """Sums over processes; each holds its share of a mean over the whole batch."""
        if self.group.world == 1:
            return gradients, values
        names = ["loss", *self.objective.names]
        flat = torch.cat([gradient.flatten().double() for gradient in gradients])
        numbers = torch.tensor([values.get(name, 0.0) for name in names], dtype=torch.float64, device=flat.device)
        total = self.group.sum(torch.cat([numbers, flat]))
        sizes = [gradient.numel() for gradient in gradients]
        pieces = total[len(names) :].split(sizes)
        summed = [piece.reshape(g.shape).to(g.dtype) for piece, g in zip(pieces, gradients, strict=True)]
        return summed, dict(zip(names, total[: len(names)].tolist(), strict=True))

    def _validate(self, step: int) -> dict[str, float]:
        """Loss on the held-out rows; the state with the lowest is kept, without such rows the last one."""
        if not len(self.held_out):
            self.state.best, self.state.best_step = self._snapshot(), step
            return {}
        count = len(self.held_out)
        values: dict[str, float] = {}
        for _, parts in self._losses(self.held_out, torch.arange(count), _VALIDATION, create_graph=False):
            for name, value in parts.items():
                values[name] = values.get(name, 0.0) + value / count
        _, values = self._averaged([torch.zeros(0, device=self.device)], values)
        loss = values["loss"]
        if not math.isfinite(loss):
            self._stop_at(step + 1, f"the validation loss is not finite at step {step} (loss {loss:g})")
        elif loss < self.state.best_loss:
            self.state.best, self.state.best_step, self.state.best_loss = self._snapshot(), step, loss
            self.state.waited = 0
        else:
            self.state.waited += 1
            self._stop_if_waited()
        return {f"validation {name}": value for name, value in values.items()}

    def _stop_if_waited(self) -> None:
        if self.options.patience is not None and self.state.waited >= self.options.patience:
            self.stopped = f"no better validation since step {self.state.best_step}"

    def _stop_at(self, step: int, reason: str) -> None:
        if not len(self.held_out):  # the last finite state is the best there is
            self.state.best, self.state.best_step = self._snapshot(), self.state.step
        advice = "try a smaller lr, or look for inputs whose map overflows"
        if step == 1:
            raise FitError(f"{reason}; {advice}")
        self.stopped = reason
        warnings.warn(
            f"{reason}; the rules of step {self.state.best_step} are kept. {advice[0].upper()}{advice[1:]}",
            TrainingWarning,
            stacklevel=4,
        )

    def finish(self) -> RuleSet:
        """The best rules, with a summary of how they were made."""
        self.rules.load_state_dict(self.state.best)
        self.rules.training = {
            "objective": self.objective.config(),
            **vars(self.options),
            "targets": self.what.targets,
            "targets_per_image": self.what.targets_per_image,
            "images": self.training.examples.images,
            "training_rows": len(self.training),
            "validation_rows": len(self.held_out),
            "rows_per_class": {str(c): int(n) for c, n in enumerate(self._trained_targets().bincount()) if n},
            "steps_done": self.state.step,
            "best_step": self.state.best_step,
            "validation_loss": self.state.best_loss if math.isfinite(self.state.best_loss) else None,
            "start_validation_loss": self.log.rows[0].get("validation loss"),
            "stopped": self.stopped,
            "processes": self.group.world,
            "measuring_seconds": round(self.measuring_seconds, 1),
            "seconds": round(self.seconds, 1),
            "torch": torch.__version__,
        }
        return self.rules


def starting_rules(model: nn.Module, examples: Tensor, build_options: Mapping[str, Any]) -> RuleSet:
    """The rules that training starts from.

    Args:
        model: what they are for; run once.
        examples: ``(B, C, *spatial)``, training images: the first `SHOWN` in a training.
        build_options: ``RuleTrainer.build_options``, arguments of `RuleSet.build`.

    Raises:
        FitError: gates with nothing to learn that samples share.
        RuleError: unknown names, or a model without sites.
    """
    rules = RuleSet.build(model, examples, **build_options)
    if not rules.parameters() or any(_per_sample(rules.gate(site.name)) for site in rules.sites):
        raise FitError(
            f"nothing to share: the gate {build_options['gate']!r} has parameters for each sample, or none; "
            "choose 'feature', 'quadrant' or 'channel'"
        )
    return rules


def _per_sample(gate: nn.Module) -> bool:
    return bool(getattr(gate, "per_sample", False)) or getattr(gate, "samples", None) is not None


def _objective(objective: Any, mask: Mask | None, default: Term) -> Objective:
    if objective is None:
        if mask is not None:
            raise FitError(
                "mask= goes with an objective that judges the masked input, e.g. objective=Agreement(baseline='noise')"
            )
        return Objective.of(default)
    if isinstance(objective, str):
        objective = get_manager().create("objective", objective)
    if isinstance(objective, (Term, Objective)):
        if mask is not None:
            raise FitError("terms hold masks of their own, e.g. Sufficiency(mask=...); leave mask= out")
        return Objective.of(objective)
    if not hasattr(objective, "apply") or not callable(objective):
        raise FitError(f"objective must be a term, a sum of terms or an objective like Agreement(), got {objective!r}")
    return Objective.of(MaskedInput(objective, MaxMask() if mask is None else mask))


__all__ = ["FitError", "RuleTrainer", "TrainingDefaults", "TrainingWarning", "training_defaults"]

__getattr__ = renamed(__name__, {"usual": "training_defaults", "Usual": "TrainingDefaults"})
