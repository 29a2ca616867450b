"""Rules of DeepLIFT for calls of torch functions: multipliers that account for all of their change.

A call ``f(x, y, ...)`` whose operands depend on the model's input is compared with the same call of the reference pass.
Each rule passes on multipliers ``m`` with ``sum(m_x (x - x0)) + sum(m_y (y - y0)) = sum(g (f(x, y) - f(x0, y0)))``:

* an *element-wise* function of one operand takes the slope of the chord ``(f(x) - f(x0)) / (x - x0)``; one of several
  the mean of chords over all orders in which the operands can change (their Shapley value);
* a *product*, also of matrices, is differentiated half way between reference and input, which for two operands is
  exact: ``m_x = g (y + y0) / 2``; one of more operands at as many places on the way as its degree asks for;
* a *quotient* is the product with a reciprocal, whose chord is ``-1 / (y y0)``;
* a *maximum* shares its change out between the winner of the input and that of the reference, as max-pools do;
* a *root of a quadratic form* (norms, standard deviations, distances), a *norm* (`F.layer_norm` and the like), `F.glu`
  and ``logsumexp`` are made of these.

Where operand and reference are equal, the slope takes the place of the chord. `rescale_functions` says which function
follows which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .changes import Change, layer_norm_of, normalized, sigmoid_of
from .function_call import FunctionCall, Rule, Signals
from .rescale import logarithmic_mean


def _difference(call: FunctionCall, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where both are equal, and a difference to divide by: 1 there, so that no NaN comes up."""
    difference = x - x0
    near = difference.abs() <= call.eps
    return near, torch.where(near, torch.ones_like(difference), difference)


def chords(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    """Passes chords of an element-wise function; operands that do not depend on the input keep the values they had."""
    takers = [i for i, takes in enumerate(call.depends) if takes]
    xs, x0s = list(tensors), list(references)
    for i in takers:
        xs[i], x0s[i] = tensors[i].expand(g.shape), references[i].expand(g.shape)
    signals: list[Tensor | None] = [None] * len(tensors)
    for i in takers:
        rest = [j for j in takers if j != i]
        slope: Any = 0
        for size in range(len(rest) + 1):
            share = math.factorial(size) * math.factorial(len(rest) - size) / math.factorial(len(takers))
            for moved in combinations(rest, size):
                slope = slope + share * _chord(call, xs, x0s, i, set(moved))
        signals[i] = (g * slope).sum_to_size(tensors[i].shape)
    return signals


def _chord(call: FunctionCall, xs: list[Tensor], x0s: list[Tensor], i: int, moved: set[int]) -> Tensor:
    """Slope of the change of operand ``i``, while those in ``moved`` are at the input and other takers are not."""
    alone = sum(call.depends) == 1
    start = [x if j in moved or not (takes or alone) else x0
             for j, (x, x0, takes) in enumerate(zip(xs, x0s, call.depends, strict=True))]  # fmt: skip
    end = list(xs) if alone else [*start[:i], xs[i], *start[i + 1 :]]
    near, apart = _difference(call, xs[i], x0s[i])
    chord = (call.main(end) - call.main(start)) / apart
    # Elsewhere the slope does not count, and its own derivative must not either: it may be infinite there.
    end[i] = torch.where(near, xs[i], xs[i].detach())
    slope = call.vjp(end, torch.ones_like(chord), [j == i for j in range(len(xs))])[i]
    flat = torch.zeros_like(chord)
    return torch.where(near, flat if slope is None else torch.where(slope.isfinite(), slope, flat), chord)


@cache
def _gauss_legendre(number: int) -> tuple[tuple[float, float], ...]:
    """Places in [0, 1] and weights of the Gauss-Legendre rule that is exact up to the degree ``2 number - 1``."""
    if number == 1:
        return ((0.5, 1.0),)
    k = torch.arange(1, number, dtype=torch.float64)
    beside = k / (4 * k * k - 1).sqrt()
    places, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return tuple(zip(((places + 1) / 2).tolist(), vectors[0].square().tolist(), strict=True))


def mean_gradient(
    call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor, degree: int
) -> Signals:
    """Returns the mean of the gradient between reference and input, exact for polynomials of that degree."""
    signals: list[Tensor | None] = [None] * len(tensors)
    for place, weight in _gauss_legendre(max(1, math.ceil(degree / 2))):
        between = [torch.lerp(x0, x, place) if takes else _interpolated(x, x0, place)
                   for x, x0, takes in zip(tensors, references, call.depends, strict=True)]  # fmt: skip
        for i, signal in enumerate(call.vjp(between, g * weight)):
            if signal is not None:
                before = signals[i]
                signals[i] = signal if before is None else before + signal
    return signals


def _interpolated(x: Tensor, x0: Tensor, place: float) -> Tensor:
    """Returns a place on the way; operands that depend on the input by rounding or a mask alone stay as they are."""
    return torch.lerp(x0, x, place) if x.is_floating_point() and x0 is not x and x0.shape == x.shape else x


def product(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    return mean_gradient(call, tensors, references, g, sum(call.depends))


def quadratic(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    return mean_gradient(call, tensors, references, g, 2)


def root(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    """Passes chords of a root: ``f - f0 = (f^2 - f0^2) / (f + f0)``, and ``f^2`` is exact half way."""
    between = [torch.lerp(x0, x, 0.5) if takes else x
               for x, x0, takes in zip(tensors, references, call.depends, strict=True)]  # fmt: skip
    total, middle = call.main(tensors) + call.main(references), call.main(between)
    apart = (total > 0) & (middle > 0)
    factor = torch.where(apart, 2 * middle / torch.where(apart, total, torch.ones_like(total)), 0.0)
    # Without a middle the gradient is none that torch could tell: it is that of a tip, and counts nothing.
    return [None if x is None else torch.where(x.isfinite(), x, 0.0) for x in call.vjp(between, g * factor)]


def quotient(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    (a, b), (a0, b0) = (_numerator_and_denominator(call, some) for some in (tensors, references))
    above = g * (1 / b + 1 / b0) / 2
    below = -g * (a + a0) / 2 / (b * b0)
    parts = [part for part, x in ((above, a), (below, b)) if isinstance(x, Tensor)]
    return [part.sum_to_size(x.shape) if takes else None
            for part, x, takes in zip(parts, tensors, call.depends, strict=True)]  # fmt: skip


def _numerator_and_denominator(call: FunctionCall, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
    """Returns numerator and denominator."""
    args, kwargs = call.arguments(tensors)
    a, b = (*args, *kwargs.values())[:2]
    return a, b


def extremum(
    call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor, lowest: bool = False
) -> Signals:
    """What both winners gained or lost between reference and input, per unit of their own difference."""
    out, out0 = call.main(tensors), call.main(references)
    turn = torch.minimum(out, out0) if lowest else torch.maximum(out, out0)
    parts = (
        call.vjp(tensors, g * (turn - out0)),
        call.vjp(references, g * (out - turn)),
    )
    plain = call.vjp(tensors, g)
    signals: list[Tensor | None] = []
    for x, x0, ours, theirs, slope in zip(tensors, references, *parts, plain, strict=True):
        if ours is None or theirs is None or slope is None:
            signals.append(None)
            continue
        near, apart = _difference(call, x, x0)
        signals.append(torch.where(near, slope, (ours + theirs) / apart))
    return signals


def choice(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    """Shares a change of a condition out: ``where``, ``masked_fill``; operands get it in proportion to their own."""
    condition = next(i for i, x in enumerate(tensors) if x.dtype is torch.bool)
    same = (tensors[condition] == references[condition]).expand(g.shape)
    change = call.main(tensors) - call.main(references)
    steps = [(x - x0).expand(g.shape) if takes else None
             for x, x0, takes in zip(tensors, references, call.depends, strict=True)]  # fmt: skip
    total = sum((step.abs() for step in steps if step is not None), torch.zeros_like(change))
    apart = ~same & (total > call.eps)
    ratio = torch.where(apart, change / torch.where(apart, total, torch.ones_like(total)), 0.0)
    plain = call.vjp(tensors, torch.where(apart, 0.0, g))
    return [
        None if p is None or step is None else p + (g * ratio * step.sign()).sum_to_size(x.shape)
        for x, p, step in zip(tensors, plain, steps, strict=True)
    ]


def log_sum_exp(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    """``L / sum(L)`` with the logarithmic means of both softmaxes, see `rescale.RescaleSoftmaxCall`."""
    args, kwargs = call.arguments(tensors)
    given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | kwargs
    dim = given["dim"]
    weight = logarithmic_mean(*(x - torch.logsumexp(x, dim, keepdim=True) for x in (tensors[0], references[0])))
    if not given.get("keepdim", False):
        for at in sorted(d % tensors[0].ndim for d in ((dim,) if isinstance(dim, int) else dim)):
            g = g.unsqueeze(at)
    total = weight.sum(dim, keepdim=True)
    return [g * weight / torch.where(total > 0, total, torch.ones_like(total))]


def composed(written: Callable[..., Change]) -> Rule:
    """A function that is made of others: the way from a change of its operands to that of its value, transposed."""

    def rule(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            here = tensors if again else tuple(x.detach() for x in tensors)
            steps = [torch.zeros_like(x).requires_grad_() if takes else None
                     for x, takes in zip(tensors, call.depends, strict=True)]  # fmt: skip
            changes: list[Any] = [
                x if step is None else Change(x, x0, step, call.eps)
                for x, x0, step in zip(here, references, steps, strict=True)
            ]
            args, kwargs = call.arguments(changes)
            found = written(*args, **kwargs)
            takers = [step for step in steps if step is not None]
            left = iter(torch.autograd.grad(found.step, takers, g, create_graph=again, allow_unused=True))
        return [None if step is None else next(left) for step in steps]

    return rule


# -- functions made of others ------------------------------------------------------------------------------------


def _layer_norm(
    input: Change, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Change:
    return layer_norm_of(input, len(normalized_shape), eps).scaled(weight)


def _rms_norm(input: Change, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Change:
    eps = torch.finfo(input.value.dtype).eps if eps is None else eps
    return layer_norm_of(input, len(normalized_shape), eps, centred=False).scaled(weight)


def _group_norm(
    input: Change, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Change:
    shape = input.value.shape
    found = layer_norm_of(input.map(lambda x: x.reshape(shape[0], num_groups, -1)), 1, eps)
    along = None if weight is None else weight.reshape(-1, *(1,) * (len(shape) - 2))
    return found.map(lambda x: x.reshape(shape)).scaled(along)


def _instance_norm(
    input: Change, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Change:  # fmt: skip
    return _group_norm(input, input.value.shape[1], weight, bias, eps)


def _normalize(input: Change, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Change:
    return normalized(input, dim, eps)


def _cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Change:
    a, b = (x1, x2) if isinstance(x1, Change) else (x2, x1)
    other = normalized(b, dim, eps) if isinstance(b, Change) else F.normalize(b, 2.0, dim, eps)
    return normalized(a, dim, eps).times(other).map(lambda x: x.sum(dim))


def _glu(input: Change, dim: int = -1) -> Change:
    value, gate = input.map(lambda x: x.chunk(2, dim)[0]), input.map(lambda x: x.chunk(2, dim)[1])
    return value.times(sigmoid_of(gate))


_WRITTEN: dict[str, Callable[..., Change]] = {
    "layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm, "instance_norm": _instance_norm,
    "normalize": _normalize, "cosine_similarity": _cosine_similarity, "glu": _glu,
}  # fmt: skip
COMPOSED: dict[str, Rule] = {name: composed(written) for name, written in _WRITTEN.items()}
"""Rules of the functions that are made of others, by name."""
