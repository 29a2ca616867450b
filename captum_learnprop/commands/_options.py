"""Options that several commands have, word for word; each is a decorator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from captum_learnprop.commands._one_of import OneOf

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)

weights_option = click.option("--weights", metavar="NAME", help="Pretrained weights of the model, e.g. DEFAULT.")
checkpoint_option = click.option("--checkpoint", type=FILE, help="File with the model's weights.")
SIGNS = ("absolute", "positive", "signed")
"""Those of `captum_learnprop.maps`, which needs torch; a test compares."""

recursive_option = click.option("--recursive", is_flag=True, help="Look in sub-folders too.")


class Numbers(click.ParamType):
    """One number, or three that are separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Returns the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3):
            self.fail(f"{value!r} is neither a number nor three such as 0.485,0.456,0.406", param, ctx)
        return numbers


_INPUT_OPTIONS = (
    click.option("--size", type=POSITIVE, help="Input size.  [default: what the model says, else 224]"),
    click.option(
        "--normalization",
        type=OneOf(["auto", "imagenet", "none"]),
        default="auto",
        help="auto: what the model or its weights say, ImageNet's for other torchvision models, none for the rest.",
    ),
    click.option("--mean", type=Numbers(), metavar="M[,M,M]", help="Mean of the normalisation, of pixels in [0, 1]."),
    click.option("--std", type=Numbers(), metavar="S[,S,S]", help="Standard deviation of the normalisation."),
    click.option("--classes", type=FILE, help="File with the names of the classes, one on each line."),
)


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how images become inputs of the model, and what its classes are called."""
    for option in reversed(_INPUT_OPTIONS):
        command = option(command)
    return command


threads_option = click.option("--threads", type=POSITIVE, help="CPU threads.  [default: torch decides]")
debug_option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
