"""Scenes: what they promise about values, masks, seeds and splits; the shipped net on them."""

from __future__ import annotations

import sys

import pytest
import torch

from captum_learnprop.evaluation import digits_net, scenes
from captum_learnprop.evaluation.scenes import SPLITS, SceneError, make_scenes, source_digits


@pytest.mark.parametrize(("family", "objects"), [("digits", 1), ("pairs", 2)])
def test_shapes_ranges_and_labels(family: str, objects: int) -> None:
    drawn = make_scenes(family, 40, seed=3)
    assert drawn.images.shape == (40, 3, 64, 64)
    assert drawn.images.dtype == torch.float32
    assert drawn.images.min() >= 0
    assert drawn.images.max() <= 1
    assert drawn.masks.shape == (40, objects, 64, 64)
    assert drawn.masks.dtype == torch.bool
    assert drawn.targets.shape == (40, objects)
    assert drawn.labels.sum(1).eq(objects).all()
    assert drawn.labels.gather(1, drawn.targets).eq(1).all()


def test_every_object_has_pixels_of_its_own() -> None:
    masks = make_scenes("pairs", 300).masks
    areas = masks.flatten(2).sum(2)
    assert areas.min() > 60
    assert areas.max() < 600
    assert not (masks[:, 0] & masks[:, 1]).any()


def test_pixels_of_an_object_share_a_colour_that_differs_from_the_scene() -> None:
    drawn = make_scenes("digits", 60, split="test")
    for image, mask in zip(drawn.images, drawn.masks[:, 0], strict=True):
        inside = image[:, mask].mean(1)
        assert (image[:, mask].std(1) < 0.2).all()
        assert (inside - image[:, ~mask].mean(1)).abs().max() > 0.15


def test_the_same_seed_gives_the_same_scenes_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    first, again, other = (make_scenes("pairs", 8, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, make_scenes("pairs", 8, seed=5, split="test").images)


def test_splits_share_no_source_digit_and_leave_none_out() -> None:
    drawn = {split: {bytes(image.numpy().tobytes()) for image in source_digits(split)[0]} for split in SPLITS}
    total = sum(len(source_digits(split)[0]) for split in SPLITS)
    assert total == 1797
    names = list(SPLITS)
    for first in names:
        assert len(source_digits(first)[1].unique()) == 10
        for second in names[names.index(first) + 1 :]:
            assert not drawn[first] & drawn[second]


def test_questions_ask_for_each_object_once() -> None:
    drawn = make_scenes("pairs", 3)
    asked = drawn.questions()
    assert len(asked) == 6
    assert torch.equal(asked.targets, drawn.targets.flatten())
    assert torch.equal(asked.images[3], drawn.images[1])
    assert torch.equal(asked.masks[3], drawn.masks[1, 1])
    assert torch.equal(asked.other_masks[3], drawn.masks[1, 0])
    assert asked.scenes.tolist() == [0, 0, 1, 1, 2, 2]
    assert not make_scenes("digits", 2).questions().other_masks.any()


def test_part_of_the_scenes() -> None:
    drawn = make_scenes("pairs", 5)
    part = drawn[torch.tensor([3, 1])]
    assert len(part) == 2
    assert torch.equal(part.masks[0], drawn.masks[3])
    assert torch.equal(part.labels[1], drawn.labels[1])


def test_two_large_digits_never_touch() -> None:
    sizes = torch.full((500, 2), scenes.DIGIT_PIXELS[1])
    centres = scenes._separate(sizes, torch.Generator().manual_seed(0), candidates=2)
    assert ((centres[:, 0] - centres[:, 1]).abs().amax(1) >= scenes.DIGIT_PIXELS[1] - 1e-4).all()
    assert centres.min() >= 14
    assert centres.max() <= 50


@pytest.mark.parametrize(
    ("family", "count", "split", "message"),
    [("faces", 1, "train", "'faces'"), ("digits", 0, "train", "got 0"), ("digits", 1, "dev", "'dev'")],
)
def test_bad_requests_are_named(family: str, count: int, split: str, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        make_scenes(family, count, split=split)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes._load_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"captum-learnprop\[demo\]"):
        make_scenes("digits", 1)


def test_the_shipped_net_knows_digits_it_has_never_seen() -> None:
    net = digits_net.load()
    assert not net.training
    for family, least in (("digits", 0.93), ("pairs", 0.91)):
        drawn = make_scenes(family, 300, split="test", seed=17)
        with torch.no_grad():
            named = net(drawn.images).topk(drawn.targets.shape[1], 1).indices.sort(1).values
        assert (named == drawn.targets.sort(1).values).all(1).float().mean() >= least


def test_the_shipped_file_is_small_and_says_how_it_was_made() -> None:
    size = len(digits_net.WEIGHTS.read_bytes())
    assert size < 1_500_000
    metadata = digits_net.weights_metadata()
    assert {"format_version", "seed", "made_by", "test_digits", "test_pairs"} <= set(metadata)


def test_damaged_and_foreign_weights_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="nowhere"):
        digits_net.load(tmp_path / "nowhere.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(digits_net.WEIGHTS.read_bytes()[:5000])
    with pytest.raises(digits_net.WeightsError, match="cannot be read"):
        digits_net.load(cut)
    save_file({"weight": torch.zeros(1)}, tmp_path / "a", metadata={"format_version": "1"})
    with pytest.raises(digits_net.WeightsError, match="does not hold a DigitsNet"):
        digits_net.load(tmp_path / "a")
    save_file({"weight": torch.zeros(1)}, tmp_path / "b", metadata={"format_version": "99"})
    with pytest.raises(digits_net.WeightsError, match="'99'"):
        digits_net.load(tmp_path / "b")
