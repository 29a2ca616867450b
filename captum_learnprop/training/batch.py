"""A batch: what the terms of an objective may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.draws import Draws
from captum_learnprop.training.quantities import Quantity
from zennit_rules._moved import renamed


@dataclass(frozen=True, eq=False)
class Batch:
    """All that a term may use: ``B`` rows of one training step, or of a chunk of it; each an image with a target.

    Attributes:
        inputs: Images ``(B, C, *spatial)``, detached; or a table ``(B, F)``, whose ``*spatial`` below is ``F``.
        targets: The explained classes, ``(B,)`` int64.
        maps: Maps ``(B, *spatial)``, reduced and smoothed, by the current rules and differentiable in them.
        outputs: The model's output for ``inputs``, ``(B, classes)``, detached.
        quantity: What is explained, ``(outputs (B', classes), targets (B',)) -> (B',)``.
        model: The plain model, differentiable in its input.
        explain: Gives maps ``(B, *spatial)``, like ``maps``, of other targets ``(B,)``.
        draws: The random numbers of these rows.
        regions: The cached deletions of each image, ``(B, D, *spatial)`` bool.
        drops: What the explained quantity lost by each of them, ``(B, D)``.
        explain_randomized: Gives maps ``(B, *spatial)``, like ``maps``, of a net with re-initialised weights.

    Raises:
        LearnpropError: Shapes do not fit each other.
    """

    inputs: Tensor
    targets: Tensor
    maps: Tensor
    outputs: Tensor
    quantity: Quantity
    model: Callable[[Tensor], Tensor]
    explain: Callable[[Tensor], Tensor]
    draws: Draws
    regions: Tensor | None = None
    drops: Tensor | None = None
    explain_randomized: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        count, spatial = self.inputs.shape[0], self.inputs.shape[1 if self.table else 2 :]
        if self.inputs.dim() < 2 or self.maps.shape != (count, *spatial):
            raise LearnpropError(
                f"inputs {tuple(self.inputs.shape)} and maps {tuple(self.maps.shape)} must be (B, C, *spatial) and "
                "(B, *spatial)"
            )
        if self.targets.shape != (count,) or self.outputs.shape[:1] != (count,) or self.outputs.dim() != 2:
            raise LearnpropError(
                f"targets {tuple(self.targets.shape)} and outputs {tuple(self.outputs.shape)} must be (B,) and "
                f"(B, classes) with B = {count}"
            )
        if len(self.draws) != count:
            raise LearnpropError(f"draws are of {len(self.draws)} rows, inputs of {count}")
        if (self.regions is None) != (self.drops is None):
            raise LearnpropError("regions and drops come together, one of them is None")
        if (
            self.regions is not None
            and self.drops is not None
            and (self.regions.shape != (*self.drops.shape, *spatial) or len(self.drops) != count)
        ):
            raise LearnpropError(
                f"regions {tuple(self.regions.shape)} and drops {tuple(self.drops.shape)} must be (B, D, *spatial) and "
                f"(B, D) with B = {count} and spatial = {tuple(spatial)}"
            )

    @property
    def table(self) -> bool:
        """Whether the inputs are features ``(B, F)``, which have neither channels nor neighbours."""
        return self.inputs.dim() == 2

    def uniform(self, *shape: int) -> Tensor:
        """Returns numbers of `draws`, ``(B, *shape)``, uniform in [0, 1), in type and on device of the maps."""
        return self.draws.uniform(*shape).to(self.maps)

    def normal(self, *shape: int) -> Tensor:
        """Returns numbers of `draws`, ``(B, *shape)``, standard normal, in type and on device of the maps."""
        return self.draws.normal(*shape).to(self.maps)


__getattr__ = renamed(__name__, {"ObjectiveError": "LearnpropError"})
