"""``learnprop attribute``: explain a folder of images."""

from __future__ import annotations

from typing import Any

import click

from captum_learnprop.commands._attribute_request import Report, Request, layout_of
from captum_learnprop.commands._key_value import KeyValue, as_dict
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
from captum_learnprop.commands._own_options import FLAGS, OWN
from captum_learnprop.commands._processes import Process
from captum_learnprop.commands._request import FROM_FOLDER, LABEL, PREDICTED
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import WriteError, printable


def _method_option(ctx: click.Context, parameter: click.Parameter, pairs: Any) -> dict[str, Any]:
    """Returns the pairs as a dictionary, without names that are options here; a callback of click."""
    options = as_dict(ctx, parameter, pairs)
    for name in options:
        if name in OWN:
            raise click.BadParameter(f"{name} is an option of the command: {FLAGS.get(name, f'--{name}')}")
    return options


_SHARE = click.FloatRange(0, 1)
_AS_TRAINED = "  [default: as the rules were trained]"


class _Target(click.ParamType):
    """``predicted``, ``label-from-folder``, ``label`` or a class number."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        known = (PREDICTED, FROM_FOLDER, LABEL)
        if value in known:
            return str(value)
        try:
            return int(value)
        except ValueError:
            names = ", ".join(map(repr, known))
            self.fail(f"{value!r} is neither {names} nor a class number{did_you_mean(str(value), known)}", param, ctx)


@click.command(name="attribute", context_settings={"show_default": True})
@click.option("--model", required=True, metavar="SPEC", help="What to explain, e.g. torchvision:resnet18.")
@weights_option
@checkpoint_option
@click.option(
    "--method",
    metavar="NAME",
    help="How to explain: see `learnprop plugins`, and the methods of `learnprop evaluate` such as 'Grad-CAM'.  "
    "[default: learned_propagation, with --rules]",
)
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
@click.option(
    "--images",
    required=True,
    type=PATH,
    help="Folder of images, one image, a list of paths (.txt), a CSV (path[,label]), or a WebDataset .tar.",
)
@recursive_option
@click.option(
    "--target",
    type=_Target(),
    default=PREDICTED,
    metavar=f"[{PREDICTED}|{FROM_FOLDER}|{LABEL}|NUMBER]",
    help=f"Class to explain; {FROM_FOLDER} takes it from the top sub-folder's name (implies --recursive), {LABEL} from "
    "the second column of a CSV or from the .cls members of a tar.",
)
@click.option("--out", required=True, type=PATH, help="Folder for the results.")
@click.option("--overwrite", is_flag=True, help="Delete an earlier run in the output folder first.")
@click.option(
    "--hdf5/--no-hdf5",
    default=None,
    help="Gather all maps in one HDF5 file (needs h5py).  [default: yes, for files; no, for shards]",
)
@click.option("--dataset-file", is_flag=True, help="Also write the other files that ViRelAy needs.")
@click.option("--sign", type=OneOf(SIGNS), help=f"Sign of the map that is drawn.{_AS_TRAINED}")
@click.option("--smoothing", type=_SHARE, help=f"Its smoothing, as a fraction of the sides.{_AS_TRAINED}")
@click.option(
    "--outlines", type=_SHARE, help=f"Radius of a smoothing that follows the image, as a fraction.{_AS_TRAINED}"
)
@click.option("--batch-size", type=POSITIVE, default=8, help="Images explained at a time.")
@input_options
@threads_option
@click.option(
    "--layout",
    type=OneOf(["files", "shards"]),
    help="One file an image, or many images a file.  [default: files; shards in several processes]",
)
@click.option("--shard-size", type=POSITIVE, help="Images in a shard.  [default: 256, fewer for few images]")
@click.option("--workers", type=POSITIVE, help="Threads that read images.  [default: half of the processors]")
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute.")
@click.option("--seed", type=int, default=0, help="For random weights and methods that draw at random.")
@debug_option
@click.pass_context
def command(ctx: click.Context, debug: bool, **options: Any) -> None:
    """Write attributions of a model for a folder of images.

    Each image gets a raw map (maps/*.safetensors) and an overlay (overlays/*.png), which shows the map as the rules
    were trained; index.html shows all of them, predictions.csv says what the model saw. attributions.h5 gathers
    all maps in the layout that ViRelAy reads, report.json says what was skipped. The same command again
    resumes an interrupted run.

    Under torchrun the processes share out the images, and write many images to a file (shards/*.safetensors); it
    resumes with any number of processes.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    if options["method"] is None:
        if options["rules"] is None:
            raise click.UsageError("Missing option '--method'", ctx)
        options["method"] = "learned_propagation"
    request, process = Request(**options), Process.of_environment()
    if request.dataset_file and request.hdf5 is False:
        raise click.UsageError("--dataset-file describes the HDF5 file: leave out --no-hdf5", ctx)
    if process.rank == 0:
        request.warn_of_random_weights()
    if _layout(request, process) == "shards":
        ctx.exit(_in_shards(request, process))
    ctx.exit(_in_files(request))


def _layout(request: Request, process: Process) -> str:
    """Returns the layout of the output folder: what was asked for, what is there, or what suits the processes."""
    several = process.world > 1
    there = None if request.overwrite else layout_of(request.out)
    layout = request.layout or there or ("shards" if several else "files")
    if several and layout == "files":
        raise LearnpropError(f"{process.world} processes write shards, and not one file an image: leave out --layout")
    if several and request.overwrite:
        raise LearnpropError(
            f"--overwrite in {process.world} processes: each would delete what others wrote; leave it out"
        )
    if layout == "shards" and request.dataset_file:
        raise LearnpropError("--dataset-file is for one file an image, and this run writes shards: leave it out")
    if layout == "files" and request.shard_size is not None:
        raise LearnpropError("--shard-size means nothing for one file an image: add --layout shards, or leave it out")
    return layout


def _in_files(request: Request) -> int:
    from captum_learnprop.commands import _attribute_images

    report = Report()
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
    return 0 if report.done else 1


def _in_shards(request: Request, process: Process) -> int:
    from captum_learnprop.commands import _attribute_shards

    counts = _attribute_shards.Counts()
    try:
        with users_mistakes():
            total = _attribute_shards.run(request, process, counts)
    except KeyboardInterrupt:
        click.echo(f"stopped after {counts.computed} images; the same command resumes", err=True)
        raise
    except WriteError as error:
        raise LearnpropError(f"{error}; make room, the same command resumes") from error
    if total is None:
        click.echo(f"process {process.rank}: {counts.computed} images explained; others are still at work")
        return 0
    click.echo(f"{total} in {request.out}; `learnprop merge --out {request.out}` gathers all maps in one HDF5 file")
    return 0 if total.done else 1
