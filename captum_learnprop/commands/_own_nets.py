"""The nets and the scenes of photographs that ``learnprop evaluate`` was asked for."""

from __future__ import annotations

from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.commands._evaluate_request import Plan
from captum_learnprop.commands._inputs import classifier_of, load, model_digest, preprocessing_of
from captum_learnprop.commands._request import ModelRequest
from captum_learnprop.commands._suite_choices import DATA_SETS, MODELS, OWN_SCENES, SCENES
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.models.own_file import is_module
from captum_learnprop.plugins import get_manager
from captum_learnprop.scenes.cutouts import CutoutSource
from captum_learnprop.scenes.faces import FaceSource
from captum_learnprop.scenes.mosaics import MosaicSource
from captum_learnprop.scenes.pair_source import mnist_pairs
from captum_learnprop.scenes.photographs import photograph_source
from captum_learnprop.scenes.segmented import SegmentedSource
from captum_learnprop.scenes.source import SceneSource

PHOTOS = "photos"

_NEEDS = {
    "cutouts": ("cutouts", "labels", "backgrounds"),
    "mosaics": ("images", "labels"),
    "masks": ("images", "masks"),
}
"""Options that scenes are made from."""


def is_about_own_nets(models: tuple[str, ...], scenes: tuple[str, ...]) -> bool:
    """Returns whether photographs and any nets are asked for, and not the reference nets on scenes of digits.

    Raises:
        LearnpropError: Nets and scenes do not go together, a name is unknown, or photographs are asked for without a
            net.
    """
    _require_known(models)
    reference = [spec for spec in models if spec in MODELS]
    drawn = [name for name in scenes if name in SCENES]
    photographed = [name for name in scenes if name in OWN_SCENES]
    if (reference and len(reference) < len(models)) or (drawn and photographed):
        raise LearnpropError(
            f"the reference nets {', '.join(MODELS)} with scenes of digits, and other nets with photographs, are two "
            "runs: give them one after the other, each with a folder --out of its own"
        )
    own = len(models) > len(reference)
    if own and drawn:
        raise LearnpropError(
            f"scenes {drawn[0]!r} are for the reference nets {', '.join(MODELS)}; ask {models[0]} about --scenes "
            f"{', '.join(OWN_SCENES)}"
        )
    if photographed and not own:
        what = f"{reference[0]} was trained on digits" if reference else "no --model is given"
        known = "them" if photographed[0] in DATA_SETS else "photographs"
        raise LearnpropError(
            f"scenes {photographed[0]!r} are for nets that know {known}, and {what}: give one such as --model "
            "torchvision:resnet18 --weights DEFAULT"
        )
    return own


def _require_known(models: tuple[str, ...]) -> None:
    """Checks that every model is a reference net, a file, or one that a record makes."""
    records = get_manager().available("model")
    for spec in models:
        record = spec.partition(":")[0]
        if spec not in MODELS and not record.endswith(".py") and record not in records and not is_module(spec):
            known = [*MODELS, *records]
            raise LearnpropError(
                f"unknown model {spec!r}; choose one of {', '.join(MODELS)}, FILE.py:FUNCTION, "
                "package.module:FUNCTION, or "
                f"{', '.join(f'{name}:...' for name in records)}{did_you_mean(spec, known)}"
            )


def candidate(spec: str, plan: Plan) -> Candidate:
    """Returns a net with its preprocessing and the names of its classes; random weights are those of the seed.

    Raises:
        LearnpropError: There is no such model, it is no classifier of such images, or it names another number of
            classes.
    """
    if plan.checkpoint is not None and len(plan.model) > 1:
        raise LearnpropError(f"--checkpoint is one file, and {len(plan.model)} models are given: run them one by one")
    request = ModelRequest(
        spec, plan.weights, plan.checkpoint, plan.size, plan.normalization, "cpu", plan.seed,
        mean=plan.mean, std=plan.std, classes=plan.classes,
    )  # fmt: skip
    request.warn_of_random_weights()
    module = load(request)
    preprocessing = preprocessing_of(request, module)
    names = classifier_of(request, module, preprocessing).class_names
    return Candidate(spec, module, preprocessing, names, model_digest(request).get("model_files"))


def source(name: str, plan: Plan) -> SceneSource:
    """Returns scenes by their name on the command line.

    Raises:
        LearnpropError: An option that they are made from is missing, or a folder cannot be used.
    """
    missing = [option for option in _NEEDS.get(name, ()) if getattr(plan, option) is None]
    if missing:
        options = " ".join(f"--{option} {'FILE' if option == 'labels' else 'DIR'}" for option in _NEEDS[name])
        raise LearnpropError(f"--scenes {name} needs {options}; --{missing[0]} is missing")
    if name in DATA_SETS:
        return mnist_pairs() if name == "mnist" else FaceSource()
    objects = int(plan.objects)
    if name == "cutouts":
        assert plan.cutouts is not None
        assert plan.labels is not None
        assert plan.backgrounds is not None
        return CutoutSource(plan.cutouts, plan.labels, plan.backgrounds, objects=objects)
    if name == "mosaics":
        assert plan.images is not None
        assert plan.labels is not None
        return MosaicSource(plan.images, plan.labels)
    if name == "masks":
        assert plan.images is not None
        assert plan.masks is not None
        return SegmentedSource(plan.images, plan.masks, plan.labels)
    return photograph_source(objects=objects)
