"""Old names keep working for one release, and say where the thing is now."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop import maps, targets
from captum_learnprop.training import objectives, trainer


@pytest.mark.parametrize(("old", "new", "name"), [
    ("zennit_rules.sites", "zennit_rules.core.sites", "SiteTracker"),
    ("zennit_rules.linear", "zennit_rules.rules.linear", "LearnedGamma"),
    ("zennit_rules.epsilon_gamma_box", "zennit_rules.composites.lrp", "LearnedEpsilonGammaBox"),
    ("captum_learnprop.attribution.learned", "captum_learnprop.attribution.rules.learned", "LearnedPropagation"),
    ("captum_learnprop.attribution.perturbations", "captum_learnprop.attribution.extremal.perturbations", "Blur"),
    ("captum_learnprop.evaluation.maps", "captum_learnprop.maps", "smooth"),
    ("captum_learnprop.evaluation.scenes", "captum_learnprop.scenes.scenes", "make_scenes"),
    ("captum_learnprop.evaluation.hand_made", "captum_learnprop.benchmark.hand_made", "hand_made"),
])  # fmt: skip
def test_modules(old: str, new: str, name: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is {new} now"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(new)
    assert getattr(found, name) is getattr(importlib.import_module(new), name)


def test_every_module_that_moved_is_there() -> None:
    """The tables of old names hold none that cannot be imported any more."""
    from zennit_rules._moved import _OldNames

    finders = [finder for finder in sys.meta_path if isinstance(finder, _OldNames)]
    assert len(finders) >= 3
    for finder in finders:
        for old, home in finder._homes.items():
            assert importlib.import_module(home).__name__ == home, old


@pytest.mark.parametrize("name", ["make_scenes", "Scenes", "Questions", "VggLike", "DigitsNet", "digits_net"])
def test_scenes_were_evaluation(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"captum_learnprop.scenes.{name} now"):
        assert getattr(cl.evaluation, name) is getattr(cl.scenes, name)


@pytest.mark.parametrize(("module", "old", "new"), [
    (maps, "finished", "postprocess"),
    (targets, "select", "select_target"),
    (targets, "finite", "require_finite"),
    (trainer, "usual", "training_defaults"),
    (objectives, "Objective", "SampleObjective"),
])  # fmt: skip
def test_names(module: object, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is {new} now"):
        assert getattr(module, old) is getattr(module, new)


@pytest.mark.parametrize(("old", "home", "name"), [
    ("captum_learnprop.attribution.tokens.cdam", "averaged_cdam", "SmoothCDAM"),
    ("captum_learnprop.attribution.tokens.cdam", "averaged_cdam", "IntegratedCDAM"),
    ("captum_learnprop.attribution.tokens.cdam", "token_swap", "first_rows"),
    ("captum_learnprop.benchmark.summary", "report", "FAMILY_SCORES"),
    ("captum_learnprop.benchmark.summary", "report", "to_markdown"),
    ("captum_learnprop.evaluation.alignment", "active_span", "retained_energy"),
])  # fmt: skip
def test_names_in_a_file_beside(old: str, home: str, name: str) -> None:
    new = f"{old.rpartition('.')[0]}.{home}"
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is {new}.{name} now"):
        assert getattr(importlib.import_module(old), name) is getattr(importlib.import_module(new), name)


def test_what_never_was() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = maps.nonsense
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = cl.evaluation.nonsense
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("zennit_rules.nonsense")


def test_attribute_is_a_method_under_its_old_name() -> None:
    assert zr.attribute is zr.LearnedComposite.attribute


def test_new_names_are_silent() -> None:
    code = "import captum_learnprop as cl, zennit_rules as zr; [getattr(cl, name) for name in cl.__all__]"
    done = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:zennit_rules", "-W",
                           "error::DeprecationWarning:captum_learnprop", "-c", code], capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert cl.scenes.make_scenes is not None
