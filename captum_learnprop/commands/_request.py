"""What commands on a model and a folder of images are asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

_LOG = logging.getLogger(__name__)

PREDICTED = "predicted"

FROM_FOLDER = "label-from-folder"

LABEL = "label"

TORCHVISION = "torchvision:"

# Hugging Face's folders may hold weights, which only shows when they are opened.
_LIBRARIES = (TORCHVISION, "timm:")


@dataclass(frozen=True)
class ModelRequest:
    """What the command line asked for about the model and its input; the fields are options."""

    model: str
    weights: str | None
    checkpoint: Path | None
    size: int | None
    normalization: str
    device: str
    seed: int
    mean: tuple[float, ...] | None = field(default=None, kw_only=True)
    std: tuple[float, ...] | None = field(default=None, kw_only=True)
    classes: Path | None = field(default=None, kw_only=True)

    @property
    def torchvision_name(self) -> str | None:
        """The name of the model in torchvision; None if it comes from elsewhere."""
        return self.model.removeprefix(TORCHVISION) if self.model.startswith(TORCHVISION) else None

    def warn_of_random_weights(self) -> None:
        """Says that a model of a library was asked for without weights."""
        if self.model.startswith(_LIBRARIES) and not (self.weights or self.checkpoint):
            _LOG.warning("neither --weights nor --checkpoint: %s has random weights", self.model)
