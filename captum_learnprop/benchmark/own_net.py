"""A user's net on scenes of photographs: what the benchmark asks it, and what rules learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.comparison import smoothings_of
from captum_learnprop.benchmark.identity import file_stem, plain, short_digest
from captum_learnprop.benchmark.nets import Subject
from captum_learnprop.benchmark.settings import Settings
from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.scenes import Questions, Scenes
from captum_learnprop.scenes.seen import asked_of, is_seen, require_seen
from captum_learnprop.scenes.source import SceneSource

SEEN_AMONG = 10
"""A scene is asked about where all its classes are among this many highest ones: what a net does not see, no map can
find."""

MOST_DRAWS = 16
"""How many times the wanted number of scenes is drawn at most, to find that many which the net sees."""


def scene_settings_of(candidate: Candidate, source: SceneSource, seen_among: int) -> dict[str, Any]:
    """Returns what decides scores beside the methods' own settings and the net's weights, in plain types.

    Args:
        candidate: The net.
        source: The scenes.
        seen_among: How many highest classes count as seen.
    """
    shown = {name: getattr(candidate.preprocessing, name) for name in ("crop", "mean", "std")}
    output = {} if candidate.output == "softmax" else {"output": candidate.output}
    return plain({
        "scenes": source.identity(), "input": shown, "seen among": seen_among, "net": candidate.identity,
        "smoothings": smoothings_of(candidate.side), **output,
    })  # fmt: skip


class OwnNet(Subject):
    """A net of the user's on one source of scenes.

    Args:
        settings: What decides the outcome of methods.
        candidate: The net.
        source: The scenes.
        out: Folder of the benchmark.
        others: Nets for the same classes, which judge insertion.
        seen_among: Scenes are asked about whose classes are among this many highest ones; 0 for all scenes.

    Raises:
        LearnpropError: A class of the scenes is none of the net's, it sees no scene, or it is no classifier of such
            images; or a file of the scenes cannot be used.
    """

    keeps_maps = True

    def __init__(
        self,
        settings: Settings,
        candidate: Candidate,
        source: SceneSource,
        out: Path,
        *,
        others: Sequence[Candidate] = (),
        seen_among: int = SEEN_AMONG,
    ) -> None:
        super().__init__(settings, out)
        self.candidate, self.source, self.others = candidate, source, others
        self.seen_among = seen_among
        self._scene_settings = scene_settings_of(candidate, source, seen_among)
        self.name, self.side = candidate.name, candidate.side
        self.net, self.model = candidate.net, candidate.on_pixels()
        self.weights, self.output = candidate.weights, candidate.output
        highest = source.class_range()
        if highest is not None and highest > candidate.classes:
            raise LearnpropError(
                f"the scenes ask for class {highest - 1}, and {candidate.name} has {candidate.classes} classes, 0 to "
                f"{candidate.classes - 1}: give labels that are its classes"
            )
        self.targets_per_image = min(source.questions_per_scene, candidate.classes)
        # Rules of other scenes, or of the same ones normalised in another way, have files of their own.
        learned_from = [self.scene_settings(source.name)[name] for name in ("scenes", "input", "net")]
        place = f"{file_stem(candidate.name)}_{file_stem(source.name)}"
        self.stem = f"{place}_{short_digest([*learned_from, self.targets_per_image])}"
        # What is wrong with the scenes shows now, and not after hours of work.
        source.check(self.side)
        self._questions = {split: self._asked(split) for split in ("validation", "test")}

    def on_pixels(self, net: nn.Module) -> nn.Module:
        """Returns a module like `net` with the candidate's normalisation before it."""
        return self.candidate.on_pixels(net)

    def inputs(self, images: Tensor) -> Tensor:
        """Returns images normalised for the net."""
        return self.candidate.inputs(images)

    def class_name(self, number: int) -> str:
        """Returns the name of a class, where it is known."""
        return self.candidate.class_name(number)

    def kind(self, family: str) -> str:
        """Returns the kind of the source's scenes."""
        return self.source.kind

    def scene_settings(self, family: str) -> dict[str, Any]:
        """Returns what decides the scenes, and how they become the net's input."""
        return self._scene_settings

    def draw_training_images(self) -> Tensor:
        """Returns scenes of the training split, whatever the net sees in them."""
        return self._drawn(self.settings.training_scenes, "train").images

    def questions(self, family: str, split: str) -> Questions:
        """Returns what is asked about scenes of a split whose classes the net sees."""
        return self._questions[split]

    def _asked(self, split: str) -> Questions:
        number = self.settings.questions if split == "test" else self.settings.tuning_questions
        return self._seen(math.ceil(number / self.source.questions_per_scene), split).questions()

    def find_judges(self) -> list[nn.Module]:
        """Returns the other candidates for as many classes; they see the images at their own size."""
        return [other.on_pixels(resize=True) for other in self._judging()]

    def judge_names(self) -> list[str]:
        """Returns the weights of the other candidates."""
        return [other.weights for other in self._judging()]

    def _judging(self) -> list[Candidate]:
        return [other for other in self.others if other.classes == self.candidate.classes and other != self.candidate]

    def _drawn(self, count: int, split: str) -> Scenes:
        scenes = self.source.draw(count, split=split, seed=self.settings.seed, size=self.side)
        return asked_of(self.model, scenes) if self.source.class_range() is None else scenes

    def _seen(self, count: int, split: str) -> Scenes:
        """Returns the first scenes of a split that the net sees."""
        if not self.seen_among or self.source.class_range() is None:
            return self._drawn(count, split)
        wanted, drawn, seen = count, self._drawn(count, split), torch.zeros(0, dtype=torch.bool)
        while True:
            seen = torch.cat([seen, is_seen(self.model, drawn[len(seen) :], self.seen_among)])
            if seen.sum() >= count or wanted == MOST_DRAWS * count:
                break
            wanted = min(2 * wanted, MOST_DRAWS * count)
            longer = self._drawn(wanted, split)
            if len(longer) == len(drawn):  # a segmentation has only so many
                break
            drawn = longer
        try:
            require_seen(seen, self.seen_among)
        except LearnpropError as error:
            raise LearnpropError(
                f"{self.name}, split {split!r}: {error}; --seen-among 0 asks about all scenes"
            ) from error
        return drawn[seen.nonzero().flatten()[:count]]
