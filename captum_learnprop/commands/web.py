"""``learnprop web``: a page in the browser on which any model is explained."""

from __future__ import annotations

from typing import Any

import click

from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._options import (
    DIRECTORY,
    checkpoint_option,
    debug_option,
    input_options,
    threads_option,
    weights_option,
)
from captum_learnprop.web.guard import PASSWORD


@click.command(name="web", context_settings={"show_default": True})
@click.option(
    "--model", metavar="SPEC",
    help="What to explain first, e.g. torchvision:resnet50.  [default: the first model that is installed]",
)  # fmt: skip
@weights_option
@checkpoint_option
@click.option(
    "--also", multiple=True, metavar="SPEC",
    help="Another model to choose from, a library's with its default weights. May be repeated.",
)  # fmt: skip
@click.option("--rules", multiple=True, metavar="FILE", help="Trained rules of --model to choose. May be repeated.")
@click.option("--images", type=DIRECTORY, help="Folder of pictures that rules may be trained on.")
@input_options
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Where to listen; any other needs a password.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port.  [default: the first free one from 7860 on]")
@click.option("--password", is_flag=True, help=f"Ask for a password now; or set {PASSWORD}.")
@threads_option
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute.")
@click.option("--seed", type=int, default=0, help="For random weights.")
@debug_option
@click.pass_context
def command(ctx: click.Context, debug: bool, **options: Any) -> None:
    """Open a page on which pictures are explained: classes, methods side by side, concepts, rules trained here.

    It is for this machine alone, fetches nothing, and runs until Ctrl-C.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    one_process(ctx)
    from captum_learnprop.commands import _web_page

    with users_mistakes((ValueError, OSError)):
        _web_page.run(_web_page.Request(**options))
