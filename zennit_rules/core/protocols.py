"""What rule sets and the registry need to know of a composite, without importing one: arrows run down only."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from .coverage import Coverage, LinearWork
from .dependence import Inputs
from .sites import Site, SiteTracker
from .streams import Streams


class TrainableComposite(Protocol):
    """A zennit composite whose parameters live in a rule set; `zennit_rules.LearnedComposite` is one."""

    name: ClassVar[str]
    default_gate: ClassVar[str | type]
    default_start: ClassVar[str]
    linearised: ClassVar[bool]
    starts_with_output: ClassVar[bool]
    ends_with_input: ClassVar[bool]
    needs_coverage: ClassVar[bool]
    rules: Any
    streams: Streams
    handles: Any
    tracker: SiteTracker

    def __init__(self, *, rules: Any = None, canonizers: list[Any] | None = None, **options: Any) -> None: ...

    def attribute(
        self,
        output: Tensor,
        leaves: tuple[Tensor, ...],
        seed: Tensor,
        *,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> tuple[Tensor, ...]:
        """Returns signed attributions of ``sum(output * seed)`` to the leaves."""

    def context(self, module: nn.Module) -> AbstractContextManager[Any]:
        """The composite is registered on the model inside."""

    def recorded(self, model: nn.Module) -> AbstractContextManager[TrainableComposite]:
        """The model is hooked for one forward pass, which goes on propagating by the rules."""

    def inactive(self) -> AbstractContextManager[Any]:
        """Lets passes inside propagate by the plain gradient."""

    def start_signal(self, output: Tensor, seed: Tensor) -> Tensor:
        """What the backward pass starts with."""

    def finish(self, maps: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns attributions, from what arrived at the leaves."""

    @classmethod
    def checked_options(cls, rule_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """The composite's own options, complete and in plain types."""

    @classmethod
    def make_gate(cls, config: Mapping[str, Any], site: Site, samples: int | None) -> nn.Module:
        """The gate of a site, with its parameters at their start."""

    @classmethod
    def unreached(cls, output: Any, inputs: Inputs = None) -> dict[str, int]:
        """Number of autograd nodes by name that should have a rule and have none."""

    @classmethod
    def work(cls, output: Any, inputs: Inputs = None) -> LinearWork:
        """Counts the multiply-adds of linear functions, where these need a rule."""

    @classmethod
    def why_unreached(cls, node: str) -> str:
        """Returns the reason why such a node has no rule."""

    @classmethod
    def reviewed(cls, model: nn.Module, coverage: Coverage) -> Coverage:
        """The composite's last word on its coverage of a model."""
