"""The numbers that a browser gets are those of the map."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode

import numpy as np
import torch
from PIL import Image

from captum_learnprop.plot import normalize_map
from captum_learnprop.web.drawn import LONGEST_MAP, element, maps_data, picture_address
from captum_learnprop.web.visit import Shot, Visit


def test_values_are_those_of_the_map(visit: Visit) -> None:
    visit.choose_methods(["LRP epsilon plus"])
    (found,) = visit.explanations()
    data = maps_data([found], "data:,")
    (one,) = data["maps"]
    sent = np.frombuffer(b64decode(one["values"]), "<i2").reshape(one["rows"], one["columns"]) * one["unit"]
    step = one["largest"] / 32767
    assert np.abs(sent - found.map.numpy()).max() <= step
    shade = np.clip(sent / one["scale"], -1, 1)
    assert np.abs(shade - normalize_map(found.map)).max() < 1e-3
    assert (found.map < 0).any()


def test_a_large_map_is_sent_smaller_with_its_means(visit: Visit) -> None:
    visit.look_at(Shot("large", Image.effect_noise((1200, 800), 60).convert("RGB")))
    visit.choose_methods(["Grad-CAM"])
    (found,) = visit.explanations()
    (one,) = maps_data([found], "data:,")["maps"]
    assert (one["columns"], one["rows"]) == (LONGEST_MAP, 213)
    sent = np.frombuffer(b64decode(one["values"]), "<i2") * one["unit"]
    assert sent.mean() == np.float32(found.map.mean()) or abs(sent.mean() / float(found.map.mean()) - 1) < 0.01
    assert one["largest"] == float(found.map.abs().max())


def test_a_map_of_zeros(visit: Visit) -> None:
    (found,) = visit.explanations()
    data = maps_data([type(found)(**{**vars(found), "map": torch.zeros(4, 6)})], "data:,")
    assert data["maps"][0]["unit"] == 0
    assert set(b64decode(data["maps"][0]["values"])) == {0}


def test_what_the_model_does_not_see(visit: Visit) -> None:
    (found,) = visit.explanations()
    assert maps_data([found], "")["frame"] is None
    visit.look_at(Shot("wide", Image.new("RGB", (100, 50), "red")))
    (found,) = visit.explanations()
    assert maps_data([found], "")["frame"] == {"top": 0.0, "bottom": 1.0, "left": 0.25, "right": 0.75}


def test_no_text_is_html() -> None:
    hostile = {"text": "</script><img src=x onerror=alert(1)> {{evil}} ${evil} `"}
    found = element("note", hostile)
    packed = re.fullmatch(r'<learnprop-note data="([A-Za-z0-9+/=]+)"></learnprop-note>', found)
    assert packed is not None
    assert json.loads(b64decode(packed[1])) == hostile


def test_pictures_are_sent_no_larger_than_drawn() -> None:
    address = picture_address(Image.new("RGB", (3000, 1500), "red"))
    with Image.open(io.BytesIO(b64decode(address.partition(",")[2]))) as sent:
        assert (sent.format, sent.size) == ("JPEG", (640, 320))
