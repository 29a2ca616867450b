"""``learnprop explain``: what in a picture speaks for what a model says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_of import OneOf
from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._options import (
    PATH,
    SIGNS,
    checkpoint_option,
    debug_option,
    input_options,
    threads_option,
    weights_option,
)


@click.command(name="explain", context_settings={"show_default": True})
@click.argument("photo", nargs=-1, required=True, type=PATH)
@click.option("--model", required=True, metavar="SPEC", help="What to explain, e.g. torchvision:resnet18.")
@weights_option
@checkpoint_option
@click.option(
    "--target",
    multiple=True,
    metavar="NAME|NUMBER",
    help="Class to explain. May be repeated.  [default: the highest]",
)
@click.option(
    "--method", multiple=True, metavar="NAME",
    help="How to explain, e.g. grad_cam or 'LRP gamma'. May be repeated.  [default: the strongest that is ready]",
)  # fmt: skip
@click.option(
    "--rules", multiple=True, metavar="FILE|NAME",
    help="Trained rule set: a file, or one that ships, e.g. efficientnet_lite0/lrp. May be repeated.",
)  # fmt: skip
@click.option("--sign", type=OneOf(SIGNS), help="How channels become a map.  [default: what suits the method]")
@click.option(
    "--smoothing", type=float, help="Of maps, as a share of the input's side.  [default: what suits the method]"
)
@click.option("--out", type=PATH, default=Path("explanation.png"), metavar="FILE", help="Where the picture goes.")
@input_options
@click.option(
    "--transform", metavar="FILE.py:NAME",
    help="Own function from a picture to the input, in place of --size, --normalization, --mean and --std.",
)  # fmt: skip
@threads_option
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute.")
@click.option("--seed", type=int, default=0, help="For random weights.")
@debug_option
@click.pass_context
def command(ctx: click.Context, debug: bool, **options: Any) -> None:
    """Show what in photographs speaks for what a model says of them.

    Prints the prediction and what each map took, and draws the maps over the photographs, several methods side by side.
    For a whole folder, and for maps as files, there is `learnprop attribute`.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    one_process(ctx)
    from captum_learnprop.commands import _explain_photographs

    request = _explain_photographs.Request(**options)
    request.warn_of_random_weights()
    with users_mistakes((ValueError, OSError)):
        _explain_photographs.run(request)
