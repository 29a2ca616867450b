"""Per-sample learning: one forward pass of the original input, then many cheap steps on its rules.

One step is a backward pass by the current rules, a forward and a backward pass of the masked input, and one
linearised forward pass that turns the gradient of the loss to the map into the gradient of every gate (see
`zennit_rules.core.tangent`). Where the model cannot be linearised, general double backward gives the same gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zennit_rules import RuleSet, RuleWarning
from zennit_rules.core.hook import SiteCall
from zennit_rules.core.protocols import TrainableComposite
from zennit_rules.core.recomputed import rules_alone
from zennit_rules.core.tangent import record

from ..errors import TargetError
from ..targets import select_target
from .linearised import mismatch
from .masks import Mask
from .objectives import MaskedPass, SampleObjective
from .pass_by_rules import RulePass, rules_recorded

# A gate that scales a whole map has gradient 0 under masks that are blind to scale; what is left is rounding of about
# 1 eps of sum |v r|, where real gradients were never seen below 1e5 eps.
_NOISE = 100
_NOISE_MOST = 1e-3  # in low precision, eps * _NOISE would silence real gradients


class OriginalPass:
    """The forward pass of the original input, kept; propagates backward by rules as often as asked.

    Args:
        model: The model; hooked during the forward pass only.
        composite: Composite whose rules propagate.
        leaves: Differentiable inputs.
        target: Captum target.
        additional: Further arguments of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: TrainableComposite,
        leaves: tuple[Tensor, ...],
        target: Any,
        additional: tuple[Any, ...],
    ) -> None:
        self.leaves = leaves
        self.rules: RuleSet = composite.rules
        self.fallback: str | None = None
        watched = record(leaves) if composite.linearised else nullcontext()
        with rules_recorded(model, composite), watched as tape:
            self._pass = RulePass.of(model, composite, leaves, additional)
        self.output: Tensor = self._pass.output
        output = self.output
        self.selected = self._pass.select(target)
        if not self.rules.closed:
            self.rules.close(model, output, leaves)
            _warn_of_mixed_samples(self.rules, leaves[0].shape[0])
        if tape is None:
            self.fallback = "the composite has no linearised pass"
        else:
            tape.finish(output)
            self.fallback = tape.unsupported
        self.tape = tape
        self._checked = False
        if not output.requires_grad:
            raise TargetError("the model's output does not depend on its input in a differentiable way")
        self.seed = self._pass.seed_of(self.selected)

    def attributions(self, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        """One backward pass by the current rules; a signed map per leaf."""
        return self._pass.attributions(self.seed, create_graph=create_graph, keep=True)

    def rule_gradients(
        self,
        maps: tuple[Tensor, ...],
        v: tuple[Tensor, ...],
        update: Callable[[str, nn.Module, dict[str, Tensor]], None],
    ) -> None:
        """Gradient of a loss to the rules, given its gradient ``v`` to the maps of the last `attributions`.

        Args:
            maps: Those maps.
            v: Gradient of the loss to each.
            update: Called per site with its gate and the gradients by parameter name; it may change the gate.
        """
        if self.fallback is None and not self._checked:
            self.fallback = self._check(maps, v)
            self._checked = True
            if self.fallback is not None:
                warnings.warn(f"learning by double backward: {self.fallback}", RuleWarning, stacklevel=2)
        if self.fallback is None and self.tape is not None:
            self.tape.push_forward(v, lambda call, gradients: update(call.name, call.gate, gradients))
            return
        with rules_alone():
            live = self.attributions(create_graph=True)
        names = [name for name, _ in self.rules.named_parameters()]
        found = torch.autograd.grad(live, self.rules.parameters(), v, materialize_grads=True)
        by_site: dict[str, dict[str, Tensor]] = {}
        for name, gradient in zip(names, found, strict=True):
            site, parameter = name.rsplit("::", 1)
            by_site.setdefault(site, {})[parameter] = gradient
        for site, gradients in by_site.items():
            update(site, self.rules.gate(site), gradients)

    def _check(self, maps: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> str | None:
        """Compare the linearised pass with the backward pass once, by the adjoint identity."""

        def ignore(call: SiteCall, gradients: dict[str, Tensor]) -> None:
            pass

        assert self.tape is not None
        try:
            tangent = self.tape.push_forward(v, ignore)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return f"an operation of the model cannot be linearised ({error})"
        return mismatch(maps, v, tangent, self.seed)


def _warn_of_mixed_samples(rules: RuleSet, samples: int) -> None:
    """Say so where the first dimension of a site is no batch, as in models that put time first.

    A first dimension of 1 is what parameters have that are shared over the batch.
    """
    mixed = [s.name for s in rules.sites if s.shape and s.shape[0] != 1 and s.shape[0] % samples]
    if mixed:
        warnings.warn(
            f"the first dimension of site {mixed[0]!r} ({len(mixed)} such sites) does not count the {samples} samples: "
            "their gates are learned together, and a map depends on its batch; attribute one sample at a time",
            RuleWarning,
            stacklevel=2,
        )


class Momentum:
    """Sums of the gradients of parameters so far, the past with a weight below 1.

    Args:
        weight: Weight of the past.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._sums: dict[tuple[str, str], Tensor] = {}

    def add(self, key: tuple[str, str], gradient: Tensor, sample_dim: int) -> tuple[Tensor, Tensor]:
        """Returns the sum with a gradient added, and the length of each of its rows, with dimensions of size 1 kept.

        Args:
            key: Site and name of the parameter.
            gradient: Its gradient, which is kept and changed.
            sample_dim: The dimension of the rows, that of the samples.
        """
        moving = self._sums.get(key)
        if moving is None:
            moving = self._sums[key] = gradient
        else:
            torch.add(gradient, moving, alpha=self.weight, out=moving)
        dims = [d for d in range(moving.ndim) if d != sample_dim]
        return moving, torch.linalg.vector_norm(moving, dim=dims, keepdim=True) if dims else moving.abs()


class Descent:
    """Momentum with steps of unit size per sample and gate: blind to the scale of the loss, and to the other samples.

    Dividing by each element's own gradient size, as Adam does, would let rounding noise in elements without a
    signal decide their steps, and a sample's map then depends on its batch. For the same reason a gate whose whole
    gradient is rounding noise stays where it is.

    Args:
        lr: Root mean square step of a gate's raw parameters.
        momentum: Weight of the past.

    Attributes:
        noise: Size below which a sample's gradient is rounding noise, ``(B,)``.
    """

    def __init__(self, lr: float, momentum: float = 0.8) -> None:
        self.lr = lr
        self.noise = torch.zeros(1)
        self._moving = Momentum(momentum)

    @torch.no_grad()
    def step(self, site: str, gate: nn.Module, gradients: dict[str, Tensor]) -> None:
        """Move the gate's parameters against their gradients."""
        for name, gradient in gradients.items():
            parameter = gate.get_parameter(name)
            moving, size = self._moving.add((site, name), gradient, getattr(gate, "sample_dim", 0))
            count = moving.numel() // max(size.numel(), 1)
            heard = size > self._noise_of(size)
            scale = torch.where(heard, self.lr * count**0.5 / size, torch.zeros_like(size))
            parameter.addcmul_(moving, scale, value=-1)

    def _noise_of(self, size: Tensor) -> Tensor:
        """The noise in the shape of ``size``, which has an entry per row of the gate: a sample, or a part of one."""
        rows, rest = divmod(size.numel(), self.noise.numel())
        return torch.zeros_like(size) if rest else self.noise.to(size).repeat_interleave(rows).reshape(size.shape)


class Step:
    """One step of learning: map, masked pass, loss, and the gradient of the rules.

    Args:
        original: The kept forward pass; its rules are changed.
        forward: The model on masked inputs (a plain pass, no rules).
        target: Captum target.
        mask: Turns a map into a mask.
        objective: Loss per sample.
        descent: Moves the gates.
    """

    def __init__(
        self,
        original: OriginalPass,
        forward: Callable[[tuple[Tensor, ...]], Tensor],
        target: Any,
        mask: Mask,
        objective: SampleObjective,
        descent: Descent,
    ) -> None:
        self.original, self.forward, self.target = original, forward, target
        self.mask, self.objective, self.descent = mask, objective, descent
        self.inputs = tuple(leaf.detach() for leaf in original.leaves)
        self.output, self.selected = original.output.detach(), original.selected.detach()

    def run(self, *, update: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """Maps by the current rules and the loss of each, ``(B,)``; with ``update``, the rules move after that."""
        maps = self.original.attributions()
        with torch.set_grad_enabled(update):
            live = tuple(m.detach().requires_grad_(update) for m in maps)
            masks = tuple(self.mask(m) for m in live)
            masked = self.forward(tuple(self.objective.apply(x, m) for x, m in zip(self.inputs, masks, strict=True)))
            selected = select_target(masked, self.target)
            loss = self.objective(MaskedPass(self.output, masked, self.selected, selected, self.target, masks))
            v = torch.autograd.grad(loss.sum(), live, materialize_grads=True) if update else ()
        if update:
            self.descent.noise = rounding_of(maps, v)
            self.original.rule_gradients(maps, v, self.descent.step)
        return maps, loss.detach()


def rounding_of(maps: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> Tensor:
    """Bound of the rounding error in the gradient of a gate, ``(B,)``: a few eps of ``sum |v r|``, which it adds up."""
    terms = [(a * b).abs().reshape(len(a), -1).sum(dim=1) for a, b in zip(maps, v, strict=True)]
    return torch.stack(terms).sum(dim=0) * min(_NOISE * torch.finfo(maps[0].dtype).eps, _NOISE_MOST)


class Repeated(Protocol):
    """What `learn` repeats."""

    def run(self, *, update: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """Maps, and how bad each sample's are, ``(B,)``; with ``update``, the rules move after that."""


def learn(step: Repeated, n_steps: int, *, show_progress: bool = False) -> tuple[Tensor, ...]:
    """Learn the rules of one batch and return, per sample, the map with the lowest loss met on the way.

    Args:
        step: What to repeat.
        n_steps: Number of updates; each map met, the last included, is judged.
        show_progress: Draw a progress bar.

    Returns:
        A signed map per input.
    """
    best, lowest = step.run(update=n_steps > 0)
    for done in tqdm(range(1, n_steps + 1), desc="learning rules", disable=not show_progress):
        maps, loss = step.run(update=done < n_steps)
        better = (loss < lowest) | lowest.isnan()
        lowest = torch.where(better, loss, lowest)
        best = tuple(_where(better, new, old) for new, old in zip(maps, best, strict=True))
    return best


def _where(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
