"""RectGrad on whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from .._compat import Hook
from ..core.registry import register_composite
from ..core.site_functions import ACTIVATION_TYPES, POOLING_TYPES
from ..core.sites import Site
from ..errors import RuleError
from ..gates import PlainGate
from ..rules.pooling import PoolGate
from ..rules.rect_grad import PERCENTILE, POOLS, ProportionalPool, RectGate, RectGrad
from .base import LearnedComposite


class RectGradComposite(LearnedComposite):
    """RectGrad at every activation; "rect_grad" in ``COMPOSITES``.

    `zennit_rules.attribute`, and what builds on it, multiplies by the input in the end, unless
    ``multiply_by_inputs`` is False; a plain gradient, as by zennit's ``Gradient(model, composite)``, does not.

    Args:
        rule_options: ``percentile``, ``threshold`` (None), ``temperature``, ``derivative``: see `RectGate`. ``pool``:
            ``"gradient"`` or ``"proportional"`` redistribution at max-pools. ``multiply_by_inputs``.
    """

    name = "rect_grad"
    linearised = False
    ends_with_input = True
    default_gate: ClassVar[str | type] = "none"
    default_options: ClassVar[Mapping[str, Any]] = {
        "percentile": PERCENTILE,
        "threshold": None,
        "temperature": 0.0,
        "derivative": False,
        "pool": "gradient",
        "multiply_by_inputs": True,
    }

    @classmethod
    def checked_options(cls, rule_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the options, which are checked by making a gate."""
        options = super().checked_options(rule_options)
        if options["pool"] not in POOLS:
            raise RuleError(f"rule option pool={options['pool']!r}: choose one of {', '.join(POOLS)}")
        for name in ("derivative", "multiply_by_inputs"):
            if not isinstance(options[name], bool):
                raise RuleError(f"rule option {name} must be True or False, got {options[name]!r}")
        for name in ("percentile", "threshold", "temperature"):
            value = options[name]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number and (name != "threshold" or value is not None):
                raise RuleError(f"rule option {name} must be a number, got {value!r}")
        cls._gate(options, None)
        return options

    @staticmethod
    def _gate(options: Mapping[str, Any], samples: int | None) -> RectGate:
        names = ("percentile", "threshold", "temperature", "derivative")
        return RectGate(**{name: options[name] for name in names}, samples=samples)

    @classmethod
    def make_gate(cls, config: Mapping[str, Any], site: Site, samples: int | None) -> nn.Module:
        """Makes the `RectGate` of an activation, or the gate of a max-pool."""
        if site.kind == "pooling" and config["pooling"] == "soft" and config["rule_options"]["pool"] == "gradient":
            return PoolGate(samples=samples)
        if site.kind == "pooling":
            return PlainGate(site.shape, samples=samples, channel_dim=site.channel_dim)
        return cls._gate(config["rule_options"], samples)

    def templates(self) -> list[tuple[tuple[type, ...], Hook]]:
        """Returns the hooks of activations, and of max-pools if their signal is shared out."""
        proportional = self.rules.config["rule_options"]["pool"] == "proportional"
        pools = [(POOLING_TYPES, ProportionalPool(self))] if proportional else super().templates()[1:]
        return [(ACTIVATION_TYPES, RectGrad(gate=self)), *pools]

    def finish(self, maps: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Multiplies what arrived by the inputs, unless the options say not to."""
        if not self.rules.config["rule_options"]["multiply_by_inputs"]:
            return maps
        return tuple(signal * leaf for signal, leaf in zip(maps, leaves, strict=True))


register_composite(RectGradComposite.name, RectGradComposite)
