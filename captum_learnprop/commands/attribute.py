"""``learnprop attribute``: explain a folder of images."""

from __future__ import annotations

from typing import Any

import click

from captum_learnprop.commands._attribute_request import Report, Request
from captum_learnprop.commands._key_value import KeyValue, as_dict
from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_of import OneOf
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
from captum_learnprop.commands._own_options import FLAGS, OWN
from captum_learnprop.commands._request import FROM_FOLDER, PREDICTED
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import WriteError, printable


def _method_option(ctx: click.Context, parameter: click.Parameter, pairs: Any) -> dict[str, Any]:
    """Returns the pairs as a dictionary, without names that are options here; a callback of click."""
    options = as_dict(ctx, parameter, pairs)
    for name in options:
        if name in OWN:
            raise click.BadParameter(f"{name} is an option of the command: {FLAGS.get(name, f'--{name}')}")
    return options


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
@click.option(
    "--rules", type=PATH, metavar="FILE|NAME",
    help="Trained rule set, for every gradient-based method: a file, or one that ships, e.g. efficientnet_lite0/lrp.",
)  # fmt: skip
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
@input_options
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
    from captum_learnprop.commands import _attribute_images

    report = Report()
    request.warn_of_random_weights()
    try:
        with users_mistakes():
            _attribute_images.run(request, report)
    except KeyboardInterrupt as error:
        during = f" ({error.during})" if hasattr(error, "during") else ""
        click.echo(f"stopped with {report}; the same command resumes{during}", err=True)
        raise
    except WriteError as error:
        raise LearnpropError(f"{error}; {report}: make room, the same command resumes") from error
    for name, reason in report.skipped.items():
        click.echo(f"skipped {printable(name)}: {reason}", err=True)
    click.echo(f"{report} in {request.out}")
    ctx.exit(0 if report.done else 1)
