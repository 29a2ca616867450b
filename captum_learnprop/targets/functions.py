"""Functions of a model's output that can be explained in place of one entry of it; each gives a value per sample.

They are differentiable in the output, and do not mix samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import TargetError
from captum_learnprop.forward import tensor_of
from captum_learnprop.targets.naming import label_number


class TargetFunction(ABC):
    """What is explained of a model's output, where that is not one entry of a row."""

    @abstractmethod
    def __call__(self, output: Any) -> Tensor:
        """Returns one value per sample, ``(B,)``, of what the model returned.

        Raises:
            TargetError: The model returned something that the function is not for.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """What figures and reports call it."""

    def at(self, output: Any) -> TargetFunction:
        """Returns the function for the picture that a model returned this output for, by default itself.

        What refers to the picture's own result, such as "the first detection", is fixed here: methods that change the
        picture then still ask for the same thing.
        """
        return self

    def with_names(self, names: Sequence[str] | None) -> TargetFunction:
        """Returns the function with the numbers of classes in place of their names.

        Args:
            names: Names of the model's classes; None where they are not known.

        Raises:
            TargetError: There is no class of such a name.
        """
        return self


@dataclass(frozen=True)
class Labels(TargetFunction):
    """Several labels at once: the weighted sum of their outputs, ``sum_k w_k y_k``.

    Attributes:
        labels: Numbers or names of classes.
        weights: One for each; all 1 by default. ``(1, -1)`` asks what speaks for the first and against the second.

    Example:
        >>> Labels((1, 2), weights=(1, -1))(torch.tensor([[5.0, 4.0, 1.0]]))
        tensor([3.])
    """

    labels: tuple[int | str, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, (int, str)):
            object.__setattr__(self, "labels", (self.labels,))
        if not self.labels:
            raise TargetError("Labels needs a label at least")
        if self.weights is not None and len(self.weights) != len(self.labels):
            raise TargetError(f"{len(self.weights)} weights for {len(self.labels)} labels: give one for each")

    @property
    def name(self) -> str:
        """The labels with their signs."""
        weights = self.weights or (1.0,) * len(self.labels)
        parts = [
            f"{'-' if w < 0 else '+'} {'' if abs(w) == 1 else f'{abs(w):g} '}{label}"
            for label, w in zip(self.labels, weights, strict=True)
        ]
        return " ".join(parts).removeprefix("+ ")

    def __call__(self, output: Any) -> Tensor:
        """Returns the sum for each row of ``(B, classes)``."""
        rows = _rows(output, "labels")
        numbers = [_number(label, rows.shape[1]) for label in self.labels]
        weights = rows.new_tensor(self.weights or (1.0,) * len(numbers))
        return (rows[:, numbers] * weights).sum(1)

    def with_names(self, names: Sequence[str] | None) -> Labels:
        """Returns the function with numbers of classes."""
        return replace(self, labels=tuple(label_number(label, names) for label in self.labels))


@dataclass(frozen=True)
class Region(TargetFunction):
    """A class in a region of a segmentation: the mean of its output over the pixels of the region.

    Attributes:
        label: Number or name of the class.
        mask: Pixels of the region in the model's input, ``(H, W)``, true inside; None for the pixels that the model
            itself gives to the class, which are found on the picture and then kept.
        key: Which entry of a dictionary the model returns is meant, as torchvision's return ``"out"``.

    Example:
        >>> output = torch.zeros(1, 2, 2, 2)
        >>> output[0, 1, 0] = 4.0
        >>> top = torch.tensor([[True, True], [False, False]])
        >>> Region(1, top)(output), Region(1).at(output)(output)
        (tensor([4.]), tensor([4.]))
    """

    label: int | str
    mask: Tensor | None = None
    key: str = "out"

    @property
    def name(self) -> str:
        """The class, and whether a region is given."""
        return f"region of {self.label}" if self.mask is None else f"{self.label} in the given region"

    def __call__(self, output: Any) -> Tensor:
        """Returns the mean for each sample of ``(B, classes, H, W)``."""
        scores = self._scores(output)
        number = _number(self.label, scores.shape[1])
        mask = self._own(scores, number) if self.mask is None else self._at_size(self.mask, scores)
        return (scores[:, number] * mask).flatten(1).sum(1) / mask.sum()

    def at(self, output: Any) -> Region:
        """Returns the function with the pixels that the model gives to the class, where no region was given."""
        if self.mask is not None:
            return self
        scores = self._scores(output)
        return replace(self, mask=self._own(scores, _number(self.label, scores.shape[1])))

    def with_names(self, names: Sequence[str] | None) -> Region:
        """Returns the function with the number of its class."""
        return replace(self, label=label_number(self.label, names))

    def _scores(self, output: Any) -> Tensor:
        if isinstance(output, Mapping) and self.key in output:
            output = output[self.key]
        scores = tensor_of(output, None)
        if scores.ndim != 4:
            raise TargetError(
                f"Region is for segmentations (B, classes, H, W), and the model returned {tuple(scores.shape)}"
            )
        return scores

    def _own(self, scores: Tensor, number: int) -> Tensor:
        own = scores.argmax(1)[:1, :, :] == number
        if not bool(own.any()):
            raise TargetError(f"the model gives no pixel to class {self.label}: name another, or give Region a mask")
        return own[0].to(scores.dtype)

    def _at_size(self, mask: Tensor, scores: Tensor) -> Tensor:
        mask = torch.as_tensor(mask)
        if mask.ndim != 2:
            raise TargetError(f"the mask of a Region must be (H, W), got {tuple(mask.shape)}")
        given = mask.to(scores.device, scores.dtype)[None, None]
        resized = F.interpolate(given, scores.shape[-2:], mode="nearest")[0, 0]
        if not bool((resized > 0).any()):
            raise TargetError("the mask of a Region is empty")
        return resized


@dataclass(frozen=True)
class Detection(TargetFunction):
    """A detection by its place in the list that a detector returns: its score.

    On the picture the detection is looked up; its label and box are kept, and the value of a changed picture is the
    largest product of score and overlap (intersection over union) among detections of that label: on the
    picture itself the score of the detection.

    Source:
        The similarity of detections of Petsiuk et al., *Black-box Explanation of Object Detectors via Saliency Maps*,
        CVPR 2021, without the agreement of class probabilities, which torchvision's detectors do not return.

    Attributes:
        index: 0 for the detection with the highest score.
        label: Of the detection; filled in by `at`.
        box: Of the detection, ``(left, top, right, bottom)``; filled in by `at`.
    """

    index: int = 0
    label: int | None = None
    box: tuple[float, float, float, float] | None = None

    @property
    def name(self) -> str:
        """Which detection it is."""
        return f"detection {self.index}" + ("" if self.label is None else f", class {self.label}")

    def __call__(self, output: Any) -> Tensor:
        """Returns the score for each sample of a list of ``{"boxes", "labels", "scores"}``."""
        found = self._found(output)
        return torch.stack([self._score(one) for one in found])

    def at(self, output: Any) -> Detection:
        """Returns the function that asks for this very label and place."""
        first = self._found(output)[0]
        if not -len(first["scores"]) <= self.index < len(first["scores"]):
            raise TargetError(f"there is no detection {self.index}: the model found {len(first['scores'])}")
        left, top, right, bottom = first["boxes"][self.index].tolist()
        return replace(self, label=int(first["labels"][self.index]), box=(left, top, right, bottom))

    def _score(self, found: Mapping[str, Tensor]) -> Tensor:
        scores = found["scores"]
        if self.box is None or self.label is None:
            return scores[self.index] if len(scores) > self.index else scores.sum() * 0
        alike = found["labels"] == self.label
        if not bool(alike.any()):
            return scores.sum() * 0  # keeps the graph, where there is one
        overlap = _overlap(found["boxes"][alike].detach(), self.box)
        return (scores[alike] * overlap).max()

    def _found(self, output: Any) -> Sequence[Mapping[str, Tensor]]:
        fits = isinstance(output, (list, tuple)) and all(
            isinstance(one, Mapping) and {"boxes", "labels", "scores"} <= set(one) for one in output
        )
        if not fits or not output:
            raise TargetError(
                "Detection is for detectors that return a list of dictionaries with boxes, labels and scores, and the "
                f"model returned a {type(output).__name__}"
            )
        return output


@dataclass(frozen=True)
class Similarity(TargetFunction):
    """How much an embedding is like a given one: their cosine.

    Attributes:
        embedding: ``(D,)``, such as what the model returns for another picture.

    Example:
        >>> Similarity(torch.tensor([1.0, 0.0]))(torch.tensor([[3.0, 4.0]]))
        tensor([0.6000])
    """

    embedding: Tensor

    @property
    def name(self) -> str:
        """The word for it: figures cannot show an embedding."""
        return "similarity"

    def __call__(self, output: Any) -> Tensor:
        """Returns the cosine for each row of ``(B, D)``; further dimensions are flattened."""
        rows = tensor_of(output, None).flatten(1)
        given = torch.as_tensor(self.embedding).detach().to(rows).flatten()
        if given.numel() != rows.shape[1]:
            raise TargetError(f"the embedding has {given.numel()} values, those of the model have {rows.shape[1]}")
        return F.cosine_similarity(rows, given[None], dim=1)


@dataclass(frozen=True)
class Value(TargetFunction):
    """A number that the model predicts, as it is: an entry of ``(B,)``, ``(B, N)`` or ``(B, ...)``.

    Attributes:
        index: Which entry of a row; for outputs of more dimensions a tuple.

    Example:
        >>> Value()(torch.tensor([7.0, 8.0])), Value((1, 0))(torch.tensor([[[1.0], [2.0]]]))
        (tensor([7., 8.]), tensor([2.]))
    """

    index: int | tuple[int, ...] = 0

    @property
    def name(self) -> str:
        """Which value it is."""
        return f"value {self.index}"

    def __call__(self, output: Any) -> Tensor:
        """Returns the entry of each sample."""
        values = tensor_of(output, None)
        values = values[:, None] if values.ndim == 1 else values
        index = (self.index,) if isinstance(self.index, int) else tuple(self.index)
        if len(index) != values.ndim - 1:
            raise TargetError(f"value {self.index} does not name one entry of each sample of {tuple(values.shape)}")
        try:
            for place in index:
                values = values[:, place]
            return values
        except IndexError as error:
            raise TargetError(f"value {self.index} is out of range: outputs are {tuple(values.shape)}") from error


@dataclass(frozen=True)
class Called(TargetFunction):
    """A function of one's own, such as a `Concept`.

    Attributes:
        function: It takes what the model returns and gives one value per sample, ``(B,)``.

    Example:
        >>> Called(lambda output: output.square().sum(1))(torch.tensor([[1.0, 2.0]]))
        tensor([5.])
    """

    function: Callable[[Any], Tensor]

    @property
    def name(self) -> str:
        """The function's own name, or that of its class."""
        own = str(getattr(self.function, "__name__", type(self.function).__name__))
        return own if own.isidentifier() else "function"

    def __call__(self, output: Any) -> Tensor:
        """Returns what the function gives, if it is one value per sample."""
        value = self.function(output)
        if not isinstance(value, Tensor) or value.ndim != 1:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TargetError(f"target(output) must give one value per sample, (B,), and gave {found}")
        return value


def _rows(output: Any, what: str) -> Tensor:
    rows = tensor_of(output, None)
    if rows.ndim != 2:
        raise TargetError(f"{what} are entries of rows (B, classes), and the model returned {tuple(rows.shape)}")
    return rows


def _number(label: int | str, classes: int) -> int:
    if isinstance(label, str):
        raise TargetError(f"the names of the model's classes are not known here: give the number of {label!r}")
    if not 0 <= label < classes:
        raise TargetError(f"class {label} is out of range: there are {classes}, 0 to {classes - 1}")
    return int(label)


def _overlap(boxes: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """Returns the intersection over union of boxes ``(N, 4)`` with one."""
    one = boxes.new_tensor(box)
    sides = (torch.minimum(boxes[:, 2:], one[2:]) - torch.maximum(boxes[:, :2], one[:2])).clamp(min=0)
    common = sides.prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return common / (areas + (one[2:] - one[:2]).prod() - common).clamp(min=1e-12)
