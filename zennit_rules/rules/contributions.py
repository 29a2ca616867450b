"""Contribution gates: how a linear layer shares out the relevance of its outputs.

A linear layer makes its output ``z_j`` of contributions ``c_ij = x_i w_ij``, positive ones that add up to ``P_j`` and
negative ones that add up to ``N_j``. Most rules of layer-wise relevance propagation pass on

    R_i = sum_j  a_j max(c_ij, 0) + b_j min(c_ij, 0)        with (a, b) = gate(R, z, P, N)

and differ in ``a`` and ``b`` only. The parameters of a rule thus act on the outputs of a layer, never on its weights:
no copy of the weights enters the graph, and the derivative to them is local. With ``stab(v) = v + epsilon sign(v)``:

=============  ==========================================================================================
epsilon        ``a = b = R / stab(z)``
gamma          ``a = R / stab(D)``, ``b = (1 - m) a``, ``D = (1 - m) z + m P``, ``m = gamma / (1 + gamma)``,
               where ``z > 0``; where ``z < 0``, the same with the parts exchanged
alpha, beta    ``a = alpha R / stab(P)``, ``b = -beta R / stab(N)``, ``alpha - beta = 1``
=============  ==========================================================================================

Sources: Bach et al., PLoS ONE 2015 (epsilon, alpha and beta); Montavon et al., "Layer-wise relevance propagation: an
overview", 2019 (gamma); Andeol et al., 2021 (its signed form). Parameters start exactly at a rule, raw ones at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import RuleError

BIASES = ("shared", "whole", "zero")
SPLITS = ("contributions", "weights")
NEGATIVES = ("mirrored", "z+", "alike")


def stabilized(v: Tensor, epsilon: float | Tensor) -> Tensor:
    """Returns ``v`` moved away from 0 by epsilon; 0 counts as positive."""
    # As torch.where(v < 0, -epsilon, epsilon), at a fraction of its cost; adding 0 makes -0 a 0.
    size = epsilon.to(v.dtype) if isinstance(epsilon, Tensor) else v.new_full((), epsilon)
    return v + torch.copysign(size, v.detach() + 0.0)


def reflected(v: Tensor) -> Tensor:
    """Returns ``v`` folded into [0, 1] by reflections at the ends; its slope is 1 or -1 everywhere."""
    place = torch.remainder(v, 2.0)
    return torch.where(place > 1, 2 - place, place)


def _shaped(value: Tensor, like: Tensor, channel_dim: int) -> Tensor:
    """Returns values ``(samples or 1, channels or 1)`` in a form that broadcasts to ``like``, and in its dtype."""
    shape = [1] * like.ndim
    if value.numel() == 1:
        return value.to(like.dtype).reshape(shape)
    shape[0] = value.shape[0]
    if value.shape[1] > 1:
        shape[channel_dim] = value.shape[1]
    return value.to(like.dtype).reshape(shape)


class ContributionGate(nn.Module):
    """Base of the rules of linear layers.

    Args:
        shape: Shape of the layer's output, batch first: ``(B, ...)``.
        per: ``"channel"``: parameters for each output channel; ``"layer"``: one for all.
        samples: None shares the parameters over samples; a number gives each of that many samples its own.
        channel_dim: Dimension of ``shape`` that counts channels.
        stabilizer: Epsilon of denominators.
        bias: How the layer's bias takes relevance away: ``"shared"`` counts it with the contributions of its sign
            (zennit), ``"whole"`` in ``z`` alone (captum), ``"zero"`` not at all, so that relevance is conserved.
        split: ``"contributions"``: positive are those with ``x w > 0`` (zennit); ``"weights"``: those with ``w > 0``
            (captum). The same where inputs are not negative.

    Raises:
        RuleError: For options out of range.
    """

    needs_parts: ClassVar[tuple[bool, bool]] = (False, False)
    """Whether positive and negative contributions are needed each for themselves."""

    sample_dim: ClassVar[int] = 0

    def __init__(
        self,
        shape: Sequence[int] = (1, 1),
        *,
        per: str = "channel",
        samples: int | None = None,
        channel_dim: int = 1,
        stabilizer: float = 1e-6,
        bias: str = "shared",
        split: str = "contributions",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("per", per, ("channel", "layer")), ("bias", bias, BIASES), ("split", split, SPLITS),
        ):  # fmt: skip
            if value not in known:
                raise RuleError(f"{type(self).__name__}({name}={value!r}): choose one of {', '.join(known)}")
        if not 0 <= stabilizer < math.inf:
            raise RuleError(
                f"{type(self).__name__}(stabilizer={stabilizer!r}): a finite number of at least 0 is needed"
            )
        if not 0 < channel_dim < max(len(shape), 2):
            raise RuleError(f"channel_dim {channel_dim} is outside the shape {tuple(shape)} (dimension 0 is the batch)")
        self.samples, self.channel_dim, self.per = samples, channel_dim, per
        self.stabilizer, self.bias, self.split = float(stabilizer), bias, split
        channels = shape[channel_dim] if per == "channel" else 1
        self.raw = nn.Parameter(torch.zeros(samples or 1, channels))

    def forward(
        self, relevance: Tensor, z: Tensor, positive: Tensor | None, negative: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns shares ``(a, b)`` of positive and negative contributions, in the shape of the relevance.

        Args:
            relevance: ``R``, shape ``(B, ...)`` of the layer's output.
            z: The layer's output, without the bias if that is ``"zero"``.
            positive: ``P``, or None if it is not needed.
            negative: ``N``, or None if it is not needed.
        """
        raise NotImplementedError

    def shaped(self, value: Tensor, like: Tensor) -> Tensor:
        """A parameter ``(samples or 1, channels or 1)`` in a form that broadcasts to ``like``."""
        return _shaped(value, like, self.channel_dim)

    def extra_repr(self) -> str:
        """Configuration shown by ``repr``."""
        samples = "" if self.samples is None else f", samples={self.samples}"
        return f"per={self.per!r}, bias={self.bias!r}{samples}"


def _number(name: str, value: Any, low: float, *, open_low: bool = False, infinite: bool = False) -> float:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    valid = valid and (value > low if open_low else value >= low) and (infinite or not math.isinf(value))
    if not valid:
        raise RuleError(f"{name} must be a number {'above' if open_low else 'of at least'} {low:g}, got {value!r}")
    return float(value)


class EpsilonGate(ContributionGate):
    """LRP-epsilon with a trainable epsilon: ``epsilon exp(raw) > 0``, which fades small outputs out.

    Args:
        epsilon: Starting value.
        options: Those of `ContributionGate`.
    """

    def __init__(self, shape: Sequence[int] = (1, 1), *, epsilon: float = 1e-6, **options: Any) -> None:
        self.start_epsilon = _number("epsilon", epsilon, 0.0, open_low=True)
        super().__init__(shape, **options)

    @property
    def epsilon(self) -> Tensor:
        """The epsilon, ``(samples or 1, channels or 1)``, positive."""
        return self._epsilon(self.raw)

    def _epsilon(self, raw: Tensor) -> Tensor:
        return self.start_epsilon * torch.exp(raw)

    def forward(
        self, relevance: Tensor, z: Tensor, positive: Tensor | None, negative: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Shares relevance out by all contributions."""
        share = relevance / stabilized(z, self._epsilon(self.shaped(self.raw, z)))
        return share, share


class GammaGate(ContributionGate):
    """LRP-gamma with a trainable gamma, from 0 (epsilon) to infinity (z+).

    The trainable value is the mix ``m = gamma / (1 + gamma)`` of all weights and the positive ones:
    ``m = start + raw``, reflected at 0 and 1 so that it stays between and never gets stuck.

    Args:
        gamma: Starting value, from 0 to infinity.
        negative: What to do where the output is negative. ``"mirrored"``: the same with the parts exchanged (zennit's
            gamma); ``"z+"``: the z+ rule, which the whole rule is for an infinite gamma; ``"alike"``: the same as where
            it is positive (captum's gamma), which divides by values around 0.
        options: Those of `ContributionGate`.
    """

    needs_parts = (True, False)

    def __init__(
        self, shape: Sequence[int] = (1, 1), *, gamma: float = 0.25, negative: str = "mirrored", **options: Any
    ) -> None:
        if negative not in NEGATIVES:
            raise RuleError(f"GammaGate(negative={negative!r}): choose one of {', '.join(NEGATIVES)}")
        start = _number("gamma", gamma, 0.0, infinite=True)
        self.start_mix = 1.0 if math.isinf(start) else start / (1 + start)
        self.negative = negative
        super().__init__(shape, **options)

    @property
    def mix(self) -> Tensor:
        """The share ``gamma / (1 + gamma)``, ``(samples or 1, channels or 1)``, in [0, 1]."""
        return reflected(self.start_mix + self.raw)

    @property
    def gamma(self) -> Tensor:
        """The gamma, ``(samples or 1, channels or 1)``, from 0 to infinity."""
        mix = self.mix
        return mix / (1 - mix)

    def forward(
        self, relevance: Tensor, z: Tensor, positive: Tensor | None, negative: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Shares relevance out by contributions, of which the favoured ones count more."""
        assert positive is not None
        mix = reflected(self.start_mix + self.shaped(self.raw, z))
        rest = 1 - mix
        # The gamma rule divides by z + gamma P, here by that over 1 + gamma: epsilon shrinks likewise.
        epsilon = self.stabilizer * torch.where(rest > 0, rest, torch.ones_like(rest))
        if self.negative == "alike":
            share = relevance / stabilized(rest * z + mix * positive, epsilon)
            return share, rest * share
        if self.negative == "z+":
            rest = torch.where(z > 0, rest, 0.0)
            # Not negative where contributions are split by their own sign.
            whole = torch.lerp(positive, z, rest)
            stable = whole + self.stabilizer if self.split == "contributions" else stabilized(whole, self.stabilizer)
            share = relevance / stable
            return share, rest * share
        up = z > 0
        own = torch.where(up, positive, z - positive)
        share = (z != 0) * relevance / stabilized(rest * z + mix * own, epsilon)
        return torch.where(up, share, rest * share), torch.where(up, rest * share, share)


class AlphaBetaGate(ContributionGate):
    """LRP-alpha-beta with a trainable beta: ``beta = start + raw``, ``alpha = 1 + beta``.

    ``beta = 0`` is the z+ rule. Below 0, negative contributions take relevance of the same sign as positive ones.

    Args:
        alpha: Starting value; given alone, beta follows.
        beta: Starting value, at least 0; ``alpha - beta`` must be 1.
        options: Those of `ContributionGate`.
    """

    needs_parts = (True, True)

    def __init__(
        self, shape: Sequence[int] = (1, 1), *, alpha: float | None = None, beta: float | None = None, **options: Any
    ) -> None:
        if beta is None:
            beta = 1.0 if alpha is None else alpha - 1
        self.start_beta = _number("beta", beta, 0.0)
        if alpha is not None and abs(alpha - self.start_beta - 1) > 1e-12:
            raise RuleError(f"alpha - beta must be 1, so that relevance is conserved; got alpha={alpha}, beta={beta}")
        super().__init__(shape, **options)

    @property
    def beta(self) -> Tensor:
        """The beta, ``(samples or 1, channels or 1)``."""
        return self.start_beta + self.raw

    @property
    def alpha(self) -> Tensor:
        """The alpha, ``1 + beta``."""
        return 1 + self.beta

    def forward(
        self, relevance: Tensor, z: Tensor, positive: Tensor | None, negative: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Shares relevance out by positive and by negative contributions apart."""
        assert positive is not None
        assert negative is not None
        up = relevance / stabilized(positive, self.stabilizer)
        down = relevance / stabilized(negative, self.stabilizer)
        beta = self.start_beta + self.shaped(self.raw, z)
        return (1 + beta) * up, -beta * down


class BoxGate(nn.Module):
    """Bounds of the box rule (Montavon et al., Pattern Recognition 2017), and how far it replaces the z+ rule.

    The box rule shares relevance out by ``x w - l max(w, 0) - h min(w, 0)`` with bounds ``l <= x <= h`` per channel.
    With ``l = min(x, 0)`` and ``h = max(x, 0)`` that is the z+ rule; the rule here uses bounds in between, at the
    trainable share ``strength`` of the way from those to ``low`` and ``high``: 1 is the box rule, 0 the z+ rule.

    Args:
        shape: Shape of the layer's *input*, batch first.
        low: Lowest possible input, a number or one per channel.
        high: Highest possible input.
        strength: Starting value, in [0, 1].
        learn_bounds: Whether the bounds are parameters too.
        samples: None shares the parameters over samples; a number gives each of that many samples its own.
        channel_dim: Dimension of ``shape`` that counts channels.
        stabilizer: Epsilon of denominators.

    Raises:
        RuleError: For bounds that do not fit.
    """

    sample_dim: ClassVar[int] = 0

    def __init__(
        self,
        shape: Sequence[int] = (1, 1),
        *,
        low: Any = 0.0,
        high: Any = 1.0,
        strength: float = 1.0,
        learn_bounds: bool = False,
        samples: int | None = None,
        channel_dim: int = 1,
        stabilizer: float = 1e-6,
    ) -> None:
        super().__init__()
        self.samples, self.channel_dim, self.stabilizer = samples, channel_dim, float(stabilizer)
        if not 0 <= strength <= 1:
            raise RuleError(f"strength must be in [0, 1], from the z+ rule to the box rule, got {strength!r}")
        self.start_strength = float(strength)
        channels = shape[channel_dim]
        bounds = []
        for name, value in (("low", low), ("high", high)):
            given = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().flatten()
            if given.numel() not in (1, channels) or not bool(given.isfinite().all()):
                raise RuleError(f"{name} must be a finite number, or one for each of {channels} channels: {value!r}")
            bounds.append(given)
        if not bool((bounds[0] < bounds[1]).all()):
            raise RuleError(f"low must be below high, got low={low!r}, high={high!r}")
        self.raw = nn.Parameter(torch.zeros(samples or 1, 1))
        for name, given in zip(("low", "high"), bounds, strict=True):
            bound = torch.zeros(samples or 1, channels, dtype=torch.float64).copy_(given)
            if learn_bounds:
                setattr(self, name, nn.Parameter(bound))
            else:
                self.register_buffer(name, bound)

    low: Tensor
    high: Tensor

    @property
    def strength(self) -> Tensor:
        """The strength, ``(samples or 1, 1)``, in [0, 1]: ``start + raw``, reflected at 0 and 1."""
        return reflected(self.start_strength + self.raw)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns bounds below and above the inputs ``x``, in their shape."""
        t = reflected(self.start_strength + _shaped(self.raw, x, self.channel_dim))
        low, high = (_shaped(bound, x, self.channel_dim) for bound in (self.low, self.high))
        return t * low + (1 - t) * x.clamp(max=0), t * high + (1 - t) * x.clamp(min=0)

    @torch.no_grad()
    def read_bounds(self, x: Tensor) -> None:
        """Take the lowest and the highest value of each channel of ``x`` as bounds; 1 apart where they are equal.

        Over all samples, or each for itself where each has its own parameters.
        """
        kept = {self.channel_dim} if self.samples is None else {0, self.channel_dim}
        dims = [d for d in range(x.ndim) if d not in kept]
        low, high = (f(x.detach(), dim=dims).to(self.low) for f in (torch.amin, torch.amax))
        self.low.copy_(low.expand_as(self.low))
        self.high.copy_(torch.where(high > low, high, low + 1).expand_as(self.high))

    def extra_repr(self) -> str:
        """Configuration shown by ``repr``."""
        return f"strength={self.start_strength}"


LINEAR_RULES: dict[str, type[ContributionGate]] = {
    "epsilon": EpsilonGate, "gamma": GammaGate, "alpha_beta": AlphaBetaGate,
}  # fmt: skip
"""Rules of linear layers by name."""
