"""``learnprop demo``: ready rules of a real net on photographs, or rules that are learned on digits while you wait."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from captum_learnprop.commands._one_process import one_process

DIGITS_ONLY = ("scenes", "steps", "sample_steps")


@click.command("demo")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("learnprop-demo"),
    show_default=True, help="Folder for the figure and the scores; with --digits also tables and learned rules.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of mosaics, scenes, learning.")
@click.option(
    "--threads", type=click.IntRange(1), default=None, help="CPU threads.  [default: 2; with --digits 1]"
)  # fmt: skip
@click.option("--digits", is_flag=True, help="Learn rules for a small digit classifier instead, a minute or two.")
@click.option(
    "--scenes", type=click.IntRange(1), default=24, show_default=True, help="--digits: test scenes, two digits each."
)  # fmt: skip
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=80,
    show_default=True,
    help="--digits: steps of the shared rules.",
)
@click.option(
    "--sample-steps", type=click.IntRange(1), default=None,
    help="--digits: learning steps of the rules learned per sample; the method's own number by default.",
)  # fmt: skip
@click.pass_context
def command(ctx: click.Context, digits: bool, threads: int | None, **options: Any) -> None:
    """Explain a real ImageNet net on photographs by rules that were trained before, next to hand-made methods.

    The net is EfficientNet-Lite0, the photographs are scikit-image's, the rules ship with this package: nothing is
    downloaded and nothing trained. Mosaics of four photographs have a ground truth: what is in the other three quarters
    cannot speak for the class of one.

    With --digits rules are learned on the spot for a small digit classifier, which is shipped. Each scene holds two
    digits of different classes in clutter; a method is asked for one of them and scored against the pixels that digit
    has.
    """
    one_process(ctx)
    if digits:
        _digits(threads or 1, options)
        return
    for name in DIGITS_ONLY:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --digits", ctx)
    _photographs(threads or 2, options)


def _digits(threads: int, options: dict[str, Any]) -> None:
    from captum_learnprop.commands import _demonstration_digits, _threads

    with _threads.threads(threads):
        _demonstration_digits.run(_demonstration_digits.Plan(**options, threads=threads))


def _photographs(threads: int, options: dict[str, Any]) -> None:
    # Threads of torch that wait for each other by spinning take ten times as long where another program wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from captum_learnprop.commands import _demonstration_photographs, _threads

    plan = _demonstration_photographs.Plan(out=options["out"], seed=options["seed"], threads=threads)
    with _threads.threads(threads):
        _demonstration_photographs.run(plan)
