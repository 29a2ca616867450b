"""The output folder: raw maps, manifest, HDF5 and the ViRelAy files."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from captum_learnprop.attribution_store import (
    AttributionStore,
    NonFiniteError,
    StoredMap,
    require_h5py,
)
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError, replacing
from captum_learnprop.images import ImageFile, find_images

OPTIONS = {"model": "tiny", "method": "saliency", "target": "predicted", "mean": (0.5, 0.5), "steps": None}
OVERLAY = np.full((4, 5, 3), 200, np.uint8)


def picture(folder: Path, name: str) -> ImageFile:
    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
    return ImageFile(name, path)


def stored(value: float = 1.0, target: int = 3, shape: tuple[int, ...] = (3, 4, 5)) -> StoredMap:
    return StoredMap(torch.full(shape, value), torch.arange(10) * value, target)


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestReplacing:
    def test_the_file_appears_whole(self, tmp_path: Path) -> None:
        with replacing(tmp_path / "new" / "a.txt") as path:
            path.write_text("whole")
            assert not (tmp_path / "new" / "a.txt").exists()
        assert everything_below(tmp_path) == ["new/a.txt"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_the_old_file(self, tmp_path: Path, error: type[BaseException]) -> None:
        def fail() -> None:
            with replacing(tmp_path / "a.txt") as path:
                path.write_text("half")
                raise error

        (tmp_path / "a.txt").write_text("old")
        with pytest.raises(error):
            fail()
        assert everything_below(tmp_path) == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "old"


class TestMaps:
    def test_round_trip(self, tmp_path: Path) -> None:
        store, image = AttributionStore(tmp_path / "out", OPTIONS), picture(tmp_path, "a.png")
        assert not store.has(image)
        attribution = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
        store.save(image, StoredMap(attribution, torch.randn(10), 7), OVERLAY)
        assert store.has(image)
        loaded = store.load(image)
        assert (loaded.attribution.dtype, loaded.target) == (torch.float32, 7)
        torch.testing.assert_close(loaded.attribution, attribution.detach().float(), rtol=0, atol=0)
        drawn = np.asarray(Image.open(tmp_path / "out" / "overlays" / "a.png.png"))
        np.testing.assert_array_equal(drawn, OVERLAY)

    def test_nothing_is_created_before_something_is_saved(self, tmp_path: Path) -> None:
        AttributionStore(tmp_path / "out", OPTIONS)
        assert not (tmp_path / "out").exists()

    def test_an_image_with_new_content_is_not_done(self, tmp_path: Path) -> None:
        store, image = AttributionStore(tmp_path / "out", OPTIONS), picture(tmp_path, "a.png")
        store.save(image, stored(), OVERLAY)
        image.path.write_bytes(b"another picture")
        assert not store.has(image)

    def test_a_damaged_map_is_not_done(self, tmp_path: Path) -> None:
        store, image = AttributionStore(tmp_path / "out", OPTIONS), picture(tmp_path, "a.png")
        store.save(image, stored(), OVERLAY)
        path = tmp_path / "out" / "maps" / "a.png.safetensors"
        path.write_bytes(path.read_bytes()[:40])
        assert not store.has(image)
        with pytest.raises(LearnpropError, match="cannot read the map"):
            store.load(image)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_refuses_what_is_not_finite(self, tmp_path: Path, value: float) -> None:
        store, image = AttributionStore(tmp_path / "out", OPTIONS), picture(tmp_path, "a.png")
        with pytest.raises(NonFiniteError, match="60 of 60 attribution values"):
            store.save(image, stored(value), OVERLAY)
        assert not (tmp_path / "out").exists()


class TestManifest:
    def filled(self, tmp_path: Path) -> Path:
        AttributionStore(tmp_path / "out", OPTIONS).save(picture(tmp_path, "a.png"), stored(), OVERLAY)
        return tmp_path / "out"

    def test_the_same_options_resume(self, tmp_path: Path) -> None:
        assert AttributionStore(self.filled(tmp_path), OPTIONS).has(picture(tmp_path, "a.png"))

    def test_other_options_are_named_with_both_values(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        with pytest.raises(LearnpropError) as error:
            AttributionStore(folder, {**OPTIONS, "method": "deconvolution", "steps": 3})
        message = str(error.value)
        assert "method: 'saliency' there, 'deconvolution' now" in message
        assert "steps: None there, 3 now" in message
        assert "another --out" in message
        assert "--overwrite" in message
        assert "model:" not in message

    def test_overwrite_deletes_the_run_and_nothing_else(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        (folder / "my notes.txt").write_text("keep")
        store = AttributionStore(folder, {**OPTIONS, "steps": 3}, overwrite=True)
        assert not store.has(picture(tmp_path, "a.png"))
        assert everything_below(folder) == ["my notes.txt"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_somebody_else_is_left_alone(self, tmp_path: Path, overwrite: bool) -> None:
        (tmp_path / "maps").mkdir()
        (tmp_path / "maps" / "thesis.txt").write_text("years of work")
        with pytest.raises(LearnpropError, match="was not written by `learnprop attribute`"):
            AttributionStore(tmp_path, OPTIONS, overwrite=overwrite)
        assert everything_below(tmp_path) == ["maps/thesis.txt"]

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(LearnpropError, match="choose another --out"):
            AttributionStore(tmp_path / "out", OPTIONS)

    def test_hidden_files_do_not_count(self, tmp_path: Path) -> None:
        (tmp_path / ".DS_Store").write_text("")
        AttributionStore(tmp_path, OPTIONS).save(picture(tmp_path, "a.png"), stored(), OVERLAY)
        assert (tmp_path / "manifest.json").is_file()

    @pytest.mark.parametrize("text", ["{", "[]", '{"options": {}}'])
    def test_damaged_manifest(self, tmp_path: Path, text: str) -> None:
        folder = self.filled(tmp_path)
        (folder / "manifest.json").write_text(text)
        with pytest.raises(LearnpropError, match=r"manifest\.json is damaged"):
            AttributionStore(folder, OPTIONS)

    def test_newer_format(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        (folder / "manifest.json").write_text(json.dumps({"format": 99, "options": {}}))
        with pytest.raises(LearnpropError, match="written in format 99, this version writes 2"):
            AttributionStore(folder, OPTIONS)


class TestHDF5:
    def test_layout(self, tmp_path: Path) -> None:
        store = AttributionStore(tmp_path / "out", OPTIONS)
        images = [picture(tmp_path, name) for name in ("a.png", "ü/b.png")]
        for number, image in enumerate(images):
            store.save(image, stored(number + 1.0, target=number + 4), OVERLAY)
        with h5py.File(store.write_hdf5(images)) as file:
            layout = {name: (data.dtype, data.shape) for name, data in file.items() if name != "id"}
            assert layout == {
                "attribution": (np.float32, (2, 3, 4, 5)),
                "prediction": (np.float32, (2, 10)),
                "label": (np.uint16, (2,)),
                "index": (np.uint32, (2,)),
            }
            assert file["attribution"][:, 0, 0, 0].tolist() == [1.0, 2.0]
            assert file["prediction"][:, 9].tolist() == [9.0, 18.0]
            assert file["label"][:].tolist() == [4, 5]
            assert file["index"][:].tolist() == [0, 1]
            assert file["id"].asstr()[:].tolist() == ["a.png", "ü/b.png"]
            assert json.loads(file.attrs["options"])["method"] == "saliency"

    def test_maps_of_two_shapes(self, tmp_path: Path) -> None:
        store = AttributionStore(tmp_path / "out", OPTIONS)
        images = [picture(tmp_path, name) for name in ("a.png", "b.png")]
        store.save(images[0], stored(), OVERLAY)
        store.save(images[1], stored(shape=(3, 4, 6)), OVERLAY)
        with pytest.raises(LearnpropError, match=r"a\.png and b\.png have .* \(3, 4, 5\) and \(3, 4, 6\)"):
            store.write_hdf5(images)
        assert not (tmp_path / "out" / "attributions.h5").exists()

    def test_without_h5py_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "h5py", None)  # makes the import fail
        with pytest.raises(LearnpropError, match=r"pip install 'captum-learnprop\[demo\]', or add --no-hdf5"):
            require_h5py()


class TestViRelAyFiles:
    def project(self, tmp_path: Path, options: dict[str, Any]) -> Path:
        store = AttributionStore(tmp_path / "out", options)
        images = [picture(tmp_path, name) for name in ("a.png", "b.png")]
        for number, image in enumerate(images):
            store.save(image, stored(target=number), OVERLAY)
        store.write_hdf5(images)
        pixels = {"a.png": torch.zeros(3, 4, 5), "b.png": torch.ones(3, 4, 5)}
        return store.write_dataset(images, lambda image: pixels[image.id], ["hen", "Käuzchen"])

    def test_dataset_rows_are_those_of_the_attributions(self, tmp_path: Path) -> None:
        folder = self.project(tmp_path, OPTIONS).parent
        with h5py.File(folder / "dataset.h5") as file:
            assert {name: (data.dtype, data.shape) for name, data in file.items()} == {
                "data": (np.float32, (2, 3, 4, 5)),
                "label": (np.uint16, (2,)),
            }
            assert file["data"][:, 0, 0, 0].tolist() == [0.0, 1.0]
            assert file["label"][:].tolist() == [0, 1]

    def test_label_map(self, tmp_path: Path) -> None:
        folder = self.project(tmp_path, OPTIONS).parent
        assert json.loads((folder / "label_map.json").read_text(encoding="utf-8")) == [
            {"index": 0, "word_net_id": "0", "name": "hen"},
            {"index": 1, "word_net_id": "1", "name": "Käuzchen"},
        ]

    def test_project_file(self, tmp_path: Path) -> None:
        path = self.project(tmp_path, {**OPTIONS, "model": 'net: "Ä" # 1'})
        assert path.read_text(encoding="utf-8").splitlines() == [
            "project:",
            '  name: "saliency on net: \\"Ä\\" # 1"',
            '  model: "net: \\"Ä\\" # 1"',
            '  label_map: "label_map.json"',
            "  dataset:",
            '    name: "images"',
            '    type: "hdf5"',
            '    path: "dataset.h5"',
            "    input_width: 5",
            "    input_height: 4",
            '    down_sampling_method: "none"',
            '    up_sampling_method: "none"',
            "  attributions:",
            '    attribution_method: "saliency"',
            '    attribution_strategy: "predicted_label"',
            '    sources: ["attributions.h5"]',
        ]

    def test_a_chosen_class_counts_as_the_true_label(self, tmp_path: Path) -> None:
        text = self.project(tmp_path, {**OPTIONS, "target": 3}).read_text(encoding="utf-8")
        assert 'attribution_strategy: "true_label"' in text


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a quota does: a write above the size fails, on any disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestAnyName:
    NAMES = (
        "a" * 251 + ".png",
        "a" * 250 + "b.png",
        "é" * 120 + ".png",
        "x" * 244 + ".jpg",
        "a.png",
        "A.png",
        "a\nb.png",
        "a\\xff.png",
        "a\udcff.png",
        "a\udcfe.png",
        "a\\x5cxff.png",
        'quo"te %s {0} \x1b[31m.png',
        "-flag.png",
        " .png",
        "cats/a.png",
        "cats./a.png",
        "cats /a.png",
        "a.png.png/b.png",
        "d" * 255 + "/a.png",
        "/".join(["e" * 250] * 14) + "/a.png",
    )

    @pytest.fixture
    def found(self, tmp_path: Path) -> list[ImageFile]:
        folder = tmp_path / "pictures"
        for name in self.NAMES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(os.fsencode(name))
        return find_images(folder, recursive=True)

    def test_each_has_a_map_of_its_own(self, tmp_path: Path, found: list[ImageFile]) -> None:
        store = AttributionStore(tmp_path / "out", OPTIONS)
        assert len({image.id for image in found}) == len(self.NAMES)
        for number, image in enumerate(found):
            assert not store.has(image)
            store.save(image, stored(number), OVERLAY)
        again = AttributionStore(tmp_path / "out", OPTIONS)
        assert [int(again.load(image).attribution[0, 0, 0]) for image in found] == list(range(len(found)))
        assert all(again.has(image) for image in found)
        for kind in ("maps", "overlays"):
            assert len([name for _, _, names in os.walk(tmp_path / "out" / kind) for name in names]) == len(found)
        assert len(everything_below(tmp_path / "out")) == 2 * len(found) + 1

    def test_ids_are_text_that_leads_back_to_the_name(self, tmp_path: Path, found: list[ImageFile]) -> None:
        store = AttributionStore(tmp_path / "out", OPTIONS)
        for image in found:
            store.save(image, stored(), OVERLAY)
        store.write_hdf5(found)
        store.write_report({"computed": [image.id for image in found]})
        with h5py.File(tmp_path / "out" / "attributions.h5") as file:
            ids = list(file["id"].asstr()[:])
        assert ids == json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["computed"]
        pictures = os.fsencode(tmp_path / "pictures")
        for image, kept in zip(found, ids, strict=True):
            parts = re.split(r"\\x([0-9a-f]{2})", kept)
            name = b"".join(bytes.fromhex(part) if odd % 2 else part.encode() for odd, part in enumerate(parts))
            assert os.path.join(pictures, name) == os.fsencode(image.path)

    def test_names_that_the_disk_holds_alike(self, tmp_path: Path) -> None:
        first, second = picture(tmp_path, "A.png"), picture(tmp_path, "a.png")
        store = AttributionStore(tmp_path / "out", OPTIONS)
        store.save(first, stored(1.0), OVERLAY)
        # What a disk without upper case does: the file of the one is there under the name of the other.
        for kind, suffix in (("maps", ".safetensors"), ("overlays", ".png")):
            os.link(tmp_path / "out" / kind / f"A.png{suffix}", tmp_path / "out" / kind / f"a.png{suffix}")
        assert not store.has(second)
        store.save(second, stored(2.0), OVERLAY)
        assert store.has(first)
        assert store.has(second)
        assert [float(store.load(image).attribution.mean()) for image in (first, second)] == [1.0, 2.0]

    def test_an_image_that_is_gone(self, tmp_path: Path) -> None:
        image = picture(tmp_path, "a.png")
        store = AttributionStore(tmp_path / "out", OPTIONS)
        store.save(image, stored(), OVERLAY)
        image.path.unlink()
        assert not store.has(image)
        os.mkfifo(image.path)
        assert not store.has(image)


class TestFullDisk:
    def test_a_map_is_there_or_not(self, tmp_path: Path) -> None:
        image = picture(tmp_path, "a.png")
        store = AttributionStore(tmp_path / "out", OPTIONS)
        with files_of_at_most(20_000), pytest.raises(WriteError, match=r"a\.png\.safetensors: File too large") as error:
            store.save(image, stored(shape=(3, 100, 100)), OVERLAY)
        assert error.value.errno == errno.EFBIG
        assert not store.has(image)
        assert everything_below(tmp_path / "out") == ["manifest.json", "overlays/a.png.png"]
        store.save(image, stored(shape=(3, 100, 100)), OVERLAY)
        assert store.has(image)

    def test_hdf5_is_whole_or_not_there(self, tmp_path: Path) -> None:
        images = [picture(tmp_path, f"{number}.png") for number in range(8)]
        store = AttributionStore(tmp_path / "out", OPTIONS)
        for number, image in enumerate(images):
            store.save(image, stored(number, shape=(3, 40, 40)), OVERLAY)
        before = everything_below(tmp_path / "out")
        for size in (0, 1_000, 4_000, 60_000):
            with files_of_at_most(size), pytest.raises(WriteError, match=r"attributions\.h5: File too large"):
                store.write_hdf5(images)
        assert everything_below(tmp_path / "out") == before
        with h5py.File(store.write_hdf5(images)) as file:
            assert file["attribution"][:, 0, 0, 0].tolist() == list(range(8))

    def test_maps_of_two_shapes_are_still_told(self, tmp_path: Path) -> None:
        images = [picture(tmp_path, "a.png"), picture(tmp_path, "b.png")]
        store = AttributionStore(tmp_path / "out", OPTIONS)
        store.save(images[0], stored(), OVERLAY)
        store.save(images[1], stored(shape=(3, 4, 6)), OVERLAY)
        with pytest.raises(LearnpropError, match="one HDF5 file needs one shape"):
            store.write_hdf5(images)
        assert "attributions.h5" not in everything_below(tmp_path / "out")
