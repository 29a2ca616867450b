"""Finding, reading and preparing images."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from captum_learnprop import images
from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import (
    ImageFile,
    Preprocessing,
    UnreadableImageError,
    find_images,
    folder_labels,
    image_size,
    read_cutout,
    read_image,
    read_mask,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def files(*ids: str) -> list[ImageFile]:
    return [ImageFile(each, Path(each)) for each in ids]


class TestFindImages:
    def test_is_sorted_and_takes_images_only(self, tmp_path: Path) -> None:
        touch(*(tmp_path / name for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden.png", "a.png")))
        assert [image.id for image in find_images(tmp_path)] == ["a.jpeg", "a.png", "b.PNG"]

    def test_looks_in_sub_folders_only_when_asked(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.png", tmp_path / "cats" / "a.png", tmp_path / ".cache" / "c.png")
        assert [image.id for image in find_images(tmp_path)] == ["a.png"]
        assert [image.id for image in find_images(tmp_path, recursive=True)] == ["a.png", "cats/a.png"]

    def test_ids_do_not_depend_on_the_other_files(self, tmp_path: Path) -> None:
        touch(tmp_path / "cats" / "a.png")
        before = find_images(tmp_path, recursive=True)
        touch(tmp_path / "a.png", tmp_path / "cats" / "a.jpg", tmp_path / "cats_a.png")
        after = find_images(tmp_path, recursive=True)
        assert before[0] in after
        assert len({image.id for image in after}) == 4

    def test_leaves_out_the_excluded_folder(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.png", tmp_path / "out" / "overlays" / "a.png.png")
        found = find_images(tmp_path, recursive=True, exclude=tmp_path / "out")
        assert [image.id for image in found] == ["a.png"]

    def test_takes_a_single_file(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.png", tmp_path / "b.png")
        assert [image.id for image in find_images(tmp_path / "b.png")] == ["b.png"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match="no such folder or file"):
            find_images(tmp_path / "missing")

    def test_empty_folder_hints_at_sub_folders(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match=r"no image in .*\.png") as error:
            find_images(tmp_path)
        assert "--recursive" not in str(error.value)
        touch(tmp_path / "cats" / "a.png")
        with pytest.raises(LearnpropError, match="1 lie in sub-folders: add --recursive"):
            find_images(tmp_path)


class TestReadImage:
    @pytest.mark.parametrize(
        ("name", "mode"),
        [
            ("a.png", "RGB"),
            ("a.png", "P"),
            ("a.png", "L"),
            ("a.png", "1"),
            ("a.jpg", "CMYK"),
            ("a.gif", "P"),
            ("a.webp", "RGB"),
        ],
    )
    def test_every_mode_becomes_rgb(self, tmp_path: Path, name: str, mode: str) -> None:
        Image.new("RGB", (6, 4), "white").convert(mode).save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert (image.mode, image.size) == ("RGB", (6, 4))
        assert np.asarray(image).min() >= 250

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_lies_over_white(self, tmp_path: Path, mode: str) -> None:
        Image.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(mode).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)

    def test_transparent_palette_entry(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *BLUE])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "a.png", transparency=0)
        read = read_image(tmp_path / "a.png")
        assert [read.getpixel((0, 0)), read.getpixel((1, 0))] == [(255, 255, 255), BLUE]

    def test_sixteen_bits_are_scaled_and_not_clipped(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
        assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 100, 255]

    def test_float_values_in_the_unit_interval(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)).save(tmp_path / "a.tif")
        assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 2].tolist() == [0, 51, 255]

    def test_float_values_of_unknown_range_are_unreadable(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0.0, 700.0]], dtype=np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(UnreadableImageError, match=r"a\.tif: grey values of mode F lie outside \[0, 1\]"):
            read_image(tmp_path / "a.tif")

    def test_camera_orientation_is_applied(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), GREEN)
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees clockwise to be upright
        image.save(tmp_path / "a.png", exif=exif)
        upright = read_image(tmp_path / "a.png")
        assert upright.size == (1, 2)
        assert [upright.getpixel((0, 0)), upright.getpixel((0, 1))] == [RED, GREEN]

    def test_damaged_files_are_unreadable(self, tmp_path: Path) -> None:
        whole = tmp_path / "whole.png"
        Image.effect_noise((32, 32), 60).save(whole)
        contents = {
            "text.png": b"not an image",
            "empty.jpg": b"",
            "cut.png": whole.read_bytes()[:200],
            "flipped.png": whole.read_bytes()[:60] + b"\x00" * 40 + whole.read_bytes()[100:],
        }
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UnreadableImageError, match=f"cannot read image {name}: ."):
                read_image(tmp_path / name)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableImageError, match=r"gone\.png"):
            read_image(tmp_path / "gone.png")


class TestReadCutout:
    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_keeps_what_the_alpha_channel_says(self, tmp_path: Path, mode: str) -> None:
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        image.putpixel((1, 0), (255, 255, 255, 255))
        image.convert(mode).save(tmp_path / ("a.tif" if mode == "PA" else "a.png"))
        read = read_cutout(next(tmp_path.iterdir()))
        assert read.mode == "RGBA"
        assert np.asarray(read)[0, :, 3].tolist() == [0, 255]
        assert read.getpixel((1, 0)) == (255, 255, 255, 255)

    def test_a_transparent_colour(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *BLUE])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "a.png", transparency=0)
        assert np.asarray(read_cutout(tmp_path / "a.png"))[0].tolist() == [[*RED, 0], [*BLUE, 255]]

    def test_no_alpha_channel(self, tmp_path: Path) -> None:
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
        with pytest.raises(LearnpropError, match=r"a\.png has no alpha channel: save it"):
            read_cutout(tmp_path / "a.png")


class TestReadMask:
    @pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB"])
    def test_is_what_is_not_zero(self, tmp_path: Path, mode: str) -> None:
        image = Image.new("I;16" if mode == "I;16" else "L", (3, 1))
        image.putpixel((1, 0), 1 if mode in ("L", "I;16") else 255)
        image.convert(mode).save(tmp_path / "a.png")
        assert np.asarray(read_mask(tmp_path / "a.png")).tolist() == [[0, 255, 0]]

    def test_the_number_of_a_palette_counts(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, 0, 0, 0])  # number 1 is black
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "a.png")
        assert np.asarray(read_mask(tmp_path / "a.png")).tolist() == [[0, 255]]

    def test_transparent_is_outside(self, tmp_path: Path) -> None:
        image = Image.new("RGBA", (3, 1), (255, 255, 255, 0))
        image.putpixel((1, 0), (255, 255, 255, 255))
        image.putpixel((2, 0), (0, 0, 0, 255))
        for mode in ("RGBA", "LA"):
            image.convert(mode).save(tmp_path / "a.png")
            assert np.asarray(read_mask(tmp_path / "a.png")).tolist() == [[0, 255, 0]]


class TestImageSize:
    def test_is_that_of_the_upright_image(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (4, 3))
        exif = image.getexif()
        for orientation, size in ((1, (4, 3)), (3, (4, 3)), (6, (3, 4)), (8, (3, 4))):
            exif[0x0112] = orientation
            image.save(tmp_path / "a.jpg", exif=exif)
            assert image_size(tmp_path / "a.jpg") == size == read_image(tmp_path / "a.jpg").size

    def test_a_file_that_is_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("no")
        with pytest.raises(UnreadableImageError, match="cannot identify"):
            image_size(tmp_path / "a.png")


class TestPreprocessing:
    @pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "inception_v3"])
    def test_equals_the_transforms_of_the_weights(self, name: str) -> None:
        image = Image.effect_noise((300, 420), 80).convert("RGB")
        ours = Preprocessing.of_weights(name, "DEFAULT")
        expected = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()(image)
        torch.testing.assert_close(ours.normalize(ours.pixels(image)), expected, rtol=0, atol=0)

    def test_unknown_model_or_weights(self) -> None:
        with pytest.raises(LearnpropError, match="no model 'resnet19'"):
            Preprocessing.of_weights("resnet19", "DEFAULT")
        with pytest.raises(LearnpropError, match=r"no weights 'BEST'.*IMAGENET1K_V1"):
            Preprocessing.of_weights("resnet18", "BEST")

    def test_weights_for_another_task(self) -> None:
        with pytest.raises(LearnpropError, match="not an image classifier"):
            Preprocessing.of_weights("fcn_resnet50", "DEFAULT")

    def test_crops_the_centre_of_the_shorter_side(self) -> None:
        image = Image.new("RGB", (30, 10), BLUE)
        image.paste(GREEN, (10, 0, 20, 10))
        pixels = Preprocessing(10, 10).pixels(image)
        expected = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 10, 10)
        torch.testing.assert_close(pixels, expected)

    def test_size_keeps_the_share_of_the_margin(self) -> None:
        assert Preprocessing(256, 224).at_size(64) == Preprocessing(73, 64)
        assert Preprocessing().at_size(64) == Preprocessing(64, 64)

    def test_without_normalization_the_pixels_stay(self) -> None:
        pixels = torch.rand(2, 3, 5, 5)
        torch.testing.assert_close(Preprocessing().without_normalization().normalize(pixels), pixels)

    def test_a_very_long_image_takes_no_gigabytes(self) -> None:
        image = Image.new("RGB", (2, 100_000), RED)
        image.paste(GREEN, (0, 49_990, 2, 50_010))
        pixels = Preprocessing(224, 224).pixels(image)  # untrimmed: 224 x 11 million pixels
        assert pixels.shape == (3, 224, 224)
        assert pixels[1].min() == 1


class TestFolderLabels:
    def test_numbers(self) -> None:
        assert folder_labels(files("7/a.png", "03/b.png"), 10) == {"7/a.png": 7, "03/b.png": 3}

    def test_number_out_of_range(self) -> None:
        with pytest.raises(LearnpropError, match="folder 10 is out of range: the classes are 0 to 9"):
            folder_labels(files("10/a.png"), 10)

    def test_class_names(self) -> None:
        names = ["tench", "great white shark", "hen"]
        assert folder_labels(files("Great_White_Shark/x/a.png", "hen/b.png"), 3, names) == {
            "Great_White_Shark/x/a.png": 1,
            "hen/b.png": 2,
        }

    def test_a_name_of_two_classes_means_nothing(self) -> None:
        with pytest.raises(LearnpropError, match="nor known class names"):
            folder_labels(files("crane/a.png"), 3, ["crane", "hen", "crane"])

    def test_alphabetical_order_when_every_class_has_its_folder(self) -> None:
        assert folder_labels(files("dog/a.png", "cat/b.png"), 2) == {"dog/a.png": 1, "cat/b.png": 0}
        with pytest.raises(LearnpropError, match="2 folders cannot stand for 3 classes"):
            folder_labels(files("dog/a.png", "cat/b.png"), 3)

    def test_image_outside_of_any_folder(self) -> None:
        with pytest.raises(LearnpropError, match=r"b\.png lies in no sub-folder"):
            folder_labels(files("cat/a.png", "b.png"), 2)


class TestNoImages:
    """What has the name of an image and is none must not be opened: a pipe would wait for ever."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        Image.new("RGB", (3, 3)).save(tmp_path / "good.png")
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "device.png").symlink_to("/dev/zero")
        (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
        (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "linked.png").symlink_to(tmp_path / "folder.png")
        shutil.copy(tmp_path / "good.png", tmp_path / "folder.png" / "inner.png")
        os.mkfifo(tmp_path / "folder.png" / "inner pipe.png")
        return tmp_path

    REASONS: ClassVar[dict[str, str]] = {
        "dangling.png": "is a link to nothing",
        "device.png": "is a device and no regular file",
        "linked.png": "is a folder and no regular file",
        "loop.png": f"cannot be read ({os.strerror(errno.ELOOP)})",
        "pipe.png": "is a pipe and no regular file",
    }

    def test_are_left_out_with_their_reason(self, folder: Path) -> None:
        reasons: dict[str, str] = {}
        assert [image.id for image in find_images(folder, left_out=reasons)] == ["good.png"]
        assert reasons == {**self.REASONS, "folder.png": "is a folder and no regular file"}
        reasons.clear()
        found = find_images(folder, recursive=True, left_out=reasons)
        assert [image.id for image in found] == ["folder.png/inner.png", "good.png"]
        assert reasons == {**self.REASONS, "folder.png/inner pipe.png": "is a pipe and no regular file"}

    def test_a_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        reasons: dict[str, str] = {}
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("s.png")
            with pytest.raises(LearnpropError, match=r"left out s\.png: is a socket"):
                find_images(Path(), left_out=reasons)
        assert reasons == {"s.png": "is a socket and no regular file"}

    def test_named_directly(self, folder: Path) -> None:
        with pytest.raises(LearnpropError, match=r"pipe\.png is a pipe and no regular file: name a folder of images"):
            find_images(folder / "pipe.png")

    @pytest.mark.parametrize("name", [*REASONS, "folder.png"])
    def test_cannot_be_read(self, folder: Path, name: str) -> None:
        with pytest.raises(UnreadableImageError, match=f"cannot read image {name}: (is|cannot)"):
            read_image(folder / name)
        with pytest.raises(UnreadableImageError):
            ImageFile(name, folder / name).sha256()

    def test_a_file_that_becomes_a_pipe_just_then(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "why_no_file", lambda path: None)
        with pytest.raises(UnreadableImageError, match="is no regular file"):
            read_image(folder / "pipe.png")

    def test_a_name_in_an_error_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "a\n\udcff.png").write_text("no image")
        with pytest.raises(UnreadableImageError) as error:
            read_image(tmp_path / "a\n\udcff.png")
        assert str(error.value) == r"cannot read image a\n\udcff.png: cannot identify image file"

    def test_folders_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path / "a.png", tmp_path / "locked" / "b.png")
        before = os.scandir

        def scandir(path: str) -> Any:
            if str(path).endswith("locked"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return before(path)

        monkeypatch.setattr(os, "scandir", scandir)
        reasons: dict[str, str] = {}
        assert [image.id for image in find_images(tmp_path, recursive=True, left_out=reasons)] == ["a.png"]
        assert reasons == {"locked": "cannot look into it: Permission denied"}
        with pytest.raises(LearnpropError, match=r"cannot look into .*locked: Permission denied"):
            find_images(tmp_path / "locked")

    def test_folders_deeper_than_a_path_can_be(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.png")
        here = os.open(tmp_path, os.O_RDONLY)
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=here)
            below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("b.png", os.O_CREAT, dir_fd=here))
        os.close(here)
        reasons: dict[str, str] = {}
        assert [image.id for image in find_images(tmp_path, recursive=True, left_out=reasons)] == ["a.png"]
        assert list(reasons.values()) == ["cannot look into it: File name too long"]


class TestIds:
    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        names = [
            b"a\xff.png",
            b"a\xfe.png",
            rb"a\xff.png",
            rb"a\x5cxff.png",
            rb"a\\xff.png",
            rb"a\.png",
            b"a\\\xff.png",
        ]
        for name in names:
            Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(name)
        found = find_images(tmp_path)
        assert {image.id: image.path.read_bytes() for image in found} == {
            r"a\xff.png": b"a\xff.png",
            r"a\xfe.png": b"a\xfe.png",
            r"a\x5cxff.png": rb"a\xff.png",
            r"a\x5cx5cxff.png": rb"a\x5cxff.png",
            r"a\\x5cxff.png": rb"a\\xff.png",
            r"a\.png": rb"a\.png",
            "a\\\\xff.png": b"a\\\xff.png",
        }
