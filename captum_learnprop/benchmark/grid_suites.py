"""What is compared for a net of the grid: trained rules with their starts, and hand-made methods that are as quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.grid_data import GridData, trained_net
from captum_learnprop.benchmark.hand_made import HAND_MADE
from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS
from captum_learnprop.benchmark.series_candidate import SeriesCandidate
from captum_learnprop.benchmark.settings import TRANSFORMER_VARIANTS, default_variants, photograph_variants
from captum_learnprop.benchmark.suite import Suite
from captum_learnprop.images import Preprocessing
from captum_learnprop.scenes.grid_nets import IMAGES_ONLY
from captum_learnprop.scenes.source import SceneSource

QUICK_PASSES = 6
"""Passes of a rival at most: two backward passes, of which one may be DeepLIFT's, with the forward passes they need."""

FAMILIES = ("gradient", "cam", "lrp", "product")
"""Families of hand-made methods that rivals are of; controls look at no net, perturbations take many passes."""

PATCHES = 64
"""Patches of the grid's transformers, which passes of methods over tokens are counted for."""

VARIANTS = ("gates", "DeepLift", "LRP, z+ start")
"""Learned variants of every net; transformers have their own beside them."""

SCORES = ("average precision", "class AUC", "distractor AUC", "deletion, blur", "deletion, mean")
"""What is measured, where the scenes have what it needs."""

TRAINING_SCENES, TRAINING_PHOTOGRAPHS = 128, 72
"""Scenes that rules learn from."""


def rivals() -> tuple[str, ...]:
    """Returns the names of the hand-made methods of at most `QUICK_PASSES`; those over tokens are for transformers."""
    plain = [one.name for one in HAND_MADE.values() if one.family in FAMILIES and one.passes <= QUICK_PASSES]
    return (*plain, *(name for name, one in TOKEN_METHODS.items() if one.passes(PATCHES) <= QUICK_PASSES))


def candidate_of(architecture: str, data: GridData, folder: Path) -> Candidate:
    """Returns a trained net of the grid, which normalises by itself.

    Args:
        architecture: A name in ``data.architectures``.
        data: The data set.
        folder: Folder of trained nets.

    Raises:
        FileNotFoundError: It is not trained.
        LearnpropError: Its file is damaged or holds another net.
    """
    net = trained_net(architecture, data, folder)
    preprocessing = Preprocessing(data.form.size, data.form.size).without_normalization()
    if data.form.dims == 1:
        return SeriesCandidate(architecture, net, preprocessing, output=data.output, channels=data.form.channels)
    return Candidate(architecture, net, preprocessing, output=data.output)


def suite_of(candidate: Candidate, source: SceneSource, *, methods: tuple[str, ...] = (), **options: Any) -> Suite:
    """Returns the suite of one net of the grid on one data set.

    Args:
        candidate: The net.
        source: Its scenes; those of photographs have variants and training scenes of their own.
        methods: Names of methods; by default `rivals`, and each learned variant with its start.
        options: Further fields of the suite.
    """
    # Nets of the grid normalise by themselves; those of photographs get normalised images.
    photographs = candidate.preprocessing != candidate.preprocessing.without_normalization()
    every = photograph_variants() if photographs else default_variants()
    variants = {name: every[name] for name in VARIANTS}
    if candidate.name in IMAGES_ONLY:
        variants |= TRANSFORMER_VARIANTS
    learned = [f"{name}, {state}" for name in variants for state in ("untrained", "learned")]
    scenes = TRAINING_PHOTOGRAPHS if photographs else TRAINING_SCENES
    return Suite.of_candidates(
        [candidate], [source], variants=variants, methods=methods or (*rivals(), *learned),
        **{"metrics": SCORES, "training_scenes": scenes, **options},
    )  # fmt: skip
