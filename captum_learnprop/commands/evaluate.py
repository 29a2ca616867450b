"""``learnprop evaluate``: compare methods on scenes with known ground truth, with error bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from captum_learnprop.commands._one_of import OneOf
from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._options import (
    DIRECTORY,
    FILE,
    checkpoint_option,
    input_options,
    weights_option,
)
from captum_learnprop.commands._suite_choices import COMPOSITES, OWN_SCENES, SCENES, TRANSFORMER_COMPOSITES


class Seeds(click.ParamType):
    """Whole numbers of at least 0, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns the numbers, each once."""
        if isinstance(value, tuple):
            return value
        try:
            seeds = tuple(dict.fromkeys(int(part) for part in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 0,1,2", param, ctx)
        if min(seeds) < 0:
            self.fail(f"{value!r} has a negative number", param, ctx)
        return seeds


class Family(OneOf):
    """A composite, by its name or a short one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the full name."""
        from captum_learnprop.commands import _compare_methods

        return super().convert(_compare_methods.full_name(value), param, ctx)


@click.command("evaluate")
@click.option(
    "--model", multiple=True, metavar="SPEC",
    help="Net: vgg, resnet or inception for the reference nets, all of them by default; or any other, such as "
    "torchvision:resnet18, timm:NAME, huggingface:FOLDER, efficientnet_lite:0, FILE.py:FUNCTION. Repeatable.",
)  # fmt: skip
@weights_option
@checkpoint_option
@click.option(
    "--scenes", multiple=True, type=OneOf((*SCENES, *OWN_SCENES)),
    help="Scenes of digits, for the reference nets, all by default; or cutouts, photos (of `learnprop data photos`, "
    "the default for other nets), mosaics (of whole photographs) or masks (a segmentation of your own); or mnist (two "
    "digits) or faces (which way one is turned), for nets of your own that know them, with --size 64. Repeatable.",
)  # fmt: skip
@click.option("--cutouts", type=DIRECTORY, help="Folder of pictures with an alpha channel, for --scenes cutouts.")
@click.option(
    "--labels", type=FILE,
    help="CSV with the columns file and class, for --scenes cutouts, mosaics and masks; without it the masks are those "
    "of what the net says.",
)  # fmt: skip
@click.option("--backgrounds", type=DIRECTORY, help="Folder of photographs, for --scenes cutouts.")
@click.option("--images", type=DIRECTORY, help="Folder of photographs, for --scenes masks and mosaics.")
@click.option("--masks", type=DIRECTORY, help="Folder of masks with the names of the images, for --scenes masks.")
@click.option(
    "--objects", type=click.Choice(["1", "2", "4"]), default="2", show_default=True,
    help="Cut-outs in a scene, for --scenes cutouts and photos.",
)  # fmt: skip
@click.option(
    "--seen-among", type=click.IntRange(0), default=10, show_default=True,
    help="Ask about scenes whose classes are among so many highest ones of the net; 0 for all scenes.",
)  # fmt: skip
@input_options
@click.option(
    "--composite", multiple=True, type=Family((*COMPOSITES, *TRANSFORMER_COMPOSITES)),
    help="Family of trained rules; all by default. Repeatable.",
)  # fmt: skip
@click.option("--method", multiple=True, help="Method, as in the tables; all by default. Repeatable.")
@click.option(
    "--metric",
    multiple=True,
    help="Metric, of a plugin too, or a heading of the tables; all headings by default. Repeatable.",
)
@click.option("--seeds", type=Seeds(), default="0,1,2", show_default=True, help="Training seeds of learned methods.")
@click.option("--questions", type=click.IntRange(1), default=48, show_default=True, help="Questions per family.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the scenes.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Training steps, for a quick run.")
@click.option("--sample-steps", type=click.IntRange(1), default=None, help="Steps of the rules learned per sample.")
@click.option(
    "--training-scenes", type=click.IntRange(2), default=None,
    help="Scenes that rules learn from.  [default: 128, of photographs 72]",
)  # fmt: skip
@click.option(
    "--rules", multiple=True, type=click.Path(path_type=Path),
    help="A rule set of one of the nets, a file or the name of a ready one, as a further method. Repeatable.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("learnprop-evaluation"),
    show_default=True, help="Folder for cells, learned rules, tables and figure; a run goes on where it stopped.",
)  # fmt: skip
@click.option(
    "--max-hours", type=click.FloatRange(0, min_open=True), default=12.0, show_default=True,
    help="Refuse a run that would take longer on this machine.",
)  # fmt: skip
@click.option("--report-only", is_flag=True, help="Write tables and figure of the cells that are there.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads.")
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Compare methods on scenes with known ground truth, on any net.

    Scenes are photographed cut-outs on photographs, mosaics, or images with masks of your own; the reference nets have
    scenes of digits. Rules are learned without labels on training scenes, once per net and training seed; every
    hand-made method gets the treatment of its maps that is best on validation scenes; all are scored on test scenes,
    whose objects and backgrounds are in no other split. Writes results.json, table.md, report.html, figure.png.

    \b
      learnprop evaluate --model efficientnet_lite:0 --scenes photos --out DIR
      learnprop evaluate --model my_net.py:make --scenes cutouts --cutouts DIR --labels CSV --backgrounds DIR --out DIR

    Interrupt it at will: what is done is kept in OUT. Processes with different --model may share OUT; run the whole
    once more with --report-only for one table.
    """
    one_process(ctx)
    from captum_learnprop.commands import _compare_methods, _threads

    plan = _compare_methods.Plan(**options)
    with _threads.threads(plan.threads):
        _compare_methods.run(plan)
