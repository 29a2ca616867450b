"""``learnprop attribute``: explain a folder of images."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from captum_learnprop.commands._inputs import (
    FROM_FOLDER,
    PREDICTED,
    Classifier,
    ModelRequest,
    classifier_of,
    digest,
    load,
    preprocessing_of,
)
from captum_learnprop.commands._key_value import KeyValue, as_dict
from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_of import OneOf
from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._options import (
    FILE,
    PATH,
    POSITIVE,
    checkpoint_option,
    debug_option,
    normalization_option,
    recursive_option,
    size_option,
    threads_option,
    weights_option,
)
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import WriteError, printable

# torch takes seconds to import: the help must not wait for it.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from captum_learnprop.attribution_store import AttributionStore
    from captum_learnprop.images import ImageFile, Preprocessing
    from zennit_rules import RuleSet

    Explainer: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request(ModelRequest):
    """What the command line asked for; the fields are the options of :data:`command`."""

    method: str
    composite: str | None
    gate: str | None
    start: str | None
    pooling: str | None
    rule_option: dict[str, Any]
    method_option: dict[str, Any]
    rules: Path | None
    steps: int | None
    images: Path
    recursive: bool
    target: int | str
    out: Path
    overwrite: bool
    hdf5: bool
    dataset_file: bool
    batch_size: int
    threads: int | None


@dataclass
class Report:
    """What a run did, by image id; filled while it works, so that an interrupted run has one too."""

    computed: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    found: int = 0

    @property
    def done(self) -> int:
        """The number of images whose maps are there."""
        return len(self.computed) + len(self.resumed)


def run(request: Request, report: Report) -> None:
    """Explains the images that the output folder does not hold yet, then gathers all maps.

    Args:
        request: What to do.
        report: Is filled on the way.

    Raises:
        LearnpropError: The request cannot be carried out as given.
    """
    import torch

    from captum_learnprop.attribution_store import MAX_CLASSES, AttributionStore, require_h5py
    from captum_learnprop.files import check_folder
    from captum_learnprop.images import find_images

    started = time.monotonic()
    if request.hdf5:
        require_h5py()  # now, not after hours of work
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    check_folder(request.out)
    images = find_images(
        request.images, recursive=_searches_folders(request), exclude=request.out, left_out=report.skipped
    )
    report.found = len(images) + len(report.skipped)
    module = load(request)
    preprocessing = preprocessing_of(request)
    classifier = classifier_of(request, module, preprocessing)
    if request.hdf5 and classifier.classes > MAX_CLASSES:
        raise LearnpropError(
            f"{request.model} has {classifier.classes} classes, the HDF5 layout ends at {MAX_CLASSES}: add --no-hdf5"
        )
    targets = _targets(request.target, images, classifier)
    explain = _explainer(request, classifier.module)
    store = AttributionStore(request.out, _options(request, preprocessing), overwrite=request.overwrite)
    job = Job(request, images, preprocessing, classifier, targets, explain, store, report)
    try:
        job.explain_all()
    except torch.cuda.OutOfMemoryError as error:
        raise LearnpropError(
            f"out of memory with --batch-size {request.batch_size}; a smaller one resumes the run"
        ) from error
    job.gather(time.monotonic() - started)


@dataclass(frozen=True)
class Job:
    """A checked request at work."""

    request: Request
    images: list[ImageFile]
    preprocessing: Preprocessing
    classifier: Classifier
    targets: dict[str, int] | None
    explain: Explainer
    store: AttributionStore
    report: Report

    def explain_all(self) -> None:
        """Explains, in fixed batches, what the store does not hold yet."""
        from tqdm import tqdm

        size = self.request.batch_size
        with tqdm(total=len(self.images), desc=self.request.method, unit="image", disable=None) as progress:
            for start in range(0, len(self.images), size):
                self._resume(self.images[start : start + size])
                progress.update(min(size, len(self.images) - start))

    def _resume(self, batch: list[ImageFile]) -> None:
        done = {image for image in batch if self.store.has(image)}
        self.report.resumed += [image.id for image in batch if image in done]
        pixels = {image: self._read(image) for image in batch if image not in done}
        if all(value is None for value in pixels.values()):
            return
        # The finished images join once more: a method that draws random numbers must draw them for the same
        # batch as in a run that was never interrupted.
        pixels |= {image: self._read(image) for image in done}
        readable = {image: value for image in batch if (value := pixels[image]) is not None}
        self._explain(readable, done)

    def _read(self, image: ImageFile) -> Tensor | None:
        from captum_learnprop.images import UnreadableImageError, read_image

        try:
            return self.preprocessing.pixels(read_image(image.path))
        except UnreadableImageError as error:
            self.report.skipped[image.id] = str(error)
            return None

    def _explain(self, pixels: dict[ImageFile, Tensor], done: set[ImageFile]) -> None:
        import torch

        from captum_learnprop.attribution_store import NonFiniteError, StoredMap
        from captum_learnprop.images import UnreadableImageError

        images = list(pixels)
        torch.manual_seed(self.request.seed)
        inputs = self.preprocessing.normalize(torch.stack(list(pixels.values()))).to(self.request.device)
        with torch.no_grad():
            predictions = self.classifier.module(inputs)
        finite = predictions.isfinite().all(1)
        if not finite.all():
            self._refuse(pixels, finite, done)
            return
        targets = self._targets_of(images, predictions)
        attributions = self.explain(inputs, targets)
        for row, image in enumerate(images):
            if image in done:
                continue
            stored = StoredMap(attributions[row], predictions[row], int(targets[row]))
            try:
                self.store.save(image, stored, _overlay(pixels[image], stored.attribution))
                self.report.computed.append(image.id)
            except NonFiniteError as error:
                self.report.skipped[image.id] = f"refused: {error}"
            except UnreadableImageError as error:
                self.report.skipped[image.id] = str(error)

    def _refuse(self, pixels: dict[ImageFile, Tensor], finite: Tensor, done: set[ImageFile]) -> None:
        """Leaves out the images whose output is not finite, and explains the others."""
        kept = {image: pixels[image] for image, good in zip(pixels, finite.tolist(), strict=True) if good}
        for image in pixels:
            if image not in kept:
                self.report.skipped[image.id] = "refused: the model's output for it is not finite"
        if kept.keys() - done:
            self._explain(kept, done)

    def _targets_of(self, images: list[ImageFile], predictions: Tensor) -> Tensor:
        import torch

        if self.targets is None:
            return predictions.argmax(1)
        return torch.tensor([self.targets[image.id] for image in images], device=predictions.device)

    def gather(self, seconds: float) -> None:
        """Makes the files that cover all images, and the report."""
        report = self.report
        complete = {*report.computed, *report.resumed}
        images = [image for image in self.images if image.id in complete]
        if images and self.request.hdf5:
            self.store.write_hdf5(images)
        if images and self.request.dataset_file:
            self.store.write_dataset(images, self._pixels, self.classifier.names())
        self.store.write_report(
            {
                "found": report.found,
                "computed": report.computed,
                "resumed": report.resumed,
                "skipped": [{"id": name, "reason": reason} for name, reason in report.skipped.items()],
                "seconds": round(seconds, 3),
            }
        )

    def _pixels(self, image: ImageFile) -> Tensor:
        from captum_learnprop.images import read_image

        return self.preprocessing.pixels(read_image(image.path))


def _searches_folders(request: Request) -> bool:
    return request.recursive or request.target == FROM_FOLDER


def _targets(target: int | str, images: Sequence[ImageFile], classifier: Classifier) -> dict[str, int] | None:
    """Returns the class to explain for each image id; None for the predicted one."""
    from captum_learnprop.images import folder_labels

    if target == PREDICTED:
        return None
    if isinstance(target, int):
        return dict.fromkeys((image.id for image in images), classifier.check(target))
    return folder_labels(images, classifier.classes, classifier.class_names)


def _explainer(request: Request, model: nn.Module) -> Explainer:
    """Builds the method; the result maps inputs (B, 3, H, W) and targets (B,) to (B, C, H', W')."""
    from captum.attr import GradientAttribution

    from captum_learnprop.plugins import get_manager

    entry = get_manager().get("method", request.method)
    factory = entry.resolve()
    built = _built(request)
    for name in built:
        _require(factory, name, _FLAGS.get(name, f"--{name}"), request.method)
    named = inspect.signature(factory).parameters
    built |= {name: value for name, value in request.method_option.items() if name in named}
    rules = _rules(request, model)
    takes_rules = rules is not None and _accepts(factory, "rules")
    method = entry.make(model, **built, **({"rules": rules} if takes_rules else {}))
    if not callable(getattr(method, "attribute", None)):
        raise LearnpropError(f"{entry.label}: it gave {method!r:.80}, which has no attribute()")
    options = _attribute_options(request, method, built)
    wants_gradient = isinstance(method, GradientAttribution)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    if rules is not None and not takes_rules:
        _check_gradient_method(request.method, method)
        _warn_of_other_seeds(rules, request.method)

        def around() -> AbstractContextManager[Any]:
            return rules.applied(model)

    def explain(inputs: Tensor, targets: Tensor) -> Tensor:
        with around():
            # Captum warns at every call when it must ask for the gradient itself.
            inputs = inputs.detach().requires_grad_(wants_gradient)
            with entry.used(options):
                attribution: Tensor = method.attribute(inputs, target=targets, **options)
        return _checked(attribution, inputs, request.method, entry.label if entry.home else "").detach()

    return explain


_FLAGS = {
    "rule_options": "--rule-option", "n_steps": "--steps", "inputs": "--images", "forward_func": "--model",
}  # fmt: skip
"""The options of methods that have another name here."""

_OWN = (*_FLAGS, "model", "composite", "gate", "start", "pooling", "rules", "seed", "target")
"""The options of methods that have an option here."""


def _method_option(ctx: click.Context, parameter: click.Parameter, pairs: Any) -> dict[str, Any]:
    """Returns the pairs as a dictionary, without names that are options here; a callback of click."""
    options = as_dict(ctx, parameter, pairs)
    for name in options:
        if name in _OWN:
            raise click.BadParameter(f"{name} is an option of the command: {_FLAGS.get(name, f'--{name}')}")
    return options


def _built(request: Request) -> dict[str, Any]:
    """Returns what the method is made with, as far as it was given."""
    given = {name: getattr(request, name) for name in ("composite", "gate", "start", "pooling")}
    given["rule_options"] = request.rule_option or None
    return {name: value for name, value in given.items() if value is not None}


def _rules(request: Request, model: nn.Module) -> RuleSet | None:
    if request.rules is None:
        return None
    from zennit_rules import RuleSet

    return RuleSet.load(request.rules, model)


def _attribute_options(request: Request, method: Any, built: dict[str, Any]) -> dict[str, Any]:
    """Returns what this method's ``attribute`` gets beside inputs and target: not what the method is built with."""
    options: dict[str, Any] = {}
    if request.steps is not None:
        _require(method.attribute, "n_steps", "--steps", request.method)
        options["n_steps"] = request.steps
    parameters = inspect.signature(method.attribute).parameters
    if "seed" in parameters:
        options["seed"] = request.seed
    if "output" in parameters and parameters["output"].default == "patches":  # methods for tokens
        options["output"] = "input"
    if "abs" in parameters:  # captum's Saliency drops the sign unless told otherwise
        options["abs"] = False
    for name in request.method_option.keys() - built.keys():
        known = {**inspect.signature(type(method)).parameters, **parameters}.keys() - {"self", *_OWN}
        _require(method.attribute, name, f"--method-option {name}", request.method, known)
        options[name] = request.method_option[name]
    return options


def _accepts(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _require(function: Callable[..., Any], name: str, option: str, method: str, known: Iterable[str] = ()) -> None:
    if not _accepts(function, name):
        raise LearnpropError(
            f"{option} means nothing to the method {method}; leave it out{did_you_mean(name, sorted(known))}"
        )


def _check_gradient_method(name: str, method: Any) -> None:
    from captum.attr import LRP, Deconvolution, DeepLift, GradientAttribution, GuidedBackprop

    if not isinstance(method, GradientAttribution):
        raise LearnpropError(f"--rules needs a gradient-based method, {name} is none")
    if isinstance(method, (GuidedBackprop, Deconvolution, DeepLift, LRP)):
        raise LearnpropError(f"--rules cannot be combined with {name}, which has backward rules of its own")


def _warn_of_other_seeds(rules: RuleSet, method: str) -> None:
    """Warns where relevance starts with the output, or contributions end with the input: plain gradients do neither."""
    from zennit_rules import composite_class

    used = composite_class(rules.composite_name)
    if used.starts_with_output or used.ends_with_input:
        _LOG.warning(
            "%s neither starts nor ends as rules of %s do, so its maps may have another sign or scale; use --method "
            "learned_propagation",
            method,
            rules.composite_name,
        )


def _checked(attribution: Any, inputs: Tensor, method: str, label: str) -> Tensor:
    import torch

    if isinstance(attribution, tuple) and attribution:
        attribution = attribution[0]
    if isinstance(attribution, torch.Tensor) and attribution.ndim == 4 and len(attribution) == len(inputs):
        return attribution
    found = tuple(attribution.shape) if isinstance(attribution, torch.Tensor) else type(attribution).__name__
    whose = f"{label}: " if label else ""
    raise LearnpropError(f"{whose}{method} gave {found} for images {tuple(inputs.shape)}, expected (B, C, H, W)")


def _options(request: Request, preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns everything that decides over the values of the maps; files by content, because paths move."""
    pixels = asdict(preprocessing)
    return {
        "model": request.model,
        "weights": request.weights_name,
        "checkpoint": digest(request.checkpoint),
        "method": request.method,
        "composite": request.composite,
        "gate": request.gate,
        "start": request.start,
        "pooling": request.pooling,
        "rule_option": request.rule_option or None,
        "method_option": request.method_option or None,
        "rules": digest(request.rules),
        "steps": request.steps,
        "target": request.target,
        "seed": request.seed,
        "size": pixels.pop("crop"),  # the name of its option
        **pixels,
    }


def _overlay(pixels: Tensor, attribution: Tensor) -> npt.NDArray[np.uint8]:
    """Returns the attribution (C, H', W') laid over the image (3, H, W): (H, W, 3)."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from captum_learnprop.plot import overlay

    values = torch.nan_to_num(attribution.float().cpu())  # the store refuses what is not finite
    if values.shape[-2:] != pixels.shape[-2:]:
        values = F.interpolate(values[None], pixels.shape[-2:], mode="bilinear")[0]
    return np.rint(np.clip(overlay(pixels, values), 0, 1) * 255).astype(np.uint8)


class _Target(click.ParamType):
    """``predicted``, ``label-from-folder`` or a class number."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value in (PREDICTED, FROM_FOLDER):
            return str(value)
        try:
            return int(value)
        except ValueError:
            hint = did_you_mean(str(value), (PREDICTED, FROM_FOLDER))
            self.fail(f"{value!r} is neither {PREDICTED!r}, {FROM_FOLDER!r} nor a class number{hint}", param, ctx)


@click.command(name="attribute", context_settings={"show_default": True})
@click.option("--model", required=True, metavar="SPEC", help="What to explain, e.g. torchvision:resnet18.")
@weights_option
@checkpoint_option
@click.option("--method", required=True, metavar="NAME", help="How to explain; see `learnprop plugins`.")
@click.option("--composite", metavar="NAME", help="Composite of the method, if it takes one.")
@click.option("--gate", metavar="NAME", help="Gate of the method, if it takes one.")
@click.option("--start", metavar="NAME", help="Rule that gates start at, if the method takes one.")
@click.option("--pooling", type=OneOf(["soft", "exact"]), help="Whether max-pools learn, if the method asks.")
@click.option(
    "--rule-option",
    type=KeyValue("gamma=0.25"),
    multiple=True,
    callback=as_dict,
    metavar="NAME=VALUE",
    help="Option of the composite's own rules, e.g. gamma=0.25 or conv=gamma; see `learnprop train --help`. "
    "May be repeated.",
)
@click.option(
    "--method-option",
    type=KeyValue("variant=dual"),
    multiple=True,
    callback=_method_option,
    metavar="NAME=VALUE",
    help="Option of the method or of its `attribute`, e.g. areas=0.05, multiply_by_inputs=true, variant=dual. "
    "May be repeated.",
)
@click.option("--rules", type=FILE, help="Trained rule set, for every gradient-based method.")
@click.option("--steps", type=POSITIVE, help="Steps of the method, if it takes some.")
@click.option("--images", required=True, type=PATH, help="Folder of images, or one image.")
@recursive_option
@click.option(
    "--target",
    type=_Target(),
    default=PREDICTED,
    metavar=f"[{PREDICTED}|{FROM_FOLDER}|NUMBER]",
    help=f"Class to explain; {FROM_FOLDER} takes it from the top sub-folder's name (implies --recursive).",
)
@click.option("--out", required=True, type=PATH, help="Folder for the results.")
@click.option("--overwrite", is_flag=True, help="Delete an earlier run in the output folder first.")
@click.option("--hdf5/--no-hdf5", default=True, help="Gather all maps in one HDF5 file (needs h5py).")
@click.option("--dataset-file", is_flag=True, help="Also write the other files that ViRelAy needs.")
@click.option("--batch-size", type=POSITIVE, default=8, help="Images explained at a time.")
@size_option
@normalization_option
@threads_option
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute.")
@click.option("--seed", type=int, default=0, help="For random weights and methods that draw at random.")
@debug_option
@click.pass_context
def command(ctx: click.Context, debug: bool, **options: Any) -> None:
    """Write attributions of a model for a folder of images.

    Each image gets a raw map (maps/*.safetensors) and an overlay (overlays/*.png); attributions.h5 gathers
    all maps in the layout that ViRelAy reads, report.json says what was skipped. The same command again
    resumes an interrupted run.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    one_process(ctx)
    request = Request(**options)
    if request.dataset_file and not request.hdf5:
        raise click.UsageError("--dataset-file describes the HDF5 file: leave out --no-hdf5", ctx)
    report = Report()
    request.warn_of_random_weights()
    try:
        with users_mistakes():
            run(request, report)
    except KeyboardInterrupt as error:
        during = f" ({error.during})" if hasattr(error, "during") else ""
        click.echo(f"stopped with {_counted(report)}; the same command resumes{during}", err=True)
        raise
    except WriteError as error:
        raise LearnpropError(f"{error}; {_counted(report)}: make room, the same command resumes") from error
    for name, reason in report.skipped.items():
        click.echo(f"skipped {printable(name)}: {reason}", err=True)
    click.echo(f"{_counted(report)} in {request.out}")
    ctx.exit(0 if report.done else 1)


def _counted(report: Report) -> str:
    counts = f"{report.done} of {report.found} images done"
    if report.resumed:
        counts += f" ({len(report.resumed)} from an earlier run)"
    return counts + (f", {len(report.skipped)} skipped" if report.skipped else "")
