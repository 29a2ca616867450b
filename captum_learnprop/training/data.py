"""What rules are trained on: tensors, data sets and loaders, read as checked batches of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import warn_of_bytes
from zennit_rules._moved import renamed

Labels = Tensor | None
"""The class indices ``(B,)`` or ``(B, K)``, or None where the data have none."""


def read_batches(data: Any, *, batch_size: int = 32, labelled: bool = True) -> Iterator[tuple[Tensor, Labels]]:
    """Yields images ``(B, C, *spatial)``, or rows of a table ``(B, F)``, with their labels, in the order of the data.

    Args:
        data: Images ``(N, C, *spatial)`` or a table ``(N, F)``; a pair of images and labels; a map-style or iterable
            data set whose items are an image ``(C, *spatial)`` or begin with an image and a label; or a `DataLoader` of
            such batches.
        batch_size: Images per batch; a loader has its own.
        labelled: Whether labels are read; without them, they may be of any kind.

    Raises:
        LearnpropError: The data are empty or not finite, images differ in size, or items are of another kind.
    """
    shape: tuple[int, ...] | None = None
    count = 0
    for images, labels in _raw_batches(data, batch_size, labelled):
        if images.ndim < 2 or not images.is_floating_point():
            raise LearnpropError(
                f"training images must be floating-point (B, C, *spatial), got {images.dtype} {tuple(images.shape)}; "
                "tables (B, F)"
            )
        if not count and len(images):
            warn_of_bytes((images,), stacklevel=2)
        shape = tuple(images.shape[1:]) if shape is None else shape
        if tuple(images.shape[1:]) != shape:
            raise LearnpropError(_differ(count, tuple(images.shape[1:]), shape))
        finite = images.flatten(1).isfinite().all(1)
        if not finite.all():
            bad = count + int((~finite).nonzero()[0])
            raise LearnpropError(f"training image {bad} has NaN or infinite values; clean or drop it")
        count += len(images)
        if len(images):
            yield images, labels
    if not count:
        raise LearnpropError("no training images: the data are empty")


def repeats_its_order(data: Any) -> bool:
    """Returns whether every process that reads ``data`` meets the images in the same order."""
    return not (isinstance(data, DataLoader) and isinstance(getattr(data, "sampler", None), RandomSampler))


def _raw_batches(data: Any, batch_size: int, labelled: bool) -> Iterable[tuple[Tensor, Labels]]:
    if isinstance(data, Tensor):
        return ((images, None) for images in data.split(batch_size)) if data.ndim else iter(())
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        images, labels = data
        if len(images) != len(labels):
            raise LearnpropError(f"{len(images)} images and {len(labels)} labels: one label per image is needed")
        return zip(images.split(batch_size), labels.split(batch_size), strict=True)
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        loader: Any = DataLoader(data, batch_size, collate_fn=list)  # in order
        return _of_items(loader, labelled)
    raise LearnpropError(
        f"training data must be a tensor, a pair of tensors, a Dataset or a DataLoader, got {type(data).__name__}"
    )


def _of_items(loader: Iterable[Sequence[Any]], labelled: bool) -> Iterator[tuple[Tensor, Labels]]:
    """Yields batches of a data set's items; here images of different sizes can be told by their index."""
    shape: torch.Size | None = None
    count = 0
    for items in loader:
        pairs = [_pair(item, count + index) for index, item in enumerate(items)]
        for index, (image, _) in enumerate(pairs):
            shape = image.shape if shape is None else shape
            if image.shape != shape:
                raise LearnpropError(_differ(count + index, tuple(image.shape), tuple(shape)))
        count += len(pairs)
        labels = [label for _, label in pairs]
        known = labelled and all(label is not None for label in labels)
        yield torch.stack([image for image, _ in pairs]), _label_tensor(labels) if known else None


def _pair(item: Any, index: int) -> tuple[Tensor, Any]:
    image, label = (item[0], item[1] if len(item) > 1 else None) if isinstance(item, (tuple, list)) else (item, None)
    if not isinstance(image, Tensor):
        raise LearnpropError(
            f"item {index} of the data set holds a {type(image).__name__} where an image tensor is expected; "
            "give the data set a transform such as torchvision.transforms.ToTensor()"
        )
    return image, label


def _label_tensor(labels: list[Any]) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(label) for label in labels])
    except (RuntimeError, TypeError, ValueError) as error:
        raise LearnpropError(f"labels of the data set do not stack to a tensor ({error})") from error


def _of_loader(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Labels]]:
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "stack expects each tensor to be equal size" in str(error):
                raise LearnpropError(
                    f"images of the loader differ in size ({error}); resize them, e.g. by a transform"
                ) from error
            raise
        if isinstance(batch, Tensor):
            yield batch, None
        elif isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
            yield batch[0], batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
        else:
            raise LearnpropError(
                f"a batch of the loader is a {type(batch).__name__}; images, or images and labels, expected"
            )


def _differ(index: int, shape: tuple[int, ...], first: tuple[int, ...]) -> str:
    return f"training images differ in size: image {index} is {shape}, the first {first}; resize them"


__getattr__ = renamed(__name__, {"DataError": "LearnpropError"})
