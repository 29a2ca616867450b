"""What decides the outcome of a method on a net: the scenes that are drawn, and how rules are learned on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from captum_learnprop.attribution.rules.learned import DEFAULT_STEPS
from captum_learnprop.benchmark.gamma_grid import Grid
from captum_learnprop.benchmark.hand_made import GREY
from captum_learnprop.benchmark.identity import plain
from captum_learnprop.benchmark.rule_families import ATTN_LRP, DEEP_LIFT, GATES, GUIDED, LRP, TRANSFORMER
from captum_learnprop.scenes.scenes import SIZE
from captum_learnprop.training.options import TrainingOptions
from captum_learnprop.training.terms import OcclusionRegression, RandomizationContrast
from captum_learnprop.training.trainer import RuleTrainer, training_defaults

SEARCH_SEED = 0
"""Seed of the gamma grids: each net has one search."""


TRANSFORMER_VARIANTS: dict[str, dict[str, Any]] = {
    "transformer rules": {"composite": TRANSFORMER}, "AttnLRP": {"composite": ATTN_LRP},
}  # fmt: skip
"""Learned variants for transformers alone, as options of `RuleTrainer`."""


def default_variants(composites: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Returns the learned variants of the benchmark by name, as options of `RuleTrainer`.

    Args:
        composites: Names of composites whose variants are wanted; all by default.
    """
    differs = training_defaults(GATES).term + 1.5 * RandomizationContrast(compression="log")
    every: dict[str, dict[str, Any]] = {
        "gates": {},
        "gates + contrast stream": {"gate_options": {"position": True, "contrast": True}},
        "gates + randomization": {"objective": differs},
        "gates + fusion": {"fusion": True},
        "guided backprop, gates": {"composite": GUIDED},
        "DeepLift": {"composite": DEEP_LIFT, "rule_options": {"baseline": GREY}},
        "LRP": {"composite": LRP},
        "LRP, z+ start": {"composite": LRP, "rule_options": {"strength": 0.0}},
    }
    return {name: one for name, one in every.items() if not composites or composite_of(one) in composites}


def photograph_variants(composites: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Returns the learned variants that are compared on a user's own net, by name, as options of `RuleTrainer`.

    Args:
        composites: Names of composites whose variants are wanted; all by default.
    """
    # What measured best on photographs; `learnprop train` spells it --fusion --objective ... --smoothing 0.05.
    fused = {"objective": OcclusionRegression(density=0.0), "smoothing": 0.05, "lr": 0.03, "steps": 30}
    every: dict[str, dict[str, Any]] = {
        "gates": {},
        "DeepLift": {"composite": DEEP_LIFT},
        "LRP, z+ start": {"composite": LRP, "rule_options": {"strength": 0.0}},
        "LRP, z+ start + fusion": {
            "composite": LRP, "rule_options": {"strength": 0.0}, "fusion": True, **fused,
        },
        **TRANSFORMER_VARIANTS,
    }  # fmt: skip
    return {name: one for name, one in every.items() if not composites or composite_of(one) in composites}


def composite_of(options: Mapping[str, Any]) -> str:
    """Returns the name of the composite that a variant's options ask for."""
    return str(options.get("composite", GATES))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the outcome of a method on a net, but for the net and the training seed.

    Attributes:
        variants: Learned variants by name, each the options of a `RuleTrainer`.
        questions: Number of questions asked per family on the split ``"test"``, at least; scenes are not cut.
        tuning_questions: The same on ``"validation"``, where treatments are chosen.
        training_scenes: Number of scenes of ``"train"`` that rules of each net are learned from.
        training_steps: Steps of each variant's training; None is the trainer's own number.
        sample_steps: Steps of the rules learned per sample.
        seed: Seed of the scenes.
    """

    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=default_variants)
    questions: int = 48
    tuning_questions: int = 24
    training_scenes: int = 128
    training_steps: int | None = None
    sample_steps: int = DEFAULT_STEPS
    seed: int = 0

    def trainer(self, variant: str | None, model: nn.Module, seed: int = 0) -> RuleTrainer:
        """Returns the trainer of a variant, one with the trainer's own options for None."""
        return self._trainer(model, seed, {} if variant is None else self.variants[variant])

    def lrp_training(self, model: nn.Module, seed: int = 0) -> RuleTrainer:
        """Returns a trainer with the examples, the smoothing and the budget that LRP rules are trained with."""
        own = [one for one in self.variants.values() if composite_of(one) == LRP]
        first = (own or list(default_variants((LRP,)).values()))[0]
        options = {name: value for name, value in first.items() if name in TrainingOptions.__dataclass_fields__}
        return self._trainer(model, seed, options)

    def _trainer(self, model: nn.Module, seed: int, options: Mapping[str, Any]) -> RuleTrainer:
        steps = {} if self.training_steps is None else {"steps": self.training_steps}
        return RuleTrainer(model, seed=seed, **{**options, **steps})

    def training_options(self, variant: str | None) -> dict[str, Any]:
        """Returns all options of a variant's training but for the seed, in plain types; the trainer's own for None."""
        trainer = self.trainer(variant, nn.Identity())  # options do not depend on the net
        options = {**vars(trainer.options), **trainer.build_options, "objective": trainer.objective.config()}
        del options["seed"]
        return plain(options)

    def search_options(self, grid: Grid) -> dict[str, Any]:
        """Returns what decides the outcome of a search on a net, but for the scenes."""
        training = self.lrp_training(nn.Identity()).options
        names = ("quantity", "smoothing", "deletions", "steps", "batch_size", "validate_every")
        return {**vars(grid), "seed": SEARCH_SEED, "term": training_defaults(LRP).term.config(),
                **{name: getattr(training, name) for name in names}}  # fmt: skip

    def smoothing(self, side: int = SIZE) -> float:
        """Returns the smoothing of the first learned variant; the trainer's default where there is no variant.

        Args:
            side: Height and width of the images in pixels, the unit of the result.
        """
        options = self.training_options(next(iter(self.variants), None))
        return round(options["smoothing"] * side, 6)
