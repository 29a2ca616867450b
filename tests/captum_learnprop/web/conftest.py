"""A visit of the page with the small nets that ship: the ResNet-like one and the vision transformer."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_learnprop.web.examples import example_picture
from captum_learnprop.web.offered import ModelChoice, Offer, OfferedModel
from captum_learnprop.web.visit import Shot, Visit


@pytest.fixture(scope="session")
def offer() -> Offer:
    return Offer([ModelChoice(f"reference:{kind}-digits", {"size": 64}) for kind in ("resnet", "vit")])


@pytest.fixture
def net(offer: Offer) -> OfferedModel:
    return offer.model("reference:resnet-digits")


@pytest.fixture
def transformer(offer: Offer) -> OfferedModel:
    return offer.model("reference:vit-digits")


@pytest.fixture
def visit(net: OfferedModel, tmp_path: Path) -> Visit:
    return looking(net, tmp_path)


@pytest.fixture
def visit_to_transformer(transformer: OfferedModel, tmp_path: Path) -> Visit:
    return looking(transformer, tmp_path)


def looking(model: OfferedModel, folder: Path) -> Visit:
    visit = Visit(model, folder)
    visit.look_at(Shot("digits 2", example_picture("digits 2"), example=True))
    visit.choose_class(visit.prediction()[0].index)
    return visit
