"""``explain``: what in a picture speaks for what a model says of it, in one line."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from captum_learnprop.errors import InputWarning, LearnpropError
from captum_learnprop.explanation.asking import Asked, Said, asked_of, said_of
from captum_learnprop.explanation.framing import Frame, Framed, framed
from captum_learnprop.explanation.known_model import KnownModel, Prepare, known_model
from captum_learnprop.explanation.methods import Method, Question, Rules, built, find_methods, usual_methods
from captum_learnprop.explanation.pictures import named, picture_of, pixels_of, several
from captum_learnprop.explanation.result import Cost, Explanation, Explanations
from captum_learnprop.explanation.values import PICTURE, Values, values_given
from captum_learnprop.forward import warn_of_bytes
from captum_learnprop.images import Preprocessing


def explain(
    model: nn.Module | str,
    image: Any,
    target: Any = None,
    method: Any = None,
    *,
    rules: Rules | Sequence[Rules] | None = None,
    weights: Any = None,
    checkpoint: str | Path | None = None,
    preprocessing: Prepare | None = None,
    size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    classes: Sequence[str] | str | Path | None = None,
    sign: str | None = None,
    smoothing: float | None = None,
    features: Sequence[str] | None = None,
) -> Any:
    """Explains what a model says of a picture, a row of a table, a series or a text.

    Without a method the one is taken that found most in the comparisons of this project: the rules that ship for the
    model, told by the fingerprint of its weights; else, of the methods that need no training, for vision transformers
    integrated gradients and for all other nets LRP gamma x Grad-CAM, or the next of their list that can explain
    the net (`explanation.methods.FOR_TRANSFORMERS` and `FOR_OTHERS`, with the figures).

    Every method's map has the sign and the smoothing that suited it best there (`explanation.treatments`); trained
    rules have those of their training, so that the map of the model's input is that of
    `LearnedPropagation.maps`.

    Args:
        model: A module in evaluation mode, or a name: ``"torchvision:resnet50"``, ``"timm:NAME"``, ``"hf:NAME"`` or
            ``"hf:FOLDER"``, ``"FILE.py:FUNCTION"``, ``"package.module:FUNCTION"``, ``"efficientnet_lite:0"``. Of
            structured outputs the logits are taken.
        image: A path, an image of PIL, an array, a tensor of bytes; or a floating-point tensor ``(C, H, W)`` or
            ``(B, C, H, W)``, which the model takes as it is. Or a list of these. For other models a row of a table
            ``(F,)``, several ``(B, F)``, a series ``(C, T)``, or for an `OnEmbeddings` a text or several (see
            `explanation.values.values_given`).
        target: What is explained: the number or the name of a class, a function of `captum_learnprop.targets` or one
            of your own, or None for the class that is highest; or a list, each of which is explained for each picture.
        method: A name, such as ``"grad_cam"``; a trained rule set, its file, or the name of one that ships; or a list.
        rules: Trained rules, which come before other methods.
        weights: Of a named model the name of its weights, such as ``"DEFAULT"``; of torchvision's modules their entry,
            such as ``ResNet50_Weights.DEFAULT``, which tells the preprocessing and the classes.
        checkpoint: File of parameters for a named model.
        preprocessing: How a picture becomes an input: a `captum_learnprop.images.Preprocessing`, torchvision's
            ``weights.transforms()``, an image processor of Hugging Face, or any function of a picture of PIL that
            resizes, crops and normalises. By default what the model says; where it says nothing, what trained rules
            say, and else an assumption that a warning names.
        size: Side of the input in pixels, in place of what the model says.
        mean: Mean of the normalisation, of pixels in [0, 1].
        std: Its deviation.
        classes: Names of the classes, a file with one on each line, or ``"imagenet"``.
        sign: ``"absolute"``, ``"positive"`` or ``"signed"``, in place of what suits the method.
        smoothing: Smoothing of maps as a fraction of the input's sides, in place of what suits the method.
        features: Names of the features of rows, of the channels of series, or of the tokens of a text.

    Returns:
        An `Explanation`; where several pictures, targets or methods were given `Explanations`, row by row: for each
        picture each target, for each of these each method.

    Raises:
        LearnpropError: Something that was given cannot be used; the message says what would be right.

    Example:
        >>> import numpy as np
        >>> import captum_learnprop as cl
        >>> photograph = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        >>> found = cl.explain("digits_cnn", photograph, target=7, method="grad_cam", size=64)
        >>> found.map.shape, found.target, found.method
        (torch.Size([48, 64]), '7', 'Grad-CAM')
    """
    if torch.is_inference_mode_enabled():
        raise LearnpropError("explanations need autograd: leave torch.inference_mode() (no_grad() is fine)")
    known = known_model(
        model, weights=weights, checkpoint=checkpoint, preprocessing=preprocessing, size=size, mean=mean, std=std,
        classes=classes,
    )  # fmt: skip
    methods = find_methods(method, rules, known.net)
    known = _as_trained(known, methods)
    treated = {name: value for name, value in (("sign", sign), ("smoothing", smoothing)) if value is not None}
    found: list[Explanation] = []
    pictures: list[Any] = []
    values = values_given(known.net, image, features)
    if values is not None:
        many = len(values) > 1
    else:
        pictures, many = several(image)
        if features is not None:
            raise LearnpropError("features= names what rows, series and texts are made of, and this is a picture")
    for one in values or ():
        found += _explained(known, _of_values(known, one), target, methods, treated)
    for number, given in enumerate(pictures):
        picture = _picture(known, given, named(given, number) if many or isinstance(given, (str, Path)) else "")
        found += _explained(known, picture, target, methods, treated)
    together = many or any(isinstance(one, (list, tuple)) for one in (target, method, rules)) or len(found) > 1
    return Explanations(tuple(found)) if together else found[0]


def _as_trained(known: KnownModel, methods: list[Method] | None) -> KnownModel:
    """Returns the model with the preprocessing that rules were trained with, where the model itself says nothing."""
    told = next((one.preprocessing for one in methods or () if one.preprocessing is not None), None)
    return known if not known.assumed or told is None else replace(known, prepare=told, assumed="")


@dataclass(frozen=True)
class _Picture:
    """A picture that is explained: what is drawn, what the model takes, what it is called."""

    pixels: Tensor
    framed: Framed
    title: str
    kind: str = PICTURE
    names: tuple[str, ...] = ()


def _of_values(known: KnownModel, values: Values) -> _Picture:
    inputs = values.input.to(known.device, known.dtype)
    frame = Frame.whole(1, values.shown.shape[-1])
    return _Picture(values.shown, Framed(inputs, frame, (), ()), values.title, values.kind, values.names)


def _picture(known: KnownModel, given: Any, title: str) -> _Picture:
    found = picture_of(given)
    if isinstance(found, Image.Image):
        known.warn_of_assumptions()
        one = framed(found, known.prepare)
        return _Picture(pixels_of(found), replace(one, input=one.input.to(known.device, known.dtype)), title)
    inputs = found.detach()[None].to(known.device, known.dtype)
    mean, std = _normalization(known, inputs.shape[1])
    _warn_of_pictures(inputs, mean)
    scale, shift = (torch.tensor(values)[:, None, None] for values in (std, mean))
    shown = inputs[0].float().cpu() * scale + shift
    frame = Frame.whole(*inputs.shape[-2:])
    return _Picture(_as_picture(shown), Framed(inputs, frame, mean, std), title)


def _normalization(known: KnownModel, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and deviation that an input was normalised with; 0 and 1 where they have other channels."""
    if isinstance(known.prepare, Preprocessing):
        mean, std = known.prepare.mean, known.prepare.std
    else:
        sample = framed(Image.new("RGB", (256, 256)), known.prepare)
        mean, std = sample.mean, sample.std
    return (mean, std) if len(mean) == channels else ((0.0,) * channels, (1.0,) * channels)


def _warn_of_pictures(inputs: Tensor, mean: tuple[float, ...]) -> None:
    warn_of_bytes((inputs,), stacklevel=5)
    if any(mean) and float(inputs.min()) >= 0 and float(inputs.max()) <= 1:
        warnings.warn(
            "the tensor lies in [0, 1], as a picture that is not normalised, and this model takes normalised ones: "
            "give the picture as an array or of PIL, or normalise it",
            InputWarning,
            stacklevel=5,
        )


def _as_picture(pixels: Tensor) -> Tensor:
    """Returns ``(3, H, W)`` in [0, 1] of channels of any number and range."""
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    low, high = pixels.min(), pixels.max()
    if low < -0.05 or high > 1.05:
        pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    return pixels.clamp(0, 1).expand(3, *pixels.shape[1:])


def _explained(
    known: KnownModel, picture: _Picture, target: Any, methods: list[Method] | None, treated: dict[str, Any]
) -> list[Explanation]:
    """Returns the explanations of one picture: for each target, each method."""
    is_picture = picture.kind == PICTURE
    hint = {} if is_picture else {"hint": "check its features, channels and length"}
    said = said_of(known, picture.framed.input, **hint)
    found = []
    for asked in asked_of(known, said, target):
        one = picture.framed
        structured = not isinstance(said.output, Tensor)
        question = Question(
            known.net, one.input, one.mean, one.std, asked.index, asked.function, structured, is_picture
        )
        choices = [usual_methods(question)] if methods is None else [[method] for method in methods]
        for choice in choices:
            chosen, run = built(choice, question)
            treatment = chosen.treatment if is_picture else chosen.of_values
            chosen = replace(chosen, treatment=replace(treatment, **treated))
            found.append(_explanation(picture, said, asked, question, chosen, run))
    return found


def _explanation(
    picture: _Picture, said: Said, asked: Asked, question: Question, method: Method, run: Callable[[], Tensor]
) -> Explanation:
    start = time.perf_counter()
    with torch.enable_grad():
        attribution = run().detach()
    maps = method.treatment.maps(attribution, question.input)
    seconds = time.perf_counter() - start
    if not bool(maps.isfinite().all()):
        raise LearnpropError(f"{method.name} gave values that are NaN or infinite for {asked.name!r}")
    frame = picture.framed.frame
    return Explanation(
        map=frame.place(maps[0].float().cpu()) if question.is_picture else maps[0].float().cpu(),
        attribution=attribution[0].cpu(),
        prediction=said.guesses,
        target=asked.name,
        index=asked.index if asked.function is None else None,
        method=method.name,
        cost=Cost(seconds, method.passes(question)),
        image=picture.pixels,
        frame=frame,
        title=picture.title,
        sign=method.treatment.sign,
        smoothing=method.treatment.smoothing,
        kind=picture.kind,
        names=picture.names,
    )
