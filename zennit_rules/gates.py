"""Gates: what weighs the backward signal at a site.

A gate maps the pre-activation ``z`` and the incoming signal ``g`` to two weights: one for the true gradient
``g * f'(z)`` of the activation ``f``, one for ``g`` itself. A site passes on

    a * g * f'(z) + b * g        with (a, b) = gate(z, g)

The textbook rules are constant choices: gradient ``a = 1, b = 0``; Deconvnet (Zeiler & Fergus 2014)
``a = 0, b = 1[g > 0]``; guided backprop (Springenberg et al. 2015) ``a = 1[g > 0], b = 0``. Every gate starts
*exactly* at one of them and adds trainable deviations. All raw parameters start at 0 and share one constraint: a
weight stays within 1 of where it started, ``weight = start + tanh(raw)``.

No equation of Yang et al. (ECCV 2020) is known to us: `ElementGate` is our reading A of "adaptive propagation rules
for each pixel", `PositionGate` reading B; the other gates are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .core.names import did_you_mean
from .errors import RuleError

STARTS = ("gradient", "deconvnet", "guided_backprop")

Weight = Tensor | float  # the floats 0.0 and 1.0 spare an element-wise pass


def _positive(g: Tensor) -> Tensor:
    return (g > 0).to(g.dtype)


def start_weights(start: str, g: Tensor) -> tuple[Weight, Weight]:
    """Weights (true gradient, incoming signal) of a textbook rule for the signal ``g`` of any shape."""
    if start == "gradient":
        return 1.0, 0.0
    if start == "deconvnet":
        return 0.0, _positive(g)
    return _positive(g), 0.0


class Gate(nn.Module):
    """Base of all gates.

    Args:
        shape: Shape of the pre-activation at the site, batch first: ``(B, ...)``. Sizes a gate does not depend on
            may be 1.
        start: Rule the gate equals while its raw parameters are 0: ``"gradient"``, ``"deconvnet"`` or
            ``"guided_backprop"``.
        samples: None shares the parameters over samples; a number gives each of that many samples its own.
        channel_dim: Dimension of ``shape`` that counts channels; 1 for ``(B, C, H, W)``, 2 for tokens ``(B, N, C)``. It
            says nothing where there is none: a shape ``(B,)`` has a single channel.

    Raises:
        RuleError: For an unknown start or a channel dimension outside the shape.
    """

    name: ClassVar[str] = ""
    per_sample: ClassVar[bool] = False  # True: has parameters for each sample, whatever ``samples`` says
    sample_dim: ClassVar[int] = 0  # dimension of the raw parameters that counts samples
    contrast: bool = False  # True: called as ``gate(z, g, h)`` with the signal ``h`` of the other classes
    sign_only: ClassVar[bool] = True  # True: ``z`` enters through its sign alone, so f(z) = relu(z) serves as well

    def __init__(
        self,
        shape: Sequence[int] = (1, 1),
        *,
        start: str = "gradient",
        samples: int | None = None,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        if start not in STARTS:
            hint = did_you_mean(start, STARTS)
            raise RuleError(f"{type(self).__name__} cannot start at {start!r}; choose one of {', '.join(STARTS)}{hint}")
        if len(shape) > 1 and not 0 < channel_dim < len(shape):
            raise RuleError(f"channel_dim {channel_dim} is outside the shape {tuple(shape)} (dimension 0 is the batch)")
        self.start = start
        self.samples = samples if not self.per_sample else shape[0] if shape else 1
        self.channel_dim = channel_dim
        self.make_parameters(tuple(shape))

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """Create the raw parameters, all zero, for a site of this shape."""
        raise NotImplementedError

    def forward(self, z: Tensor, g: Tensor) -> tuple[Weight, Weight]:
        """Weights of the true gradient and of the incoming signal, each broadcastable to ``g``.

        Args:
            z: Pre-activation, ``(B, ...)``; if `sign_only`, anything with the same sign pattern ``z > 0``.
            g: Incoming signal, same shape.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Configuration shown by ``repr``."""
        samples = "" if self.samples is None else f", samples={self.samples}"
        return f"start={self.start!r}{samples}"

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the size of the first dimension of parameters; none where the site is one number."""
        return (1,) if shape and self.samples is None else shape[:1]

    def _channel_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*self._rows(shape), *(n if d == self.channel_dim else 1 for d, n in enumerate(shape) if d))


class PlainGate(Gate):
    """The start's rule, with nothing to train."""

    name = "none"

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """Makes none."""

    def forward(self, z: Tensor, g: Tensor) -> tuple[Weight, Weight]:
        """Returns the start's weights."""
        return start_weights(self.start, g)


class ScaledGate(Gate):
    """The start's rule times one weight ``1 + tanh(raw)``, in (0, 2): linear in the weight, which saves work."""

    raw: nn.Parameter

    def forward(self, z: Tensor, g: Tensor) -> tuple[Weight, Weight]:
        """Returns the start's weights, scaled."""
        w = self.scale().to(g.dtype)
        if self.start == "gradient":
            return w, 0.0
        w = w * _positive(g)
        return (0.0, w) if self.start == "deconvnet" else (w, 0.0)

    def scale(self) -> Tensor:
        """The weight, in the shape of ``raw``."""
        w = torch.tanh(self.raw)
        return 1 + w if w.requires_grad else w.add_(1)


class ElementGate(ScaledGate):
    """One weight per activation element and sample (reading A of the ECCV 2020 paper).

    ``raw`` has the shape of the site, ``(B, ...)``; the weight ``1 + tanh(raw)`` in (0, 2) multiplies the start's
    rule. It belongs to the samples it was made for.
    """

    name = "element"
    per_sample = True

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """One raw value per element."""
        self.raw = nn.Parameter(torch.zeros(shape))


class PositionGate(ScaledGate):
    """One weight per spatial position and sample, shared over channels (reading B); ``raw`` is ``(B, 1, H, W)``."""

    name = "position"
    per_sample = True

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """One raw value per position."""
        self.raw = nn.Parameter(torch.zeros([1 if d and d == self.channel_dim else n for d, n in enumerate(shape)]))


class ChannelGate(ScaledGate):
    """One weight per channel, shared over samples unless ``samples`` is given; ``raw`` is ``(1, C, 1, 1)``."""

    name = "channel"

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """One raw value per channel."""
        self.raw = nn.Parameter(torch.zeros(self._channel_shape(shape)))


class QuadrantGate(Gate):
    """Four weights over (sign z, sign g), per layer or per channel.

    For a ReLU the signal becomes ``g * q`` with ``q`` chosen by quadrant, in the order ``(z > 0, g > 0)``,
    ``(z > 0, g <= 0)``, ``(z <= 0, g > 0)``, ``(z <= 0, g <= 0)``: gradient is (1, 1, 0, 0), Deconvnet (1, 0, 1, 0),
    guided backprop (1, 0, 0, 0). Each ``q = start + tanh(raw)``. For other activations the first two weigh the true
    gradient where ``z > 0`` and the last two the incoming signal where ``z <= 0``, both on top of the start's rule.

    Args:
        per: ``"channel"`` or ``"layer"``.
    """

    name = "quadrant"
    sample_dim = 1

    def __init__(self, shape: Sequence[int] = (1, 1), *, per: str = "channel", **options: Any) -> None:
        if per not in ("channel", "layer"):
            raise RuleError(f"QuadrantGate(per={per!r}): choose 'channel' or 'layer'")
        self._per_layer = per == "layer"
        super().__init__(shape, **options)

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """Four raw values per channel (or layer): ``raw`` is ``(4, 1, C, 1, 1)``."""
        weights = (*self._rows(shape), *(1 for _ in shape[1:])) if self._per_layer else self._channel_shape(shape)
        self.raw = nn.Parameter(torch.zeros((4, *weights)))

    @property
    def quadrants(self) -> Tensor:
        """The four weights as they act on a ReLU, ``(4, 1, C, 1, 1)``."""
        start = {"gradient": (1, 1, 0, 0), "deconvnet": (1, 0, 1, 0), "guided_backprop": (1, 0, 0, 0)}[self.start]
        base = self.raw.new_tensor(start).reshape(4, *(1,) * (self.raw.ndim - 1))
        return base + torch.tanh(self.raw)

    def forward(self, z: Tensor, g: Tensor) -> tuple[Weight, Weight]:
        """Returns the weights of the quadrants that ``z`` and ``g`` fall into."""
        a, b = start_weights(self.start, g)
        t = torch.tanh(self.raw).to(g.dtype)
        g_positive = g > 0
        upper = (z > 0).to(g.dtype)
        return (
            a + upper * torch.where(g_positive, t[0], t[1]),
            b + (1 - upper) * torch.where(g_positive, t[2], t[3]),
        )


def _squash(v: Tensor) -> Tensor:
    """``v / (|v| + rms(v))`` with the root mean square over each sample: in (-1, 1), blind to the scale of ``v``."""
    dims = tuple(range(1, v.ndim))
    top = v.detach().abs()
    top = top.amax(dim=dims, keepdim=True) if dims else top
    # Divided by the largest value first, since squares of tiny signals would underflow; a silent sample stays silent.
    v = v / torch.where(top > 0, top, torch.ones_like(top))
    mean = v.square().mean(dim=dims, keepdim=True) if dims else v.square()
    # sqrt'(0) is infinite and would turn 0 * inf into NaN in the second backward pass.
    rms = torch.where(mean > 0, mean, torch.ones_like(mean)).sqrt()
    return v / (v.abs() + rms)


class FeatureGate(Gate):
    """A weight predicted at each element from ``z``, ``g`` and ``z * g``, with parameters per channel.

    ``a = s (a_start + tanh(A . phi))`` and ``b = s (b_start + tanh(B . phi))`` with the features
    ``phi = (1, z', g', z' g')``, where ``v' = v / (|v| + rms(v))`` is free of scale (rms over the sample). It adapts
    to every pixel while its few parameters are shared. ``raw`` is ``(2, 4, 1, C, 1, 1)``: A, then B.

    Args:
        position: Weigh positions too, by ``s = 1 + tanh(P . psi)`` with the features ``psi = (1, p', q')``: the layer's
            relevance ``p = sum_c relu(z) g`` at the position, and its mean ``q`` over the 5 positions around, per
            dimension. ``raw_position`` is ``(3, 1, 1, 1, 1)``. Without it ``s`` is 1.
        contrast: Let the gate see the signal ``h`` of the other classes (see `streams`): ``phi`` grows by ``h'`` and
            ``z' h'``, and ``psi`` by the relevance of ``h`` and its mean.
    """

    name = "feature"
    sample_dim = 2
    sign_only = False

    def __init__(
        self, shape: Sequence[int] = (1, 1), *, position: bool = False, contrast: bool = False, **options: Any
    ) -> None:
        self.uses_position, self.contrast = position, contrast
        super().__init__(shape, **options)

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """Two times four (or six) raw values per channel; three (or five) per layer for positions."""
        self.raw = nn.Parameter(torch.zeros((2, 6 if self.contrast else 4, *self._channel_shape(shape))))
        if self.uses_position:
            ones = (1,) * len(shape[1:])
            # Two leading dimensions, as in ``raw``: samples are counted in the same one.
            self.raw_position = nn.Parameter(torch.zeros((1, 5 if self.contrast else 3, *self._rows(shape), *ones)))

    def forward(self, z: Tensor, g: Tensor, h: Tensor | None = None) -> tuple[Weight, Weight]:
        """Predicts both weights; ``h`` is the contrast signal, or None where there is none yet."""
        a, b = start_weights(self.start, g)
        raw, zg = self.raw.to(g.dtype), z.to(g.dtype)
        zs, gs = _squash(zg), _squash(g)
        hs = _squash(h.to(g.dtype)) if self.contrast and h is not None else None
        deviations = []
        for c in raw:
            value = torch.addcmul(torch.addcmul(c[0], c[1], zs), torch.addcmul(c[2], c[3], zs), gs)
            if hs is not None:
                value = torch.addcmul(value, torch.addcmul(c[4], c[5], zs), hs)
            deviations.append(torch.tanh(value))
        if not self.uses_position:
            return a + deviations[0], b + deviations[1]
        active = zg.clamp(min=0)
        signals = [g] if h is None or not self.contrast else [g, h.to(g.dtype)]
        s = self.position_weight(*(self._relevance(active * signal) for signal in signals))
        return s * (a + deviations[0]), s * (b + deviations[1])

    def _relevance(self, contributions: Tensor) -> Tensor:
        """Returns the relevance of each position, from what each element contributes."""
        return contributions.sum(dim=self.channel_dim, keepdim=True) if contributions.ndim > 1 else contributions

    def position_weight(self, relevance: Tensor, contrast: Tensor | None = None) -> Tensor:
        """Returns the weight ``s`` of each position.

        Args:
            relevance: That of the signal, ``(B, 1, *spatial)``.
            contrast: That of the contrast signal, in the same shape; None where there is none.
        """
        raw = self.raw_position[0].to(relevance.dtype)
        total = raw[0]
        for index, one in ((1, relevance), (3, contrast)):
            if one is not None:
                scaled = _squash(one)
                total = total + raw[index] * scaled + raw[index + 1] * self.around(scaled)
        return 1 + torch.tanh(total)

    def around(self, relevance: Tensor) -> Tensor:
        """Returns the mean over the neighbourhood of each position, for layers ``(B, C, *spatial)``."""
        dims = relevance.ndim - 2
        if self.channel_dim != 1 or not 1 <= dims <= 3:
            return relevance
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
        if dims == 3 and min(relevance.shape[2:]) < 5:  # torch refuses a kernel that is larger than a volume
            sums, counts = (pool(F.pad(v, (2,) * 6), 5, stride=1) for v in (relevance, torch.ones_like(relevance)))
            return sums / counts
        if dims == 2:  # the mean over a rectangle is that over rows of those over columns
            along = pool(relevance, (5, 1), stride=1, padding=(2, 0), count_include_pad=False)
            across: Tensor = pool(along, (1, 5), stride=1, padding=(0, 2), count_include_pad=False)
            return across
        around: Tensor = pool(relevance, 5, stride=1, padding=2, count_include_pad=False)
        return around


GATES: dict[str, type[Gate]] = {}


def register_gate(name: str, gate: type[Gate]) -> None:
    """Make a gate class known by name, e.g. to ``RuleSet.build(..., gate=name)``.

    Raises:
        RuleError: If the name belongs to another class; registering the same class again does nothing.
    """
    known = GATES.setdefault(name, gate)
    if known is not gate:
        raise RuleError(f"the gate name {name!r} belongs to {known.__module__}.{known.__qualname__}; choose another")


for _gate in (PlainGate, ElementGate, PositionGate, ChannelGate, QuadrantGate, FeatureGate):
    register_gate(_gate.name, _gate)


def gate_class(gate: str | type[Gate]) -> type[Gate]:
    """Look a gate class up by name; a class is returned as it is."""
    if isinstance(gate, type) and issubclass(gate, Gate):
        return gate
    if not isinstance(gate, str) or gate not in GATES:
        raise RuleError(f"unknown gate {gate!r}; known: {', '.join(sorted(GATES))}{did_you_mean(gate, GATES)}")
    return GATES[gate]
