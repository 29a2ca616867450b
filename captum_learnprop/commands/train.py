"""``learnprop train``: learn the rules of a model from a folder of images."""

from __future__ import annotations

from typing import Any

import click

from captum_learnprop.commands._key_value import KeyValue, as_dict
from captum_learnprop.commands._main_process import is_main, short_warnings
from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_of import OneOf
from captum_learnprop.commands._options import (
    PATH,
    POSITIVE,
    SIGNS,
    checkpoint_option,
    debug_option,
    input_options,
    recursive_option,
    threads_option,
    weights_option,
)
from captum_learnprop.commands._request import FROM_FOLDER, PREDICTED
from captum_learnprop.commands._train_request import Request, placed

_QUANTITIES = ("softmax", "sigmoid", "logit", "log_probability", "log_sigmoid", "contrastive_logit")


@click.command(name="train", context_settings={"show_default": True})
@click.option("--model", required=True, metavar="SPEC", help="Whose rules to learn, e.g. torchvision:resnet18.")
@weights_option
@checkpoint_option
@click.option("--images", required=True, type=PATH, help="Folder of training images; labels are not needed.")
@recursive_option
@click.option(
    "--composite",
    default="learned_gradient",
    metavar="NAME",
    help="Rules: learned_gradient, learned_guided_backprop, learned_epsilon_gamma_box (LRP), learned_deeplift, and for "
    "transformers learned_transformer or learned_attnlrp; or gates, guided_backprop, lrp, deeplift, transformer, "
    "attnlrp.",
)
@click.option(
    "--rule-option",
    type=KeyValue("gamma=0.25"),
    multiple=True,
    callback=as_dict,
    metavar="NAME=VALUE",
    help="Option of the composite's own rules, e.g. gamma=0.25, gamma=inf, conv=gamma or low=[0,0,0]; named below. "
    "May be repeated.",
)
@click.option("--gate", default="feature", metavar="NAME", help="Gate that all samples share; see `learnprop plugins`.")
@click.option(
    "--gate-option",
    type=KeyValue("position=true"),
    multiple=True,
    callback=as_dict,
    metavar="NAME=VALUE",
    help="Further argument of the gate, e.g. position=true or per=layer. May be repeated.",
)
@click.option("--positions/--no-positions", default=None, help="Feature gates weigh positions.  [default: they do]")
@click.option("--contrast/--no-contrast", default=None, help="Feature gates see the other classes.  [default: no]")
@click.option("--fusion", is_flag=True, help="Multiply relevance maps of several depths into the map.")
@click.option("--start", metavar="NAME", help="Rule the gates start at.  [default: that of the composite]")
@click.option("--pooling", type=OneOf(["soft", "exact"]), default="soft", help="Whether max-pools learn too.")
@click.option(
    "--objective",
    metavar="FORMULA",
    help="What is minimised: terms with weights, e.g. 'OcclusionRegression + 0.1 * ClassContrast'.  "
    "[default: OcclusionRegression with the density that suits the composite]",
)
@click.option("--quantity", type=OneOf(_QUANTITIES), default="logit", help="What is explained.")
@click.option(
    "--target",
    type=OneOf([PREDICTED, FROM_FOLDER]),
    default=PREDICTED,
    help=f"Classes to explain; {FROM_FOLDER} takes them from the top sub-folder's name (implies --recursive).",
)
@click.option("--targets-per-image", type=POSITIVE, default=1, help="The highest predictions that are explained.")
@click.option("--out", required=True, type=PATH, metavar="FILE", help="Where the rules go, e.g. rules.safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@input_options
@click.option(
    "--steps", type=POSITIVE, help="Optimiser steps.  [default: 4.5 times over the rows, 20 at least and 80 at most]"
)
@click.option("--batch-size", type=POSITIVE, default=12, help="Images times targets per step, over all processes.")
@click.option("--lr", type=float, help="First learning rate.  [default: 0.03]")
@click.option(
    "--smoothing",
    type=float,
    help="Of maps, as a share of the image's shorter side.  [default: chosen on held-out images]",
)
@click.option(
    "--outlines",
    type=float,
    help="Maps follow the outlines in the images: radius, as a share of the shorter side.  [default: 0, they do not]",
)
@click.option(
    "--sign",
    type=OneOf(SIGNS),
    help="How channels become a map.  [default: absolute, for LRP signed]",
)
@click.option("--deletions", type=POSITIVE, default=96, help="Regions removed from each image.")
@click.option(
    "--regions", type=OneOf(["both", "boxes", "superpixels"]), default="both", help="What regions are unions of."
)
@click.option(
    "--fill",
    type=OneOf(["images", "colours", "mixed"]),
    default="images",
    help="What replaces them: parts of other images, random colours, or one of them by chance.",
)
@click.option("--validation", type=float, default=0.2, help="Share of the images that is held out; 0 for none.")
@click.option("--patience", type=POSITIVE, help="Stop after this many validations without a better one.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="For random weights, deletions and batches.")
@click.option("--precision", type=OneOf(["float32", "bfloat16"]), help="Of autocast.  [default: that of the model]")
@click.option("--internal-batch-size", type=POSITIVE, default=64, help="Rows at a time; less takes less memory.")
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute; with torchrun, cuda is one GPU each.")
@threads_option
@click.option("--examples-dir", type=PATH, metavar="DIR", help="Keep images and measurements there; used again.")
@click.option("--resume", type=PATH, metavar="FILE", help="Save the run in this file, or go on from it.")
@click.option("--log-dir", type=PATH, metavar="DIR", help="Write training.csv and training.png there.")
@debug_option
@click.pass_context
def command(ctx: click.Context, debug: bool, **options: Any) -> None:
    """Learn the propagation rules of a model from a folder of images.

    The model is run on random deletions of each image, and the rules learn maps that predict what it loses. They are
    learned once; `learnprop attribute --rules` then explains any image by one backward pass. Several GPUs:
    torchrun --nproc-per-node N -m captum_learnprop.cli train ...

    Rule options of learned_epsilon_gamma_box: conv, dense, first, gamma, negative, beta, epsilon, low, high, strength,
    learn_bounds, per, bias, split, stabilizer, merge. Of learned_deeplift: baseline. Of learned_transformer and
    learned_attnlrp: mix, product. The composites' docstrings explain them.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    request = placed(Request(**options))
    if is_main():
        request.warn_of_random_weights()
    from captum_learnprop.commands import _train_rules, _training_summary

    try:
        with short_warnings(), users_mistakes():
            result = _train_rules.run(request)
    except KeyboardInterrupt:
        if is_main():
            click.echo(_training_summary.stopped(request), err=True)
        raise
    if is_main():
        click.echo("\n".join(_training_summary.summary(request, result)))
