"""The examples in docstrings are executed, and every metric has its formula, its errors and an example."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import captum_learnprop
import zennit_rules
from captum_learnprop import evaluation
from captum_learnprop.evaluation.metrics import METRICS

PACKAGES = (zennit_rules, captum_learnprop)

#: What a reader of an example is taken to have imported.
IMPORTED = {"torch": torch, "nn": nn, "np": np, **{name: getattr(evaluation, name) for name in evaluation.__all__}}


def modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if find_spec("gradio") is not None or not found.name.startswith("captum_learnprop.web.page."):
            yield import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes that a module defines, and the methods of the classes."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if callable(thing) and inspect.isfunction(inspect.unwrap(thing)):
            yield f"{module.__name__}.{name}", thing
        elif inspect.isclass(thing):
            yield f"{module.__name__}.{name}", thing
            for method, function in vars(thing).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{module.__name__}.{name}.{method}", function


PUBLIC = {name: thing for package in PACKAGES for module in modules(package) for name, thing in public(module)}
WITH_EXAMPLES = {name: thing for name, thing in PUBLIC.items() if ">>> " in (inspect.getdoc(thing) or "")}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_example(name: str) -> None:
    thing = WITH_EXAMPLES[name]
    module = vars(import_module(thing.__module__))
    test = doctest.DocTestParser().get_doctest(
        inspect.getdoc(thing) or "", {**IMPORTED, **module}, name, inspect.getsourcefile(inspect.unwrap(thing)), None
    )
    said: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted > 0


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_formula_errors_and_example(name: str) -> None:
    text = inspect.getdoc(METRICS[name].entry.resolve()) or ""
    for part in ("Formula:\n    ``", "Args:", "Raises:", f">>> {name}("):
        assert part in text, f"{name} has no {part!r}"
    assert text.startswith("Returns ")
    assert "``(B,)``" in text.split("\n\n")[0] or "``(M,)``" in text.split("\n\n")[0], f"{name} does not say its shape"


OURS = [name for name in evaluation.__all__ if inspect.isfunction(inspect.unwrap(getattr(evaluation, name)))]


@pytest.mark.parametrize(
    "name", [name for name in OURS if getattr(evaluation, name).__module__.startswith("captum_learnprop.evaluation")]
)
def test_a_function_of_the_evaluation_has_an_example(name: str) -> None:
    function = getattr(evaluation, name)
    assert f"{function.__module__}.{function.__name__}" in WITH_EXAMPLES
    assert "Raises:" in (inspect.getdoc(function) or ""), f"{name} does not say what it raises"


def test_examples_are_found() -> None:
    assert len(WITH_EXAMPLES) > 40
