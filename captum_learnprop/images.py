"""Images on disk: finding them, reading them whatever their format, and preparing them for a classifier."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
import torchvision
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import printable

T = TypeVar("T")

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# The longer side a resize keeps, in units of the shorter one. Classifiers look at a central square; without a
# limit a 1 x 20,000 pixel strip would first be blown up to 256 x 5,120,000 pixels.
MAX_ASPECT = 16

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


MAX_BYTES = 2**30
"""The largest file or member of an archive that is read as one image."""


class UnreadableImageError(LearnpropError):
    """A file that looks like an image by its name and cannot be read as one."""


@dataclass(frozen=True)
class ImageFile:
    """One image file: below a folder, named in a list, or a member of an archive.

    Attributes:
        id: Path relative to the folder, with ``/`` between its parts and the suffix kept (``cats/a.png``):
            unique, and the same whatever else lies in the folder. Bytes that are no UTF-8 are written as ``\\xff``.
        path: Where the file is, or the archive.
        offset: Where its bytes begin in an archive; 0 in a file of its own.
        size: Number of its bytes in an archive; None in a file of its own.
        label: What the list or archive says of its class, a number or a name; None where it says nothing.
    """

    id: str
    path: Path
    offset: int = 0
    size: int | None = None
    label: str | None = None

    @property
    def folder(self) -> str | None:
        """The top-level sub-folder the image lies in (the class, in many data sets); None outside of any."""
        first, slash, _ = self.id.partition("/")
        return first if slash else None

    def sha256(self) -> str:
        """Returns the hexadecimal SHA-256 of the file's bytes.

        Raises:
            UnreadableImageError: The file is gone, may not be read, or is no longer a file.
        """
        digest = hashlib.sha256()
        try:
            with _opened(self.path) as file:
                file.seek(self.offset)
                left = self.size
                while block := file.read(1 << 20 if left is None else min(left, 1 << 20)):
                    digest.update(block)
                    left = None if left is None else left - len(block)
        except OSError as error:
            raise _unreadable(self.path.name, error) from error
        return digest.hexdigest()

    def content(self) -> bytes:
        """Returns the bytes of the file.

        Raises:
            UnreadableImageError: The file is gone, may not be read, is no longer a file, is cut short, or has more than
                `MAX_BYTES`.
        """
        try:
            with _opened(self.path) as file:
                size = os.fstat(file.fileno()).st_size if self.size is None else self.size
                if size > MAX_BYTES:
                    raise OSError(None, f"has {size:,} bytes, more than {MAX_BYTES:,}")
                file.seek(self.offset)
                found = file.read(size)
        except OSError as error:
            raise _unreadable(self._name, error) from error
        if self.size is not None and len(found) < self.size:
            raise _unreadable(self._name, OSError(None, f"{printable(self.path.name)} ends inside of it"))
        return found

    @property
    def _name(self) -> str:
        """The name that errors call it by."""
        return self.path.name if self.size is None else self.id.rpartition("/")[2]

    def image(self, content: bytes | None = None) -> Image.Image:
        """Returns the image, as `read_image` does.

        Args:
            content: The bytes of the file, where they were read already.

        Raises:
            UnreadableImageError: As of `content` and of `read_image`.
        """
        found = self.content() if content is None else content
        return _decoded(io.BytesIO(found), self._name, lambda file: _to_rgb(ImageOps.exif_transpose(file)))


def find_images(
    folder: Path, *, recursive: bool = False, exclude: Path | None = None, left_out: dict[str, str] | None = None
) -> list[ImageFile]:
    """Finds image files by their suffix, sorted by id. Hidden files and folders are left out.

    Args:
        folder: The folder to look in, or one image file.
        recursive: Whether to look in sub-folders too (links to folders are not followed).
        exclude: A folder whose content never counts, such as the output folder inside ``folder``.
        left_out: Is filled with the reasons, by id, of what has the name of an image and is no regular file (a pipe,
            a device, a link to nothing, a folder that is not looked into), and of folders that cannot be read.

    Raises:
        LearnpropError: The folder is missing or holds no image.
    """
    if folder.is_file():
        return [ImageFile(identifier(folder.name), folder)]
    if not folder.is_dir():
        reason = why_no_file(folder)
        raise LearnpropError(
            f"no such folder or file: {folder}" if reason is None or not os.path.lexists(folder) else
            f"{folder} {reason}: name a folder of images, or one image"
        )  # fmt: skip
    found, faults = _searched(folder, exclude.resolve() if exclude is not None else None, recursive)
    wanted = [image for image in found if recursive or image.folder is None]
    if left_out is not None:
        left_out.update(sorted(faults.items()))
    if not wanted:
        hint = f"; {len(found)} lie in sub-folders: add --recursive" if found else ""
        first = next((f"; left out {printable(name)}: {reason}" for name, reason in sorted(faults.items())), "")
        raise LearnpropError(f"no image in {folder} (looked for {', '.join(SUFFIXES)}){hint}{first}")
    return sorted(wanted, key=lambda image: image.id)


def _searched(folder: Path, excluded: Path | None, recursive: bool) -> tuple[list[ImageFile], dict[str, str]]:
    """Returns images in a folder and in all below it, which also serve the hint at --recursive; reasons for others."""
    unread: list[OSError] = []
    found: list[ImageFile] = []
    faults: dict[str, str] = {}
    for path in _walk(folder, excluded, recursive, unread):
        image = ImageFile(identifier(path.relative_to(folder).as_posix()), path)
        reason = why_no_file(path)
        if reason is None:
            found.append(image)
        elif recursive or image.folder is None:
            faults[image.id] = reason
    for error in unread:
        path = Path(error.filename)
        if path == folder:
            raise LearnpropError(f"cannot look into {folder}: {error.strerror}") from error
        if recursive:
            faults[identifier(path.relative_to(folder).as_posix())] = f"cannot look into it: {error.strerror}"
    return found, faults


def _walk(folder: Path, excluded: Path | None, recursive: bool, unread: list[OSError]) -> Iterator[Path]:
    """Yields everything with the name of an image; folders too where their content is not looked for."""
    for root, folders, names in os.walk(folder, onerror=unread.append):
        here = Path(root)
        folders[:] = [name for name in folders if not name.startswith(".") and (here / name).resolve() != excluded]
        for name in [*names, *(name for name in folders if not recursive or os.path.islink(here / name))]:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield here / name


_KINDS = {
    stat.S_IFDIR: "is a folder", stat.S_IFIFO: "is a pipe", stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device", stat.S_IFBLK: "is a device",
}  # fmt: skip


def why_no_file(path: Path) -> str | None:
    """Returns why a path cannot be read as a file; None for a regular file. Opens nothing: a pipe would wait."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and path.is_symlink()
        return "is a link to nothing" if missing else f"cannot be read ({error.strerror})"
    return None if kind == stat.S_IFREG else f"{_KINDS.get(kind, 'is something else')} and no regular file"


def _opened(path: Path) -> BinaryIO:
    """Opens a regular file, and nothing that would wait for a writer or turn a device on.

    Raises:
        OSError: It is no regular file, or may not be read.
    """
    reason = why_no_file(path)
    if reason is not None:
        raise OSError(None, reason)
    # Not to wait even if the file is replaced by a pipe just now; Windows knows neither flag.
    found = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(None, "is no regular file")
    return os.fdopen(found, "rb")


def _unreadable(name: str, error: Exception) -> UnreadableImageError:
    name = printable(name)
    if isinstance(error, UnidentifiedImageError):  # PIL's text holds the number of the open file
        reason = "cannot identify image file"
    else:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UnreadableImageError(f"cannot read image {name}: {printable(reason)}")


def identifier(relative: str) -> str:
    """Returns the path as text, which JSON, HDF5 and PNG names need; each path gives another.

    A byte that is no UTF-8 is written as ``\\xff``, so a backslash that begins such a text itself is written ``\\x5c``.
    """
    raw = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(relative))
    return raw.decode("utf-8", "backslashreplace")


def folder_labels(
    images: Sequence[ImageFile], classes: int, class_names: Sequence[str] | None = None
) -> dict[str, int]:
    """Reads the class of each image, by id, from the name of its top-level folder.

    The names are class numbers; or names in ``class_names`` (upper case and underscores do not count); or,
    when there are as many folders as classes, the classes in alphabetical order, as in torchvision's
    ``ImageFolder``.

    Raises:
        LearnpropError: An image lies in no sub-folder, a number is out of range, or the names mean nothing.
    """
    outside = [image.id for image in images if image.folder is None]
    if outside:
        raise LearnpropError(f"{outside[0]} lies in no sub-folder that could name its class")
    numbers = class_numbers({str(image.folder) for image in images}, classes, class_names)
    return {image.id: numbers[str(image.folder)] for image in images}


def class_numbers(
    names: Iterable[str], classes: int, class_names: Sequence[str] | None = None, *, what: str = "folder"
) -> dict[str, int]:
    """Returns the class that each name stands for, as `folder_labels` reads them.

    Args:
        names: Names of folders, or labels of a list.
        classes: Number of the model's classes.
        class_names: Their names, where they are known.
        what: What the names are of, for errors.

    Raises:
        LearnpropError: A number is out of range, or the names mean nothing.
    """
    folders, class_names = sorted(set(names)), class_names or ()
    if all(name.isdecimal() for name in folders):
        for name in folders:
            if int(name) >= classes:
                raise LearnpropError(f"{what} {name} is out of range: the classes are 0 to {classes - 1}")
        return {name: int(name) for name in folders}
    spelled = [name.casefold() for name in class_names]
    # ImageNet has two cranes: a name that two classes share tells nothing.
    known = {name: number for number, name in enumerate(spelled) if spelled.count(name) == 1}
    spoken = {name: name.replace("_", " ").casefold() for name in folders}
    if all(name in known for name in spoken.values()):
        return {name: known[spoken[name]] for name in folders}
    if len(folders) == classes:
        return {name: number for number, name in enumerate(folders)}
    some = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
    raise LearnpropError(
        f"{what}s {some} are neither class numbers nor known class names, and {len(folders)} {what}s cannot "
        f"stand for {classes} classes in alphabetical order"
    )


def read_image(path: Path) -> Image.Image:
    """Reads the first frame of an image as upright 8-bit RGB.

    The orientation noted by a camera (EXIF) is applied, transparency is laid over white, and 16-bit greyscale
    is scaled by its full range (PIL's own conversion clips it to white).

    Raises:
        UnreadableImageError: The file is missing, no regular file, damaged, cut short, too large or of an unknown
            format.
    """
    return _read(path, lambda file: _to_rgb(ImageOps.exif_transpose(file)))


def read_cutout(path: Path) -> Image.Image:
    """Reads the first frame of an image as upright 8-bit RGBA: what its alpha channel says is kept.

    Raises:
        UnreadableImageError: As of `read_image`.
        LearnpropError: The image has no alpha channel and no transparent colour.
    """
    image = _read(path, lambda file: ImageOps.exif_transpose(file).convert("RGBA") if _transparent(file) else None)
    if image is None:
        raise LearnpropError(
            f"{printable(path.name)} has no alpha channel: save it with one that is 0 around the object"
        )
    return image


def read_mask(path: Path) -> Image.Image:
    """Reads the first frame of an image as an upright mask of mode ``L``.

    It is 255 where a pixel is neither 0 nor transparent, else 0. Of a palette, the
    number of the colour counts.

    Raises:
        UnreadableImageError: As of `read_image`.
    """
    return _read(path, lambda file: _non_zero(ImageOps.exif_transpose(file)))


def _non_zero(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.ndim == 2:
        marked = values != 0
    else:
        opaque = values[..., -1] != 0 if "A" in image.getbands() else True
        marked = (values[..., : 1 if image.mode == "LA" else 3] != 0).any(-1) & opaque
    return Image.fromarray((255 * marked).astype(np.uint8))


def image_size(path: Path) -> tuple[int, int]:
    """Returns width and height of an upright image, from the beginning of its file.

    Raises:
        UnreadableImageError: As of `read_image`; damage further back is not seen.
    """
    return _read(path, _upright_size, whole=False)


def _upright_size(file: Image.Image) -> tuple[int, int]:
    turned = file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (file.height, file.width) if turned else file.size


def _transparent(file: Image.Image) -> bool:
    return "A" in file.getbands() or "transparency" in file.info


def _read(path: Path, take: Callable[[Image.Image], T], *, whole: bool = True) -> T:
    try:
        with _opened(path) as content:
            return _decoded(content, path.name, take, whole=whole)
    except OSError as error:
        raise _unreadable(path.name, error) from error


def _decoded(content: BinaryIO, name: str, take: Callable[[Image.Image], T], *, whole: bool = True) -> T:
    try:
        with Image.open(content) as file:
            if whole:
                file.load()
            return take(file)
    # PIL's decoders raise whatever they meet in damaged bytes: OSError, SyntaxError, struct.error and more.
    except Exception as error:
        raise _unreadable(name, error) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of PIL as upright 8-bit RGB, in the way that `read_image` reads one.

    Raises:
        UnreadableImageError: It is closed, damaged, or of grey values out of range.
    """
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # whatever PIL's decoders meet, if the file is only read now
        raise UnreadableImageError(f"cannot use the image: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey(image, 65535.0)
    if image.mode == "F":
        return _grey(image, 1.0)
    if _transparent(image):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, white: float) -> Image.Image:
    values = np.asarray(image, dtype=np.float64) / white
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"grey values of mode {image.mode} lie outside [0, {white:g}]")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a classifier.

    Attributes:
        resize: The shorter side after resizing, in pixels.
        crop: Side of the central square that is kept, in pixels.
        mean, std: Per-channel statistics of the normalisation, for pixels in [0, 1]; one of each for a net that takes
            grey pictures.
        interpolation: Name of a ``torchvision.transforms.InterpolationMode`` value.
        squeeze: Whether both sides are brought to `resize`, so that a picture of any shape becomes a square as a whole.
    """

    resize: int = 224
    crop: int = 224
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    interpolation: str = "bilinear"
    squeeze: bool = False

    @classmethod
    def of_weights(cls, model: str, weights: str) -> Preprocessing:
        """Returns the preprocessing that belongs to pretrained torchvision weights.

        Args:
            model: Name in ``torchvision.models``, e.g. ``resnet18``.
            weights: ``DEFAULT`` or another of its weights, e.g. ``IMAGENET1K_V1``.

        Raises:
            LearnpropError: There is no such model or weights, or they are not for image classification.
        """
        preset = torchvision_weights(model, weights).transforms()
        if not hasattr(preset, "crop_size"):
            raise LearnpropError(f"{model} with weights {weights} is not an image classifier")
        return cls(
            preset.resize_size[0],
            preset.crop_size[0],
            tuple(preset.mean),
            tuple(preset.std),
            preset.interpolation.value,
        )

    def at_size(self, size: int) -> Preprocessing:
        """Returns the same preprocessing for inputs of ``size`` pixels; the crop cuts off the same share."""
        return replace(self, resize=max(size, round(self.resize * size / self.crop)), crop=size)

    def without_normalization(self) -> Preprocessing:
        """Returns the same geometry for a model that takes pixels in [0, 1]."""
        return replace(self, mean=(0.0,) * len(self.mean), std=(1.0,) * len(self.std))

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Returns what the model gets to see, before normalisation: (C, crop, crop), float32 in [0, 1].

        C is 3, and 1 for a net that takes grey pictures.
        """
        mode = InterpolationMode(self.interpolation)
        image = image.convert("L") if len(self.mean) == 1 else image
        sides = [self.resize, self.resize] if self.squeeze else [self.resize]
        resized = transforms.resize(image if self.squeeze else _trimmed(image), sides, interpolation=mode)
        square = transforms.center_crop(resized, [self.crop])
        pixels: torch.Tensor = transforms.convert_image_dtype(transforms.pil_to_tensor(square), torch.float)
        return pixels

    def covered(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Returns which part of a picture the model gets to see: top, left, height and width, in the picture's pixels.

        Args:
            width: The picture's width in pixels.
            height: Its height.
        """
        seen = (width, height) if self.squeeze else _trimmed_size(width, height)
        resized = (self.resize, self.resize) if self.squeeze else _resized(*seen, self.resize)
        # torchvision rounds where the square is cut out.
        cut = [round((side - self.crop) / 2) for side in resized]
        left, top = (
            (whole - part) // 2 + at * part / side
            for whole, part, at, side in zip((width, height), seen, cut, resized, strict=True)
        )
        return top, left, self.crop * seen[1] / resized[1], self.crop * seen[0] / resized[0]

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns pixels (..., C, H, W) in [0, 1], normalised per channel."""
        normalized: torch.Tensor = transforms.normalize(pixels, list(self.mean), list(self.std))
        return normalized


def _trimmed_size(width: int, height: int) -> tuple[int, int]:
    limit = MAX_ASPECT * min(width, height)
    return min(width, limit), min(height, limit)


def _resized(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Returns width and height after torchvision has brought the shorter side to a length."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _trimmed(image: Image.Image) -> Image.Image:
    width, height = _trimmed_size(*image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def torchvision_weights(model: str, weights: str) -> Any:
    """Returns the ``torchvision`` weights entry of that name (with ``.transforms()`` and ``.meta``).

    Raises:
        LearnpropError: There is no such model, or no such weights for it.
    """
    try:
        entries = torchvision.models.get_model_weights(model)
    except ValueError as error:
        raise LearnpropError(
            f"torchvision has no model {model!r}{did_you_mean(model, torchvision.models.list_models())}"
        ) from error
    if weights not in entries.__members__:
        known = list(entries.__members__)
        raise LearnpropError(
            f"{model} has no weights {weights!r}; torchvision has {', '.join(known)}{did_you_mean(weights, known)}"
        )
    return entries[weights]
