"""What one visitor looks at: a model, a picture, a class, methods; and the explanations of these, made once."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from captum_learnprop.errors import LearnpropError, TargetError
from captum_learnprop.explanation import Explanation, Explanations, Guess, explain
from captum_learnprop.explanation.asking import Said, said_of
from captum_learnprop.explanation.framing import Frame, framed
from captum_learnprop.maps import SIGNS
from captum_learnprop.web.choices import MOST_METHODS, method_choices
from captum_learnprop.web.job import Job
from captum_learnprop.web.offered import OfferedModel
from zennit_rules import RuleSet

_KEPT_PIXELS = 60_000_000
"""Values of maps that are kept for one visitor, a quarter of a gigabyte; the oldest go first."""

_RULES = ".safetensors"

T = TypeVar("T")


@dataclass(frozen=True)
class Shot:
    """A picture that is looked at.

    Attributes:
        name: What it is called: the name of its file, or that of an example.
        image: Upright, 8-bit RGB.
        example: Whether it is an example.
    """

    name: str
    image: Image.Image
    example: bool = False


@dataclass
class Visit:
    """What one visitor looks at.

    Attributes:
        model: The chosen model.
        folder: Where the visitor's files go.
        shot: The picture; None before there is one.
        target: Number of the explained class; None for the highest.
        methods: Names of methods, in the order in which they are shown; none for what `explain` takes by itself.
        sign: How signs are shown, one of `captum_learnprop.maps.SIGNS`; None for what suits each method.
        trained: Rules that were trained on the page, by name, each with the model that they are for.
        jobs: What goes on in the background, or went on last, by what it is: ``"training"`` and ``"analysis"``.
        turn: Counts what was asked for, so that an answer that is no longer wanted can end.
    """

    model: OfferedModel
    folder: Path
    shot: Shot | None = None
    target: int | None = None
    methods: tuple[str, ...] = ()
    sign: str | None = None
    trained: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Job[Any]] = field(default_factory=dict)
    turn: int = 0
    _kept: OrderedDict[tuple[Any, ...], Explanation] = field(default_factory=OrderedDict, repr=False)

    @property
    def seen(self) -> Shot:
        """The picture.

        Raises:
            LearnpropError: There is none yet.
        """
        if self.shot is None:
            raise LearnpropError("there is no picture yet: choose an example, or drop one of yours")
        return self.shot

    @property
    def input(self) -> Tensor:
        """The picture as the model's input, ``(1, C, h, w)``."""
        known = self.model.known
        return framed(self.seen.image, known.prepare).input.to(known.device, known.dtype)

    @property
    def frame(self) -> Frame:
        """The part of the picture that the model sees."""
        return framed(self.seen.image, self.model.known.prepare).frame

    def choose_model(self, model: OfferedModel) -> None:
        """Takes another model; the picture stays."""
        self.model, self.target, self.methods = model, None, ()

    def look_at(self, shot: Shot) -> None:
        """Takes another picture, of which the highest class is explained."""
        self.shot, self.target = shot, None
        self._kept.clear()

    def choose_class(self, target: Any) -> None:
        """Takes another class.

        Raises:
            TargetError: It is no class of the model.
        """
        if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < self.model.classes:
            raise TargetError(f"there is no class {target!r}: they are 0 to {self.model.classes - 1}")
        self.target = target

    def choose_methods(self, names: Sequence[str]) -> None:
        """Takes other methods.

        Raises:
            LearnpropError: There is no such method for the model, or there are too many at once.
        """
        known = set(method_choices(self.model).all) | set(self.own_rules())
        names = list(dict.fromkeys(names))
        wrong = [name for name in names if name not in known]
        if wrong:
            raise LearnpropError(f"there is no method {wrong[0]!r} for {self.model.choice.spec}")
        if len(names) > MOST_METHODS:
            raise LearnpropError(f"{len(names)} methods are too many to look at side by side: take {MOST_METHODS}")
        self.methods = tuple(names)

    def adopt(self, found: Explanation) -> None:
        """Chooses the method by which an explanation was made while none was chosen."""
        self.choose_methods(self.model.choice.rules[:1] or [found.method])

    def choose_sign(self, sign: str | None) -> None:
        """Shows maps with other signs; None for what suits each method.

        Raises:
            LearnpropError: There is no such sign.
        """
        if sign is not None and sign not in SIGNS:
            raise LearnpropError(f"there is no sign {sign!r}: choose one of {', '.join(SIGNS)}")
        self.sign = sign

    def own_rules(self) -> list[str]:
        """Returns the names of the rules that were trained here for the model."""
        return [name for name, spec in self.trained.items() if spec == self.model.choice.spec]

    def begin(self, what: str, start: Callable[[], Job[T]]) -> Job[T]:
        """Begins a job in the background.

        Args:
            what: ``"training"`` or ``"analysis"``.
            start: Starts it.

        Raises:
            LearnpropError: One of that kind goes on.
        """
        if what in self.jobs and self.jobs[what].running:
            raise LearnpropError(f"one {what} goes on already: wait for it, or cancel it")
        job = start()
        self.jobs[what] = job
        return job

    def said(self) -> Said:
        """Returns what the model says of the picture."""
        with self.model.busy:
            return said_of(self.model.known, self.input)

    def prediction(self) -> tuple[Guess, ...]:
        """Returns the five highest classes."""
        return self.said().guesses

    def explanations(self) -> Iterator[Explanation]:
        """Yields the explanations of the chosen class by each method, as `captum_learnprop.explain` makes them.

        Without a method these are the rules that the command line gave, or what `explain` takes by itself. It ends
        where something else is asked for meanwhile.

        Raises:
            LearnpropError: There is no picture, or a method cannot explain the model.
        """
        self.turn += 1
        turn = self.turn
        for name in self.methods or self.model.choice.rules[:1] or (None,):
            found = self._explanation(name)
            if self.turn != turn:
                return
            yield found

    def _explanation(self, method: str | None) -> Explanation:
        key = (self.model.choice.spec, self.target, method, self.sign)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        with self.model.busy:
            found: Explanation = explain(
                self.model.known.net,
                self.seen.image,
                self.target,
                self.file_of(method) if method in self.trained else method,
                sign=self.sign,
                **self.model.explained_by,
            )
        first = next(iter(self._kept.values()), None)
        shared = found.image if first is None else first.image  # a figure tells pictures apart by the tensor
        found = replace(found, title=self.seen.name, image=shared)
        self._kept[key] = found
        while len(self._kept) > 1 and sum(one.map.numel() for one in self._kept.values()) > _KEPT_PIXELS:
            self._kept.popitem(last=False)
        return found

    def file_of(self, name: str | None) -> Path:
        """Returns the file of rules that were trained here."""
        return self.folder / f"{name}{_RULES}"

    def keep_rules(self, rules: RuleSet, model: OfferedModel) -> str:
        """Keeps rules that were trained for a model as a method, and returns its name."""
        kind = re.sub(r"[^a-z0-9]+", "_", rules.composite_name.removeprefix("learned_"))
        name = f"trained_{kind}_{len(self.trained) + 1}"
        rules.save(self.file_of(name), model.known.net)
        self.trained[name] = model.choice.spec
        return name

    def save(self, found: Sequence[Explanation]) -> list[Path]:
        """Writes the figure of explanations as PNG, the numbers of each as safetensors; returns the files."""
        paths = [Explanations(tuple(found)).save(self.folder / "explanation.png")]
        for one in found:
            name = re.sub(r"[^A-Za-z0-9]+", "_", one.method).strip("_")
            paths.append(one.save(self.folder / f"explanation_{name}.safetensors"))
        return paths + [self.file_of(one.method) for one in found if one.method in self.trained]
