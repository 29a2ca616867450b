"""``learnprop attribute`` as a function of batches, for engines that read, share out and write by themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from captum_learnprop.attribution_predictions import prediction_of
from captum_learnprop.commands._attribute_images import Subject, prepared
from captum_learnprop.commands._attribute_request import Request
from captum_learnprop.commands._explain_batches import Engine, Prepared
from captum_learnprop.commands._request import PREDICTED
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import printable
from captum_learnprop.images import ImageFile, UnreadableImageError

_LOG = logging.getLogger(__name__)

BYTES, IMAGE, PATH = "bytes", "image", "path"
"""The columns that are looked for: files as they are, or arrays ``(H, W, 3)``; and what they are called."""

_DEFAULTS: dict[str, Any] = {
    "normalization": "auto", "device": "cpu", "seed": 0, "rule_option": {}, "method_option": {}, "recursive": False,
    "overwrite": False, "hdf5": False, "dataset_file": False, "batch_size": 1,
}  # fmt: skip

_OPTIONS = (
    "weights", "checkpoint", "size", "normalization", "mean", "std", "classes", "device", "seed",
    "composite", "gate", "start", "pooling",
    "rule_option", "method_option", "steps", "sign", "smoothing", "outlines", "threads",
)  # fmt: skip
"""The options of ``learnprop attribute`` that mean the same here, with ``_`` for ``-``."""


class ExplainBatches:
    """Explains batches of images as ``learnprop attribute`` does; made for ``map_batches`` of Ray Data and its like.

    It can be pickled at any time: what is sent to a worker are the options, and the model is loaded there at the first
    batch.

    Args:
        model: What ``--model`` names.
        method: Name of the method; ``learned_propagation`` by default, which needs ``rules``.
        rules: A file of trained rules, or the name of ready ones.
        target: Number of the class to explain, or ``"predicted"``.
        options: Further options of ``learnprop attribute``, such as ``weights="DEFAULT"``, ``device="cuda"`` or
            ``method_option={"areas": 0.05}``.

    Raises:
        LearnpropError: An option is unknown, or there is neither a method nor rules. What is wrong with their values
            is told at the first batch.
    """

    def __init__(
        self, model: str, method: str | None = None, *, rules: str | Path | None = None,
        target: int | str = PREDICTED, **options: Any,
    ) -> None:  # fmt: skip
        for name in options:
            if name not in _OPTIONS:
                raise LearnpropError(f"unknown option {name!r}{did_you_mean(name, _OPTIONS)}")
        if method is None and rules is None:
            raise LearnpropError("give a method, or rules for learned_propagation")
        if target != PREDICTED and not isinstance(target, int):
            raise LearnpropError(f"target must be {PREDICTED!r} or the number of a class, got {target!r}")
        given: dict[str, Any] = {**dict.fromkeys(Request.__dataclass_fields__), **_DEFAULTS, **options}
        given |= {"model": model, "method": method or "learned_propagation", "target": target}
        given |= {"images": Path("."), "out": Path("."), "rules": None if rules is None else Path(rules)}
        for name in ("checkpoint", "classes"):
            given[name] = None if given[name] is None else Path(given[name])
        for name in ("mean", "std"):
            given[name] = (given[name],) if isinstance(given[name], (int, float)) else given[name]
        self._request = Request(**given)

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Explains a batch.

        Args:
            batch: A column ``"bytes"`` of image files as they are, or ``"image"`` of arrays ``(H, W, 3)`` uint8, and
                any others, such as ``"path"``.

        Returns:
            The other columns, with ``"attribution"`` ``(B, C, H, W)``, ``"map"`` ``(B, H, W)``, what is drawn of it,
            ``"prediction"`` ``(B, classes)``, ``"predicted"``, ``"predicted_name"``, ``"probability"``, ``"target"``.
            Rows whose image cannot be read or explained are left out, with a warning that names them.

        Raises:
            LearnpropError: There is no such column, or the model and the method cannot be made.
        """
        column = next((name for name in (BYTES, IMAGE) if name in batch), None)
        if column is None:
            raise LearnpropError(f"a batch needs a column {BYTES!r} or {IMAGE!r}; it has {', '.join(batch) or 'none'}")
        with torch.random.fork_rng():  # what draws is seeded for each batch, and the caller's numbers stay
            return self._explained(batch, column)

    def _explained(self, batch: Mapping[str, npt.NDArray[Any]], column: str) -> dict[str, npt.NDArray[Any]]:
        engine, names = self._engine, self._subject.classifier.names()
        count = len(batch[column])
        paths = batch.get(PATH, np.arange(count))
        found = [self._read(row, str(paths[row]), batch[column][row]) for row in range(count)]
        outcome = engine.run(found)
        for image, reason in outcome.skipped.items():
            _LOG.warning("left out %s: %s", printable(str(image.path)), reason)
        rows = [int(one.source.image.id) for one in outcome.explained]
        kept = {name: np.asarray(values)[rows] for name, values in batch.items() if name != column}
        if not rows:
            return kept
        said = [prediction_of(one.prediction, one.target, names) for one in outcome.explained]
        return kept | {
            "attribution": torch.stack([one.attribution for one in outcome.explained]).numpy(),
            "map": torch.stack([one.shown for one in outcome.explained]).numpy(),
            "prediction": torch.stack([one.prediction for one in outcome.explained]).numpy(),
            "predicted": np.array([one.predicted for one in said]),
            "predicted_name": np.array([one.predicted_name for one in said], dtype=object),
            "probability": np.array([one.probability for one in said]),
            "target": np.array([one.target for one in said]),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is sent to a worker: the options, and no model."""
        return {"_request": self._request}

    @cached_property
    def _subject(self) -> Subject:
        return Subject.of(prepared(self._request))

    @cached_property
    def _engine(self) -> Engine:
        target = self._request.target
        return self._subject.engine((lambda image: target) if isinstance(target, int) else None)

    def _read(self, row: int, path: str, content: Any) -> Prepared:
        image = ImageFile(str(row), Path(path))
        try:
            picture = (
                image.image(bytes(content)) if isinstance(content, (bytes, bytearray, memoryview)) else _array(content)
            )
        except UnreadableImageError as error:
            return Prepared(image, fault=str(error))
        return Prepared(image, pixels=self._subject.preprocessing.pixels(picture))


def _array(pixels: Any) -> Image.Image:
    values = np.asarray(pixels)
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise UnreadableImageError(f"an image must be (H, W, 3) of uint8, got {values.shape} of {values.dtype}")
    return Image.fromarray(values).convert("RGB")
