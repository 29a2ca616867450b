"""The work of ``learnprop demo``: a real net's decisions about photographs, explained by ready rules and by hand-made ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.comparison import Treatment, standard_error, treatments_of
from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.localization import class_auc, grid_pointing, pointing_game
from captum_learnprop.files import WriteError, check_folder, write_text
from captum_learnprop.models import class_names_of, load_model, preprocessing_of
from captum_learnprop.plot import compare, save_figure
from captum_learnprop.scenes.whole_photographs import (
    GRID,
    PHOTOGRAPHS,
    make_mosaics,
    read_photographs,
    resized,
)
from captum_learnprop.tables import columns
from zennit_rules import RuleSet

MODEL = "efficientnet_lite:0"
READY = {"gates, trained": "efficientnet_lite0/gates", "LRP, trained": "efficientnet_lite0/lrp"}
HAND_MADE = ("saliency", "guided backprop", "DeepLift", "LRP epsilon plus", "Grad-CAM")
SEEN = 10
"""A question is asked where its class is among this many highest of the net: what it does not see it cannot show."""

SHARE, CLASS_AUC, POINTING = "share in its quarter", "class AUC", "pointing"
TOGETHER = 4
"""Images that are explained together."""

NEXT = """
The same on a net and images of your own; the third gives the maps of the rules that the second trained:
  learnprop evaluate --model torchvision:resnet50 --weights DEFAULT --scenes photos --out report
  learnprop train --model torchvision:resnet50 --weights DEFAULT --images DIR --out rules.safetensors
  learnprop attribute --model torchvision:resnet50 --weights DEFAULT --rules rules.safetensors --images DIR --out maps"""

Explain = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What the command line asked for, and how much of it is scored."""

    out: Path
    seed: int
    threads: int
    mosaics: int = 8
    tuning_mosaics: int = 4


@dataclass(frozen=True)
class MosaicQuestions:
    """Questions about mosaics: what speaks for the class in one quarter?

    Attributes:
        images: ``(M, 3, H, W)`` in [0, 1].
        targets: ``(M,)``, the asked class.
        cells: ``(M,)``, the quarter of its photograph, in reading order.
        mosaics: ``(M,)``, the mosaic of each question.
    """

    images: Tensor
    targets: Tensor
    cells: Tensor
    mosaics: Tensor

    @property
    def masks(self) -> Tensor:
        """The pixels of the right quarter, ``(M, H, W)`` bool."""
        half = torch.arange(self.images.shape[-1]) * GRID // self.images.shape[-1]
        return (GRID * half[:, None] + half[None]) == self.cells[:, None, None]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Scored:
    """A method's maps and scores.

    Attributes:
        name: Its name in table and figure.
        explain: Gives its maps ``(B, H, W)``.
        treatment: How its attributions become maps, in words.
        scores: ``(M,)`` by name.
        seconds: For each map.
    """

    name: str
    explain: Explain
    treatment: str
    scores: dict[str, Tensor]
    seconds: float


def run(plan: Plan) -> None:
    """Does everything the command does.

    Raises:
        LearnpropError: A package is missing, or a file cannot be written.
    """
    start = time.perf_counter()
    photographs = read_photographs()
    candidate = _candidate()
    check_folder(plan.out)
    questions = ask(candidate, photographs, plan.mosaics, plan.seed)
    tuning = ask(candidate, photographs, plan.tuning_mosaics, plan.seed + 1)
    click.echo(
        f"{MODEL} on {plan.mosaics} mosaics of four photographs each: {len(questions)} questions, "
        "which pixels speak for the class of one quarter?"
    )
    results = [*hand_made_results(candidate, questions, tuning), *ready_results(candidate, questions)]
    click.echo("\n" + format_table(results, questions.mosaics) + "\n")
    writers: dict[str, Callable[[Path], Path]] = {
        "figure.png": lambda path: draw(candidate, photographs, questions, results, path),
        "results.json": lambda path: write_json(results, questions, plan, path),
    }
    for name, write in writers.items():
        try:
            click.echo(f"wrote {write(plan.out / name)}")
        except OSError as error:
            raise LearnpropError(
                f"{error if isinstance(error, WriteError) else f'cannot write {plan.out / name}: {error}'}; "
                "make room, or name another --out, and run again"
            ) from error
    click.echo(f"{time.perf_counter() - start:.0f} s in all, nothing was trained")
    click.echo(NEXT)


def _candidate() -> Candidate:
    net = load_model(MODEL)
    return Candidate(MODEL, net, preprocessing_of(MODEL, net), class_names_of(MODEL, net))


def ask(candidate: Candidate, photographs: tuple[Tensor, ...], count: int, seed: int) -> MosaicQuestions:
    """Returns the questions about the classes that the net sees in a number of mosaics."""
    mosaics = make_mosaics(photographs, count, size=candidate.side, seed=seed)
    with torch.no_grad():
        highest = candidate.on_pixels()(mosaics.images).topk(SEEN).indices
    seen = (mosaics.targets[:, :, None] == highest[:, None]).any(2)
    which, cells = seen.nonzero(as_tuple=True)
    if not len(which):
        raise LearnpropError(f"{candidate.name} sees no photograph of these mosaics; choose another --seed")
    return MosaicQuestions(mosaics.images[which], mosaics.targets[which, cells], cells, which)


def hand_made_results(candidate: Candidate, questions: MosaicQuestions, tuning: MosaicQuestions) -> list[Scored]:
    """Returns the hand-made methods, each with the sign and smoothing that suit it best on other mosaics."""
    results = []
    for name in HAND_MADE:
        click.echo(f"explaining: {name}", err=True)
        attribute = hand_made(name).build(candidate.on_pixels(), questions.images[:1])
        attribution = _in_parts(attribute, tuning)
        quality = {
            treat: grid_pointing(treat(attribution), tuning.cells).mean().item()
            for treat in treatments_of(candidate.side)
        }
        results.append(score(name, _treated(attribute, max(quality, key=quality.__getitem__)), questions))
    return results


def ready_results(candidate: Candidate, questions: MosaicQuestions) -> list[Scored]:
    """Returns the rules that the package ships for this net, whose maps need no choice."""
    results = []
    for name, ready in READY.items():
        click.echo(f"explaining: {name}", err=True)
        method = LearnedPropagation(candidate.net, rules=RuleSet.load(ready, candidate.net))

        def explain(images: Tensor, targets: Tensor, method: LearnedPropagation = method) -> Tensor:
            return method.maps(candidate.preprocessing.normalize(images), targets)

        results.append(score(name, explain, questions))
    return results
