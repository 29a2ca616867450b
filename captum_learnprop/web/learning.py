"""Rules trained while the page is open, on a copy of the net: the page goes on meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation.framing import framed
from captum_learnprop.training.parts import held_out_images
from captum_learnprop.training.trainer import HELD_OUT, RuleTrainer
from captum_learnprop.web.job import Job
from captum_learnprop.web.offered import OfferedModel
from zennit_rules import RuleSet

FEWEST = 4
"""Pictures that rules are trained on at least: one in five is held out."""

MOST_STEPS = 200
"""Steps that may be asked for."""

_FOR_ANY = {
    "gates": "learned_gradient",
    "LRP": "learned_epsilon_gamma_box",
    "DeepLIFT": "learned_deeplift",
    "guided backprop": "learned_guided_backprop",
}
_FOR_TRANSFORMERS = {"gates": "learned_transformer", "AttnLRP": "learned_attnlrp"}


def families(model: OfferedModel) -> dict[str, str]:
    """Returns the composites that can be trained for a model, by what the page calls them."""
    return _FOR_ANY if model.anatomy is None else _FOR_TRANSFORMERS


def start_training(
    model: OfferedModel, pictures: Sequence[Image.Image], family: str, steps: int | None = None
) -> Job[RuleSet]:
    """Starts a training.

    Args:
        model: Whose rules are learned.
        pictures: What they are learned from; labels are not needed.
        family: One of `families`.
        steps: Steps of the optimiser; None for as many as suit the number of pictures.

    Raises:
        LearnpropError: There are too few pictures, no such family, or too many steps.
    """
    if len(pictures) < FEWEST:
        raise LearnpropError(f"rules are trained on {FEWEST} pictures at least, there are {len(pictures)}")
    known = families(model)
    if family not in known:
        raise LearnpropError(f"there are no rules {family!r} for {model.choice.spec}: choose {', '.join(known)}")
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise LearnpropError(f"steps must be 1 to {MOST_STEPS}, got {steps}")

    def learn(job: Job[RuleSet]) -> RuleSet:
        with model.busy:
            net = copy.deepcopy(model.known.net)
        trainer = RuleTrainer(net, known[family], steps=steps)
        count = trainer.options.steps_for(len(pictures) - held_out_images(len(pictures), HELD_OUT))
        rows, learned = len(pictures) * (1 + trainer.options.deletions), 0
        seen = 0

        def on_pass(module: nn.Module, given: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += len(given[0])
            if learned:
                job.check()
            else:
                share = min(1.0, seen / rows)
                job.note(0.5 * share, f"measuring what deletions cost: {100 * share:.0f} %")

        def on_step(row: dict[str, float]) -> None:
            nonlocal learned
            learned = int(row["step"])
            job.note(0.5 + 0.5 * learned / count, f"learning: step {learned} of {count}")

        inputs = torch.cat([framed(picture, model.known.prepare).input for picture in pictures]).to(model.known.dtype)
        net.register_forward_pre_hook(on_pass)  # every pass of the copy looks whether the job goes on
        return trainer.fit(inputs, on_step=on_step)

    return Job(learn, "the training")
