"""DeepLIFT through calls of torch functions: multipliers that account for all of their change, where such exist.

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

Where operand and reference are equal, the slope takes the place of the chord. What has no rule here keeps its own
gradient; `completeness` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._compat import DisableTorchFunction, one_gradient_at_a_time, tree_flatten, tree_unflatten
from ..core.dependence import depends_on_input
from ..core.functions import CURVES, MATRIX_PRODUCTS, OVER, OVER_REVERSED, TIMES, WEIGHTED, spellings
from ..core.hook import MARKER
from .changes import Change, layer_norm_of, normalized, sigmoid_of
from .rescale import References, in_reference_pass, logarithmic_mean

Signals = Sequence[Tensor | None]
Rule = Callable[["FunctionCall", tuple[Tensor, ...], tuple[Tensor, ...], Tensor], Signals]

MOST_FACTORS = 128
"""A product over more elements than that keeps its gradient: each two take an evaluation."""


class FunctionCall:
    """One call of a torch function: how to repeat it, and with what it is compared.

    Attributes:
        tensors: Its tensors, as they were called.
        depends: Which of them depend on the model's input.
        references: What they were in the reference pass; None for those that nobody noted, which are the same.
    """

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        leaves, self._spec = tree_flatten((args, dict(kwargs)))
        self._at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.tensors: tuple[Tensor, ...] = tuple(leaves[i] for i in self._at)
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._func = func
        self.depends: tuple[bool, ...] = ()
        self.references: tuple[Tensor | None, ...] | None = None
        self.name, self.eps = "", 0.0
        self.rule: Rule | None = None
        self.active: Callable[[], bool] = bool

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of the function, with other tensors."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._at, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        return args, kwargs

    def value(self, tensors: Sequence[Tensor]) -> Any:
        """The function of other tensors."""
        args, kwargs = self.arguments(tensors)
        with DisableTorchFunction():
            return self._func(*args, **kwargs)

    def main(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the value, without indices that come with it."""
        out = self.value(tensors)
        found: Tensor = out if isinstance(out, Tensor) else out[0]
        return found

    def run(self) -> Any:
        """The function's own value, whose backward pass follows the rule."""
        tensors, self.tensors = self.tensors, ()  # autograd saves them, and frees them with the graph
        out = _Rescaled.apply(self, *tensors)
        return out if isinstance(out, Tensor) else self._kind(out)

    def remember_kind(self, out: Any) -> None:
        """Note which kind of tuple the function returns."""
        self._kind = type(out)

    def vjp(self, tensors: Sequence[Tensor], g: Tensor, wanted: Sequence[bool] | None = None) -> Signals:
        """The function's own vector-Jacobian product at some tensors, differentiable if gradients are recorded."""
        again = torch.is_grad_enabled()
        wanted = self.depends if wanted is None else wanted
        with torch.enable_grad():
            # Aliases: one tensor may be two operands.
            apart = [_alias(x, again) if takes else x for x, takes in zip(tensors, wanted, strict=True)]
            takers = [x for x, takes in zip(apart, wanted, strict=True) if takes]
            found = torch.autograd.grad(self.main(apart), takers, g, create_graph=again, allow_unused=True)
        left = iter(found)
        return [next(left) if takes else None for takes in wanted]

    def compared(self) -> tuple[Tensor | None, ...]:
        """The references.

        Raises:
            RuleError: If the baseline did not come here.
        """
        if self.references is None:
            raise References.missing(self.name)
        return self.references


def _alias(x: Tensor, again: bool) -> Tensor:
    return x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()


class _Rescaled(torch.autograd.Function):
    """A function whose backward pass is a rescale rule while the call is active."""

    @staticmethod
    def forward(ctx: Any, call: FunctionCall, *tensors: Tensor) -> Any:
        """Value of the function, unchanged by the rule."""
        ctx.call = call
        ctx.save_for_backward(*tensors, MARKER)
        out = call.value(tensors)
        if isinstance(out, Tensor):
            return out
        call.remember_kind(out)
        ctx.mark_non_differentiable(*out[1:])
        return tuple(out)

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Returns multipliers of the operands that depend on the input, and the gradient of others."""
        call, tensors = ctx.call, ctx.saved_tensors[:-1]
        wanted = tuple(ctx.needs_input_grad[1:])
        if not call.active():
            return None, *call.vjp(tensors, g, wanted)
        noted = call.compared()
        references = tuple(x.detach() if r is None else r for x, r in zip(tensors, noted, strict=True))
        signals = call.rule(call, tensors, references, g)
        others = tuple(mine and not takes for mine, takes in zip(wanted, call.depends, strict=True))
        plain = call.vjp(tensors, g, others) if any(others) else signals
        return None, *(
            (torch.zeros_like(x) if m is None else m) if takes else (p if mine else None)
            for x, m, p, takes, mine in zip(tensors, signals, plain, call.depends, others, strict=True)
        )


# -- rules -----------------------------------------------------------------------------------------------------------


def _difference(call: FunctionCall, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where both are equal, and a difference to divide by: 1 there, so that no NaN comes up."""
    difference = x - x0
    near = difference.abs() <= call.eps
    return near, torch.where(near, torch.ones_like(difference), difference)


def _chords(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
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


def _mean_gradient(
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


def _product(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    return _mean_gradient(call, tensors, references, g, sum(call.depends))


def _quadratic(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    return _mean_gradient(call, tensors, references, g, 2)


def _root(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
    """Passes chords of a root: ``f - f0 = (f^2 - f0^2) / (f + f0)``, and ``f^2`` is exact half way."""
    between = [torch.lerp(x0, x, 0.5) if takes else x
               for x, x0, takes in zip(tensors, references, call.depends, strict=True)]  # fmt: skip
    total, middle = call.main(tensors) + call.main(references), call.main(between)
    apart = (total > 0) & (middle > 0)
    factor = torch.where(apart, 2 * middle / torch.where(apart, total, torch.ones_like(total)), 0.0)
    # Without a middle the gradient is none that torch could tell: it is that of a tip, and counts nothing.
    return [None if x is None else torch.where(x.isfinite(), x, 0.0) for x in call.vjp(between, g * factor)]


def _quotient(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
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


def _extremum(
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


def _choice(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
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


def _logsumexp(call: FunctionCall, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
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


def _composed(written: Callable[..., Change]) -> Rule:
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


# -- functions made of others ----------------------------------------------------------------------------------------


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


# -- which function has which rule -----------------------------------------------------------------------------------

_ELEMENT_WISE = (
    *CURVES, "sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "frac", "nan_to_num", "atan2", "arctan2", "hypot",
    "logaddexp", "logaddexp2", "xlogy", "xlog1py", "fmod", "remainder", "__mod__", "copysign", "floor_divide",
    "__floordiv__", "addcdiv", "smooth_l1_loss", "huber_loss",
)  # fmt: skip
_PRODUCTS = (*MATRIX_PRODUCTS, *WEIGHTED, "addcmul", "chain_matmul", "multi_dot", "lerp")
_QUADRATIC = ("square", "var")
_ROOTS = ("norm", "vector_norm", "std", "cdist", "pairwise_distance")
_HIGHEST = (
    "amax", "max", "maximum", "fmax", "cummax", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices", "adaptive_max_pool3d_with_indices",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip
_LOWEST = ("amin", "min", "minimum", "fmin", "cummin")
_CHOICES = ("where", "masked_fill")
_COMPOSED: dict[str, Callable[..., Change]] = {
    "layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm, "instance_norm": _instance_norm,
    "normalize": _normalize, "cosine_similarity": _cosine_similarity, "glu": _glu,
}  # fmt: skip


@dataclass(frozen=True)
class _Function:
    """A function that has a rule.

    Attributes:
        family: Which kind of rule.
        name: Its name.
        beside: The function that computes the same beside its operand.
        inplace: Whether this one writes into its operand.
    """

    family: str
    name: str
    beside: Any
    inplace: bool = False


_FAMILIES: dict[str, tuple[str, ...]] = {
    "element-wise": _ELEMENT_WISE, "times": TIMES, "product": _PRODUCTS, "over": OVER, "reversed": OVER_REVERSED,
    "quadratic": _QUADRATIC, "root": _ROOTS, "highest": _HIGHEST, "lowest": _LOWEST, "choice": _CHOICES,
    "logsumexp": ("logsumexp",), "factors": ("prod", "cumprod"), "made": tuple(_COMPOSED),
}  # fmt: skip
_RULES: dict[str, Rule] = {
    "element-wise": _chords, "times": _product, "product": _product, "over": _quotient, "reversed": _quotient,
    "quadratic": _quadratic, "root": _root, "highest": _extremum, "lowest": partial(_extremum, lowest=True),
    "choice": _choice, "logsumexp": _logsumexp, **{name: _composed(written) for name, written in _COMPOSED.items()},
}  # fmt: skip
_SEVERAL = frozenset(("times", "product", "choice"))
"""Families whose calls with one tensor beside parameters are linear."""


def _table() -> dict[Any, _Function]:
    return {
        function: _Function(family, name, beside, inplace)
        for family, names in _FAMILIES.items()
        for name in names
        for function, beside, inplace in spellings(name)
    }


_FUNCTIONS = _table()


class FunctionRules:
    """Calls torch functions so that their backward pass follows the rules above.

    Args:
        name_call: Names the call of a function that is being made, from the function's name.
        references: Where the reference pass leaves operands.
        active: Asked in the backward pass whether the rules count; if not, the gradient flows.

    Attributes:
        used: Whether a call had a rule.
    """

    def __init__(self, name_call: Callable[[str], str], references: References, active: Callable[[], bool]) -> None:
        self._name_call, self._references, self._active = name_call, references, active
        self.used = False

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The value of a call, or NotImplemented if the function has no rule, or needs none here.

        Each call that could have a rule is counted, in both passes, so that both give it the same name.
        """
        known = _FUNCTIONS.get(func)
        if known is None or kwargs.get("out") is not None:
            return NotImplemented
        call = FunctionCall(known.beside, args, kwargs)
        loose = [x for x in call.tensors if not isinstance(x, nn.Parameter)]
        if len(call.tensors) < (2 if known.family in _SEVERAL else 1) or any(x.is_complex() for x in call.tensors):
            return NotImplemented
        call.name = self._name_call(known.name)
        if in_reference_pass():
            if len(loose) > 1 or known.family not in _SEVERAL:
                self._references.note_call(call.name, call.tensors)
            return NotImplemented
        if not torch.is_grad_enabled():
            return NotImplemented
        with DisableTorchFunction():
            return self._compared(known, call, args)

    def _compared(self, known: _Function, call: FunctionCall, args: tuple[Any, ...]) -> Any:
        call.references = self._references.find_call(call.name, call.tensors)
        own = sum(x.requires_grad and not isinstance(x, nn.Parameter) for x in call.tensors)
        if known.family in _SEVERAL and call.references is None and own < 2:
            return NotImplemented  # a layer with weights, for the most part: no need to look where they come from
        call.depends = tuple(x.requires_grad and depends_on_input(x) for x in call.tensors)
        if not any(call.depends):
            return NotImplemented
        call.rule = _rule_of(known, call)
        if call.rule is None:
            return NotImplemented
        self.used = True
        call.active, call.eps = self._active, self._references.eps
        if not known.inplace:
            return call.run()
        call.tensors = (call.tensors[0].clone(), *call.tensors[1:])
        return args[0].copy_(call.run())


def _rule_of(known: _Function, call: FunctionCall) -> Rule | None:
    """The rule of a call; None if its own gradient does, or there is no rule for it."""
    several = sum(call.depends) > 1
    if known.family == "times":
        return _product if several else (_chords if _constants_changed(call) else None)
    if known.family == "product":
        return _product if several else None
    if known.family in ("over", "reversed"):
        return _over(known, call)
    if known.family == "choice":
        return _choice if _constants_changed(call) else None
    if known.family == "factors":
        return _factors(call)
    args, kwargs = call.arguments(call.tensors)
    if known.family == "root":
        return _root if _is_euclidean(known.beside, known.name, args, kwargs) else None
    if known.family == "made":
        return _RULES[known.name] if _is_plain(known.name, call, args, kwargs) else None
    return _RULES[known.family]


def _constants_changed(call: FunctionCall) -> bool:
    """Whether an operand that takes no signal, a mask say, is another one for the baseline."""
    return any(
        not takes and x0 is not None and not torch.equal(x, x0)
        for x, x0, takes in zip(call.tensors, call.references or (None,) * len(call.tensors), call.depends, strict=True)
    )


def _over(known: _Function, call: FunctionCall) -> Rule | None:
    args, kwargs = call.arguments(call.tensors)
    if kwargs.get("rounding_mode") is not None:
        return _chords
    if _constants_changed(call):
        return _chords if sum(call.depends) == 1 else _quotient
    below = args[0] if known.family == "reversed" else (*args, *kwargs.values())[1]
    if not any(x is below and takes for x, takes in zip(call.tensors, call.depends, strict=True)):
        return None
    return _chords if known.family == "reversed" else _quotient


def _factors(call: FunctionCall) -> Rule | None:
    """Returns the rule of a product over elements, whose degree is how many there are."""
    args, kwargs = call.arguments(call.tensors)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    number = call.tensors[0].numel() if dim is None else call.tensors[0].shape[dim]
    return partial(_mean_gradient, degree=number) if number <= MOST_FACTORS else None


def _is_euclidean(func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a norm or distance is that of Euclid, of vectors."""
    if name == "std":
        return True
    at = {"norm": 1, "vector_norm": 1, "cdist": 2, "pairwise_distance": 2}[name]
    order = kwargs.get("p", kwargs.get("ord", args[at] if len(args) > at else None))
    if func is torch.linalg.norm and order == 2:
        dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
        return isinstance(dim, int) or (dim is None and args[0].ndim == 1)  # else that of a matrix
    return order in (None, 2, "fro")


def _is_plain(name: str, call: FunctionCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the rule of a function made of others knows this call of it."""
    if name == "normalize":
        return kwargs.get("p", args[1] if len(args) > 1 else 2.0) == 2
    if name == "instance_norm":
        updated = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
        return updated is None
    return name == "cosine_similarity" or sum(call.depends) == 1


__all__ = ["FunctionRules"]
