"""What maps depend on, in plain words: the analysis of a few backward rules on the pictures at hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.analysis import Analysis, analyse
from captum_learnprop.evaluation.backward_rules import RULES, BackwardRule, backward_rule
from captum_learnprop.explanation.framing import framed
from captum_learnprop.forward import output_of
from captum_learnprop.web.job import Job
from captum_learnprop.web.visit import Visit
from captum_learnprop.wording import counted
from zennit_rules import RuleSet

MOST_PICTURES = 8
"""Pictures that are analysed at most: every re-initialised net explains all of them."""

_PIXELS = 3 * 224 * 224
"""Pixels of all inputs together, of which a rule takes about a minute of one core on EfficientNet-Lite0."""

AT_HAND = ("gradient",)
"""Rules that are ticked to begin with."""


def picture_count(visit: Visit) -> int:
    """Returns how many pictures are analysed: few of a net with large inputs, never fewer than two."""
    height, width = visit.input.shape[-2:]
    return max(2, min(MOST_PICTURES, _PIXELS // (height * width)))


def rule_choices(visit: Visit) -> list[str]:
    """Returns the rules that can be analysed: hand-made ones, those that ship for the model, those trained here."""
    hand_made = [name for name in RULES if name != "attnlrp" or visit.model.anatomy is not None]
    return [*hand_made, *visit.model.ready, *visit.own_rules()]


def start_analysis(visit: Visit, names: Sequence[str], pictures: Sequence[Image.Image]) -> Job[Analysis]:
    """Starts to measure some rules, on a copy of the model.

    Args:
        visit: What is looked at.
        names: Of `rule_choices`.
        pictures: What is explained, at most `MOST_PICTURES`, see `picture_count`; of each the predicted class.

    Raises:
        LearnpropError: There is no such rule, or no picture.
    """
    model, known = visit.model, visit.model.known
    wrong = [name for name in names if name not in rule_choices(visit)]
    if wrong or not names:
        raise LearnpropError(f"there is no rule {wrong[0]!r}" if wrong else "there is no rule to analyse: choose some")
    if not pictures:
        raise LearnpropError("there is no picture to analyse")
    files = {name: visit.file_of(name) if name in visit.trained else name for name in names}
    inputs = torch.cat([framed(one, known.prepare).input for one in pictures[:MOST_PICTURES]])
    inputs = inputs.to(known.device, known.dtype)

    def work(job: Job[Analysis]) -> Analysis:
        with model.busy:
            net = copy.deepcopy(known.net)
        targets = _predicted(net, inputs)
        net.register_forward_pre_hook(lambda module, given: job.check())  # nets that are made of it have it too
        rules = [_rule(name, file, net, inputs) for name, file in files.items()]
        done = iter(range(len(rules)))

        def on_rule(name: str) -> None:
            job.note(next(done) / len(rules), f"measuring {name} on {counted(len(inputs), 'picture')}")

        return analyse(net, rules, inputs, targets, name=model.choice.spec, on_rule=on_rule)

    return Job(work, "the analysis")


def _predicted(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return output_of(net, (inputs,)).argmax(1)


def _rule(name: str, file: str | Path, net: nn.Module, inputs: Tensor) -> BackwardRule:
    if name in RULES:
        return backward_rule(name, net, inputs)
    return backward_rule(RuleSet.load(file, net), net, inputs, name)
