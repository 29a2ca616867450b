"""Options that several commands have, word for word; each is a decorator."""

from __future__ import annotations

from pathlib import Path

import click

from captum_learnprop.commands._one_of import OneOf

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)

weights_option = click.option("--weights", metavar="NAME", help="Pretrained weights of the model, e.g. DEFAULT.")
checkpoint_option = click.option("--checkpoint", type=FILE, help="File with the model's weights.")
recursive_option = click.option("--recursive", is_flag=True, help="Look in sub-folders too.")
size_option = click.option("--size", type=POSITIVE, help="Input size.  [default: what the model says, else 224]")
normalization_option = click.option(
    "--normalization",
    type=OneOf(["auto", "imagenet", "none"]),
    default="auto",
    help="auto: what the model or its weights say, ImageNet's for other torchvision models, none for the rest.",
)
threads_option = click.option("--threads", type=POSITIVE, help="CPU threads.  [default: torch decides]")
debug_option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
