"""A net on scenes of two cut-out photographs, as ``learnprop evaluate`` makes it, for the scripts beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.own_net import OwnNet
from captum_learnprop.benchmark.settings import photograph_variants
from captum_learnprop.benchmark.suite import Suite
from captum_learnprop.chunks import rows_together
from captum_learnprop.models import class_names_of, load_model, preprocessing_of
from captum_learnprop.scenes.photographs import photograph_source
from captum_learnprop.scenes.scenes import Questions


def subject_of(spec: str, out: Path, **options: Any) -> OwnNet:
    """Returns the net of a specification, whose rules are in the folder of ``learnprop evaluate``.

    Args:
        spec: As ``--model`` takes it.
        out: The folder.
        options: Further fields of the suite.
    """
    net = load_model(spec)
    candidate = Candidate(spec, net, preprocessing_of(spec, net), class_names_of(spec, net))
    source = photograph_source(objects=2)
    suite = Suite.of_candidates([candidate], [source], variants=photograph_variants(), training_scenes=72, **options)
    return OwnNet(suite, candidate, source, out)


def explained(explain: Callable[[Tensor, Tensor], Tensor], questions: Questions) -> Tensor:
    """Returns the attributions of all questions, a few at a time."""
    count = rows_together(32, questions.images.shape[1:], questions.images.device)
    pairs = zip(questions.images.split(count), questions.targets.split(count), strict=True)
    return torch.cat([explain(*pair).detach() for pair in pairs])
