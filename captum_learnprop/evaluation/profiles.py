"""What measures of a backward signal give: scores by layer and sample, and how a notebook shows them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_learnprop.tables import html
from captum_learnprop.wording import counted, listed


@dataclass(frozen=True)
class LayerProfile:
    """Scores by layer and sample.

    Attributes:
        names: Names of the L layers, from the input on.
        values: Scores, ``(L, B)`` float64.
    """

    names: tuple[str, ...]
    values: Tensor

    def mean(self) -> dict[str, float]:
        """Returns the mean over samples, by layer; samples without a value do not count."""
        return dict(zip(self.names, self.values.nanmean(1).tolist(), strict=True))

    def __repr__(self) -> str:
        size = f"{counted(len(self.names), 'layer')}, {counted(self.values.shape[1], 'sample')}"
        return f"LayerProfile({size}: {listed(self.mean())})"

    def _repr_html_(self) -> str:
        """Returns the mean by layer as a table, for a notebook."""
        rows = [[name, f"{value:.3f}"] for name, value in self.mean().items()]
        return html(["layer", f"mean of {counted(self.values.shape[1], 'sample')}"], rows)


@dataclass(frozen=True)
class Filtering:
    """What activations let pass.

    Attributes:
        positive: Share of the positive part of the arriving signal that passes.
        negative: Share of its negative part that passes.
    """

    positive: LayerProfile
    negative: LayerProfile

    def __repr__(self) -> str:
        names, samples = self.positive.names, self.positive.values.shape[1]
        shares = [f"{sign} {profile.values.nanmean().item():.3f}" for sign, profile in vars(self).items()]
        return f"Filtering({counted(len(names), 'activation')}, {counted(samples, 'sample')}: {', '.join(shares)})"

    def _repr_html_(self) -> str:
        """Returns both shares by activation as a table, for a notebook."""
        negative = self.negative.mean()
        rows = [[name, f"{share:.3f}", f"{negative[name]:.3f}"] for name, share in self.positive.mean().items()]
        return html(["activation", "positive part", "negative part"], rows)
