"""Metrics by name: our own and those of plugins, each with what it needs, its bounds, and which way is better.

The name of a metric is that of its function. Our own are a table in `captum_learnprop.plugins.builtin`, which plugins
add to; the scores of ``learnprop evaluate`` and its ``--metric`` read both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError, PluginError, did_you_mean
from captum_learnprop.plugins import MetricRecord, get_manager
from captum_learnprop.plugins.builtin import METRICS as OUR_RECORDS
from captum_learnprop.plugins.manager import Entry
from captum_learnprop.tables import html


class UnknownMetricError(LearnpropError):
    """A metric that does not exist."""


@dataclass(frozen=True)
class Metric:
    """A metric as data; calling it calls its function.

    Attributes:
        name: that of the function.
        summary: one line.
        needs: what the function is called with, in this order, see `captum_learnprop.plugins.specs.METRIC_ARGUMENTS`.
        bounds: lowest and highest value under the default options.
        higher_is_better: which way; None where neither.
        entry: where the function comes from, with the plugin that errors name.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    bounds: tuple[float, float]
    higher_is_better: bool | None
    entry: Entry

    def __repr__(self) -> str:
        return f"Metric({self.name!r}: {self.summary}; needs {', '.join(self.needs)}; {', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        """Returns the facts as a table, for a notebook."""
        return html(["metric", "what it is", "needs", "bounds", "which way"],
                          [[self.name, self.summary, ", ".join(self.needs), *self._facts()]])  # fmt: skip

    def _facts(self) -> tuple[str, str]:
        """Bounds and direction in words."""
        low, high = self.bounds
        bounds = "no bounds" if math.isinf(low) and math.isinf(high) else f"{low:g} to {high:g}"
        direction = {True: "higher is better", False: "lower is better", None: "neither way is better"}
        return bounds, direction[self.higher_is_better]

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """Returns one value per sample, ``(B,)``.

        Args:
            *arguments: what the metric needs.
            **options: further arguments of the function.

        Raises:
            PluginError: a plugin's function cannot be imported, fails, or gives no tensor ``(B,)`` of numbers. Errors
                of our own functions are as they are.
        """
        values = self.entry.make(*arguments, **options)
        batch = next((len(one) for one in arguments if isinstance(one, Tensor)), None)
        fits = isinstance(values, Tensor) and values.dim() == 1 and batch in (None, len(values))
        if not fits or values.is_complex() or values.dtype == torch.bool:
            got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)[:80]
            raise PluginError(f"{self.entry.label}: it must give a tensor ({batch},) of numbers, got {got}")
        return values

    def of(self, known: Mapping[str, Any], **options: Any) -> Tensor:
        """Returns the values ``(B,)`` from everything that is known of the samples, by the names of `needs`.

        Raises:
            LearnpropError: something that it needs is not known.
        """
        missing = [name for name in self.needs if name not in known]
        if missing:
            raise LearnpropError(f"metric {self.name!r} needs {' and '.join(missing)}, known are {', '.join(known)}")
        return self(*(known[name] for name in self.needs), **options)


def _metric(entry: Entry) -> Metric:
    record = entry.record
    assert isinstance(record, MetricRecord)  # the only kind that the manager keeps under "metric"
    return Metric(record.name, record.summary, record.needs, record.bounds, record.higher_is_better, entry)


METRICS: dict[str, Metric] = {
    record.name: _metric(Entry(record, "builtin", "captum-learnprop", "")) for record in OUR_RECORDS
}
"""Our own metrics by name."""


def find_metric(name: str) -> Metric:
    """Returns a metric by its name; plugins are loaded if it is none of ours.

    Args:
        name: that of the function, ``"average_precision"``, or of a plugin's `MetricRecord`.

    Raises:
        UnknownMetricError: there is no such metric; the message lists those there are.

    >>> find_metric("deletion").higher_is_better
    False
    >>> find_metric("relevance_mass")(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    tensor([0.7500], dtype=torch.float64)
    """
    if name in METRICS:
        return METRICS[name]
    entries = get_manager().available("metric")
    if name not in entries:
        known = ", ".join(entries)
        raise UnknownMetricError(f"unknown metric {name!r}; choose one of {known}{did_you_mean(name, entries)}")
    return _metric(entries[name])
