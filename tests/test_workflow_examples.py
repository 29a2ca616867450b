"""Scripts that people have today, before and after: they run, and one line is what changes."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, *arguments: str) -> dict[str, list[float]]:
    """The numbers at the end of each line that is printed, by what stands before them."""
    result = CliRunner().invoke(module.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    rows: dict[str, list[float]] = {}
    for line in result.output.splitlines():
        found = re.fullmatch(r"\s*(\S.*?)((?:\s+-?\d+\.\d+)+)", line)
        if found:
            rows[" ".join(found[1].split())] = [float(number) for number in found[2].split()]
    return rows


def body(function: Any) -> list[str]:
    """Lines of a function without its signature, docstring and comments."""
    (tree,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(tree, ast.FunctionDef)
    return [ast.unparse(statement) for statement in ast.walk(ast.Module(tree.body[1:], [])) if is_line(statement)]


def is_line(node: ast.AST) -> bool:
    return isinstance(node, (ast.Assign, ast.Expr, ast.Return))


def changes(before: Any, after: Any) -> tuple[list[str], list[str]]:
    lines = list(difflib.ndiff(body(before), body(after)))
    return [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


def test_lrp_of_captum() -> None:
    module = load("lrp_captum_workflow")
    assert changes(module.before, module.after) == (["lrp = LRP(model)"], ["lrp = LearnedLRP(model, rules)"])
    assert changes(module.before, module.attached) == (
        ["lrp = LRP(model)"],
        ["lrp = attach_rules(LRP(model), rules)"],
    )
    rows = run(module, "--steps", "2")
    plain, learned, attached = (rows[n] for n in ("captum.attr.LRP", "LearnedLRP", "LRP with attached rules"))
    assert attached == learned
    assert learned[0] > plain[0] + 0.05  # more of the relevance on the square
    assert learned[1] < plain[1]  # and less that is lost


def test_guided_backprop_of_captum() -> None:
    module = load("guided_backprop_workflow")
    gone, new = changes(module.before, module.after)
    assert gone == ["method = GuidedBackprop(model)"]
    assert new == [
        "method = LearnedGuidedBackprop(model, rules)",
        "grad_cam.guided_backprop = LearnedGuidedBackprop(model, rules)",
    ]
    rows = run(module, "--steps", "2", "--scenes", "6")
    for name in ("guided backprop", "Guided Grad-CAM"):
        scores = [tuple(rows[f"{name} {when}"]) for when in ("before", "untrained", "after")]
        assert len(set(scores)) == 3  # functional calls count, and so does training


def test_deep_lift_of_captum() -> None:
    module = load("deep_lift_workflow")
    assert changes(module.before, module.after) == (
        ["method = DeepLift(model)"],
        ["method = LearnedDeepLift(model, rules=rules)"],
    )
    rows = run(module)
    plain, untrained, learned, normalized = (rows[n] for n in ("before", "untrained", "after", "after, normalized"))
    assert min(learned[0], normalized[0]) > max(plain[0], untrained[0]) + 0.02  # more of the digit that is asked for
    assert plain[1] > 0.1 > 0.001 >= max(untrained[1], normalized[1])  # and nothing missing of the difference


@pytest.mark.filterwarnings("ignore")  # zennit's, on the version of torch
def test_gradient_of_zennit() -> None:
    module = load("lrp_zennit_workflow")
    gone, new = changes(module.before, module.after)
    assert gone == ["composite = EpsilonGammaBox(low=-2.0, high=2.0)"]
    assert new == ["composite = LearnedEpsilonGammaBox(rules=rules)"]
    rows = run(module, "--steps", "1", "--scenes", "5")
    assert rows["LearnedEpsilonGammaBox"] != rows["EpsilonGammaBox"]
