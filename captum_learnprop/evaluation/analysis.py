"""One report per backward rule: does its map depend on the weights, on the class, or on the input alone?

Gathers what `alignment` and `randomization` measure, says in plain words what it means, and writes it down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.active_span import retained_energy
from captum_learnprop.evaluation.alignment import (
    class_alignment,
    direction_convergence,
    input_alignment,
    negative_filtering,
)
from captum_learnprop.evaluation.backward_rules import BackwardRule
from captum_learnprop.evaluation.randomization import full_randomization, parameter_randomization
from captum_learnprop.evaluation.similarity import spearman
from captum_learnprop.forward import output_of
from captum_learnprop.tables import html, markdown
from captum_learnprop.wording import counted

LOW, HIGH = 0.15, 0.5
"""A map whose correlation with those of re-initialised nets is up to the first depends on the weights, above the second
hardly."""

SAME_CLASS, OTHER_CLASS = 0.9, 0.5
"""A cosine of two classes' maps above the first says nothing of the class, up to the second something else."""

ALIGNED = 0.2
"""A centred cosine of map and input above this redraws the input, at least in part."""


RETAINED = 16
"""Images that the retained energy is measured on, which takes many passes through every layer."""


@dataclass(frozen=True)
class RuleReport:
    """What was measured of one rule, means over the images; layers from the input on.

    Attributes:
        rule: its name.
        alignment: centred cosine of signal and input, by layer.
        alignment_raw: the same, not centred.
        classes: cosine of the signals of two classes, by layer.
        convergence: of random vectors that start at the last layer, by layer.
        passed_positive: share of the positive signal that passes, by activation.
        passed_negative: share of the negative signal.
        cascading: rank correlation of signed maps while layers are re-initialised from the output on, by layer.
        full: that with all parameters re-initialised, in absolute value.
        full_absolute: the same of maps of absolute values, which the outlines of the image alone make alike.
        redraws: rank correlation of the map's absolute values with the image's distance from its mean colour.
        verdicts: in plain words: weights, class, input.
        share: of the net's multiply-adds, how much has a rule; 1 where linear functions need none.
    """

    rule: str
    alignment: dict[str, float]
    alignment_raw: dict[str, float]
    classes: dict[str, float]
    convergence: dict[str, float]
    passed_positive: dict[str, float]
    passed_negative: dict[str, float]
    cascading: dict[str, float]
    full: float
    full_absolute: float
    redraws: float
    verdicts: dict[str, str]
    share: float = 1.0

    def __repr__(self) -> str:
        return f"RuleReport({self.rule!r}: {' '.join(self.verdicts.values())})"

    def _repr_html_(self) -> str:
        """Returns the verdicts as a table, for a notebook."""
        rows = [[about, text.partition(": ")[2]] for about, text in self.verdicts.items()]
        return html(["about", self.rule], rows)


_COLUMNS = (
    "rule", "re-initialised nets", "absolute", "two classes", "input (centred)", "redraws", "random vectors",
)  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """Reports of several rules on the same model and images.

    Attributes:
        model: its name.
        images: how many.
        retained: share of each layer's input in the span of its active units, by layer, of the first `RETAINED` images.
        reports: one per rule.
    """

    model: str
    images: int
    retained: dict[str, float]
    reports: tuple[RuleReport, ...]

    def __repr__(self) -> str:
        rules = ", ".join(one.rule for one in self.reports)
        return f"Analysis({self.model!r}, {counted(self.images, 'image')}: {rules})"

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; numbers that do not exist are None."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def to_markdown(self) -> str:
        """Returns a table of all rules, then what it means for each."""
        lines = [
            f"# Backward rules of {self.model}", "",
            f"Means over {self.images} images; the cosines are those at the first layer's input.", "",
            markdown(_COLUMNS, self._rows()), "",
        ]  # fmt: skip
        for one in self.reports:
            reach = f"{one.share:.1%} of the net's multiply-adds have a rule"
            lines += [f"## {one.rule}", "", *(f"* {text}" for text in (*one.verdicts.values(), reach)), ""]
        lines += [
            "Columns: rank correlation with the maps of re-initialised nets (0 is best), signed and of absolute "
            "values; cosine between the maps of two classes (1 says nothing of the class); cosine with the input; rank "
            "correlation with the image's distance from its mean colour; cosine between signals that start as random "
            "vectors at the last layer "
            "(1: whatever is asked above, the map is the same).",
            "",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Returns the table of all rules, for a notebook."""
        return html(_COLUMNS, self._rows())

    def _rows(self) -> list[list[str]]:
        rows = []
        for one in self.reports:
            numbers = (
                one.full, one.full_absolute, first(one.classes), first(one.alignment), one.redraws,
                first(one.convergence),
            )  # fmt: skip
            rows.append([one.rule, *map(_number, numbers)])
        return rows


def analyse(
    model: nn.Module,
    rules: Sequence[BackwardRule],
    inputs: Tensor,
    targets: Tensor,
    *,
    others: Tensor | None = None,
    seeds: Sequence[int] = (0,),
    recalibrate: bool = True,
    name: str | None = None,
    internal_batch_size: int = 16,
    on_rule: Callable[[str], None] | None = None,
) -> Analysis:
    """Measures rules on a model: what their maps depend on.

    Args:
        model: in evaluation mode; comes back untouched.
        rules: Backward rules, made by `backward_rules.backward_rule`.
        inputs: ``(B, C, *spatial)``.
        targets: ``(B,)`` int64.
        others: ``(B,)`` int64, the class to compare with; by default the highest output beside the target.
        seeds: of re-initialised nets.
        recalibrate: measure the batch norms of re-initialised nets anew on the inputs.
        name: of the model, for the report.
        internal_batch_size: how many inputs are propagated together.
        on_rule: called with each rule's name before it is measured.

    Raises:
        LearnpropError: no rule, or inputs that do not fit.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
        >>> inputs, targets = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
        >>> analyse(model, [backward_rule("gradient", model, inputs)], inputs, targets, name="tiny")
        Analysis('tiny', 2 images: gradient)
    """
    if not rules:
        raise LearnpropError("nothing to analyse: give at least one rule")
    if others is None:
        with torch.no_grad():
            output = torch.cat([output_of(model, (part,)) for part in inputs.split(internal_batch_size)])
        others = output.scatter(1, targets[:, None], -torch.inf).argmax(1)
    shared: dict[str, Any] = {"internal_batch_size": internal_batch_size}
    reports = []
    for rule in rules:
        if on_rule is not None:
            on_rule(rule.name)
        reports.append(_report(model, rule, inputs, targets, others, seeds, recalibrate, shared))
    retained = retained_energy(model, inputs[:RETAINED], **shared).mean()
    return Analysis(name or type(model).__name__, len(inputs), retained, tuple(reports))


def _report(
    model: nn.Module,
    rule: BackwardRule,
    inputs: Tensor,
    targets: Tensor,
    others: Tensor,
    seeds: Sequence[int],
    recalibrate: bool,
    shared: dict[str, Any],
) -> RuleReport:
    def explain(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return rule.attribution(net, images, classes).sum(1)

    data = inputs if recalibrate else None
    options: dict[str, Any] = {"absolute": False, "recalibrate": data, **shared}
    cascade = parameter_randomization(model, explain, inputs, targets, **options)
    full, full_absolute = (
        full_randomization(model, explain, inputs, targets, seeds=seeds, **{**options, "absolute": absolute})
        .nanmean()
        .item()
        for absolute in (False, True)
    )
    aligned = input_alignment(model, rule, inputs, targets, centred=True, **shared)
    classes = class_alignment(model, rule, inputs, targets, others, **shared)
    filtering = negative_filtering(model, rule, inputs, targets, **shared)
    maps = torch.cat([
        rule.attribution(model, x, y).abs().sum(1)
        for x, y in zip(inputs.split(16), targets.split(16), strict=True)
    ])  # fmt: skip
    spatial = tuple(range(2, inputs.dim()))
    distance = (inputs - inputs.mean(spatial, keepdim=True)).square().sum(1).sqrt()
    redraws = spearman(maps, distance).nanmean().item()
    report = RuleReport(
        rule=rule.name,
        alignment=aligned.mean(),
        alignment_raw=input_alignment(model, rule, inputs, targets, **shared).mean(),
        classes=classes.mean(),
        convergence=direction_convergence(model, rule, inputs, **shared).mean(),
        passed_positive=filtering.positive.mean(),
        passed_negative=filtering.negative.mean(),
        cascading=dict(zip(cascade.layers, cascade.similarity.nanmean(1).tolist(), strict=True)),
        full=full,
        full_absolute=full_absolute,
        redraws=redraws,
        verdicts={},
        share=rule.rules.coverage().share,
    )
    return RuleReport(**{**vars(report), "verdicts": verdicts(report)})


def verdicts(report: RuleReport) -> dict[str, str]:
    """Returns what the numbers mean, in a sentence each."""
    same, classes, aligned = max(report.full, report.full_absolute), first(report.classes), first(report.alignment)
    numbers = f"{report.full:.2f}, their absolute values by {report.full_absolute:.2f}"
    if math.isnan(report.full + report.full_absolute):
        weights = "Weights: the map is constant for re-initialised nets, so nothing can be compared."
    elif same <= LOW:
        weights = f"Weights: it depends on them; maps of re-initialised nets correlate by {numbers}."
    elif same <= HIGH:
        weights = f"Weights: in part; maps of re-initialised nets still correlate by {numbers}."
    else:
        weights = f"Weights: hardly; maps of re-initialised nets are much the same: they correlate by {numbers}."
    if classes <= OTHER_CLASS:
        about = f"Class: another class has another map (cosine {classes:.2f})."
    elif classes <= SAME_CLASS:
        about = f"Class: another class has a map that is in part the same (cosine {classes:.2f})."
    else:
        about = f"Class: it says next to nothing of it; two classes' maps have the cosine {classes:.2f}."
    strength = max(abs(aligned), abs(report.redraws))
    if math.isnan(strength) or strength <= ALIGNED:
        drawing = f"Input: it does not redraw it (cosine {aligned:.2f}, rank correlation {report.redraws:.2f})."
    else:
        alone = " and, as it says little else, it may be the input alone" if same > HIGH or classes > SAME_CLASS else ""
        drawing = f"Input: it redraws it in part (cosine {aligned:.2f}, rank correlation {report.redraws:.2f}){alone}."
    return {"weights": weights, "class": about, "input": drawing}


def first(values: dict[str, float]) -> float:
    """Returns the value at the layer nearest to the input; NaN if there is none.

    Example:
        >>> first({"conv1": 0.4, "conv2": 0.1})
        0.4
    """
    return next(iter(values.values()), math.nan)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
