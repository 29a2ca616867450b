"""The maps of all methods side by side: kept beside the cells for the first questions, and drawn question by question.

Files are safetensors: one with the questions of a net and a scene family, and one with the maps of each method.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop import plot
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.localization import average_precision
from captum_learnprop.files import write_bytes

COLUMNS = 8
"""The most pictures in a row of a figure: as many as can be told apart on a screen."""

_TILE = 1.55
"""Width of a picture in a figure, in inches."""

_NAME, _HEADLINE, _GAP = 0.5, 0.3, 0.04
"""Heights of a method's name with its caption and of the headline, and the gap around a picture, in inches."""

_LINE = 24
"""Letters in a line above a picture; a name has two lines."""


@dataclass(frozen=True)
class ShownQuestions:
    """The questions of a gallery.

    Attributes:
        images: ``(Q, 3, H, W)`` uint8.
        masks: ``(Q, H, W)`` bool, the pixels of the asked objects.
        titles: ``Q`` texts such as "where is the zebra?".
    """

    images: Tensor
    masks: Tensor
    titles: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of questions."""
        return len(self.titles)


def keep_questions(path: Path, images: Tensor, masks: Tensor, titles: Sequence[str]) -> Path:
    """Writes questions as a whole, and returns the path.

    Args:
        path: The file, ``.safetensors``; its folder is made where there is none.
        images: ``(Q, 3, H, W)`` in [0, 1].
        masks: ``(Q, H, W)``, true or positive on the asked object.
        titles: ``Q`` texts.

    Raises:
        LearnpropError: The shapes do not fit.
        WriteError: The disk is full, or the folder is read-only.
    """
    if images.dim() != 4 or masks.shape != (len(images), *images.shape[2:]) or len(titles) != len(images):
        raise LearnpropError(
            f"questions need images (Q, 3, H, W), masks (Q, H, W) and Q titles, got {tuple(images.shape)}, "
            f"{tuple(masks.shape)} and {len(titles)}"
        )
    pixels = (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    tensors = {"images": pixels, "masks": (masks.detach() > 0).to("cpu", torch.uint8)}
    return _write(path, tensors, {"titles": json.dumps(list(titles))})


def keep_maps(path: Path, method: str, maps: Tensor) -> Path:
    """Writes the maps of a method as a whole, and returns the path.

    Only their shape is kept, not their scale: each is divided by its largest absolute value, because relevance and
    gradients of real nets are too large or too small for 16 bits.

    Args:
        path: The file, ``.safetensors``; its folder is made where there is none.
        method: Name of the method.
        maps: ``(Q, h, w)``, of the questions that `keep_questions` keeps, in their order.

    Raises:
        LearnpropError: They are no maps, or not finite.
        WriteError: The disk is full, or the folder is read-only.
    """
    if maps.dim() != 3 or not maps.numel() or not maps.isfinite().all():
        raise LearnpropError(f"maps of {method!r} must be finite and (Q, h, w), got {tuple(maps.shape)}")
    values = maps.detach().double().cpu()
    largest = values.abs().amax((1, 2), keepdim=True)
    scaled = values / torch.where(largest > 0, largest, 1.0)
    return _write(path, {"maps": scaled.half()}, {"method": method})


def read_questions(path: Path) -> ShownQuestions:
    """Returns the questions in a file.

    Raises:
        LearnpropError: The file is missing or damaged.
    """
    tensors, metadata = _read(path, ("images", "masks"))
    try:
        titles = tuple(map(str, json.loads(metadata["titles"])))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from error
    images, masks = tensors["images"], tensors["masks"] > 0
    if images.dim() != 4 or masks.shape != (len(images), *images.shape[2:]) or len(titles) != len(images):
        raise _damaged(path, f"images {tuple(images.shape)}, masks {tuple(masks.shape)}, {len(titles)} titles")
    return ShownQuestions(images, masks, titles)


def read_maps(path: Path) -> tuple[str, Tensor]:
    """Returns the name of the method and its maps ``(Q, h, w)`` float32, each with a largest absolute value of 1 or 0.

    Raises:
        LearnpropError: The file is missing or damaged.
    """
    tensors, metadata = _read(path, ("maps",))
    if "method" not in metadata or tensors["maps"].dim() != 3:
        raise _damaged(path, f"maps {tuple(tensors['maps'].shape)}, metadata {sorted(metadata)}")
    return metadata["method"], tensors["maps"].float()


def draw_question(
    questions: ShownQuestions,
    index: int,
    maps: Mapping[str, Tensor],
    captions: Mapping[str, str] | None = None,
    *,
    highlighted: Collection[str] = (),
    title: str | None = None,
) -> plot.NotebookFigure:
    """Draws the maps of all methods for one question, over its image and with the outline of the asked object.

    A method stands in the same place in the figures of all questions.

    Args:
        questions: What is asked.
        index: Which of them.
        maps: By method ``(Q, h, w)``; brought to the size of the image.
        captions: By method a line under its name; by default the average precision of its map for this question.
        highlighted: Methods whose names are red, such as the trained ones.
        title: Headline; by default the question.

    Raises:
        LearnpropError: There are no maps, or not as many as questions.
    """
    if not maps:
        raise LearnpropError("nothing to draw: no method has maps of these questions")
    for method, own in maps.items():
        if len(own) != len(questions):
            raise LearnpropError(f"{method!r} has {len(own)} maps for {len(questions)} questions")
    image, mask = questions.images[index].double() / 255, questions.masks[index]
    columns = min(COLUMNS, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    places, figure = _places(rows, columns)
    _draw(next(places), plot.to_hwc(image), mask, "image", "black")
    for method, own in maps.items():
        one = _resized(own[index], mask.shape)
        caption = _precision(one, mask) if captions is None else captions.get(method, "")
        colour = plot.HIGHLIGHT_COLOUR if method in highlighted else "black"
        _draw(next(places), plot.overlay(image, one), mask, "\n".join([_lines(method), caption]), colour)
    for place in places:
        place.axis("off")
    figure.suptitle(questions.titles[index] if title is None else title, fontsize=12, parse_math=False)
    return figure


def draw_gallery(
    questions: ShownQuestions,
    maps: Mapping[str, Tensor],
    captions: Mapping[str, str] | None = None,
    *,
    highlighted: Collection[str] = (),
) -> list[tuple[str, bytes]]:
    """Returns a picture for each question, as its title and a JPEG file: `draw_question` for all of them.

    Args:
        questions: What is asked.
        maps: By method ``(Q, h, w)``.
        captions: By method a line under its name; by default the average precision of each map.
        highlighted: Methods whose names are red.

    Raises:
        LearnpropError: There are no maps, or not as many as questions.
    """
    pictures = []
    for index, title in enumerate(questions.titles):
        figure = draw_question(questions, index, maps, captions, highlighted=highlighted, title="")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpeg", dpi=100, pil_kwargs={"quality": 85})
        pictures.append((title, buffer.getvalue()))
    return pictures


def _places(rows: int, columns: int) -> tuple[Iterator[Axes], plot.NotebookFigure]:
    """Returns a figure and its places in reading order; set by hand, because a layout engine takes seconds."""
    width, height = _TILE * columns, (_TILE + _NAME) * rows + _HEADLINE
    figure = plot.NotebookFigure(figsize=(width, height))
    for row in range(rows):
        for column in range(columns):
            bottom = height - _HEADLINE - (_TILE + _NAME) * (row + 1)
            box = (_TILE * column + _GAP, bottom + _GAP, _TILE - 2 * _GAP, _TILE - 2 * _GAP)
            figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    return iter(figure.axes), figure


def _draw(axes: Axes, picture: plot.Array, mask: Tensor, name: str, colour: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    if 0 < int(mask.sum()) < mask.numel():
        axes.contour(mask.double().numpy(), levels=[0.5], colors=plot.OUTLINE_COLOUR, linewidths=0.8)
    axes.set_title(name, fontsize=7.5, color=colour, pad=2, parse_math=False)  # a dollar in a name is a dollar
    axes.axis("off")


def _lines(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _LINE, max_lines=2, placeholder=" …"))


def _precision(one: Tensor, mask: Tensor) -> str:
    """Returns the average precision of a map as its caption; nothing where the asked object has no pixel."""
    found = average_precision(one[None], mask[None]).item() if 0 < int(mask.sum()) < mask.numel() else float("nan")
    return "" if found != found else f"AP {found:.2f}"


def _resized(one: Tensor, size: Sequence[int]) -> Tensor:
    if one.shape == tuple(size):
        return one.double()
    return F.interpolate(one[None, None].double(), tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    return write_bytes(path, save({name: one.contiguous() for name, one in tensors.items()}, metadata=dict(metadata)))


def _read(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: object) -> LearnpropError:
    return LearnpropError(f"{path} is damaged or missing ({reason}); delete it and its cells, they are made again")
