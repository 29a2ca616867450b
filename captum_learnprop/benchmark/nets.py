"""A trained net with what all methods share on it: re-initialised copies, learned rules and searches, kept on disk."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captum_learnprop.benchmark.gamma_grid import Grid, Search, search
from captum_learnprop.benchmark.hand_made import HandMade, hand_made_for
from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS
from captum_learnprop.benchmark.identity import file_stem, plain, require_same
from captum_learnprop.benchmark.settings import SEARCH_SEED, Settings
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.randomization import randomized
from captum_learnprop.files import write_text
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.scenes import QUESTIONS_PER_SCENE, SIZE, Questions, make_scenes
from captum_learnprop.training.trainer import HELD_OUT, SHOWN, RuleTrainer, held_out_images
from zennit_rules import RuleSet
from zennit_rules.core import fingerprint

BATCH = 32
"""Number of images that are explained together, and that batch norms of re-initialised nets are measured on."""

TRAINING_FAMILY = {"digits": "pairs", "patch": "patch", "parts": "parts"}
"""Scene family that the rules of a task's net are learned from, by task."""

RANDOM_NETS = 2
"""Number of re-initialised nets that the score `RANDOMISATION` is the mean of."""


class Subject(ABC):
    """A trained net with everything that methods share on it.

    Rules are trained once per variant and seed, and searches made once per grid; both are saved in the benchmark's
    folder, where they are found again.

    Attributes:
        settings: What decides the outcome of methods.
        name: Name of the net, as in tables.
        stem: Beginning of the names of its files.
        net: The module that rules are learned for; it takes what `inputs` returns.
        model: The same net for images in [0, 1].
        output: The quantity on removal curves, ``"sigmoid"`` or ``"softmax"``.
        weights: Fingerprint of the net's weights.
        side: Height and width of its images in pixels.
        targets_per_image: Number of classes of a training image that are explained: as many as there are objects.
        keeps_maps: Whether the maps of the first questions are kept for the report.
        out: Folder of the benchmark.
        progress: Called with a line of text when something takes long.
    """

    net: nn.Module
    model: nn.Module
    name: str
    stem: str
    output: str
    weights: str
    side: int
    targets_per_image: int
    keeps_maps = False

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.progress: Callable[[str], None] = lambda text: None
        self._rules: dict[tuple[str, int], RuleSet] = {}
        self._searches: dict[str, Search] = {}

    @abstractmethod
    def draw_training_images(self) -> Tensor:
        """Returns images ``(N, 3, H, W)`` in [0, 1] that rules are learned from."""

    @abstractmethod
    def questions(self, family: str, split: str) -> Questions:
        """Returns what is asked on a split of a family."""

    @abstractmethod
    def kind(self, family: str) -> str:
        """Returns the family of `scenes.scenes.FAMILIES` that scenes are like: it decides what can be scored."""

    @abstractmethod
    def find_judges(self) -> list[nn.Module]:
        """Returns other nets for the same classes, which take images in [0, 1]."""

    def judge_names(self) -> list[str] | None:
        """Returns what tells the judges apart; None where they are always the same."""
        return None

    def on_pixels(self, net: nn.Module) -> nn.Module:
        """Returns a module like `net` as one that takes images in [0, 1]."""
        return net

    def inputs(self, images: Tensor) -> Tensor:
        """Returns what `net` takes for images ``(B, 3, H, W)`` in [0, 1]."""
        return images

    def scene_settings(self, family: str) -> dict[str, Any]:
        """Returns what else decides scores on a family, in plain types."""
        return {}

    def class_name(self, number: int) -> str:
        """Returns the name of a class."""
        return str(number)

    @cached_property
    def training_images(self) -> Tensor:
        """Images ``(N, 3, H, W)`` that rules are learned from; batch norms of re-initialised nets see the first."""
        return self.draw_training_images()

    @cached_property
    def example(self) -> Tensor:
        """An image ``(1, 3, H, W)`` in [0, 1], of the size that is explained."""
        return self.training_images[:1]

    @cached_property
    def hand_made(self) -> dict[str, HandMade]:
        """The hand-made methods that make sense on the net, by name."""
        return hand_made_for(self.model, self.example)

    @cached_property
    def is_transformer(self) -> bool:
        """Whether methods that explain by tokens make sense on the net."""
        return bool(self.hand_made.keys() & TOKEN_METHODS.keys())

    @cached_property
    def judges(self) -> list[nn.Module]:
        """Other nets for the same classes, trained on their own."""
        return self.find_judges()

    @cached_property
    def random_nets(self) -> list[nn.Module]:
        """Modules like `net` with all weights drawn anew."""
        inputs = self.inputs(self.training_images[:BATCH])
        return [randomized(self.net, seed=seed, recalibrate=inputs).eval() for seed in range(RANDOM_NETS)]

    # -- rules ----------------------------------------------------------------------------------------------------

    def untrained(self, variant: str) -> RuleSet:
        """Returns the rules that a variant starts from."""
        trainer = self.settings.trainer(variant, self.net)
        return RuleSet.build(self.net, self.inputs(self.training_images[:SHOWN]), **trainer.build_options)

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
        name = f"{self.stem}_{file_stem(variant)}_scenes{self.settings.seed}_seed{seed}.safetensors"
        return self.out / "rules" / name

    def _load(self, variant: str, seed: int, path: Path) -> RuleSet:
        rules = RuleSet.load(path, self.net)
        options = self.settings.training_options(variant)
        steps = self._steps(self.settings.trainer(variant, self.net))
        wanted = {**options, "images": len(self.training_images), "seed": seed, "steps": steps}
        # What was asked for: the smoothing of finished maps may have been chosen.
        asked = {**rules.training, "smoothing": rules.training.get("smoothing_in_training", options["smoothing"])}
        require_same(asked, {name: wanted[name] for name in asked if name in wanted}, path)
        require_same(_form(rules), _form(self.untrained(variant)), path)
        return rules

    def _train(self, variant: str, seed: int, path: Path) -> RuleSet:
        self.progress(f"learning {variant}, seed {seed}")
        trainer = self.settings.trainer(variant, self.net, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = self._steps(trainer)
        rules = trainer.fit(
            self.inputs(self.training_images),
            checkpoint=path.with_suffix(".checkpoint"),
            on_step=lambda row: self.progress(f"learning {variant}, seed {seed}, step {row['step']:.0f} of {steps}"),
            **self.examples(seed),
        )
        rules.save(path, self.net)
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
        return rules

    def _steps(self, trainer: RuleTrainer) -> int:
        """Returns the steps that a trainer makes on the training images."""
        images = len(self.training_images)
        return trainer.options.steps_for((images - held_out_images(images, HELD_OUT)) * self.targets_per_image)

    def examples(self, seed: int) -> dict[str, Any]:
        """Returns what is explained in training and where it is kept, as options of `RuleTrainer.fit`.

        Deletions depend on the net and the seed, not on the variant: they are measured once.
        """
        name = f"{self.stem}_scenes{self.settings.seed}_seed{seed}"
        return {"targets_per_image": self.targets_per_image, "examples_dir": self.out / "examples" / name}

    # -- searches -------------------------------------------------------------------------------------------------

    def searched(self, grid: Grid) -> Search:
        """Returns the search of a grid: from memory, from its file, or made now, going on where it was interrupted.

        Raises:
            SettingsError: The file has a search of other settings.
            LearnpropError: The file is damaged.
        """
        if grid.name not in self._searches:
            name = f"{self.stem}_{file_stem(grid.name)}_scenes{self.settings.seed}.json"
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


class ReferenceSubject(Subject):
    """One of the reference nets, on the scenes that its task is about.

    Args:
        settings: What decides the outcome of methods.
        architecture: Name in `reference_nets.ARCHITECTURES`.
        task: Task of the net, a key of `TRAINING_FAMILY`.
        out: Folder of the benchmark.
    """

    side = SIZE

    def __init__(self, settings: Settings, architecture: str, task: str, out: Path) -> None:
        super().__init__(settings, out)
        self.name, self.task, self.stem = architecture, task, f"{architecture}_{task}"
        self.net = self.model = reference_nets.load(architecture, task)
        self.output = reference_nets.OUTPUT_OF_TASK[task]
        self.weights = fingerprint.weights(self.net)
        self.targets_per_image = QUESTIONS_PER_SCENE[TRAINING_FAMILY[task]]

    def draw_training_images(self) -> Tensor:
        """Returns scenes of the task's own family."""
        family = TRAINING_FAMILY[self.task]
        return make_scenes(family, self.settings.training_scenes, split="train", seed=self.settings.seed).images

    def questions(self, family: str, split: str) -> Questions:
        """Returns what is asked on a split of a family."""
        number = self.settings.questions if split == "test" else self.settings.tuning_questions
        scenes = math.ceil(number / QUESTIONS_PER_SCENE[family])
        seed = self.settings.seed
        return make_scenes(family, scenes, split=split, seed=seed, counterfactuals=family == "parts").questions()

    def kind(self, family: str) -> str:
        """Returns the family itself."""
        return family

    def find_judges(self) -> list[nn.Module]:
        """Returns the nets of the other architectures, trained on their own for the same task."""
        others = [name for name in reference_nets.ARCHITECTURES if name != self.name]
        return [reference_nets.load(name, self.task) for name in others]


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
