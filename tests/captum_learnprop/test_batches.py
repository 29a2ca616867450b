"""Explaining as a function of batches, sent to workers by pickling."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from PIL import Image

from captum_learnprop.batches import _OPTIONS, ExplainBatches
from captum_learnprop.commands._attribute_request import Request
from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing
from captum_learnprop.models import load_model

FIXED = {"size": 64, "seed": 3, "threads": 1}


def arrays(count: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 255, (70 + n, 80, 3), dtype=np.uint8) for n in range(count)]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def batch_of(contents: list[bytes]) -> dict[str, np.ndarray]:
    column = np.empty(len(contents), dtype=object)
    column[:] = contents
    return {"bytes": column, "path": np.array([f"/x/{n}.png" for n in range(len(contents))])}


def test_gives_the_maps_of_captum() -> None:
    explain = ExplainBatches("digits_cnn", "saliency", **FIXED)
    before = torch.random.get_rng_state()
    found = explain(batch_of([png(each) for each in arrays()]))
    assert torch.equal(torch.random.get_rng_state(), before)
    preprocessing = Preprocessing(64, 64).without_normalization()
    pixels = torch.stack([preprocessing.pixels(Image.fromarray(each)) for each in arrays()])
    model = load_model("digits_cnn")
    targets = model(pixels).argmax(1)
    expected = Saliency(model).attribute(pixels.requires_grad_(), targets, abs=False)
    torch.testing.assert_close(torch.from_numpy(found["attribution"]), expected)
    assert found["predicted"].tolist() == found["target"].tolist() == targets.tolist()
    assert found["map"].shape == (3, 64, 64)
    assert found["path"].tolist() == ["/x/0.png", "/x/1.png", "/x/2.png"]
    assert "bytes" not in found


def test_pickled_before_and_after_the_first_batch() -> None:
    explain = ExplainBatches("digits_cnn", "saliency", **FIXED)
    batch = batch_of([png(each) for each in arrays(1)])
    before = pickle.loads(pickle.dumps(explain))
    first = explain(batch)["attribution"]
    state = pickle.dumps(explain)
    assert len(state) < 5000  # no model in it
    for other in (before, pickle.loads(state)):
        np.testing.assert_array_equal(other(batch)["attribution"], first)


def test_arrays_of_pixels() -> None:
    explain = ExplainBatches("digits_cnn", "Grad-CAM", target=4, **FIXED)
    images = np.empty(3, dtype=object)
    images[:] = arrays()
    found = explain({"image": images})
    expected = explain(batch_of([png(each) for each in arrays()]))
    np.testing.assert_array_equal(found["attribution"], expected["attribution"])
    assert found["target"].tolist() == [4, 4, 4]
    stacked = explain({"image": np.stack([arrays(1)[0]] * 2), "number": np.arange(2)})
    assert stacked["number"].tolist() == [0, 1]


def test_mean_and_deviation_of_the_input() -> None:
    batch = batch_of([png(each) for each in arrays()])
    plain, scaled = (ExplainBatches("digits_cnn", "saliency", **FIXED, **options)(batch)
                     for options in ({}, {"mean": 0.5, "std": (0.25, 0.25, 0.25)}))  # fmt: skip
    preprocessing = Preprocessing(64, 64, (0.5,) * 3, (0.25,) * 3)
    pixels = torch.stack([preprocessing.pixels(Image.fromarray(each)) for each in arrays()])
    with torch.no_grad():
        expected = load_model("digits_cnn")(preprocessing.normalize(pixels)).numpy()
    np.testing.assert_allclose(scaled["prediction"], expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(scaled["prediction"], plain["prediction"])


def test_every_option_of_the_model_and_the_method_is_known() -> None:
    files = {"images", "out", "recursive", "overwrite", "hdf5", "dataset_file", "workers", "layout", "shard_size"}
    own = {"model", "method", "rules", "target", "batch_size"}
    assert set(_OPTIONS) == set(Request.__dataclass_fields__) - files - own


def test_what_cannot_be_read_is_named(caplog: pytest.LogCaptureFixture) -> None:
    explain = ExplainBatches("digits_cnn", "saliency", **FIXED)
    found = explain(batch_of([b"noise", png(arrays(1)[0])]))
    assert found["path"].tolist() == ["/x/1.png"]
    assert len(found["attribution"]) == 1
    assert "left out /x/0.png: cannot read image 0.png" in caplog.text
    assert explain(batch_of([b"noise"]))["path"].tolist() == []
    assert len(explain({"image": np.zeros((1, 4, 4, 7), np.uint8), "n": np.arange(1)})["n"]) == 0


def test_mistakes() -> None:
    with pytest.raises(LearnpropError, match="unknown option 'wieghts'; did you mean 'weights'"):
        ExplainBatches("digits_cnn", "saliency", wieghts="DEFAULT")
    with pytest.raises(LearnpropError, match="give a method, or rules"):
        ExplainBatches("digits_cnn")
    with pytest.raises(LearnpropError, match="target must be 'predicted' or the number of a class"):
        ExplainBatches("digits_cnn", "saliency", target="cat")
    with pytest.raises(LearnpropError, match="a batch needs a column 'bytes' or 'image'; it has path"):
        ExplainBatches("digits_cnn", "saliency", **FIXED)({"path": np.array(["a"])})
