"""Small cut-outs, backgrounds and photographs that tests draw into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64


def draw_cutout(
    path: Path, colour: tuple[int, int, int], shape: str = "disc", size: tuple[int, int] = (60, 40)
) -> None:
    """A disc or a rectangle of one colour on transparent black, with margins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (size[0] + 20, size[1] + 20), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    frame = (10, 10, size[0] + 9, size[1] + 9)
    (pen.ellipse if shape == "disc" else pen.rectangle)(frame, fill=(*colour, 255))
    image.save(path)


def draw_photograph(path: Path, seed: int, size: tuple[int, int] = (160, 120)) -> None:
    """Smooth blue noise: no object of `draw_cutout` has its colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blue = np.random.default_rng(seed).integers(100, 200, (6, 8), dtype=np.uint8)
    channel = Image.fromarray(blue).resize(size, Image.Resampling.BICUBIC)
    zero = Image.new("L", size, 0)
    Image.merge("RGB", (zero, zero, channel)).save(path)


def write_table(path: Path, rows: Sequence[tuple[str, object]], header: str = "file,class") -> None:
    """A table of pictures and classes."""
    path.write_text("\n".join([header, *(f"{name},{target}" for name, target in rows)]) + "\n")


def draw_folder(folder: Path, targets: Sequence[int], backgrounds: int = 6) -> tuple[Path, Path, Path]:
    """Cut-outs of these classes, a table and backgrounds; each cut-out has a red value of its own.

    Returns:
        Folder of cut-outs, table, folder of backgrounds.
    """
    rows = []
    for index, target in enumerate(targets):
        name = f"sub/{index:02}.png" if index % 2 else f"{index:02}.png"
        draw_cutout(folder / "cutouts" / name, (100 + 5 * index, 255, 0), "disc" if index % 2 else "rectangle")
        rows.append((name, target))
    write_table(folder / "labels.csv", rows)
    for index in range(backgrounds):
        draw_photograph(folder / "backgrounds" / f"{index}.png", index)
    return folder / "cutouts", folder / "labels.csv", folder / "backgrounds"
