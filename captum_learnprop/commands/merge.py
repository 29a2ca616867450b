"""``learnprop merge``: one HDF5 file, a table and pages of what many processes have written in shards."""

from __future__ import annotations

from pathlib import Path

import click

from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._options import DIRECTORY, debug_option


@click.command(name="merge", context_settings={"show_default": True})
@click.option("--out", required=True, type=DIRECTORY, help="Folder that `learnprop attribute` wrote shards to.")
@click.option("--hdf5/--no-hdf5", default=True, help="Gather all maps in one HDF5 file (needs h5py).")
@click.option("--partial", is_flag=True, help="Gather what is there, where images are missing.")
@debug_option
@click.pass_context
def command(ctx: click.Context, out: Path, hdf5: bool, partial: bool, debug: bool) -> None:
    """Gather the shards that `learnprop attribute` wrote in several processes.

    attributions.h5 holds all maps in the layout that ViRelAy reads; predictions.csv, index.html and report.json are
    made anew. The shards stay as they are.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    one_process(ctx)
    from captum_learnprop.commands import _merge_shards

    with users_mistakes():
        total = _merge_shards.run(out, hdf5=hdf5, partial=partial)
    click.echo(f"{total} in {out}")
    ctx.exit(0 if total.done else 1)
