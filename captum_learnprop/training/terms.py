"""Terms: what learning shared rules can minimise, and the weighted sums of them.

    >>> OcclusionRegression() + 0.1 * ClassContrast()
    OcclusionRegression(distance='pearson') + 0.1 * ClassContrast(other='random', similarity='cosine')

A term gives one value per row of a `Batch`, a row being one image with one target, and never lets rows see each
other. Every term is blind to the scale of a map, so that no rule can win by making maps larger.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.batch import Batch as Batch
from captum_learnprop.training.fills import fill_names, random_fill
from captum_learnprop.training.map_similarity import COMPRESSIONS, SIMILARITIES, compress
from captum_learnprop.training.masks import AreaMask, MaxMask, total_variation
from captum_learnprop.training.occlusion import region_mass
from zennit_rules._moved import renamed
from zennit_rules.core.scalars import plain, plain_fields


class Term(ABC):
    """A thing to minimise: a frozen dataclass whose fields are its options.

    ``weight * term`` and ``term + term`` give an `Objective`.

    Attributes:
        needs_deletions: Whether the batch must have ``regions`` and ``drops``.
        needs_randomized: Whether the batch must have ``explain_randomized``.
    """

    needs_deletions: ClassVar[bool] = False
    needs_randomized: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)``, differentiable in the rules."""

    def config(self) -> dict[str, Any]:
        """Returns name and options in plain types, ready for JSON."""
        return {"term": type(self).__name__, **_options(self)}

    def __mul__(self, weight: float) -> Objective:
        return Objective(((weight, self),))

    __rmul__ = __mul__

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective.of(self) + other


@dataclass(frozen=True, repr=False)
class Objective:
    """A weighted sum of terms: ``sum_k weight_k * term_k``.

    A term of weight 0 is computed and reported, but not minimised.

    Args:
        terms: Pairs ``(weight, term)``.

    Raises:
        LearnpropError: There are no terms, or a weight is negative or not finite.
    """

    terms: tuple[tuple[float, Term], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple((plain(weight), term) for weight, term in self.terms))
        if not self.terms:
            raise LearnpropError("an objective needs at least one term, e.g. OcclusionRegression()")
        for weight, term in self.terms:
            if not isinstance(term, Term):
                raise LearnpropError(f"{term!r} is not a term")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise LearnpropError(f"weight {weight!r} of {term!r} must be a finite number, at least 0")

    @classmethod
    def of(cls, source: Term | Objective) -> Objective:
        """Returns a term as an objective of weight 1; an objective as it is."""
        return source if isinstance(source, Objective) else cls(((1.0, source),))

    @classmethod
    def from_config(
        cls, config: Iterable[Mapping[str, Any]], terms: Mapping[str, type[Term]] | None = None
    ) -> Objective:
        """Returns the objective that `config` was made from.

        Args:
            config: One mapping per term with ``"term"``, its name, optionally ``"weight"`` (1), and its options.
            terms: Terms by name; `TERMS` by default.

        Raises:
            LearnpropError: A term or option is unknown.
        """
        known = TERMS if terms is None else terms
        return cls(tuple(_weighted(entry, known) for entry in config))

    @property
    def needs_deletions(self) -> bool:
        """Whether some term needs ``regions`` and ``drops``."""
        return any(term.needs_deletions for _, term in self.terms)

    @property
    def needs_randomized(self) -> bool:
        """Whether some term needs ``explain_randomized``."""
        return any(term.needs_randomized for _, term in self.terms)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each term: its class, numbered where a class comes more than once."""
        plain = [type(term).__name__ for _, term in self.terms]
        return tuple(
            name if plain.count(name) == 1 else f"{name}_{plain[: index + 1].count(name)}"
            for index, name in enumerate(plain)
        )

    def values(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the value of each term without its weight, ``(B,)``, by its name in `names`."""
        values = {}
        for name, (weight, term) in zip(self.names, self.terms, strict=True):
            value = term(batch)
            if value.shape != batch.targets.shape:
                raise LearnpropError(f"{term!r} gave {tuple(value.shape)}; a term gives one value per row, (B,)")
            values[name] = value if weight else value.detach()
        return values

    def combine(self, values: Mapping[str, Tensor]) -> Tensor:
        """Returns the weighted sum of what `values` gave: ``(B,)``.

        Raises:
            LearnpropError: All weights are 0.
        """
        parts = [weight * values[name] for name, (weight, _) in zip(self.names, self.terms, strict=True) if weight]
        if not parts:
            raise LearnpropError(f"all weights are 0, nothing is minimised: {self!r}")
        return torch.stack(parts).sum(0)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the loss of each row, ``(B,)``."""
        return self.combine(self.values(batch))

    def config(self) -> list[dict[str, Any]]:
        """Returns terms, weights and options in plain types, ready for JSON; `from_config` reads it."""
        return [{**term.config(), "weight": float(weight)} for weight, term in self.terms]

    def __add__(self, other: Term | Objective) -> Objective:
        if not isinstance(other, (Term, Objective)):
            return NotImplemented
        return Objective(self.terms + Objective.of(other).terms)

    def __mul__(self, weight: float) -> Objective:
        return Objective(tuple((weight * own, term) for own, term in self.terms))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return " + ".join(repr(term) if weight == 1 else f"{weight:g} * {term!r}" for weight, term in self.terms)


@dataclass(frozen=True)
class OcclusionRegression(Term):
    """A term that says how badly a map predicts what the model loses when parts of the image are removed.

    It is ``1 - corr_d(mass of the map inside region d, drop by region d)``, over the deletions of a row: in [0, 2],
    1 for a map without mass; the training form of *sensitivity-n* (Ancona et al., ICLR 2018) and *infidelity* (Yeh et
    al., NeurIPS 2019). The model is never run on anything that depends on the map, so nothing can be optimised
    against it.

    Args:
        distance: ``"pearson"``; or ``"cosine"``, which also asks that regions without effect get no mass: infidelity
            at the best scale.
        density: Exponent ``p`` in [0, 1]: mass and drop are divided by ``area ** p`` of the region first. With 0, large
            regions decide, and the map learns where the object is; towards 1, small ones count as much, and with them
            what matters within it.

    Raises:
        LearnpropError: The distance is unknown, ``density`` out of range, or a batch has no deletions.
    """

    distance: str = "pearson"
    density: float = 0.0
    needs_deletions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        _check(self, "distance", ("pearson", "cosine"))
        if not 0 <= self.density <= 1:
            raise LearnpropError(f"density must be in [0, 1], got {self.density}")

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)`` in [0, 2]."""
        if batch.regions is None or batch.drops is None:
            raise LearnpropError("OcclusionRegression needs deletions, the batch has no regions and drops")
        return self.of_maps(batch.maps, batch.regions, batch.drops)

    def of_maps(self, maps: Tensor, regions: Tensor, drops: Tensor) -> Tensor:
        """Returns the value of any maps ``(B, *spatial)``: ``(B,)`` in [0, 2].

        Args:
            maps: The maps, reduced and smoothed.
            regions: The deletions of each image, ``(B, D, *spatial)`` bool.
            drops: What the target lost by each, ``(B, D)``.
        """
        return self.of_masses(*self.masses(maps, regions, drops))

    def masses(self, maps: Tensor, regions: Tensor, drops: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is compared, the mass inside each region and the drop, ``(B, D)`` both; see `of_maps`."""
        mass, drops = region_mass(maps, regions), drops.to(maps.dtype)
        if not self.density:
            return mass, drops
        scale = regions.flatten(2).sum(2).to(mass.dtype) ** -self.density
        return mass * scale, drops * scale

    def of_masses(self, mass: Tensor, drops: Tensor) -> Tensor:
        """Returns the value of what `masses` gave, ``(B,)`` in [0, 2]."""
        return 1 - SIMILARITIES[self.distance](mass, drops)


@dataclass(frozen=True)
class MaskedTerm(Term):
    """The part of terms that run the model on masked inputs: ``f(b + m (x - b))`` beside ``f(x)`` and ``f(b)``.

    Area and fill ``b`` are drawn for each row, anew in each step. The quantity is measured on the scale from that of
    the fill alone, 0, to that of the whole input, 1, and clamped: whatever it is, no masked input can count for more
    than the original one, so there is nothing to win by adversarial masks. A row whose whole input gives no more than
    its fill (by `LEAST_EFFECT`) has nothing to keep or to lose and gets the value 0.

    Args:
        mask: `AreaMask`, or `MaxMask`, which needs an `Area` term beside it.
        area: The share that is marked by an `AreaMask`: a number, or a range of which it is drawn uniformly; None for
            the mask's own. A `MaxMask` has none: pass None.
        fill: ``"random"`` for any of `FILLS`, one name or several.
        exclude: Fills that ``"random"`` leaves out: those of the evaluation.

    Raises:
        LearnpropError: The area is outside (0, 1), or given to a mask that has none.
        LearnpropError: A fill is unknown, excluded although asked for, or none is left.
    """

    mask: AreaMask | MaxMask = field(default_factory=AreaMask)
    area: float | tuple[float, float] | None = (0.05, 0.4)
    fill: str | tuple[str, ...] = "random"
    exclude: tuple[str, ...] = ("zero", "blur")

    def __post_init__(self) -> None:
        plain_fields(self)
        fill_names(self.fill, self.exclude)
        if self.area is None:
            return
        if not isinstance(self.mask, AreaMask):
            raise LearnpropError(f"{self.mask!r} cannot be told its area {self.area}; pass area=None or an AreaMask")
        low, high = self.area if isinstance(self.area, tuple) else (self.area, self.area)
        if not 0 < low <= high < 1:
            raise LearnpropError(f"area {self.area} of {type(self).__name__} must be in (0, 1), the lower bound first")

    def _masks(self, batch: Batch) -> Tensor:
        """Returns the masks of the maps, ``(B, *spatial)`` in [0, 1]."""
        mask = _without_space(self.mask) if batch.table else self.mask
        if self.area is None or not isinstance(mask, AreaMask):
            return mask.of_maps(batch.maps)
        if not isinstance(self.area, tuple):
            return mask.of_maps(batch.maps, self.area)
        low, high = self.area
        return mask.of_maps(batch.maps, low + (high - low) * batch.uniform())

    def _kept(self, batch: Batch, masks: Tensor, neutral: float) -> Tensor:
        """Returns the share of the quantity that inputs masked by ``(B, *spatial)`` keep, ``(B,)`` in [0, 1].

        Rows without effect get ``neutral``.
        """
        fill = random_fill(batch.inputs, fill_names(self.fill, self.exclude), batch.uniform, batch.normal)
        with torch.no_grad():
            top = batch.quantity(batch.outputs, batch.targets)
            fill = fill.to(batch.inputs.dtype)
            floor = batch.quantity(batch.model(fill), batch.targets)
            effect = top - floor
            counts = effect > LEAST_EFFECT * (top.abs() + floor.abs())
        weights = masks if batch.table else masks[:, None]
        masked = fill + weights.to(fill.dtype) * (batch.inputs - fill)
        found = batch.quantity(batch.model(masked), batch.targets)
        share = ((found - floor) / torch.where(counts, effect, 1.0)).clamp(0, 1)
        return torch.where(counts, share, neutral)


LEAST_EFFECT = 0.01
"""The least difference of whole input and fill, as a share of the sum of their sizes: below it, ratios are noise."""


@dataclass(frozen=True)
class Sufficiency(MaskedTerm):
    """The share of the explained quantity that is lost when only the map's strongest pixels stay.

    ``1 - clamp((q(b + m (x - b)) - q(b)) / (q(x) - q(b)), 0, 1)``: in [0, 1], lower is better.
    The options are those of `MaskedTerm`.
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)`` in [0, 1]."""
        return 1 - self._kept(batch, self._masks(batch), neutral=1.0)


@dataclass(frozen=True)
class Necessity(MaskedTerm):
    """The share of the explained quantity that is left when the map's strongest pixels are removed.

    ``clamp((q(b + (1 - m) (x - b)) - q(b)) / (q(x) - q(b)), 0, 1)``: in [0, 1], lower is better.
    The options are those of `MaskedTerm`.
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)`` in [0, 1]."""
        return self._kept(batch, 1 - self._masks(batch), neutral=0.0)


@dataclass(frozen=True)
class _OfMaxMask(Term):
    """The part of terms that measure a mask which is 1 at the strongest pixel."""

    mask: MaxMask = field(default_factory=MaxMask)

    def __post_init__(self) -> None:
        if not isinstance(self.mask, MaxMask):
            raise LearnpropError(f"{type(self).__name__} measures a MaxMask, {self.mask!r} is none")


@dataclass(frozen=True)
class Area(_OfMaxMask):
    """The mean of a mask that is 1 at the strongest pixel: in [0, 1], small for maps that single out few pixels.

    Args:
        mask: How strength is measured.
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)`` in [0, 1]."""
        mask = _without_space(self.mask) if batch.table else self.mask
        return mask.of_maps(batch.maps).flatten(1).mean(1)


@dataclass(frozen=True)
class TotalVariation(_OfMaxMask):
    """The mean absolute difference of neighbours in a mask that is 1 at the strongest pixel, summed over dimensions.

    It is in [0, number of dimensions]; small for smooth maps, and for maps with few strong pixels.

    Args:
        mask: How strength is measured.
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)``, at least 0."""
        if batch.table:
            raise LearnpropError("TotalVariation compares neighbours, which features of a table (B, F) have not")
        return total_variation(self.mask.of_maps(batch.maps))


@dataclass(frozen=True)
class ClassContrast(Term):
    """A term that says how alike the map is to that of another class: ``max(similarity, 0)``, in [0, 1].

    The other class is drawn for each row, anew in each step. Differentiable in both maps. Maps without signs always
    overlap: judge by how far the value falls, not by its size.

    Args:
        other: ``"random"``: all other classes alike; ``"strongest"``: by the softmax of their outputs.
        similarity: ``"cosine"``, ``"overlap"`` (mass that both share) or ``"pearson"``.

    Raises:
        LearnpropError: An option is unknown, or the model has one class.
    """

    other: str = "random"
    similarity: str = "cosine"

    def __post_init__(self) -> None:
        _check(self, "other", ("random", "strongest"))
        _check(self, "similarity", tuple(SIMILARITIES))

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)`` in [0, 1]."""
        maps = _fitting("explain", batch.explain(self.others(batch)), batch)
        return SIMILARITIES[self.similarity](batch.maps.flatten(1), maps.flatten(1)).clamp(min=0)

    def others(self, batch: Batch) -> Tensor:
        """Returns a class other than the target for each row, ``(B,)`` int64."""
        classes = batch.outputs.shape[1]
        if classes < 2:
            raise LearnpropError(f"ClassContrast needs another class, the outputs are {tuple(batch.outputs.shape)}")
        is_target = torch.arange(classes, device=batch.targets.device) == batch.targets[:, None]
        weights = torch.zeros_like(batch.outputs) if self.other == "random" else batch.outputs
        # In float64: a share that is rounded away would never be drawn.
        edges = weights.double().masked_fill(is_target, -torch.inf).softmax(1).cumsum(1)
        point = batch.uniform().double().clamp(max=1 - 1e-9)[:, None] * edges[:, -1:]
        return (edges <= point).sum(1)


@dataclass(frozen=True)
class RandomizationContrast(Term):
    """A term that says how alike the map is to that of a re-initialised net: ``max(similarity, 0)``, in [0, 1].

    A map that stays the same shows the image, not what the model learned (Adebayo et al.: *Sanity Checks for Saliency
    Maps*, NeurIPS 2018). They compare ranks; ``compression`` brings the correlation closer to that of ranks.

    Args:
        similarity: ``"pearson"``, ``"cosine"`` or ``"overlap"``.
        compression: ``"none"``, ``"sqrt"`` or ``"log"``, as `compress` takes it.

    Raises:
        LearnpropError: An option is unknown, or a batch has no `Batch.explain_randomized`.
    """

    similarity: str = "pearson"
    compression: str = "none"
    needs_randomized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, "similarity", tuple(SIMILARITIES))
        _check(self, "compression", tuple(COMPRESSIONS))

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the value of each row, ``(B,)`` in [0, 1]."""
        if batch.explain_randomized is None:
            raise LearnpropError("RandomizationContrast needs a net with random weights: explain_randomized is None")
        maps = _fitting("explain_randomized", batch.explain_randomized(), batch)
        first, second = (compress(m.flatten(1), self.compression) for m in (batch.maps, maps))
        return SIMILARITIES[self.similarity](first, second).clamp(min=0)


TERMS: dict[str, type[Term]] = {
    "OcclusionRegression": OcclusionRegression,
    "Sufficiency": Sufficiency,
    "Necessity": Necessity,
    "Area": Area,
    "TotalVariation": TotalVariation,
    "ClassContrast": ClassContrast,
    "RandomizationContrast": RandomizationContrast,
}
"""The terms by their names, for `Objective.from_config`."""

MASKS: dict[str, Callable[..., Any]] = {"AreaMask": AreaMask, "MaxMask": MaxMask}
"""The masks by their names, for `Objective.from_config`."""


def _check(term: Term, option: str, choices: tuple[str, ...]) -> None:
    if (value := getattr(term, option)) not in choices:
        raise LearnpropError(f"unknown {option} {value!r} of {type(term).__name__}; choose one of {', '.join(choices)}")


def _without_space(mask: AreaMask | MaxMask) -> AreaMask | MaxMask:
    """Returns the mask for features, which have no neighbours to be smoothed over."""
    return replace(mask, sigma=0.0)


def _fitting(source: str, maps: Tensor, batch: Batch) -> Tensor:
    if maps.shape != batch.maps.shape:
        raise LearnpropError(f"{source} gave maps {tuple(maps.shape)}, expected {tuple(batch.maps.shape)}")
    return maps


def _options(source: Any) -> dict[str, Any]:
    return {option.name: _plain(getattr(source, option.name)) for option in fields(source)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {"mask": type(value).__name__, **_options(value)}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _weighted(entry: Mapping[str, Any], known: Mapping[str, type[Term]]) -> tuple[float, Term]:
    options = dict(entry)
    name, weight = options.pop("term", None), options.pop("weight", 1.0)
    return weight, _make("term", name, known, options)


def _rich(value: Any) -> Any:
    """Returns what `_plain` was given."""
    if isinstance(value, Mapping):
        options = dict(value)
        return _make("mask", options.pop("mask", None), MASKS, options)
    return tuple(_rich(part) for part in value) if isinstance(value, list) else value


def _make(kind: str, name: Any, known: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> Any:
    if name not in known:
        raise LearnpropError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")
    try:
        return known[name](**{option: _rich(value) for option, value in options.items()})
    except TypeError as error:
        raise LearnpropError(f"{kind} {name} cannot be made from {dict(options)}: {error}") from error


__getattr__ = renamed(__name__, {"ObjectiveError": "LearnpropError"})
