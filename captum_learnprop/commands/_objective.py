"""Objectives as text: ``OcclusionRegression + 0.1 * Sufficiency(area=0.2)``, read as a formula and never executed."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.plugins.manager import get_manager
from captum_learnprop.training.masked_input import MaskedInput
from captum_learnprop.training.masks import MaxMask
from captum_learnprop.training.terms import MASKS, TERMS, Objective, Term

EXAMPLE = "OcclusionRegression + 0.1 * ClassContrast(other='strongest')"


def parse(text: str) -> Objective:
    """Returns the weighted sum of terms that a text names.

    Terms are those of `terms.TERMS` and the objectives of plugins, alone or with options in brackets; an option is a
    number, a text in quotes, a sequence of them, or a mask such as ``MaxMask(sigma=0.05)``. An objective of per-sample
    learning, such as ``agreement``, judges the input masked by `MaxMask`.

    Raises:
        LearnpropError: A part of the text, which is named, cannot be read, or a name is unknown.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LearnpropError(f"objective {text!r} is no formula; write it as {EXAMPLE!r}") from error
    found = _read(tree.body)
    if isinstance(found, (int, float)):
        raise LearnpropError(f"objective {text!r} names no term; write it as {EXAMPLE!r}")
    objective = Objective.of(found)
    if not any(weight for weight, _ in objective.terms):
        raise LearnpropError(f"objective {text!r} has no weight above 0, so nothing would be minimised")
    return objective


def _read(node: ast.expr) -> Term | Objective | float:
    if isinstance(node, (ast.Name, ast.Call)):
        return _term(*_named(node))
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        left, right = _read(node.left), _read(node.right)
        numbers = sum(isinstance(side, (int, float)) for side in (left, right))
        if isinstance(node.op, ast.Add) and numbers == 0:
            return left + right  # type: ignore[operator]
        if isinstance(node.op, ast.Mult) and numbers == 1:
            return left * right  # type: ignore[operator]
    elif isinstance(value := _literal(node), (int, float)) and not isinstance(value, bool):
        return value
    raise LearnpropError(f"objective: {ast.unparse(node)!r} is no weighted sum of terms; write e.g. {EXAMPLE!r}")


def _literal(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return None
    return tuple(value) if isinstance(value, list) else value


def _named(node: ast.Name | ast.Call) -> tuple[str, dict[str, Any]]:
    """Returns a name, and the options that stand in brackets behind it."""
    if isinstance(node, ast.Name):
        return node.id, {}
    if not isinstance(node.func, ast.Name) or node.args:
        raise LearnpropError(
            f"objective: {ast.unparse(node)!r} must be a name with options, e.g. Sufficiency(area=0.2)"
        )
    options = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise LearnpropError(f"objective: {ast.unparse(node)!r} must name its options, e.g. Sufficiency(area=0.2)")
        options[keyword.arg] = _option(keyword.value)
    return node.func.id, options


def _option(node: ast.expr) -> Any:
    if isinstance(node, (ast.Name, ast.Call)):
        name, options = _named(node)
        if name not in MASKS:
            raise LearnpropError(
                f"objective: unknown mask {name!r}; choose one of {', '.join(MASKS)}{did_you_mean(name, MASKS)}"
            )
        return _made(name, MASKS[name], options)
    value = _literal(node)
    if value is None and not (isinstance(node, ast.Constant) and node.value is None):
        raise LearnpropError(f"objective: {ast.unparse(node)!r} is no number, text in quotes or mask")
    return value


def _term(name: str, options: dict[str, Any]) -> Term:
    if name in TERMS:
        return _made(name, TERMS[name], options)
    known = get_manager().available("objective")
    if name not in known:
        every = [*TERMS, *known]
        raise LearnpropError(
            f"objective: unknown term {name!r}; choose one of {', '.join(every)}{did_you_mean(name, every)}"
        )
    entry = known[name]
    made = _made(name, entry.make, options, of=entry.resolve())
    if isinstance(made, Term):
        return made
    if not callable(made) or not hasattr(made, "apply"):
        whose = f"{entry.label}: " if entry.home else ""
        raise LearnpropError(
            f"objective: {whose}{name} gave {made!r}, which is neither a term nor an objective like Agreement()"
        )
    return MaskedInput(made, MaxMask())


def _made(name: str, factory: Callable[..., Any], options: dict[str, Any], of: Callable[..., Any] | None = None) -> Any:
    try:
        return factory(**options)
    except TypeError as error:
        known = inspect.signature(of or factory).parameters
        hint = next((did_you_mean(option, known) for option in options if option not in known), "")
        raise LearnpropError(f"objective: {name} cannot be made from {options}: {error}{hint}") from error
