"""What depends on the explained input: read off the autograd graph, from the input itself.

A rule divides relevance among the operands of a call that depend on the input; weights and constants get none. Which
tensors those are cannot be told from ``requires_grad`` or `nn.Parameter`: weights require gradients as inputs do, an
input that is being optimised may be a parameter, and ``torch.func.functional_call`` passes weights as plain tensors.
So each forward pass says where it starts: at the inputs that `explaining` names, or else at those arguments of the
model that require gradients. What has these in its graph depends on them. A pass on whole numbers (tokens) starts at
their embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .._compat import DisableTorchFunction, tree_flatten


class Dependence:
    """Tells which tensors of one forward pass depend on its inputs.

    It keeps nodes of the graph, so it must not outlive the pass.

    Args:
        inputs: What the pass starts at; those that require no gradients are ignored.

    Attributes:
        covered: Nodes inside layers that have somebody else's rule.
        starts_at_embeddings: Whether embeddings of whole numbers are what is explained, since numbers cannot be.
    """

    starts_at_embeddings: ClassVar[bool] = False

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        self._known: dict[Any, bool] = {}
        self.covered: set[Any] = set()
        for x in inputs:
            self.add(x)

    def add(self, x: Tensor) -> None:
        """Count one more tensor as an input."""
        if x.requires_grad:
            self._known[_node(x)] = True

    def cover(self, outputs: Any, inputs: Any) -> None:
        """Count what a layer computes from its inputs to its outputs as covered."""
        ends = {x.grad_fn for x in tensors_in(inputs)}
        todo: list[Any] = [x.grad_fn for x in tensors_in(outputs)]
        while todo:
            node = todo.pop()
            if node is None or node in ends or node in self.covered:
                continue
            self.covered.add(node)
            todo.extend(parent for parent, _ in node.next_functions)

    def __call__(self, x: Tensor) -> bool:
        """Whether ``x`` depends on the inputs."""
        if not x.requires_grad:
            return False
        return self.of_node(_node(x))

    def of_node(self, node: Any) -> bool:
        """Whether the value of an autograd node depends on the inputs."""
        known, todo = self._known, [node]
        while todo:
            top = todo[-1]
            if top in known:
                todo.pop()
                continue
            parents = [parent for parent, _ in top.next_functions if parent is not None]
            if any(known.get(parent, False) for parent in parents):
                known[top] = True
                continue
            unknown = [parent for parent in parents if parent not in known]
            if not unknown:
                known[top] = self._is_start(top)
            todo.extend(unknown)
        return known[node]

    def _is_start(self, node: Any) -> bool:
        """Whether a node whose parents do not depend on the inputs does so itself."""
        return False


class _LeafDependence(Dependence):
    """The dependence of a pass whose start nobody names: any leaf that is no parameter, and embeddings of numbers."""

    starts_at_embeddings = True

    def __init__(self) -> None:
        super().__init__(())

    def _is_start(self, node: Any) -> bool:
        return not isinstance(getattr(node, "variable", _PARAMETER), nn.Parameter)


_PARAMETER = nn.Parameter()

Inputs = Iterable[Tensor] | Dependence | None
"""What a pass starts at: tensors, what has watched the pass, or None if nobody says."""

_explained: ContextVar[tuple[Tensor, ...] | None] = ContextVar("_explained", default=None)
_current: ContextVar[Dependence | None] = ContextVar("_current", default=None)


def _node(x: Tensor) -> Any:
    """The autograd node that a tensor which requires gradients stands for."""
    if x.grad_fn is not None:
        return x.grad_fn
    with DisableTorchFunction():  # torch finds that of a leaf by a view, which is no call of the model's
        return get_gradient_edge(x).node


@contextmanager
def explaining(inputs: Iterable[Tensor]) -> Iterator[None]:
    """Lets forward passes inside explain these tensors, whatever else the model is given.

    Args:
        inputs: Tensors that the model is called with, or that what it is called with was made of.
    """
    token = _explained.set(tuple(inputs))
    try:
        yield
    finally:
        _explained.reset(token)


@contextmanager
def forward_pass(arguments: Any, *, within: bool = False) -> Iterator[Dependence]:
    """Let `depends_on_input` speak of one forward pass of a model.

    Args:
        arguments: What the model is called with; a container of anything.
        within: Go on with the pass that is being made already, if there is one.
    """
    going_on = _current.get()
    if within and going_on is not None:
        yield going_on
        return
    given = _explained.get()
    starts = [x for x in (tensors_in(arguments) if given is None else given) if x.requires_grad]
    found = Dependence(starts) if starts else _LeafDependence()
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def depends_on_input(x: Tensor) -> bool:
    """Whether a tensor depends on the input of the forward pass that is being made.

    Outside of one, whether its graph starts at anything but parameters.
    """
    return current()(x)


def current() -> Dependence:
    """The forward pass that is being made."""
    return _current.get() or _LeafDependence()


def after_pass(inputs: Inputs) -> Dependence:
    """Dependence on inputs of a pass that has been made; None: on whatever leaf is no parameter."""
    if isinstance(inputs, Dependence):
        return inputs
    return _LeafDependence() if inputs is None else Dependence(inputs)


def tensors_in(values: Any) -> list[Tensor]:
    """Returns the tensors in a container of anything, in order."""
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor)]


__all__ = [
    "Dependence", "Inputs", "after_pass", "current", "depends_on_input", "explaining", "forward_pass", "tensors_in",
]  # fmt: skip
