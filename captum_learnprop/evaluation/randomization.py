"""Does a map depend on what the model has learned? Randomisation of parameters and of the class.

A map that stays the same while the weights are drawn anew explains the input, not the model.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim: *Sanity Checks for Saliency Maps*, NeurIPS 2018 (parameter
randomisation). Hedström, Weber, Lapuschkin, Höhne: *Sanity Checks Revisited: An Exploration to Repair the Model
Parameter Randomisation Test*, arXiv 2401.06465 (smooth and efficient forms). Sixt, Granz, Landgraf: *When Explanations
Lie*, ICML 2020 (random logit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.baselines import normal_draws
from captum_learnprop.evaluation.checks import require_batch_size, require_targets
from captum_learnprop.evaluation.similarity import SIMILARITIES
from captum_learnprop.forward import output_of
from captum_learnprop.reinitialization import layers_top_down, randomized
from captum_learnprop.reparametrized import copied
from captum_learnprop.tables import html
from captum_learnprop.wording import counted, listed

Attribute = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, inputs (B, C, H, W), targets (B,)) -> attribution (B, H, W) or (B, C, H, W)``, for example
``lambda model, inputs, targets: Saliency(model).attribute(inputs, target=targets)``. It is called with randomised
copies of the model, so it must not keep one."""

ORDERS = ("top_down", "bottom_up")
"""Orders of layers: from the output to the input, from the input to the output."""

BINS = 100
"""Number of bins in the histogram of `histogram_entropy`, as in the paper."""


@dataclass(frozen=True)
class ParameterRandomization:
    """What `parameter_randomization` found.

    Attributes:
        layers: names, in the order in which they were randomised, L of them.
        similarity: of each sample's map before and after, ``(L, B)`` float64; lower is better.
    """

    layers: tuple[str, ...]
    similarity: Tensor

    def mean(self) -> Tensor:
        """Returns the mean over the layers, ``(B,)``; layers that gave a constant map (NaN) do not count."""
        return self.similarity.nanmean(0)

    def by_layer(self) -> dict[str, float]:
        """Returns the mean over the samples, by layer; constant maps (NaN) do not count."""
        return dict(zip(self.layers, self.similarity.nanmean(1).tolist(), strict=True))

    def __repr__(self) -> str:
        size = f"{counted(len(self.layers), 'layer')}, {counted(self.similarity.shape[1], 'sample')}"
        return f"ParameterRandomization({size}: {listed(self.by_layer())})"

    def _repr_html_(self) -> str:
        """Returns the mean by layer as a table, for a notebook."""
        rows = [[name, f"{value:.3f}"] for name, value in self.by_layer().items()]
        return html(["randomised up to", "similarity"], rows)


def parameter_randomization(
    model: nn.Module,
    attribute: Attribute,
    inputs: Tensor,
    targets: Tensor,
    *,
    order: str = "top_down",
    cascading: bool = True,
    similarity: str = "spearman",
    absolute: bool = True,
    noise_samples: int = 0,
    noise_level: float = 0.1,
    seed: int = 0,
    recalibrate: Tensor | None = None,
    internal_batch_size: int | None = None,
) -> ParameterRandomization:
    """Returns the similarity of each map to the one after each layer was randomised; lower is better (MPRT).

    Formula:
        ``similarity(m(model), m(model with layers 1..l drawn anew))`` for each layer ``l``, in [-1, 1].

    Source:
        Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018; Hedström et al., arXiv 2401.06465 (sMPRT).

    Args:
        model: in evaluation mode; not changed.
        attribute: called as ``(model, inputs, targets)`` with randomised copies of the model, see `Attribute`.
        inputs: ``(B, C, H, W)``.
        targets: ``(B,)`` int64.
        order: ``"top_down"`` or ``"bottom_up"``, by execution; see `layers_top_down`.
        cascading: randomise each layer along with those before it in the order; otherwise each one alone.
        similarity: ``"spearman"``, ``"pearson"`` or ``"ssim"``; for ``"ssim"`` each map is divided by its highest
            absolute value.
        absolute: compare absolute values.
        noise_samples: N above 0 takes the mean of the maps of N noisy inputs instead of each map (sMPRT, there 50), at
            N times the cost. The noise is the same for all samples, times each one's standard deviation.
        noise_level: standard deviation of the noise as a share of each sample's range, highest minus lowest value.
        seed: of the parameters and of the noise.
        recalibrate: inputs that batch norms of randomised nets are measured on anew; None leaves their statistics.
        internal_batch_size: how many inputs are explained together; None for all.

    Raises:
        LearnpropError: an option is out of range, or the attribution does not fit the inputs or is not finite.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
        >>> inputs, targets = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
        >>> edges = lambda model, inputs, targets: inputs[:, 0]  # asks neither the model nor the class
        >>> found = parameter_randomization(model, edges, inputs, targets)
        >>> found
        ParameterRandomization(1 layer, 2 samples: '1' 1.000)
        >>> found.mean()
        tensor([1., 1.], dtype=torch.float64)
    """
    if order not in ORDERS:
        raise LearnpropError(f"unknown order {order!r}; choose one of {', '.join(ORDERS)}")
    if noise_samples < 0 or not noise_level >= 0:
        raise LearnpropError(f"noise_samples={noise_samples} and noise_level={noise_level} must be at least 0")
    _require(inputs, targets)
    compare = _Comparison(similarity, absolute)

    def explain(net: nn.Module) -> Tensor:
        if not noise_samples:
            return _explain(attribute, net, inputs, targets, internal_batch_size)
        noisy = (_noisy(inputs, noise_level, seed, draw) for draw in range(noise_samples))
        maps = [_explain(attribute, net, some, targets, internal_batch_size) for some in noisy]
        return torch.stack(maps).double().mean(0)

    layers = layers_top_down(model, inputs[:1])
    layers = layers if order == "top_down" else layers[::-1]
    original = explain(model)
    net, scores = model, []
    for layer in layers:
        net = randomized(net if cascading else model, [layer], seed=seed, recalibrate=recalibrate)
        scores.append(compare(original, explain(net)))
    if not scores:
        raise LearnpropError("the model has no parameters that could be randomised")
    return ParameterRandomization(tuple(layers), torch.stack(scores))


def full_randomization(
    model: nn.Module,
    attribute: Attribute,
    inputs: Tensor,
    targets: Tensor,
    *,
    similarity: str = "spearman",
    absolute: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
    recalibrate: Tensor | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Returns the absolute similarity of each map to that of nets with all parameters drawn anew, ``(B,)`` in [0, 1].

    Lower is better. Seeds whose net gives a constant map do not count; NaN if none does.

    Formula:
        ``mean over seeds of |similarity(m(model), m(model drawn anew))|``.

    Source:
        Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018.

    Args:
        model: in evaluation mode; not changed.
        attribute: called as ``(model, inputs, targets)`` with randomised copies of the model, see `Attribute`.
        inputs: ``(B, C, H, W)``.
        targets: ``(B,)`` int64.
        similarity: ``"spearman"``, ``"pearson"`` or ``"ssim"``.
        absolute: compare absolute values.
        seeds: of the nets, at least one.
        recalibrate: inputs that batch norms of randomised nets are measured on anew; None leaves their statistics.
        internal_batch_size: how many inputs are explained together; None for all.

    Raises:
        LearnpropError: an option is out of range, there are no seeds, or the attribution does not fit the inputs or is
            not finite.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
        >>> inputs, targets = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
        >>> edges = lambda model, inputs, targets: inputs[:, 0]  # asks neither the model nor the class
        >>> full_randomization(model, edges, inputs, targets)
        tensor([1., 1.], dtype=torch.float64)
    """
    compare = _Comparison(similarity, absolute)
    original = _explain(attribute, model, inputs, targets, internal_batch_size)

    def score(net: nn.Module) -> Tensor:
        return compare(original, _explain(attribute, net, inputs, targets, internal_batch_size)).abs()

    return _over_redrawn(model, seeds, recalibrate, score).nanmean(0)


def _over_redrawn(
    model: nn.Module, seeds: Sequence[int], recalibrate: Tensor | None, score: Callable[[nn.Module], Tensor]
) -> Tensor:
    """Returns the scores ``(seeds, B)`` of nets with all parameters drawn anew.

    Raises:
        LearnpropError: If there are no seeds.
    """
    scores = [score(randomized(model, seed=seed, recalibrate=recalibrate)) for seed in seeds]
    if not scores:
        raise LearnpropError("seeds is empty; give at least one")
    return torch.stack(scores)


def complexity_rise(
    model: nn.Module,
    attribute: Attribute,
    inputs: Tensor,
    targets: Tensor,
    *,
    absolute: bool = False,
    bins: int = BINS,
    seeds: Sequence[int] = (0,),
    recalibrate: Tensor | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Returns the relative rise of the entropy of a map when all parameters are drawn anew, ``(B,)`` (eMPRT).

    Higher is better; at least -1. Infinite or NaN where the map is constant, whose entropy is 0.

    Formula:
        ``mean over seeds of (H(m') - H(m)) / H(m)`` with the `histogram_entropy` ``H`` of the maps before and after.

    Source:
        Hedström et al., *Sanity Checks Revisited*, arXiv 2401.06465.

    Args:
        model: in evaluation mode; not changed.
        attribute: called as ``(model, inputs, targets)`` with randomised copies of the model, see `Attribute`.
        inputs: ``(B, C, H, W)``.
        targets: ``(B,)`` int64.
        absolute: take absolute values first.
        bins: of the histogram.
        seeds: of the nets, at least one.
        recalibrate: inputs that batch norms of randomised nets are measured on anew; None leaves their statistics.
        internal_batch_size: how many inputs are explained together; None for all.

    Raises:
        LearnpropError: an option is out of range, there are no seeds, or the attribution does not fit the inputs or is
            not finite.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
        >>> inputs, targets = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
        >>> edges = lambda model, inputs, targets: inputs[:, 0]  # asks neither the model nor the class
        >>> complexity_rise(model, edges, inputs, targets)
        tensor([0., 0.], dtype=torch.float64)
    """

    def entropy(net: nn.Module) -> Tensor:
        return histogram_entropy(
            _signed(_explain(attribute, net, inputs, targets, internal_batch_size), absolute), bins
        )

    before = entropy(model)
    return _over_redrawn(model, seeds, recalibrate, lambda net: (entropy(net) - before) / before).mean(0)


def random_logit(
    model: nn.Module,
    attribute: Attribute,
    inputs: Tensor,
    targets: Tensor,
    *,
    similarity: str = "ssim",
    absolute: bool = False,
    others: Tensor | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Returns the similarity of the maps for the target and for another class, ``(B,)`` in [-1, 1]; lower is better.

    Formula:
        ``similarity(m(t), m(t'))`` for a class ``t'`` other than the target ``t``.

    Source:
        Sixt, Granz, Landgraf, *When Explanations Lie*, ICML 2020.

    Args:
        model: in evaluation mode; not changed.
        attribute: called as ``(model, inputs, targets)``, see `Attribute`.
        inputs: ``(B, C, H, W)``.
        targets: ``(B,)`` int64.
        similarity: ``"ssim"``, ``"spearman"`` or ``"pearson"``; for ``"ssim"`` each map is divided by its highest
            absolute value.
        absolute: compare absolute values.
        others: ``(B,)`` int64, the other class of each sample; None draws one for each class, uniformly from the rest.
        seed: of that draw.
        internal_batch_size: how many inputs are explained together; None for all.

    Raises:
        LearnpropError: an option is out of range, another class is the target or does not exist, or the attribution
            does not fit the inputs or is not finite.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
        >>> inputs, targets = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
        >>> edges = lambda model, inputs, targets: inputs[:, 0]  # asks neither the model nor the class
        >>> random_logit(model, edges, inputs, targets, similarity="spearman")
        tensor([1., 1.], dtype=torch.float64)
    """
    _require(inputs, targets)
    compare = _Comparison(similarity, absolute)
    if others is None:
        others = _other_classes(model, inputs, targets, seed)
    if others.shape != targets.shape or others.dtype != torch.int64 or (others == targets).any():
        raise LearnpropError(
            f"others must be int64 {tuple(targets.shape)} and differ from the targets, got {others.tolist()}"
        )
    asked = _explain(attribute, model, inputs, targets, internal_batch_size)
    return compare(asked, _explain(attribute, model, inputs, others, internal_batch_size))


def histogram_entropy(maps: Tensor, bins: int = BINS) -> Tensor:
    """Returns the entropy in nats of the histogram of each map's values ``(B, ...)``, ``(B,)`` in [0, log(bins)].

    The bins have equal width from the lowest to the highest value, as ``numpy.histogram`` makes them; 0 for a constant
    map.

    Formula:
        ``-sum_b p_b log p_b`` over the shares ``p_b`` of values in each bin.

    Args:
        maps: ``(B, ...)``.
        bins: of the histogram.

    Raises:
        LearnpropError: there are no values or no bins.

    Example:
        >>> histogram_entropy(torch.tensor([[0.0, 0.0, 1.0, 1.0]]))  # log 2
        tensor([0.6931], dtype=torch.float64)
    """
    if maps.dim() < 2 or not maps.numel() or bins < 1:
        raise LearnpropError(f"maps must be (B, ...) and bins at least 1, got {tuple(maps.shape)} and {bins}")
    rows = maps.detach().flatten(1).double().contiguous()
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    edges = low + (high - low) / bins * torch.arange(1, bins, dtype=rows.dtype, device=rows.device)
    place = torch.searchsorted(edges, rows, side="right")
    counts = torch.zeros(len(rows), bins, dtype=rows.dtype, device=rows.device)
    counts.scatter_add_(1, place, torch.ones_like(rows))
    return torch.special.entr(counts / rows.shape[1]).sum(1)


class _Comparison:
    """A similarity of two attributions ``(B, H, W)`` or ``(B, C, H, W)``."""

    def __init__(self, similarity: str, absolute: bool) -> None:
        if similarity not in SIMILARITIES:
            raise LearnpropError(f"unknown similarity {similarity!r}; choose one of {', '.join(SIMILARITIES)}")
        self.similarity, self.absolute = similarity, absolute

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = _signed(first, self.absolute).double(), _signed(second, self.absolute).double()
        if self.similarity == "ssim":
            first, second = _normalised(first), _normalised(second)
        return SIMILARITIES[self.similarity](first, second)


def _signed(maps: Tensor, absolute: bool) -> Tensor:
    return maps.abs() if absolute else maps


def _normalised(maps: Tensor) -> Tensor:
    """Maps over their highest absolute value; a map of zeros stays."""
    highest = maps.abs().flatten(1).amax(1)
    return maps / torch.where(highest > 0, highest, 1.0).reshape(-1, *[1] * (maps.dim() - 1))


def _explain(
    attribute: Attribute, model: nn.Module, inputs: Tensor, targets: Tensor, internal_batch_size: int | None
) -> Tensor:
    _require(inputs, targets)
    size = len(inputs) if internal_batch_size is None else internal_batch_size
    require_batch_size(size)
    chunks = zip(inputs.detach().split(size), targets.split(size), strict=True)
    maps = torch.cat([attribute(model, *chunk).detach() for chunk in chunks])
    if maps.dim() not in (3, 4) or len(maps) != len(inputs) or maps.shape[-2:] != inputs.shape[-2:]:
        raise LearnpropError(f"attribute gave {tuple(maps.shape)} for inputs {tuple(inputs.shape)}")
    bad = ~maps.flatten(1).isfinite().all(1)
    if bad.any():
        raise LearnpropError(f"attribute gave NaN or infinite values for sample {int(bad.nonzero()[0])}")
    return maps


def _require(inputs: Tensor, targets: Tensor) -> None:
    if inputs.dim() != 4 or not inputs.numel():
        raise LearnpropError(f"inputs must be (B, C, H, W) and not empty, got {tuple(inputs.shape)}")
    require_targets(targets, len(inputs))


def _noisy(inputs: Tensor, level: float, seed: int, draw: int) -> Tensor:
    values = inputs.flatten(1)
    deviation = level * (values.amax(1) - values.amin(1)).reshape(-1, 1, 1, 1)
    # One stream of numbers for all draws: the seeds of two draws never meet those of two runs.
    numbers = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (draw + 1,), generator=numbers)
    return inputs + deviation * normal_draws(tuple(inputs.shape[1:]), inputs, int(seeds[draw]))


def _other_classes(model: nn.Module, inputs: Tensor, targets: Tensor, seed: int) -> Tensor:
    """A class other than the target, ``(B,)``, which depends on the target and the seed alone."""
    with torch.no_grad():
        classes = output_of(copied(model).eval(), (inputs[:1],)).shape[1]
    if classes < 2 or not ((targets >= 0) & (targets < classes)).all():
        raise LearnpropError(f"targets must be among at least 2 classes, got {targets.tolist()} of {classes}")
    steps = torch.randint(1, classes, (classes,), generator=torch.Generator().manual_seed(seed)).to(targets.device)
    return (targets + steps[targets]) % classes
