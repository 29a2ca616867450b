"""Explanations: a map of a picture with what it is of, which show and save themselves, one or several side by side."""

from __future__ import annotations

import json
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib import import_module
from pathlib import Path
from typing import overload

from PIL import Image
from safetensors.torch import save
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation.figure import Column, Row, draw
from captum_learnprop.explanation.framing import Frame
from captum_learnprop.explanation.value_figure import html_of_tokens
from captum_learnprop.files import write_bytes
from captum_learnprop.plot import NotebookFigure, save_figure
from captum_learnprop.wording import counted

_TENSORS = ".safetensors"


@dataclass(frozen=True)
class Guess:
    """A class among the five highest.

    Attributes:
        index: Its number.
        name: Its name; the number where none is known.
        probability: By softmax, or by the sigmoid where classes do not exclude each other.
    """

    index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name} {self.probability:.2f}"


@dataclass(frozen=True)
class Cost:
    """What a map took.

    Attributes:
        seconds: Wall-clock time of the attribution and the finishing of its map, without loading and preparing.
        passes: Forward and backward passes through the net; None where they are not known.
    """

    seconds: float
    passes: int | None

    def __str__(self) -> str:
        passes = "" if self.passes is None else f", {self.passes} passes"
        return f"{self.seconds:.2f} s{passes}"


class Shown:
    """What shows itself as a figure: in a notebook, in a viewer, in a file."""

    def figure(self) -> NotebookFigure:
        """Returns the figure, of matplotlib."""
        return draw(self._rows())

    def _rows(self) -> list[Row]:
        raise NotImplementedError

    def show(self) -> None:
        """Shows the figure: in a notebook below the cell, elsewhere in the viewer of the system.

        Raises:
            LearnpropError: There is no viewer.
        """
        if "IPython" in sys.modules and import_module("IPython").get_ipython() is not None:
            import_module("IPython.display").display(self.figure())
            return
        with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
            file.write(self._repr_png_())
        with Image.open(file.name) as picture:
            if not _viewed(picture):
                raise LearnpropError("there is no program to show pictures here: use save('explanation.png')")

    def _repr_png_(self) -> bytes:
        """Returns the figure as PNG: what Jupyter asks a result for."""
        return self.figure()._repr_png_()

    def _repr_html_(self) -> str:
        """Returns the figure with what it shows in words, for a notebook."""
        picture = b64encode(self._repr_png_()).decode()
        text = escape(repr(self))
        return (
            f'<figure><img src="data:image/png;base64,{picture}" alt="{text}">'
            f"<figcaption><code>{text}</code></figcaption></figure>"
        )


def _viewed(picture: Image.Image) -> bool:
    shower = import_module("PIL.ImageShow")
    return bool(shower.show(picture))


@dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """What in a picture, a row of a table, a series or a text speaks for an output of a model.

    Attributes:
        map: One value per pixel of the picture, ``(H, W)``, in its own size and shape; higher is more relevant. It is 0
            where the model does not look, because its own preprocessing cuts that off (see `frame`). Of a row
            ``(F,)``, of a series and a text ``(T,)``.
        attribution: What the method gave, ``(C, h, w)``, in the size of the model's input: signed, not smoothed. Of
            a row ``(F,)``, of a series ``(C, T)``, of a text ``(D, T)``, in the embedding.
        prediction: The five highest classes, highest first; empty where the model is no classifier.
        target: Name of what is explained.
        index: Number of the explained class; None where it is a function of the output.
        method: Name of the method.
        cost: Seconds and passes.
        image: The picture, ``(3, H, W)`` in [0, 1]; or the row ``(F,)``, the series ``(C, T)``, the numbers of tokens.
        frame: Which part of the picture the model sees.
        title: What the picture is called.
        sign: How signs were treated, see `captum_learnprop.maps.postprocess`.
        smoothing: Smoothing of the map, as a fraction of the sides of the input.
        kind: ``"picture"``, ``"row"``, ``"series"`` or ``"text"``.
        names: Of the features of a row, of the channels of a series, or the tokens of a text.
    """

    map: Tensor
    attribution: Tensor
    prediction: tuple[Guess, ...]
    target: str
    index: int | None
    method: str
    cost: Cost
    image: Tensor
    frame: Frame
    title: str = ""
    sign: str = "absolute"
    smoothing: float = 0.0
    kind: str = "picture"
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sides = " x ".join(map(str, self.map.shape))
        return f"Explanation({self.target!r} by {self.method!r}, map {sides}, {self.cost})"

    def _repr_html_(self) -> str:
        """Returns the figure with what it shows in words, for a notebook; of a text its tokens, coloured."""
        if self.kind != "text":
            return super()._repr_html_()
        return f"{html_of_tokens(self.names, self.map)}<code>{escape(repr(self))}</code>"

    def _rows(self) -> list[Row]:
        return [_row([self])]

    def save(self, path: str | Path) -> Path:
        """Writes the figure, or the numbers, and returns the path.

        Args:
            path: With a suffix that matplotlib knows, such as ``.png`` or ``.pdf``, for the figure; with
                ``.safetensors`` for the map, the attribution and the picture, with all else in the metadata.

        Raises:
            LearnpropError: There is no format of that suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != _TENSORS:
            return save_figure(self.figure(), path)
        tensors = {"map": self.map, "attribution": self.attribution, "image": self.image}
        about = {
            "prediction": [asdict(guess) for guess in self.prediction], "target": self.target, "index": self.index,
            "method": self.method, "cost": asdict(self.cost), "frame": asdict(self.frame), "title": self.title,
            "sign": self.sign, "smoothing": self.smoothing, "kind": self.kind, "names": self.names,
        }  # fmt: skip
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return write_bytes(path, save(whole, metadata={"learnprop_explanation": json.dumps(about)}))


@dataclass(frozen=True, repr=False)
class Explanations(Shown, Sequence[Explanation]):
    """Several explanations, which lay themselves side by side.

    Each picture and target has a row, each method a column.

    Attributes:
        items: Row by row.
    """

    items: tuple[Explanation, ...] = field(default=())

    @overload
    def __getitem__(self, index: int) -> Explanation: ...

    @overload
    def __getitem__(self, index: slice) -> Explanations: ...

    def __getitem__(self, index: int | slice) -> Explanation | Explanations:
        """Returns one explanation, or several as a smaller whole."""
        return Explanations(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __len__(self) -> int:
        """Returns the number of explanations."""
        return len(self.items)

    def __iter__(self) -> Iterator[Explanation]:
        """Goes through the explanations, row by row."""
        return iter(self.items)

    def __repr__(self) -> str:
        inner = "\n".join(f"  {one!r}" for one in self.items)
        return f"{counted(len(self), 'explanation')}:\n{inner}" if self.items else "0 explanations"

    def _rows(self) -> list[Row]:
        if not self.items:
            raise LearnpropError("there is no explanation to show")
        rows: list[list[Explanation]] = []
        for one in self.items:
            same = rows and rows[-1][0].image is one.image and rows[-1][0].target == one.target
            if not same:
                rows.append([])
            rows[-1].append(one)
        return [_row(row) for row in rows]

    def save(self, path: str | Path) -> Path:
        """Writes the figure of all of them, and returns the path.

        Args:
            path: With a suffix that matplotlib knows, such as ``.png``.

        Raises:
            LearnpropError: There is no format of that suffix, or the file cannot be written.
        """
        if Path(path).suffix == _TENSORS:
            raise LearnpropError("one file of numbers holds one explanation: save them one by one")
        return save_figure(self.figure(), path)


def _row(row: Sequence[Explanation]) -> Row:
    first = row[0]
    columns = [Column(one.map, one.method, str(one.cost)) for one in row]
    said = [str(guess) for guess in first.prediction]
    return Row(first.image, first.frame, first.title, first.target, said, columns, first.kind, first.names)
