"""What knows functions of torch knows them by all their names; nothing is claimed twice.

Tables of functions stand where their rules are. Here all of them are held against what torch offers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import zennit_rules as zr
from zennit_rules.composites import deep_lift
from zennit_rules.core import coverage, functions, linear_calls, site_functions, tangent
from zennit_rules.core.functions import OWNERS, spellings
from zennit_rules.rules import attention, completeness, relevance, relevance_nodes, rescale_functions

TABLES: dict[str, set[Any]] = {
    "sites": {*site_functions._FUNCTIONALS, *site_functions._CLAMPS, *site_functions._CLAMPS_INPLACE},
    "linear functions": {*linear_calls._FUNCTIONS, *linear_calls._CHAINS, *linear_calls._IN_PLACE},
    "LRP": {*relevance._FUNCTIONS},
    "DeepLIFT": {*rescale_functions._FUNCTIONS},
    "softmax of DeepLIFT": {*deep_lift._SOFTMAX},
    "softmax": {*functions.SOFTMAX},
    "attention": {*functions.ATTENTION},
    "norms of transformers": {*attention.NORMS},
    "products of transformers": {*attention.PRODUCTS},
    "sums and products": {*relevance.SUMS_OF_PRODUCTS},
}

#: Functions of ``F`` that are no functions to torch: they call the tensor's method, which modes see.
HANDED_ON = {F.sigmoid, F.tanh}


def aliases() -> dict[str, set[str]]:
    """Names of the same function, as torch documents them."""
    found: dict[str, set[str]] = {}
    for owner in OWNERS:
        for name in dir(owner):
            documented = str(getattr(getattr(owner, name, None), "__doc__", None))
            said = re.search(r"^Alias (?:for|of) :\w+:`~?(?:torch\.)?(?:\w+\.)*(\w+)`", documented, re.MULTILINE)
            if said and not name.startswith("_") and said[1] != name:
                group = found.get(name, {name}) | found.get(said[1], {said[1]})
                found.update(dict.fromkeys(group, group))
    return found


ALIASES = aliases()


def names_of(function: Any) -> Iterator[str]:
    """Names under which torch has a function."""
    for owner in OWNERS:
        for name in dir(owner):
            if getattr(owner, name, None) is function or (owner is Tensor and getattr(owner, name, None) == function):
                yield name


def offered(name: str) -> dict[Any, str]:
    """All that torch has beside a name: other owners, aliases, and in place."""
    plain = name if name.startswith("__") else name.rstrip("_")
    return {
        function: alias
        for alias in ALIASES.get(plain, {plain})
        for written in (alias, f"{alias}_")
        for owner in OWNERS
        for function in [getattr(owner, written, None)]
        if callable(function)
    }


def test_aliases_are_found() -> None:
    assert ALIASES["atan"] == {"atan", "arctan"}
    assert ALIASES["expit"] == {"expit", "sigmoid"}
    assert ALIASES["ger"] == {"ger", "outer"}
    assert ALIASES["true_divide"] == {"div", "divide", "true_divide"}


@pytest.mark.parametrize("table", TABLES)
def test_every_spelling_is_known(table: str) -> None:
    known = TABLES[table]
    missing = {
        f"{other} (as {name})"
        for function in known
        for name in names_of(function)
        if not name.startswith("_")
        for beside, other in offered(name).items()
        if beside not in known and beside not in HANDED_ON
    }
    assert missing == set()


@pytest.mark.parametrize("owner", [torch.sigmoid, torch.tanh])
def test_what_hands_on(owner: Any) -> None:
    seen: list[Any] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    function, x = next(one for one in HANDED_ON if one.__name__ == owner.__name__), torch.zeros(1)
    with Mode():
        function(x)
    assert seen == [getattr(Tensor, owner.__name__)]


@pytest.mark.parametrize("words", [tangent._LINEAR, tangent._MULTILINEAR, tangent._DIVIDING, tangent._ADDING])
def test_the_tangent_pass_knows_aliases(words: Any) -> None:
    converting = {"to"} | {"bfloat16", "bool", "byte", "char", "int", "long", "short"}
    missing = {a for name in words for a in ALIASES.get(name, ()) if a not in words and a not in converting}
    assert missing == set()


@pytest.mark.parametrize("families", [relevance._FAMILIES, rescale_functions._FAMILIES], ids=["LRP", "DeepLIFT"])
def test_no_function_has_two_rules(families: dict[str, tuple[str, ...]]) -> None:
    claimed: dict[Any, str] = {}
    for family, names in families.items():
        assert len(set(names)) == len(names), family
        for name in names:
            found = [function for function, _, _ in spellings(name)]
            assert found, f"torch has no {name}"
            for function in found:
                assert claimed.setdefault(function, family) == family, name


def test_both_methods_know_products_and_curves() -> None:
    products = {function for function, known in relevance._FUNCTIONS.items() if known.family in ("matrix", "dynamic")}
    curves = {function for function, known in relevance._FUNCTIONS.items() if known.family == "pass"}
    theirs = rescale_functions._FUNCTIONS
    assert products <= {function for function, known in theirs.items() if known.family == "product"}
    assert {*linear_calls._FUNCTIONS} <= products | {torch.linalg.matmul}
    linear = {"neg", "__neg__", "negative", *relevance._ACTIVATIONS, "square"}
    layers = {function for name in linear for function, _, _ in spellings(name)} | {*relevance._NORMALISATIONS}
    assert curves - layers <= {function for function, known in theirs.items() if known.family == "element-wise"}


def test_what_moves_relevance_is_linear_or_an_extremum() -> None:
    extrema = ("Max", "Min", "Amax", "Amin", "Adaptive", "Fractional", "MkldnnMax", "Topk", "Sort", "Kth", "Median")
    moving = {name for name in relevance_nodes._MOVING if not name.startswith(extrema)}
    assert moving <= completeness._LINEAR
    assert not completeness._LINEAR & completeness._MULTILINEAR


# -- modules ---------------------------------------------------------------------------------------------------------

SITE_TYPES = (*site_functions.ACTIVATION_TYPES, *site_functions.POOLING_TYPES)


def instance(kind: type[nn.Module]) -> nn.Module:
    if kind in site_functions.POOLING_TYPES:
        return kind(2)
    return nn.Threshold(0.1, 0.0) if kind is nn.Threshold else kind()


def sample(kind: type[nn.Module]) -> Tensor:
    dims = int(kind.__name__[-2]) if kind in site_functions.POOLING_TYPES else 1
    return torch.linspace(-2.9, 3.1, 2 * 3 * 4**dims).reshape(2, 3, *(4,) * dims)


def test_every_activation_of_torch_is_a_site_or_named() -> None:
    for module in (torch.nn.modules.activation, torch.nn.modules.pooling):
        for name in module.__all__:
            if module is torch.nn.modules.pooling and ("Max" not in name or "Unpool" in name):
                continue
            assert getattr(nn, name) in (*SITE_TYPES, *site_functions.UNREACHED_TYPES), name


@pytest.mark.parametrize("kind", SITE_TYPES, ids=lambda kind: kind.__name__)
def test_a_module_has_its_functions(kind: type[nn.Module]) -> None:
    module, x = instance(kind), sample(kind)
    wanted = module(x)
    written = [(function, spec) for function, spec in site_functions._FUNCTIONALS.items() if spec.module is kind]
    assert written
    for function, spec in written:
        values = [getattr(module, name) for name in spec.names if hasattr(module, name)]
        assert torch.equal(function(x.clone(), *(() if kind is nn.GELU else values)), wanted), function


@pytest.mark.parametrize("kind", site_functions.ACTIVATION_TYPES, ids=lambda kind: kind.__name__)
def test_relevance_passes_activations(kind: type[nn.Module]) -> None:
    for function, spec in site_functions._FUNCTIONALS.items():
        if spec.module is kind:
            assert relevance._FUNCTIONS[function].family == "pass", function
            assert relevance._FUNCTIONS[function].inplace == spec.inplace, function


@pytest.mark.parametrize("kind", SITE_TYPES, ids=lambda kind: kind.__name__)
def test_the_coverage_sees_what_no_rule_reached(kind: type[nn.Module]) -> None:
    found = coverage.unreached_nodes(instance(kind)(sample(kind).requires_grad_()))
    if kind is nn.Softsign:  # a quotient and a modulus, whose nodes are those of any arithmetic
        assert found == {}
    else:
        assert sum(found.values()) == 1


# -- names that were not known once, by what they must do ------------------------------------------------------------


class Calls(nn.Module):
    """A linear layer without bias, a function, and a sum over all but the batch."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        self.weight = nn.Parameter(torch.linspace(0.2, 0.9, 9, dtype=torch.float64).reshape(3, 3))
        with torch.no_grad():
            self.first.weight.copy_(torch.linspace(0.1, 0.5, 9).reshape(3, 3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x)).reshape(len(x), -1).sum(1, keepdim=True)


X = torch.tensor([[0.3, 0.5, 0.2], [0.1, 0.4, 0.6]], dtype=torch.float64)
W = torch.linspace(0.2, 0.9, 9, dtype=torch.float64).reshape(3, 3)


def attributed(composite: str, function: Callable[[Tensor], Tensor], **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The map of a net with a function, its output, and that at zero."""
    model = Calls(function)
    rules = zr.RuleSet.build(model, X, composite, rule_options=options)
    assert rules.coverage().complete
    applied = rules.composite()
    leaf = X.clone().requires_grad_()
    with applied.context(model):
        output = model(leaf)
        (found,) = zr.attribute(applied, output, (leaf,), torch.ones_like(output))
    return found, output.detach(), model(torch.zeros_like(X)).detach()


CURVES: list[Callable[..., Tensor]] = [
    torch.special.expit, torch.special.erf, torch.special.expm1, torch.special.log1p, torch.arctan, torch.exp2,
    torch.sinh, torch.asinh, torch.special.ndtr, lambda z: z.clone().arctan_(), lambda z: torch.float_power(z, 1.5),
]  # fmt: skip


@pytest.mark.parametrize("function", CURVES)
def test_curves_conserve(function: Callable[[Tensor], Tensor]) -> None:
    def rectified(z: Tensor) -> Tensor:
        return torch.relu(function(z))  # all values are positive; DeepLIFT wants a site

    relevance, output, _ = attributed("lrp", rectified, conv="epsilon", dense="epsilon", stabilizer=1e-12)
    assert torch.allclose(relevance.sum(1, keepdim=True), output, rtol=1e-4)
    contributions, output, start = attributed("deeplift", rectified)
    assert torch.allclose(contributions.sum(1, keepdim=True), output - start, atol=1e-9)


PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "ger": lambda z: torch.stack([torch.ger(row, W[0]) for row in z]),
    "Tensor.ger": lambda z: torch.stack([row.ger(W[0]) for row in z]),
    "ger of two": lambda z: torch.stack([torch.ger(row, row) for row in z]),
    "vdot": lambda z: torch.stack([torch.vdot(row, W[0]) for row in z]),
    "vdot of two": lambda z: torch.stack([torch.vdot(row, row.flip(0)) for row in z]),
    "vecdot": lambda z: torch.linalg.vecdot(z, W[:1]),
    "vecdot of two": lambda z: torch.linalg.vecdot(z, z.flip(1)),
    "kron": lambda z: torch.stack([torch.kron(row, W[0]) for row in z]),
    "cross": lambda z: torch.linalg.cross(z, W[1:2].expand_as(z) * torch.tensor([3.0, 1.0, 1.0])),
    "addr": lambda z: torch.stack([torch.addr(torch.outer(row, W[1]), row, W[0]) for row in z]),
    "addr of a constant": lambda z: torch.stack([torch.addr(torch.zeros(3, 3).to(z), row, W[0]) for row in z]),
    "addmm_": lambda z: (2 * z).addmm_(z, W),
    "addmm_ with factors": lambda z: (2 * z).addmm_(z, W, beta=0.5, alpha=3),
    "addmm_ of a constant": lambda z: torch.zeros_like(z).addmm_(z, W),
    "addcmul_": lambda z: (2 * z).addcmul_(z, W[:1].expand_as(z), value=3),
    "addcmul_ of two": lambda z: (2 * z).addcmul_(z, z.flip(1)),
    "addcdiv_": lambda z: (2 * z).addcdiv_(z, 1 + W[:1].expand_as(z)),
    "baddbmm_": lambda z: (2 * z)[:, None].baddbmm_(z[:, None], W.expand(len(z), 3, 3)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_conserve(name: str) -> None:
    options = {"conv": "epsilon", "dense": "epsilon", "stabilizer": 1e-12}
    relevance, output, _ = attributed("lrp", PRODUCTS[name], **options)
    assert torch.allclose(relevance.sum(1, keepdim=True), output, rtol=1e-4)


@pytest.mark.parametrize(
    ("beside", "written"),
    [
        (lambda z: (2 * z) * z.sin(), lambda z: (2 * z).mul_(z.sin())),
        (lambda z: (2 * z) * z.sin(), lambda z: (2 * z).multiply_(z.sin())),
        (lambda z: (2 * z) * z.sin(), lambda z: torch.multiply(2 * z, z.sin())),
        (lambda z: z.square(), lambda z: (lambda one: one.mul_(one))(1 * z)),
        (lambda z: torch.matmul(z[:, None], z[:, :, None]), lambda z: torch.linalg.matmul(z[:, None], z[:, :, None])),
        (lambda z: W[0] * torch.softmax(z, 1), lambda z: W[0] * torch.special.softmax(z, 1)),
    ],
)
def test_transformers(beside: Callable[[Tensor], Tensor], written: Callable[[Tensor], Tensor]) -> None:
    plain = X.clone().requires_grad_()
    Calls(beside)(plain).sum().backward()
    found, _, _ = attributed("learned_transformer", written)
    assert torch.allclose(found, plain.grad if plain.grad is not None else found + 1)
    model = Calls(written)
    kinds = {site.kind for site in zr.RuleSet.build(model, X, "learned_transformer").sites}
    assert kinds
    assert kinds <= {"product", "softmax"}


@pytest.mark.parametrize(
    "function",
    [
        torch.negative,
        lambda z: torch.moveaxis(z, 0, 1),
        lambda z: torch.broadcast_to(z[:, :, None], (2, 3, 4)),
        lambda z: torch.row_stack([z, z.sin()]),
        lambda z: torch.stack([torch.ger(row, W[0]) for row in z]),
        lambda z: torch.stack([torch.ger(row, row) for row in z]),
    ],
)
def test_tangents(function: Callable[[Tensor], Tensor]) -> None:
    leaf, direction = X.clone().requires_grad_(), X.flip(0)
    with tangent.record((leaf,)) as tape:
        output = function(leaf)
        tape.finish(output)
    assert tape.unsupported is None
    pushed = tape.push_forward((direction,), lambda call, gradients: None)
    assert torch.allclose(pushed, torch.autograd.functional.jvp(function, X, direction)[1])
