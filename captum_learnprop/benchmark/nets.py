"""A trained net with what all methods share on it: re-initialised copies, learned rules and searches, kept on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captum_learnprop.benchmark.gamma_grid import Grid, Search, search
from captum_learnprop.benchmark.identity import file_stem, plain, require_same
from captum_learnprop.benchmark.settings import SEARCH_SEED, Settings
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.randomization import randomized
from captum_learnprop.files import write_text
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.scenes import QUESTIONS_PER_SCENE, Questions, make_scenes
from captum_learnprop.training.trainer import HELD_OUT, SHOWN, held_out_images
from zennit_rules import RuleSet
from zennit_rules.core import fingerprint

BATCH = 32
"""Number of images that are explained together, and that batch norms of re-initialised nets are measured on."""

TRAINING_FAMILY = {"digits": "pairs", "patch": "patch", "parts": "parts"}
"""Scene family that the rules of a task's net are learned from, by task."""

RANDOM_NETS = 2
"""Number of re-initialised nets that the score `RANDOMISATION` is the mean of."""


class Subject:
    """A trained net with everything that methods share on it.

    Rules are trained once per variant and seed, and searches made once per grid; both are saved in the benchmark's
    folder, where they are found again.

    Args:
        settings: What decides the outcome of methods.
        architecture: Name in `reference_nets.ARCHITECTURES`.
        task: Task of the net, a key of `TRAINING_FAMILY`.
        out: Folder of the benchmark.
    """

    def __init__(self, settings: Settings, architecture: str, task: str, out: Path) -> None:
        self.settings, self.architecture, self.task, self.out = settings, architecture, task, out
        self.model = reference_nets.load(architecture, task)
        self.output = reference_nets.OUTPUT_OF_TASK[task]
        self.weights = fingerprint.weights(self.model)
        self.progress: Callable[[str], None] = lambda text: None
        self._rules: dict[tuple[str, int], RuleSet] = {}
        self._searches: dict[str, Search] = {}

    @cached_property
    def training_images(self) -> Tensor:
        """Images ``(N, 3, H, W)`` that rules are learned from; batch norms of re-initialised nets see the first."""
        family = TRAINING_FAMILY[self.task]
        return make_scenes(family, self.settings.training_scenes, split="train", seed=self.settings.seed).images

    @cached_property
    def judges(self) -> list[nn.Module]:
        """The nets of the other architectures, trained on their own for the same task."""
        others = [name for name in reference_nets.ARCHITECTURES if name != self.architecture]
        return [reference_nets.load(name, self.task) for name in others]

    @cached_property
    def random_nets(self) -> list[nn.Module]:
        """The net with all weights drawn anew."""
        images = self.training_images[:BATCH]
        return [randomized(self.model, seed=seed, recalibrate=images).eval() for seed in range(RANDOM_NETS)]

    def questions(self, family: str, split: str) -> Questions:
        """Returns what is asked on a split of a family."""
        number = self.settings.questions if split == "test" else self.settings.tuning_questions
        scenes = math.ceil(number / QUESTIONS_PER_SCENE[family])
        seed = self.settings.seed
        return make_scenes(family, scenes, split=split, seed=seed, counterfactuals=family == "parts").questions()

    # -- rules ----------------------------------------------------------------------------------------------------

    def untrained(self, variant: str) -> RuleSet:
        """Returns the rules that a variant starts from."""
        trainer = self.settings.trainer(variant, self.model)
        return RuleSet.build(self.model, self.training_images[:SHOWN], **trainer.build_options)

    def trained(self, variant: str, seed: int) -> RuleSet:
        """Returns the rules of a variant: from memory, from their file, or learned now.

        Raises:
            SettingsError: The file has rules of other settings.
        """
        key = (variant, seed)
        if key not in self._rules:
            path = self.rules_path(variant, seed)
            known = path.is_file()
            self._rules[key] = self._load(variant, seed, path) if known else self._train(variant, seed, path)
        return self._rules[key]

    def rules_path(self, variant: str, seed: int) -> Path:
        """Returns the file that the rules of a variant are kept in."""
        name = f"{self.architecture}_{self.task}_{file_stem(variant)}_scenes{self.settings.seed}_seed{seed}.safetensors"
        return self.out / "rules" / name

    def _load(self, variant: str, seed: int, path: Path) -> RuleSet:
        rules = RuleSet.load(path, self.model)
        options = self.settings.training_options(variant)
        wanted = {**options, "images": self.settings.training_scenes, "seed": seed}
        require_same(rules.training, {name: wanted[name] for name in rules.training if name in wanted}, path)
        require_same(_form(rules), _form(self.untrained(variant)), path)
        return rules

    def _train(self, variant: str, seed: int, path: Path) -> RuleSet:
        self.progress(f"learning {variant}, seed {seed}")
        trainer = self.settings.trainer(variant, self.model, seed)
        rules = trainer.fit(self.training_images, **self.examples(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        rules.save(path, self.model)
        return rules

    def examples(self, seed: int) -> dict[str, Any]:
        """Returns what is explained in training and where it is kept, as options of `RuleTrainer.fit`.

        Deletions depend on the net and the seed, not on the variant: they are measured once.
        """
        name = f"{self.architecture}_{self.task}_scenes{self.settings.seed}_seed{seed}"
        return {"targets_per_image": self.targets_per_image, "examples_dir": self.out / "examples" / name}

    @property
    def targets_per_image(self) -> int:
        """Number of classes of a training image that are explained: as many as there are objects."""
        return QUESTIONS_PER_SCENE[TRAINING_FAMILY[self.task]]

    # -- searches -------------------------------------------------------------------------------------------------

    def searched(self, grid: Grid) -> Search:
        """Returns the search of a grid: from memory, from its file, or made now, going on where it was interrupted.

        Raises:
            SettingsError: The file has a search of other settings.
            LearnpropError: The file is damaged.
        """
        if grid.name not in self._searches:
            name = f"{self.architecture}_{self.task}_{file_stem(grid.name)}_scenes{self.settings.seed}.json"
            self._searches[grid.name] = self._search(grid, self.out / "rules" / name)
        return self._searches[grid.name]

    def _search(self, grid: Grid, path: Path) -> Search:
        """Searches with as many attribution passes as training LRP rules takes, on the same images and deletions."""
        trainer = self.settings.lrp_training(self.model, SEARCH_SEED)
        images, each = len(self.training_images), self.targets_per_image
        held_out = held_out_images(images, HELD_OUT)
        budget = trainer.options.passes((images - held_out) * each, held_out * each)
        options = {**self.settings.search_options(grid), "images": images, "budget": budget, "weights": self.weights}
        known = _kept_search(path, plain(options))
        if known is not None and known.finished:
            return known
        self.progress(f"measuring for {grid.name}")
        path.parent.mkdir(parents=True, exist_ok=True)

        def keep(found: Search) -> None:
            write_text(path, json.dumps({"options": options, **found.config()}, default=repr))
            self.progress(f"{len(found.trace)} of {found.settings} settings")

        return search(
            self.model, grid, trainer.measure(self.training_images, **self.examples(SEARCH_SEED)), budget=budget,
            smoothing=trainer.options.smoothing, seed=SEARCH_SEED, known=known, on_scored=keep,
        )  # fmt: skip


def _kept_search(path: Path, options: Mapping[str, Any]) -> Search | None:
    """Returns the search in a file, finished or not; None where there is none."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = Search.of(kept)
        before = kept["options"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise LearnpropError(f"{path} is damaged ({error!r}); delete it to search again") from error
    require_same(before, options, path)
    return found


def _form(rules: RuleSet) -> dict[str, Any]:
    """Returns what rules are made of, but for their parameters."""
    # Only fused rules name their fusion in a file.
    return plain({"fusion": False, **rules.config, "composite": rules.composite_name})
