"""The work of ``learnprop web``: which models are offered, who may look, and the server until Ctrl-C."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing
from captum_learnprop.models.missing import package
from captum_learnprop.web.guard import PASSWORD
from captum_learnprop.web.offered import ModelChoice, Offer, shipped_choices
from captum_learnprop.web.server import Server

_LIBRARIES = ("torchvision:", "timm:")
"""Records whose models have random weights unless some are named."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for; the fields are the options of :data:`command`."""

    model: str | None
    weights: str | None
    checkpoint: Path | None
    also: tuple[str, ...]
    rules: tuple[str, ...]
    images: Path | None
    size: int | None
    normalization: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: Path | None
    host: str
    port: int | None
    password: bool
    threads: int | None
    device: str
    seed: int


def run(request: Request) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        LearnpropError: Gradio is missing, a model cannot be loaded, other machines are let in without a password, or
            the port is taken.
    """
    with package("gradio", extra="web"):
        serve = import_module("captum_learnprop.web.page.serve")
    server = Server(request.host, request.port, password_of(request), request.images)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    offer = offer_of(request)
    first = offer.model(offer.names[0])  # now, and not after the first click
    click.echo(f"{first.choice.spec}: {first.classes} classes; {len(offer.names)} models to choose from")
    with serve.served(server, offer) as address:
        click.echo(f"open {address} (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("ended")


def password_of(request: Request) -> str | None:
    """Returns the password that browsers must know; None for none."""
    found = os.environ.get(PASSWORD) or None
    if request.password:
        found = click.prompt("password", hide_input=True, confirmation_prompt=True)
    return found


def offer_of(request: Request) -> Offer:
    """Returns the models of a request: the given one first, then others that were named, then those that are here.

    Raises:
        LearnpropError: Options of a model are given without the model.
    """
    options = _options(request)
    if request.model is None and (options or request.rules):
        raise LearnpropError(f"--{next(iter(options), 'rules')} belongs to a model: name it with --model")
    given = [] if request.model is None else [_choice(request, request.model, options, request.rules)]
    others = [
        _choice(request, spec, {"weights": "DEFAULT"} if spec.startswith(_LIBRARIES) else {}) for spec in request.also
    ]
    here = [ModelChoice(one.spec, one.options, request.seed, request.device) for one in shipped_choices()]
    return Offer([*given, *others, *here])


def _choice(request: Request, spec: str, options: dict[str, Any], rules: tuple[str, ...] = ()) -> ModelChoice:
    return ModelChoice(spec, options, request.seed, request.device, rules)


def _options(request: Request) -> dict[str, Any]:
    """Returns what `captum_learnprop.explain` is told of the model."""
    mean, std = request.mean, request.std
    if request.normalization == "imagenet":
        mean, std = mean or Preprocessing.mean, std or Preprocessing.std
    if request.normalization == "none":
        mean, std = mean or (0.0,), std or (1.0,)
    found = {
        "weights": request.weights, "checkpoint": request.checkpoint, "size": request.size, "mean": mean, "std": std,
        "classes": request.classes,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}
