"""``learnprop demo``: learn rules for a small net, compare them with hand-made ones, draw the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from captum_learnprop.commands._one_process import one_process


@click.command("demo")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("learnprop-demo"),
    show_default=True, help="Folder for the figure, the tables and the learned rules.",
)  # fmt: skip
@click.option("--scenes", type=click.IntRange(1), default=24, show_default=True, help="Test scenes, two digits each.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of scenes and learning.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=80,
    show_default=True,
    help="Steps of the shared rules.",
)
@click.option(
    "--sample-steps", type=click.IntRange(1), default=None,
    help="Learning steps of the rules learned per sample; the method's own number by default.",
)  # fmt: skip
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Learn rules for a small digit classifier, compare and draw them.

    The classifier is shipped, the digits come with scikit-learn: nothing is downloaded. Each scene holds
    two digits of different classes in clutter; a method is asked for one of them and scored against the
    pixels that digit has.
    """
    one_process(ctx)
    from captum_learnprop.commands import _demonstration, _threads

    plan = _demonstration.Plan(**options)
    with _threads.threads(plan.threads):
        _demonstration.run(plan)
