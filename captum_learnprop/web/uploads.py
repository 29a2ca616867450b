"""Pictures that a browser sends: few formats, bounded in bytes and pixels, decoded and nothing else."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import printable
from captum_learnprop.images import find_images, upright_rgb

MAX_BYTES = 20 * 2**20
"""The largest file that is read as one picture."""

MAX_PIXELS = 25_000_000
"""The most pixels of a picture: a camera's 24 megapixels pass, a bomb of a gigapixel is never decoded."""

MAX_FILES = 500
"""The most files that are taken together."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")
"""Formats of PIL that are decoded: none that runs programs (EPS) or reads other files."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm", ".pgm")
"""What the browser offers to choose from."""


class UploadError(LearnpropError):
    """A file that is no picture the page takes."""


def read_upload(path: str | Path) -> Image.Image:
    """Returns an uploaded picture, upright and 8-bit RGB.

    The format is told by the content, not by the name. Size and format are known from the header, before anything is
    decoded.

    Args:
        path: Where the file was put.

    Raises:
        UploadError: It is too large, of another format, or damaged.
    """
    path = Path(path)
    name = printable(path.name)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UploadError(f"{name} has {size / 2**20:.0f} MB; a picture may have {MAX_BYTES // 2**20} MB here")
        return _decoded(path.read_bytes(), name)
    except OSError as error:
        raise UploadError(f"{name} cannot be read: {error.strerror or type(error).__name__}") from error


def _decoded(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is lower
            with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise UploadError(
                        f"{name} has {file.width} x {file.height} pixels; a picture may have "
                        f"{MAX_PIXELS // 10**6} million here: make it smaller"
                    )
                file.load()
                return upright_rgb(file)
    except UploadError:
        raise
    except Image.DecompressionBombError as error:
        raise UploadError(f"{name} has more pixels than the {MAX_PIXELS // 10**6} million that are taken") from error
    except UnidentifiedImageError as error:
        raise UploadError(
            f"{name} is no picture, or of a format that is not taken here: use {', '.join(FORMATS[:-1])}"
        ) from error
    # PIL's decoders raise whatever they meet in damaged bytes.
    except Exception as error:
        raise UploadError(f"{name} is damaged or cut short: save it anew and try again") from error


def read_uploads(paths: Sequence[str | Path]) -> tuple[list[Image.Image], list[str]]:
    """Returns the pictures among several files, and a sentence for each of the others.

    Raises:
        UploadError: There are too many files, or none is a picture.
    """
    if len(paths) > MAX_FILES:
        raise UploadError(f"{len(paths)} files are too many at once: {MAX_FILES} are taken")
    found, said = [], []
    for path in paths:
        try:
            found.append(read_upload(path))
        except UploadError as error:
            said.append(str(error))
    if not found:
        raise UploadError(said[0] if said else "there is no picture yet: choose some files")
    return found, said


def read_folder(folder: Path) -> tuple[list[Image.Image], list[str]]:
    """Returns the pictures in a folder that the command line named, and a sentence for each file that is none.

    Raises:
        UploadError: There is none, or there are too many.
    """
    return read_uploads([image.path for image in find_images(folder)])
