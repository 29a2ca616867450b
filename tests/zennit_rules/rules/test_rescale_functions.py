"""DeepLIFT through calls of torch functions: contributions add up, one sample at a time, and can be differentiated."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_nets import assert_gradient, prepare, score
from torch import Tensor, nn

import zennit_rules as zr
from zennit_rules.rules.completeness import incomplete_nodes, why_incomplete

Two = Callable[[Tensor, Tensor], Tensor]


def thirds(x: Tensor) -> Tensor:
    return x.reshape(-1, 3, 2)


FUNCTIONS: dict[str, Two] = {
    # element-wise
    "exp": lambda a, b: a.exp(),
    "log": lambda a, b: (a.abs() + 0.1).log(),
    "sqrt": lambda a, b: torch.sqrt(a * a + 1),
    "pow": lambda a, b: a**3,
    "pow of two signals": lambda a, b: (1 + a.abs()) ** b,
    "pow of a number": lambda a, b: 2**a,
    "square": lambda a, b: a.square(),
    "abs": lambda a, b: abs(a),
    "in place": lambda a, b: (a + 0).exp_(),
    "sin": lambda a, b: torch.sin(a),
    "erf": lambda a, b: torch.erf(a),
    "special": lambda a, b: torch.special.expit(a),
    "reciprocal": lambda a, b: (2 + a.abs()).reciprocal(),
    "round": lambda a, b: a.round(),
    "floor": lambda a, b: torch.floor(3 * a),
    "clamp": lambda a, b: a.clamp(-0.5, 0.5),
    "clamp between signals": lambda a, b: a.clamp(b, b + 1),
    "atan2": torch.atan2,
    "logaddexp": torch.logaddexp,
    "broadcast pow": lambda a, b: (1 + a[:, :1].abs()).pow(b),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, 2 + a.abs()),
    "prelu": lambda a, b: F.prelu(a, torch.linspace(0.1, 1, 6, dtype=a.dtype)),
    # products and quotients
    "product": lambda a, b: a * b,
    "product with itself": lambda a, b: a * a,
    "product with its gate": lambda a, b: a * torch.sigmoid(a),
    "product in place": lambda a, b: (a + 0).mul_(b),
    "broadcast product": lambda a, b: a[:, :1] * b,
    "product with a mask": lambda a, b: a * (a > 0),
    "product with a sign": lambda a, b: a * torch.sign(b),
    "bmm": lambda a, b: torch.bmm(a[:, :, None], b[:, None]),
    "matmul": lambda a, b: thirds(a) @ thirds(b).mT,
    "einsum": lambda a, b: torch.einsum("ni,nj->nij", a, b),
    "einsum of three": lambda a, b: torch.einsum("ni,nj,nk->nijk", a, b, a * b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "baddbmm": lambda a, b: torch.baddbmm(a[:, :, None] * b[:, None], a[:, :, None], b[:, None]),
    "lerp": lambda a, b: torch.lerp(a, b, torch.sigmoid(a)),
    "prod": lambda a, b: a.prod(1),
    "cumprod": lambda a, b: a.cumprod(1),
    "quotient": lambda a, b: a / (2 + b.abs()),
    "number over signal": lambda a, b: 1 / (2 + a.abs()),
    "quotient in place": lambda a, b: (a + 0).div_(2 + b.abs()),
    # maxima, choices
    "amax": lambda a, b: a.amax(1),
    "max of a dimension": lambda a, b: a.max(1).values,
    "min of a dimension": lambda a, b: torch.min(a, dim=1)[0],
    "maximum": torch.maximum,
    "max of two": torch.max,
    "minimum": torch.minimum,
    "maximum with a number": lambda a, b: torch.maximum(a, torch.zeros_like(a)),
    "adaptive max-pool": lambda a, b: F.adaptive_max_pool1d(a[:, None], 2),
    "adaptive max-pool module": lambda a, b: nn.AdaptiveMaxPool2d(1)(a.reshape(-1, 1, 2, 3)),
    "max-pool with indices": lambda a, b: F.max_pool1d(a[:, None], 2, return_indices=True)[0],
    "cummax": lambda a, b: a.cummax(1)[0],
    "where": lambda a, b: torch.where(a > 0, a, 0.1 * b),
    "where with a number": lambda a, b: torch.where(a > 0, a, 0.0),
    "masked_fill": lambda a, b: a.masked_fill(a < 0, 0.0),
    # norms and what is made of them
    "glu": lambda a, b: F.glu(a, 1),
    "layer_norm": lambda a, b: F.layer_norm(a, (6,)),
    "LayerNorm": lambda a, b: nn.LayerNorm(6, dtype=a.dtype)(a),
    "rms_norm": lambda a, b: F.rms_norm(a, (6,)),
    "group_norm": lambda a, b: F.group_norm(thirds(a), 3),
    "instance_norm": lambda a, b: F.instance_norm(thirds(a)),
    "norm": lambda a, b: a.norm(dim=1),
    "torch.norm": lambda a, b: torch.norm(a, 2, 1),
    "vector_norm": lambda a, b: torch.linalg.vector_norm(a, dim=1),
    "normalize": lambda a, b: F.normalize(a, dim=1),
    "cosine_similarity": F.cosine_similarity,
    "std": lambda a, b: a.std(1),
    "var": lambda a, b: a.var(1),
    "cdist": lambda a, b: torch.cdist(thirds(a), thirds(b)),
    "pairwise_distance": F.pairwise_distance,
    "logsumexp": lambda a, b: a.logsumexp(1),
    "logsumexp keeping": lambda a, b: torch.logsumexp(a, dim=(1,), keepdim=True),
    "softmin": lambda a, b: F.softmin(a, dim=1),
    "attention": lambda a, b: F.scaled_dot_product_attention(thirds(a), thirds(b), thirds(a + b)),
    "causal attention": lambda a, b: F.scaled_dot_product_attention(thirds(a), thirds(b), thirds(a), is_causal=True),
}  # fmt: skip
each_function = pytest.mark.parametrize("name", FUNCTIONS)


class Net(nn.Module):
    """Two linear layers, a function of both, and a function that is not linear."""

    def __init__(self, function: Two) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(5, 6), nn.Linear(5, 6), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.a(x), self.b(x)).reshape(len(x), -1)
        return torch.tanh(y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)).sum(1, keepdim=True)


def setting(name: str) -> tuple[nn.Module, Tensor, Tensor, zr.LearnedDeepLift]:
    """A net, an input, a baseline and rules; complete ones, or there would be a warning."""
    torch.manual_seed(5)
    model = prepare(Net(FUNCTIONS[name]))
    x, x0 = torch.randn(2, 3, 5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composite: Any = zr.RuleSet.build(model, x, composite="learned_deeplift", gate="none").composite()
    composite.baselines = x0
    return model, x.requires_grad_(), x0, composite


def explain(model: nn.Module, composite: zr.LearnedDeepLift, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    with composite.context(model):
        out = model(x)
        return out, zr.attribute(composite, out, (x,), torch.ones_like(out), **options)[0]


@each_function
def test_complete_and_the_value_is_the_functions_own(name: str) -> None:
    model, x, x0, composite = setting(name)
    out, maps = explain(model, composite, x)
    torch.testing.assert_close(maps.sum(1), (model(x) - model(x0))[:, 0].detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(out, model(x), rtol=1e-14, atol=1e-14)


@each_function
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    model, x, x0, composite = setting(name)
    _, maps = explain(model, composite, x)
    for i in range(len(x)):
        composite.baselines = x0[i : i + 1]
        _, alone = explain(model, composite, x[i : i + 1].detach().requires_grad_())
        torch.testing.assert_close(alone[0], maps[i], rtol=1e-10, atol=1e-12)


@each_function
def test_derivatives(name: str) -> None:
    model, x, _, composite = setting(name)
    _, maps = explain(model, composite, x)
    _, live = explain(model, composite, x, create_graph=True)
    torch.testing.assert_close(live.detach(), maps.detach(), rtol=1e-12, atol=1e-14)
    if name == "cdist" and not cdist_is_twice_differentiable():
        with pytest.raises(NotImplementedError, match="_cdist_backward"):
            torch.autograd.grad(score(live), x)
        return
    found = torch.autograd.grad(score(live), x)
    assert_gradient(lambda: score(explain(model, composite, x)[1]), [x], found, eps=1e-6)


def cdist_is_twice_differentiable() -> bool:
    """Whether torch has the second derivative, which came after 2.10."""
    x = torch.rand(2, 3, requires_grad=True)
    try:
        torch.autograd.functional.hessian(lambda x: torch.cdist(x, x + 1).sum(), x)
    except NotImplementedError:
        return False
    return True


@each_function
def test_the_gradient_at_the_reference_and_while_inactive(name: str) -> None:
    model, x, _, composite = setting(name)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    with composite.context(model):
        out = model(x)
        with composite.inactive():
            (plain,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(plain, gradient, rtol=1e-12, atol=1e-13)
    composite.baselines, composite.multiply_by_inputs = x.detach().clone(), False
    torch.testing.assert_close(explain(model, composite, x)[1].detach(), gradient, rtol=1e-7, atol=1e-9)


def test_products_take_the_mean_of_the_other_factor() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x * y

    composite = zr.LearnedDeepLift(gate="none")
    x, y = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    x0, y0 = torch.randn(2, 2, 3, dtype=torch.float64)
    composite.baselines = (x0, y0)
    model, g = Product(), torch.randn(2, 3, dtype=torch.float64)
    with composite.context(model):
        found = torch.autograd.grad(model(x, y), (x, y), g)
    torch.testing.assert_close(found, (g * (y + y0).detach() / 2, g * (x + x0).detach() / 2))


def test_maxima_credit_the_winners() -> None:
    class Highest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.amax(1)

    x = torch.tensor([[5.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    composite = zr.LearnedDeepLift(gate="none")
    composite.baselines = x0
    model = Highest()
    with composite.context(model):
        out = model(x)
        maps = zr.attribute(composite, out, (x,), torch.ones_like(out))[0]
    torch.testing.assert_close(maps, torch.tensor([[3.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64))


def test_a_root_of_nothing_gives_no_nan() -> None:
    model = prepare(Net(lambda a, b: F.relu(a).sqrt() + F.relu(b).reshape(-1, 3, 2).norm(dim=2).repeat(1, 2)))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    composite = zr.LearnedDeepLift(gate="none")
    composite.baselines = torch.where(torch.rand(6, 1) < 0.5, x.detach(), torch.randn(6, 5).double())
    _, maps = explain(model, composite, x)
    assert bool(maps.isfinite().all())
    change = (model(x) - model(composite.baselines))[:, 0].detach()
    torch.testing.assert_close(maps.sum(1), change, rtol=0, atol=1e-10)


class Attention(nn.Module):
    """Torch's own module, masked."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
        return self.norm(x + self.attention(x, x, x, attn_mask=mask)[0]).flatten(1)[:, :5]


def test_multi_head_attention() -> None:
    model = prepare(Attention())
    x, x0 = torch.randn(2, 2, 4, 8, dtype=torch.float64)
    composite = zr.LearnedDeepLift(gate="none")
    composite.baselines = x0
    out, maps = explain(model, composite, x.requires_grad_())
    torch.testing.assert_close(maps.flatten(1).sum(1), (model(x) - model(x0)).sum(1).detach(), rtol=0, atol=1e-10)
    assert incomplete_nodes(out) == {}


def test_gates_can_be_trained_through_functions() -> None:
    model = prepare(Net(lambda a, b: F.layer_norm(F.gelu(a) * b, (6,)) + torch.maximum(a.exp(), F.silu(b))))
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    rules = zr.RuleSet.build(model, x, composite="learned_deeplift", gate="feature", rule_options={"baseline": 0.3})
    for parameter in rules.parameters():
        parameter.data.normal_(std=0.4)
    composite: Any = rules.composite()
    found = torch.autograd.grad(score(explain(model, composite, x, create_graph=True)[1]), rules.parameters())
    assert max(float(gradient.abs().max()) for gradient in found) > 1e-4
    assert_gradient(lambda: score(explain(model, composite, x)[1]), rules.parameters(), found, eps=1e-5)


def test_weights_and_models_that_share_them_get_no_rule_and_stay() -> None:
    """``x @ w`` is linear in the input: no operand is compared, and the weight keeps its gradient."""
    w = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))

    class Matrix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = w

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.w) * torch.exp(self.w.sum())

    model, x = Matrix(), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    composite = zr.LearnedDeepLift(gate="none")
    out, maps = explain(model, composite, x)
    names = {type(node).__name__ for node in _nodes(out)}
    assert "_RescaledBackward" not in names
    torch.testing.assert_close(maps.sum(1), (model(x) - model(torch.zeros_like(x))).sum(1).detach())


def _nodes(out: Tensor) -> set[Any]:
    todo, seen = [out.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen


def test_a_baseline_that_takes_another_way_is_refused() -> None:
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = x if float(x.detach().abs().sum()) else x[:, :2]
            return rows.exp().sum(1)

    class Skips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.exp() if float(x.detach().abs().sum()) else x).sum(1)

    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with (
        zr.LearnedDeepLift().context(model := Grows()),
        pytest.raises(zr.RuleError, match=r"at 'exp' .*\(2, 3\).*\(2, 2\).*takes the same way"),
    ):
        model(x)
    with zr.LearnedDeepLift().context(skips := Skips()):
        out = skips(x)
        with pytest.raises(zr.RuleError, match="'exp' has no reference"):
            out.sum().backward()


def shapes(x: Tensor) -> Tensor:
    x = torch.stack([x.flip(1), x.roll(1, 1)], 1).transpose(1, 2).reshape(len(x), -1)
    return F.pad(F.pad(x[:, None], (1, 1), mode="reflect"), (1, 0)).tril().squeeze(1).cumsum(1)


def indices(x: Tensor) -> Tensor:
    x = x[:, [0, 2]] + x.gather(1, torch.zeros(len(x), 2, dtype=torch.long)) + x.index_select(1, torch.tensor([1, 0]))
    return torch.zeros_like(x).index_add(1, torch.arange(2), x) + x.clone().fill_diagonal_(0)


def convolutions(x: Tensor) -> Tensor:
    x = F.conv1d(x[:, None], torch.ones(2, 1, 3).double())
    return F.conv_transpose1d(x, torch.ones(2, 1, 2).double())


LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "shapes": shapes,
    "sums": lambda x: (1 - x) * 3 - x / 2 + x.mean(1, keepdim=True) - x.sum(1, keepdim=True),
    "indices": indices,
    "images": lambda x: F.interpolate(F.avg_pool2d(x.reshape(-1, 1, 2, 4), 2), scale_factor=2, mode="bilinear"),
    "convolutions": convolutions,
    "dropout": lambda x: F.dropout(x, 0.5),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_are_complete(name: str) -> None:
    out = LINEAR[name](torch.randn(3, 8, dtype=torch.float64, requires_grad=True))
    assert incomplete_nodes({"out": [out]}) == {}


def test_what_is_incomplete_says_why() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert incomplete_nodes(x.exp() * x + F.batch_norm(x, None, None, training=True)) == {
        "Exp": 1, "Mul": 1, "NativeBatchNorm": 1,
    }  # fmt: skip
    assert "call model.eval()" in why_incomplete("NativeBatchNorm")
    assert "product" in why_incomplete("Mul")
    assert incomplete_nodes(torch.exp(nn.Parameter(torch.ones(2)))) == {}
    assert incomplete_nodes(None) == {}
