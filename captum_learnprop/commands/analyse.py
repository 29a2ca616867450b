"""``learnprop analyse``: do maps explain the model, or redraw the image?"""

from __future__ import annotations

from typing import Any

import click

from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._options import (
    PATH,
    POSITIVE,
    checkpoint_option,
    debug_option,
    input_options,
    recursive_option,
    threads_option,
    weights_option,
)

RULES = ("gradient", "guided_backprop", "rect_grad", "lrp", "deep_taylor")
"""Analysed if none are named: the plain gradient, and the four families that keep positive contributions."""


@click.command(name="analyse", context_settings={"show_default": True})
@click.option("--model", default="digits_cnn", metavar="SPEC", help="What to analyse, e.g. torchvision:resnet18.")
@weights_option
@checkpoint_option
@click.option(
    "--rules",
    multiple=True,
    metavar="NAME|FILE",
    help="A backward rule, or the file of a trained rule set. May be repeated.  [default: " + ", ".join(RULES) + "]",
)
@click.option("--images", type=PATH, help="Folder of images, or one image.  [default: scenes of digits]")
@recursive_option
@click.option("--count", type=POSITIVE, default=16, help="Images at most.")
@click.option("--target", type=int, help="Class to explain.  [default: the predicted one]")
@click.option("--out", required=True, type=PATH, help="Folder for the report.")
@click.option("--batch-size", type=POSITIVE, default=8, help="Images propagated at a time; bounds the memory.")
@input_options
@threads_option
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute.")
@click.option("--seed", type=int, default=0, help="For random weights and scenes.")
@debug_option
@click.pass_context
def command(ctx: click.Context, debug: bool, **options: Any) -> None:
    """Say of backward rules whether their maps depend on the weights, on the class, or on the image alone.

    Maps are compared with those of re-initialised nets and of another class, and signals with the input of each layer.
    Writes analysis.json, analysis.md and analysis.png.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    one_process(ctx)
    from captum_learnprop.commands import _analyse_rules

    request = _analyse_rules.Request(**{**options, "rules": options["rules"] or RULES})
    request.warn_of_random_weights()
    with users_mistakes((ValueError, OSError)):
        analysis = _analyse_rules.run(request)
    for report in analysis.reports:
        click.echo(report.rule)
        for text in report.verdicts.values():
            click.echo(f"  {text}")
    click.echo(f"report in {request.out}")
