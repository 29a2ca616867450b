"""What a visitor looks at: the maps of the page are those of `explain`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import captum_learnprop as cl
from captum_learnprop.errors import LearnpropError, TargetError
from captum_learnprop.web import visit as module
from captum_learnprop.web.choices import method_choices
from captum_learnprop.web.examples import example_picture
from captum_learnprop.web.offered import Offer, OfferedModel
from captum_learnprop.web.visit import Shot, Visit
from captum_learnprop.web.visits import MOST, Visits


@pytest.mark.parametrize("sign", [None, "signed", "positive"])
def test_maps_are_those_of_explain(visit: Visit, sign: str | None) -> None:
    visit.choose_methods(["Grad-CAM", "LRP epsilon plus", "saliency"])
    visit.choose_sign(sign)
    expected = cl.explain(
        "reference:resnet-digits", example_picture("digits 2"), visit.target, list(visit.methods), size=64, sign=sign
    )
    found = list(visit.explanations())
    assert [one.method for one in found] == [one.method for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.map, other.map)
        assert torch.equal(one.attribution, other.attribution)
        assert (one.target, one.prediction, one.sign) == (other.target, other.prediction, other.sign)


def test_without_a_method_explain_chooses(visit: Visit) -> None:
    (found,) = visit.explanations()
    expected = cl.explain("reference:resnet-digits", example_picture("digits 2"), size=64)
    assert found.method == expected.method
    assert torch.equal(found.map, expected.map)


def test_the_map_has_the_size_of_the_picture(visit: Visit) -> None:
    visit.look_at(Shot("wide.png", Image.effect_noise((90, 40), 60).convert("RGB")))
    (found,) = visit.explanations()
    assert found.map.shape == (40, 90)
    assert found.title == "wide.png"
    assert visit.frame.columns == slice(25, 65)


def test_a_map_is_made_once(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    explain = module.explain

    def counted(*given: object, **options: object) -> object:
        made.append(str(given[3]))
        return explain(*given, **options)

    monkeypatch.setattr(module, "explain", counted)
    visit.choose_methods(["Grad-CAM"])
    first = list(visit.explanations())
    visit.choose_methods(["Grad-CAM", "saliency"])
    second = list(visit.explanations())
    assert second[0] is first[0]
    assert made == ["Grad-CAM", "saliency"]
    visit.look_at(visit.seen)
    list(visit.explanations())
    assert made == ["Grad-CAM", "saliency", "Grad-CAM", "saliency"]


def test_old_maps_are_forgotten(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_PIXELS", 2 * 64 * 64)
    visit.choose_methods(["Grad-CAM", "saliency", "DeepLift"])
    assert len(list(visit.explanations())) == 3
    assert len(visit._kept) == 2


def test_an_answer_that_is_no_longer_wanted_ends(visit: Visit) -> None:
    visit.choose_methods(["Grad-CAM", "saliency"])
    first = visit.explanations()
    assert next(first).method == "Grad-CAM"
    visit.choose_class(3)
    second = visit.explanations()
    assert next(second).target == "3"
    assert list(first) == []
    assert next(second).method == "saliency"


def test_what_cannot_be_chosen(visit: Visit) -> None:
    for target in (10, -1, "3", True, 1.0, None):
        with pytest.raises(TargetError, match="they are 0 to 9"):
            visit.choose_class(target)
    with pytest.raises(LearnpropError, match="no method 'CDAM' for reference:resnet-digits"):
        visit.choose_methods(["CDAM"])
    with pytest.raises(LearnpropError, match="no method '/etc/passwd'"):
        visit.choose_methods(["/etc/passwd"])
    with pytest.raises(LearnpropError, match="9 methods are too many"):
        visit.choose_methods(method_choices(visit.model).all[:9])
    with pytest.raises(LearnpropError, match="no sign 'up'"):
        visit.choose_sign("up")
    visit.shot = None
    with pytest.raises(LearnpropError, match="no picture yet: choose an example"):
        visit.prediction()


def test_methods_at_hand_explain(visit: Visit, visit_to_transformer: Visit) -> None:
    for one in (visit, visit_to_transformer):
        at_hand = [name for name in method_choices(one.model).at_hand if name != "integrated gradients"]
        assert len(at_hand) >= 5
        one.choose_methods(at_hand)
        assert [found.method for found in one.explanations()] == at_hand


def test_the_strongest_method_is_at_hand_and_first(visit: Visit) -> None:
    (found,) = visit.explanations()
    assert method_choices(visit.model).at_hand[0] == found.method


def test_files(visit: Visit) -> None:
    visit.choose_methods(["Grad-CAM", "LRP gamma x Grad-CAM"])
    found = list(visit.explanations())
    figure, *numbers = visit.save(found)
    with Image.open(figure) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1.5 * picture.height  # one row: the picture and two maps
    assert [path.name for path in numbers] == [
        "explanation_Grad_CAM.safetensors", "explanation_LRP_gamma_x_Grad_CAM.safetensors",
    ]  # fmt: skip
    for path, one in zip(numbers, found, strict=True):
        with safe_open(path, "pt") as file:
            assert torch.equal(file.get_tensor("map"), one.map)


def test_each_page_has_a_visit_and_its_folder_goes_with_it(offer: Offer, tmp_path: Path) -> None:
    visits = Visits(offer, tmp_path)
    one, other = visits.of("a"), visits.of("b")
    assert visits.of("a") is one
    assert one is not other
    assert one.folder != other.folder
    one.folder.joinpath("file").touch()
    visits.forget("a")
    visits.forget("nobody")
    assert not one.folder.exists()
    assert other.folder.exists()
    assert len(visits) == 1


def test_the_visit_that_was_longest_not_used_is_forgotten(offer: Offer, tmp_path: Path) -> None:
    visits = Visits(offer, tmp_path)
    first = visits.of("first")
    for number in range(MOST):
        visits.of(str(number))
    assert len(visits) == MOST
    assert not first.folder.exists()


def test_another_model_begins_anew(visit: Visit, transformer: OfferedModel) -> None:
    visit.choose_methods(["Grad-CAM"])
    visit.choose_model(transformer)
    assert (visit.target, visit.methods) == (None, ())
    assert visit.seen.name == "digits 2"
    assert len(visit.prediction()) == 5
