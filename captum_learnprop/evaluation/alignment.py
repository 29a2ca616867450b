"""Does a backward signal explain the model, or redraw the input? Its alignment with the input, layer by layer.

A rule that keeps positive contributions of active units only combines the weights of those units with positive
coefficients, which points along the layer's own input (see `alignment_theory`): maps look good and forget what the
later layers say. Measured here, for hand-made rules and for trained ones alike:

* *input alignment*: cosine between the signal at a layer's input and that input, raw and with both centred;
* *class sensitivity*: cosine between the signals of two classes, by depth; 1 says nothing of the class;
* *negative filtering*: which share of a signal's positive and negative parts a rule lets pass at each activation;
* *retained energy*: the share of a layer's input that lies in the span of its active units (`active_span`);
* *convergence of directions* (CSC): cosine between signals that started as random vectors at a layer, further down.

Sources: alignment as a cause is that of Zheng, Sang and Xu (arXiv 2503.11160), whose definitions are not available to
us: these measures are ours. CSC is that of Sixt, Granz and Landgraf (ICML 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.backward_rules import BackwardRule
from captum_learnprop.evaluation.profiles import Filtering, LayerProfile
from captum_learnprop.evaluation.watched_pass import WatchedPass, layer_profile
from captum_learnprop.reparametrized import copied
from zennit_rules import RuleSet
from zennit_rules._moved import renamed

PAIRS = 5
"""Random vectors at a layer, of which CSC compares all pairs."""


def input_alignment(
    model: nn.Module,
    rule: BackwardRule,
    inputs: Tensor,
    targets: Tensor,
    *,
    centred: bool = False,
    internal_batch_size: int = 16,
) -> LayerProfile:
    """Returns the cosine between the signal at each layer's input and that input, ``(L, B)`` in [-1, 1].

    Layers are convolutions and linear layers in the order of their calls; the first one's input is the model's, or what
    a normalisation makes of it.

    Formula:
        ``<s_l, x_l> / (|s_l| |x_l|)`` of the signal ``s_l`` that arrives at the input ``x_l`` of layer ``l``.

    Source:
        Ours, for the hypotheses of Zheng, Sang, Xu, arXiv 2503.11160.

    Args:
        model: in evaluation mode; comes back untouched.
        rule: from `backward_rule`: what propagates.
        inputs: ``(B, C, *spatial)``.
        targets: Explained classes, ``(B,)`` int64.
        centred: Subtract each sample's mean from both.
        internal_batch_size: Number of inputs that are propagated together, which bounds the memory.

    Raises:
        LearnpropError: inputs and targets do not fit, or the model has no layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
        >>> _ = [nn.init.eye_(weight) for weight in model.parameters()]
        >>> inputs, targets = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> rule = backward_rule("gradient", model, inputs)
        >>> input_alignment(model, rule, inputs, targets)
        LayerProfile(2 layers, 1 sample: '0' 0.707, '2' 0.707)
    """

    def scores(run: WatchedPass, rows: Tensor) -> Tensor:
        layers = run.points.layers
        return torch.stack([
            cosine(signal, x, centred=centred)
            for signal, x in zip(run.signals(targets[rows], layers), layers, strict=True)
        ])  # fmt: skip

    return layer_profile(model, rule, inputs, targets, scores, internal_batch_size)


def class_alignment(
    model: nn.Module,
    rule: BackwardRule,
    inputs: Tensor,
    targets: Tensor,
    others: Tensor,
    *,
    internal_batch_size: int = 16,
) -> LayerProfile:
    """Returns the cosine of the signals of two classes at each layer's input, ``(L, B)``; 1 says nothing of the class.

    Formula:
        ``<s_l(t), s_l(o)> / (|s_l(t)| |s_l(o)|)`` of the signals for the target ``t`` and the other class ``o``.

    Source:
        Ours, for the hypotheses of Zheng, Sang, Xu, arXiv 2503.11160.

    Args:
        model: in evaluation mode; comes back untouched.
        rule: from `backward_rule`: what propagates.
        inputs: ``(B, C, *spatial)``.
        targets: ``(B,)`` int64.
        others: ``(B,)`` int64, the other class of each sample.
        internal_batch_size: how many inputs are propagated together, which bounds the memory.

    Raises:
        LearnpropError: inputs and targets do not fit, or the model has no layer, or another class is the target.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
        >>> _ = [nn.init.eye_(weight) for weight in model.parameters()]
        >>> inputs, targets = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> rule = backward_rule("gradient", model, inputs)
        >>> class_alignment(model, rule, inputs, targets, others=torch.tensor([1]))
        LayerProfile(2 layers, 1 sample: '0' 0.000, '2' 0.000)
    """
    if others.shape != targets.shape or bool((others == targets).any()):
        raise LearnpropError(
            f"others must be {tuple(targets.shape)} and differ from the targets, got {others.tolist()}"
        )

    def scores(run: WatchedPass, rows: Tensor) -> Tensor:
        pairs = zip(
            run.signals(targets[rows], run.points.layers), run.signals(others[rows], run.points.layers), strict=True
        )
        return torch.stack([cosine(first, second) for first, second in pairs])

    return layer_profile(model, rule, inputs, targets, scores, internal_batch_size)


def negative_filtering(
    model: nn.Module, rule: BackwardRule, inputs: Tensor, targets: Tensor, *, internal_batch_size: int = 16
) -> Filtering:
    """Returns which share of the arriving signal each activation lets pass, of its positive and of its negative part.

    The sum of absolute values behind the rule, where the arriving signal is positive (negative), over that before it.
    The gradient of a ReLU lets about the active share of both pass, guided backprop none of the negative part.
    Activations that overwrite their input by a function (``F.relu(x, inplace=True)``) cannot be seen.

    Formula:
        ``sum_{i: g_i > 0} |s_i| / sum_{i: g_i > 0} |g_i|`` of the arriving signal ``g`` and the passed ``s``; likewise
        for ``g_i < 0``. NaN where there is no such part.

    Source:
        Ours, for the hypotheses of Zheng, Sang, Xu, arXiv 2503.11160.

    Args:
        model: in evaluation mode; comes back untouched.
        rule: from `backward_rule`: what propagates.
        inputs: ``(B, C, *spatial)``.
        targets: ``(B,)`` int64.
        internal_batch_size: how many inputs are propagated together, which bounds the memory.

    Raises:
        LearnpropError: inputs and targets do not fit, or the model has no layer, or no activation can be seen.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
        >>> _ = [nn.init.eye_(weight) for weight in model.parameters()]
        >>> inputs, targets = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> rule = backward_rule("gradient", model, inputs)
        >>> negative_filtering(model, rule, inputs, targets)
        Filtering(1 activation, 1 sample: positive 1.000, negative nan)
    """

    def scores(run: WatchedPass, rows: Tensor) -> Tensor:
        if not run.points.sites:
            raise LearnpropError("no activation can be seen: the model has none, or all overwrite their input")
        names, before, after = zip(*run.points.sites, strict=True)
        signals = run.signals(targets[rows], (*after, *before))
        arriving, passed = signals[: len(after)], signals[len(after) :]
        shares = []
        for sign in (1.0, -1.0):
            for g, s in zip(arriving, passed, strict=True):
                part = (g * sign > 0).flatten(1)
                whole = (g.abs().flatten(1) * part).double().sum(1)
                kept = (s.abs().flatten(1) * part).double().sum(1)
                shares.append(torch.where(whole > 0, kept / whole, torch.nan))
        run.points.names = [*names, *names]
        return torch.stack(shares)

    both = layer_profile(_without_inplace(model), rule, inputs, targets, scores, internal_batch_size)
    half = len(both.names) // 2
    return Filtering(
        LayerProfile(both.names[:half], both.values[:half]), LayerProfile(both.names[half:], both.values[half:])
    )


def direction_convergence(
    model: nn.Module,
    rule: BackwardRule,
    inputs: Tensor,
    *,
    start: str | None = None,
    vectors: int = PAIRS,
    seed: int = 0,
    internal_batch_size: int = 8,
) -> LayerProfile:
    """Returns the cosine at each layer between signals that start as random vectors further up (CSC), ``(L, B)``.

    Vectors start at a layer's input. Over channels at each position, absolute values, the mean over positions and all
    pairs of vectors. 1: whatever is asked above, the signal below points the same way.

    Formula:
        ``mean over pairs v, w and positions p of |<s_p(v), s_p(w)>| / (|s_p(v)| |s_p(w)|)``.

    Source:
        Sixt, Granz, Landgraf, *When Explanations Lie*, ICML 2020.

    Args:
        model: in evaluation mode; comes back untouched.
        rule: from `backward_rule`: what propagates.
        inputs: ``(B, C, *spatial)``.
        start: name of the layer at whose input vectors start; the last one by default.
        vectors: how many; at least 2.
        seed: of the vectors, which are the same for all samples.
        internal_batch_size: how many inputs are propagated together, which bounds the memory.

    Raises:
        LearnpropError: the layer is not called, or has none below it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
        >>> _ = [nn.init.eye_(weight) for weight in model.parameters()]
        >>> inputs, targets = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> rule = backward_rule("gradient", model, inputs)
        >>> direction_convergence(model, rule, inputs)
        LayerProfile(1 layer, 1 sample: '0' 0.650)
    """
    if vectors < 2:
        raise LearnpropError(f"vectors must be at least 2, to compare them, got {vectors}")

    def scores(run: WatchedPass, rows: Tensor) -> Tensor:
        names = run.points.names
        place = len(names) - 1 if start is None else names.index(start) if start in names else -1
        if place < 1:
            raise LearnpropError(f"layer {start!r} is not called or has none below; the layers are {', '.join(names)}")
        top, below = run.points.layers[place], run.points.layers[:place]
        generator = torch.Generator().manual_seed(seed)
        starts = [torch.randn(top.shape[1:], generator=generator).to(top).expand_as(top) for _ in range(vectors)]
        found = [run.pulled(top, vector, below) for vector in starts]
        run.points.names = names[:place]
        dims = run.points.channel_dims
        return torch.stack([_convergence([signals[i] for signals in found], dims[i]) for i in range(place)])

    targets = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    return layer_profile(model, rule, inputs, targets, scores, internal_batch_size)


def _convergence(signals: list[Tensor], dim: int) -> Tensor:
    """Mean absolute cosine over channels, positions and pairs, ``(B,)``; positions without a signal do not count."""
    values = []
    for i, first in enumerate(signals):
        for second in signals[:i]:
            scale = first.norm(dim=dim) * second.norm(dim=dim)
            value = (first * second).sum(dim).abs().double() / scale.double()
            values.append(value.reshape(len(first), -1))
    return torch.cat(values, 1).nanmean(1)


def proportion_sweep(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    percentiles: Sequence[float] = (0.0, 25.0, 50.0, 73.0, 90.0, 98.0),
    *,
    internal_batch_size: int = 16,
) -> LayerProfile:
    """Returns the alignment with the model's input when less and less passes: RectGrad by percentile, ``(P, B)``.

    The centred cosine at the first layer's input. In the theory of `alignment_theory` it is highest when about 27 % of
    the units pass.

    Formula:
        `input_alignment`, centred, at the first layer, by RectGrad of each percentile.

    Source:
        Ours, for the hypotheses of Zheng, Sang, Xu, arXiv 2503.11160.

    Args:
        model: in evaluation mode; comes back untouched.
        inputs: ``(B, C, *spatial)``.
        targets: ``(B,)`` int64.
        percentiles: of RectGrad.
        internal_batch_size: how many inputs are propagated together, which bounds the memory.

    Raises:
        LearnpropError: inputs and targets do not fit, or the model has no layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
        >>> _ = [nn.init.eye_(weight) for weight in model.parameters()]
        >>> inputs, targets = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> proportion_sweep(model, inputs * torch.tensor([2.0, 1.0]), targets, (0.0,))
        LayerProfile(1 layer, 1 sample: '0' 1.000)
    """
    rows = []
    for percentile in percentiles:
        rules = RuleSet.build(
            model, inputs[:1], composite="rect_grad", rule_options={"percentile": percentile, "derivative": True}
        )
        rule = BackwardRule(f"{percentile:g}", rules)
        found = input_alignment(model, rule, inputs, targets, centred=True, internal_batch_size=internal_batch_size)
        rows.append(found.values[0])
    return LayerProfile(tuple(f"{percentile:g}" for percentile in percentiles), torch.stack(rows))


def cosine(first: Tensor, second: Tensor, *, centred: bool = False) -> Tensor:
    """Returns the cosine of two tensors ``(B, ...)`` per sample, ``(B,)`` float64; NaN where one is 0.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([0.7071], dtype=torch.float64)
    """
    a, b = first.detach().flatten(1).double(), second.detach().flatten(1).double()
    if centred:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.normalize(a, dim=1, eps=0.0).mul(F.normalize(b, dim=1, eps=0.0)).sum(1)


def _without_inplace(model: nn.Module) -> nn.Module:
    """The model, or a copy whose modules leave their inputs as they are."""
    if not any(getattr(module, "inplace", False) for module in model.modules()):
        return model
    plain = copied(model)
    for module in plain.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return plain


__getattr__ = renamed(__name__, {"retained_energy": "captum_learnprop.evaluation.active_span.retained_energy"})
