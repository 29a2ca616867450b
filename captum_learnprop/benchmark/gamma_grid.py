"""Gammas of layer-wise relevance propagation by search: how LRP is tuned today, at the cost of a training.

Two grids over zennit's own rules, dense layers with gamma 0 having the epsilon rule:

- `PAIRS`: one gamma for all convolutions, one for all dense layers: the 15 pairs that LXT's example for vision
  transformers tries (Achtibat et al., "AttnLRP", ICML 2024).
- `GROUPS`: a gamma of seven values for each of four groups of layers, convolutions of low, middle and high depth and
  dense layers: the 2401 settings of Pahde et al., "Optimizing Explanations by Network Canonization and Hyperparameter
  Search", CVPR workshops 2023, each with the box rule at the first convolution, and with gamma there as well. As
  many as the budget allows are drawn at random.

Settings are judged
without labels, by the objective that rules are trained with: how well maps predict what random deletions cost.
All are judged on the same rows, and all together may take as many attribution passes as a training does
(`trainer.Options.passes`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from zennit.composites import layer_map_base
from zennit.rules import Epsilon, Gamma

from captum_learnprop.benchmark.explain import Explain
from captum_learnprop.benchmark.hand_made_lrp import LinearLayers, Lrp, linear_layers
from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import SIGNS, postprocess
from captum_learnprop.training.examples import Examples
from captum_learnprop.training.regions import unpacked
from captum_learnprop.training.terms import OcclusionRegression
from captum_learnprop.training.trainer import training_defaults
from zennit_rules import LearnedEpsilonGammaBox
from zennit_rules._moved import renamed

BOX, GAMMA = "box", "gamma"
FIRSTS = (BOX, GAMMA)
"""Rules of the first convolution."""

BATCH = 32
"""Rows explained together."""

TERM = training_defaults(LearnedEpsilonGammaBox.name).term
"""What settings are judged by: the objective that LRP rules are trained with."""


@dataclass(frozen=True)
class Setting:
    """What a search decides.

    Attributes:
        convolutions: gammas of as many groups of convolutions, by depth from the input on, of equal size.
        dense: gamma of dense layers.
        first: `BOX` for the first convolution, or `GAMMA` for that of its group.
    """

    convolutions: tuple[float, ...]
    dense: float
    first: str = BOX

    def lrp(self) -> Lrp:
        """The method; its seed is the output itself, whose sign both rules of dense layers follow."""
        return Lrp(partial(_composite, self))

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Setting:
        """Makes one from its fields, as JSON has them."""
        return cls(**{**fields, "convolutions": tuple(fields["convolutions"])})


@dataclass(frozen=True)
class Grid:
    """The settings that a search chooses from.

    Attributes:
        name: as in tables.
        convolutions: values of the gammas of convolutions.
        groups: of convolutions.
        dense: values of the gamma of dense layers.
        firsts: rules of the first convolution.
        rows: that each setting is judged on; None for as many as the budget has for all settings.
    """

    name: str
    convolutions: tuple[float, ...]
    groups: int
    dense: tuple[float, ...]
    firsts: tuple[str, ...] = FIRSTS
    rows: int | None = None

    def __len__(self) -> int:
        """Number of settings."""
        return len(self.convolutions) ** self.groups * len(self.dense) * len(self.firsts)

    def __getitem__(self, index: int) -> Setting:
        """The setting of a number below ``len(grid)``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} settings, there is no number {index}")
        index, first = divmod(index, len(self.firsts))
        index, dense = divmod(index, len(self.dense))
        gammas = []
        for _ in range(self.groups):
            index, gamma = divmod(index, len(self.convolutions))
            gammas.append(self.convolutions[gamma])
        return Setting(tuple(gammas), self.dense[dense], self.firsts[first])

    def draw(self, count: int, seed: int) -> list[Setting]:
        """Different settings at random; all of them, in order, where ``count`` is enough for that."""
        chosen = range(len(self)) if count >= len(self) else random.Random(seed).sample(range(len(self)), count)
        return [self[index] for index in chosen]

    def rows_for(self, budget: int, available: int) -> int:
        """Rows that each setting is judged on.

        Raises:
            LearnpropError: a budget that is not enough for that.
        """
        rows = min(available, budget // len(self) if self.rows is None else self.rows)
        if not 1 <= rows <= budget:
            raise LearnpropError(
                f"{self.name}: {budget} attribution passes and {available} rows are too few for its {len(self)} "
                "settings; train for more steps"
            )
        return rows


PAIRS = Grid("LRP gamma grid, 15 pairs", (0.1, 0.25, 100.0), 1, (0.0, 0.01, 0.05, 0.1, 1.0), (GAMMA,))

_SEVEN = (0.0, 0.1, 0.25, 0.5, 1.0, 10.0, 50.0)

GROUPS = Grid("LRP gamma grid, 4 groups", _SEVEN, 3, _SEVEN, rows=24)
"""A grid of many settings: the budget of a default training allows for 90 of them, each on 24 rows."""

GRIDS = (PAIRS, GROUPS)


@dataclass(frozen=True)
class Scored:
    """A setting with its mean occlusion correlation, of maps with the sign that suits it best.

    The sign is part of the choice because it costs no pass.
    """

    setting: Setting
    sign: str
    score: float

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Scored:
        """Makes one from its fields, as JSON has them."""
        return cls(Setting.of(fields["setting"]), fields["sign"], fields["score"])


@dataclass(frozen=True)
class Search:
    """A search that was made.

    Attributes:
        trace: what was judged, in order.
        settings: how many there are to judge.
        rows: that each setting is judged on.
        seconds: that it took.
    """

    trace: tuple[Scored, ...]
    settings: int
    rows: int
    seconds: float

    def __repr__(self) -> str:
        """Returns how far the search got and what it found, without all that was judged."""
        best = f", best {self.best.score:.3f} by {self.best.setting}" if self.trace else ""
        return f"Search({len(self.trace)} of {self.settings} settings on {self.rows} rows{best})"

    @property
    def finished(self) -> bool:
        """Whether all settings were judged."""
        return len(self.trace) == self.settings

    @property
    def best(self) -> Scored:
        """The highest score, the first of equals."""
        return max(self.trace, key=lambda one: one.score)

    @property
    def passes(self) -> int:
        """Attribution passes."""
        return self.rows * len(self.trace)

    def config(self) -> dict[str, Any]:
        """Returns all fields for JSON, which `of` reads."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Search:
        """Makes one from its fields, as JSON has them."""
        return cls(tuple(map(Scored.of, fields["trace"])), fields["settings"], fields["rows"], fields["seconds"])


def search(
    model: nn.Module,
    grid: Grid,
    examples: Examples,
    *,
    budget: int,
    smoothing: float = 0.025,
    term: OcclusionRegression = TERM,
    seed: int = 0,
    known: Search | None = None,
    on_scored: Callable[[Search], None] | None = None,
) -> Search:
    """The best setting of a grid that a budget allows to find.

    Args:
        model: what is explained; it comes back untouched.
        grid: the settings.
        examples: training images with their deletions, see `RuleTrainer.measure`.
        budget: attribution passes.
        smoothing: of maps, as a fraction of the sides (see `per_axis`).
        term: the objective.
        seed: of the rows, and of the settings where not all can be tried.
        known: an interrupted search with the same arguments, which is gone on with.
        on_scored: called after each setting with the search so far.

    Raises:
        LearnpropError: a budget too small for the grid, or a ``known`` search with other settings.
        LearnpropError: Some function of the net has no rule, see `linear_layers`.
    """
    rows = grid.rows_for(budget, len(examples))
    chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:rows]
    judge = _Judge(examples.rows(chosen), smoothing, term)
    settings = grid.draw(budget // rows, seed)
    found = Search((), len(settings), rows, 0.0) if known is None else known
    same = [one.setting for one in found.trace] == settings[: len(found.trace)]
    if not same or (found.settings, found.rows) != (len(settings), rows):
        raise LearnpropError(f"{grid.name}: the search to go on with is one of other settings; delete it")
    layers = linear_layers(model, judge.inputs[:1])
    start = time.perf_counter() - found.seconds
    for setting in settings[len(found.trace) :]:
        trace = (*found.trace, judge(setting, setting.lrp().on(model, layers)))
        found = Search(trace, len(settings), rows, round(time.perf_counter() - start, 1))
        if on_scored is not None:
            on_scored(found)
    return found


class _Judge:
    """Scores settings on the same rows."""

    def __init__(self, rows: dict[str, Tensor], smoothing: float, term: OcclusionRegression) -> None:
        self.inputs, self.targets, self.drops = rows["inputs"], rows["targets"], rows["drops"]
        self.regions = unpacked(rows["regions"], tuple(self.inputs.shape[1:]))
        self.smoothing, self.term = smoothing, term

    def __call__(self, setting: Setting, explain: Explain) -> Scored:
        pairs = zip(self.inputs.split(BATCH), self.targets.split(BATCH), strict=True)
        attribution = torch.cat([explain(*pair) for pair in pairs])
        score, sign = max((self._correlation(attribution, sign), sign) for sign in SIGNS)
        return Scored(setting, sign, round(score, 6))

    def _correlation(self, attribution: Tensor, sign: str) -> float:
        """Mean over rows; one whose relevance overflowed predicts nothing and counts 0."""
        maps = postprocess(attribution, sign, self.smoothing)
        values = 1 - self.term.of_maps(maps, self.regions, self.drops)
        return values.nan_to_num(0.0).mean().item()


def _composite(setting: Setting, layers: LinearLayers) -> Any:
    """The zennit composite of a setting."""
    by_name = layers.box() if setting.first == BOX else []
    groups = _by_depth(layers.convolutions, len(setting.convolutions))
    by_name += [(tuple(group), _rule(gamma)) for group, gamma in zip(groups, setting.convolutions, strict=True)]
    return layers.composite([*layer_map_base(), ((nn.Linear,), _rule(setting.dense))], by_name)


def _by_depth(layers: Sequence[str], groups: int) -> list[Sequence[str]]:
    """Layers in the order of their calls, in groups of equal size but for one."""
    bounds = [len(layers) * number // groups for number in range(groups + 1)]
    return [layers[start:end] for start, end in pairwise(bounds)]


def _rule(gamma: float) -> Any:
    return Gamma(gamma) if gamma else Epsilon()


__getattr__ = renamed(__name__, {"GammaGridError": "LearnpropError"})
