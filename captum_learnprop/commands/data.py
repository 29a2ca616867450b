"""``learnprop data``: fetch what experiments need and the project may not ship."""

from __future__ import annotations

from pathlib import Path

import click

from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._options import FILE


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Fetch what experiments need and the project may not ship."""


@command.command("photos")
@click.option("--deb", multiple=True, type=FILE, help="A package that you have, in place of a download. Repeatable.")
@click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path),
    help="Where to put them.  [default: $LEARNPROP_CACHE, else ~/.cache/captum-learnprop]",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Make them anew where they are complete.")
@click.pass_context
def photos(ctx: click.Context, deb: tuple[Path, ...], cache: Path | None, overwrite: bool) -> None:
    """Fetch 40 cut-out photographs and 36 photographed backgrounds, for scenes with exact ground truth.

    They come from four Debian packages (320 MB), by `apt-get download` where there is one, which needs no root
    and installs nothing; else from the files that --deb names. Only the pictures that are used are kept
    (30 MB). Scenes of them are `--scenes photos`.
    """
    one_process(ctx)
    from captum_learnprop.commands import _photographs

    _photographs.run(deb, cache, overwrite=overwrite, say=click.echo)
