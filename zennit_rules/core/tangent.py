"""Gradients of rule parameters by one linearised forward pass.

For a loss on an attribution ``r``, the rules' parameters need ``v = dLoss/dr`` carried back through the backward pass.
A backward pass is linear in its signal, layer by layer; its transpose is the layer's linearisation, run *forwards*:
``v`` goes through the network with biases dropped, batch norm reduced to its scale and each site replaced by the
derivative of its rule. At a site the gradient of the parameters is local: (signal that arrived there) x (tangent
there). This costs one forward pass, where general double backward costs two to three, and gives the same numbers.

`Tape` records, during the one forward pass, what that needs. Operations it has no linear form for are linearised by
forward-mode autograd; what it cannot follow at all is reported in `Tape.unsupported`, and the caller falls back to
double backward. `Tape.push_forward` also returns the tangent of the output, which by Euler's theorem must satisfy
``<v, r> == <tangent, seed>`` (rules are homogeneous of degree 1 in the signal): a free check of every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .._compat import tree_flatten, tree_unflatten
from .batch_norm import BatchNorm
from .hook import SiteCall
from .sites import recorder


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Linear and homogeneous in all tensors that depend on the input, whatever the other arguments are.
_LINEAR = _words(
    """flatten view reshape permute transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze expand expand_as
    broadcast_to view_as reshape_as contiguous clone chunk split split_with_sizes unbind narrow select index_select
    gather take_along_dim roll flip rot90 repeat repeat_interleave tile unflatten __getitem__ mean sum cumsum neg
    negative __neg__ positive diagonal
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample
    pixel_shuffle pixel_unshuffle channel_shuffle unfold fold to type type_as float double half bfloat16 alias
    tensor_split hsplit vsplit dsplit adjoint cat concat concatenate stack hstack vstack row_stack dstack tril triu"""
)
_JOINING = _words("""cat concat concatenate stack hstack vstack row_stack dstack""")
_MULTILINEAR = _words(
    """mul multiply __mul__ __rmul__ matmul __matmul__ __rmatmul__ mm bmm einsum dot inner outer ger"""
)
_DIVIDING = _words("""div divide true_divide __truediv__""")
_ADDING = {"add": 1, "__add__": 1, "__radd__": 1, "sub": -1, "subtract": -1, "__sub__": -1, "__rsub__": -1, "rsub": -1}
_WEIGHTED = _words("""linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d""")
_MAX_POOLS = {"max_pool1d": (F.max_pool1d, 1), "max_pool2d": (F.max_pool2d, 2), "max_pool3d": (F.max_pool3d, 3)}
_DROPOUTS = _words("""dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout""")

_SHAPED_LIKE = _words("""expand_as view_as reshape_as type_as to type""")
_DETERMINISTIC = _LINEAR | _MULTILINEAR | _DIVIDING | _ADDING.keys() | _WEIGHTED | _MAX_POOLS.keys() | {"batch_norm"}

Map = Callable[..., Any]  # tangents of the inputs -> tangents of the outputs


@dataclass
class _Step:
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    run: Map | SiteCall


class Tape(TorchFunctionMode):
    """Records one forward pass; make it with `record`.

    Attributes:
        unsupported: Why the pass cannot be linearised, or None.
        calls: The sites met, in order.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        super().__init__()
        self.unsupported: str | None = None
        self.calls: list[SiteCall] = []
        self._steps: list[_Step] = []
        self._slots: Any = WeakTensorKeyDictionary()
        self._constants: Any = WeakTensorKeyDictionary()
        self._count = 0
        self._leaves = tuple(self._new_slot(leaf) for leaf in leaves)
        self._last_use: list[list[int]] | None = None
        self._values_needed_again: list[tuple[Tensor, int]] = []  # values run again later, and their versions

    # -- recording ---------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _MAX_POOLS and self.unsupported is None and torch.is_grad_enabled():
            pooled = self._max_pool(name, tuple(args), dict(kwargs or {}))
            if pooled is not None:
                return pooled
        if self.unsupported is not None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        before = None if name.rstrip("_") in _DETERMINISTIC else _random_states()
        out = func(*args, **(kwargs or {}))
        self._record(func, tuple(args), dict(kwargs or {}), out)
        if before is not None and not all(map(torch.equal, before, _random_states())):
            self._give_up(f"{name} draws random numbers")
        return out

    def site(self, call: SiteCall, z: Tensor, out: Tensor) -> None:
        """Note a site (see `sites.Recorder`)."""
        if self.unsupported is not None:
            return
        if z not in self._slots:
            if z in self._constants or z.grad_fn is None:  # made of parameters alone: no signal of the input's passes
                self._constants[out] = True
                return
            self._give_up(f"the input of site {call.name!r} was computed in a way that cannot be followed")
            return
        source = self._slots[z]
        if out is z and self._aliased(z):
            self._give_up(f"site {call.name!r} works in place on a tensor that shares memory with another")
            return
        call.shape = out.shape
        self.calls.append(call)
        self._steps.append(_Step((source,), (self._new_slot(out),), call))

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = getattr(func, "__name__", str(func))
        flat, spec = tree_flatten((args, kwargs))
        tensors = [v for v in flat if isinstance(v, Tensor)]
        if name == "__setitem__" and any(v in self._slots for v in tensors):
            self._give_up("writing into a tensor by index cannot be linearised")
            return
        outs = [o for o in tree_flatten(out)[0] if isinstance(o, Tensor) and o.requires_grad]
        if not outs or name in ("requires_grad_", "retain_grad", "register_hook"):
            return
        tracked = [i for i, v in enumerate(flat) if isinstance(v, Tensor) and v in self._slots]
        for v in tensors:
            if v.grad_fn is not None and v not in self._slots and v not in self._constants:
                self._give_up(f"an argument of {name} was computed in a way that cannot be followed")
                return
        if name in _SHAPED_LIKE:  # the other tensors say where to, not what
            tracked = [i for i in tracked if i == 0]
        if not tracked:
            for o in outs:
                self._constants[o] = True
            return
        inplace = [o for o in outs if any(o is v for v in tensors)]
        if inplace:
            if name in _LINEAR or (name in _DROPOUTS and not _is_random(args, kwargs)):
                return  # handed its input on: contiguous, to, dropout in evaluation
            if not name.endswith("_") or len(outs) > 1 or outs[0] is not args[0] or self._aliased(outs[0]):
                self._give_up(f"{name} works in place on a tensor that shares memory with another")
                return
            name = name.rstrip("_")
        run = self._linearise(func, name, flat, spec, tracked, out, bool(inplace))
        if run is None:
            self._give_up(f"{name} cannot be linearised here")
            return
        sources = tuple(self._slots[flat[i]] for i in tracked)
        self._steps.append(_Step(sources, tuple(self._new_slot(o) for o in outs), run))

    def _linearise(
        self, func: Any, name: str, flat: list[Any], spec: Any, tracked: list[int], out: Any, inplace: bool
    ) -> Map | None:
        """The map from tangents of the tracked inputs to tangents of the outputs."""
        fixed = [v.detach() if isinstance(v, Tensor) else v for v in flat]
        args, kwargs = tree_unflatten(fixed, spec)
        size = out.shape if isinstance(out, Tensor) else None
        first = isinstance(args[0] if args else None, Tensor) and tracked == [0]
        if name in _ADDING:
            return self._sum(name, fixed, tracked, kwargs.get("alpha", 1), size)
        if name in _DIVIDING and tracked == [0]:
            divisor = args[1] if len(args) > 1 else kwargs["other"]
            return None if kwargs.get("rounding_mode") else lambda t: (t / divisor).expand(size)
        if name in _MULTILINEAR:
            if inplace and len(tracked) > 1:
                return None  # one factor is gone
            functional = _OUT_OF_PLACE.get(name, func)
            return _product(functional, fixed, spec, tracked, size)
        if name == "copy":
            return (lambda *t: t[-1].expand(size)) if 1 in tracked else None
        if inplace:
            return None
        if name in _WEIGHTED and first:
            return _without_bias(func, args, kwargs)
        if name == "batch_norm" and first:
            return _batch_norm(args, kwargs)
        if name in _LINEAR:
            return _linear(func, name, fixed, spec, tracked)
        if name in _DROPOUTS:
            return None if _is_random(args, kwargs) else lambda t: t
        if name == "pad" and first:
            return _pad(func, args, kwargs)
        self._values_needed_again.extend((v, v._version) for v in fixed if isinstance(v, Tensor))
        return _forward_mode(func, fixed, spec, tracked)

    def _max_pool(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """A max-pool run once, with its winners; None if it is not the plain kind."""
        function, dims = _MAX_POOLS[name]
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {n: v for n, v in (dict(zip(names, args, strict=False)) | kwargs).items() if v is not None}
        if given.pop("return_indices", False) or given["input"] not in self._slots:
            return None
        out, index = function(**given, return_indices=True)
        flat_index, shape = index.flatten(-dims), index.shape

        def run(t: Tensor) -> Tensor:
            return t.flatten(-dims).gather(-1, flat_index).reshape(shape)

        self._steps.append(_Step((self._slots[given["input"]],), (self._new_slot(out),), run))
        return out

    @staticmethod
    def _sum(name: str, flat: list[Any], tracked: list[int], alpha: Any, size: Any) -> Map | None:
        if any(i > 1 for i in tracked):
            return None
        # rsub(a, b) is b - alpha * a
        scale = (-alpha, 1) if name in ("rsub", "__rsub__") else (1, _ADDING[name] * alpha)
        weights = [scale[i] for i in tracked]

        def run(*tangents: Tensor) -> Tensor:
            parts = [t if w == 1 else t * w for t, w in zip(tangents, weights, strict=True)]
            total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            return total.expand(size)

        return run

    def _new_slot(self, tensor: Tensor) -> int:
        slot, self._count = self._count, self._count + 1
        self._slots[tensor] = slot
        return slot

    def _aliased(self, tensor: Tensor) -> bool:
        pointer = tensor.untyped_storage().data_ptr()
        return any(o is not tensor and o.untyped_storage().data_ptr() == pointer for o in list(self._slots))

    def _give_up(self, reason: str) -> None:
        self.unsupported = reason
        self._steps.clear()
        self._values_needed_again.clear()

    # -- replaying ---------------------------------------------------------------------------------------------------

    def finish(self, output: Tensor) -> None:
        """Name the tensor whose tangent `push_forward` returns."""
        if self.unsupported is None and output not in self._slots:
            self._give_up("the output was computed in a way that cannot be followed")
        # Autograd itself need not notice: softmax, say, keeps its output alone.
        if any(value._version != version for value, version in self._values_needed_again):
            self._give_up("a value that is needed again was overwritten in place")
        self._values_needed_again.clear()
        if self.unsupported is None:
            self._output = self._slots[output]
            last: dict[int, int] = {}
            for index, step in enumerate(self._steps):
                last.update(dict.fromkeys(step.inputs, index))
            last[self._output] = len(self._steps)
            self._last_use = [[] for _ in range(len(self._steps) + 1)]
            for slot, index in last.items():
                self._last_use[index].append(slot)
        self._slots, self._constants = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    @torch.no_grad()
    def push_forward(self, v: Sequence[Tensor], on_site: Callable[[SiteCall, dict[str, Tensor]], None]) -> Tensor:
        """Carry ``v`` through the linearised pass.

        Args:
            v: Gradient of the loss to each attribution, in the shapes of the leaves.
            on_site: Called at each site with the gradients of its gate's parameters, by parameter name; a gate that
                serves this site alone may be updated right there.

        Returns:
            Tangent of the output, in its shape.
        """
        assert self._last_use is not None, "finish() comes before push_forward()"
        tangents: dict[int, Tensor] = dict(zip(self._leaves, v, strict=True))
        for index, step in enumerate(self._steps):
            incoming = [tangents[slot] for slot in step.inputs]
            for slot in self._last_use[index]:
                tangents.pop(slot, None)
            if isinstance(step.run, SiteCall):
                tangent, gradients = step.run.push_forward(incoming[0])
                on_site(step.run, gradients)
                tangents[step.outputs[0]] = tangent
                continue
            out = step.run(*incoming)
            del incoming
            flat = [out] if isinstance(out, Tensor) else [o for o in tree_flatten(out)[0] if isinstance(o, Tensor)]
            tangents.update(zip(step.outputs, flat, strict=True))
        return tangents[self._output]


@contextmanager
def record(leaves: Sequence[Tensor]) -> Iterator[Tape]:
    """Record the forward pass made inside the context; ``leaves`` are its differentiable inputs."""
    tape = Tape(leaves)
    token = recorder.set(tape)
    try:
        with tape:
            yield tape
    finally:
        recorder.reset(token)


# -- linear forms ----------------------------------------------------------------------------------------------------

_OUT_OF_PLACE = {"mul": torch.mul, "multiply": torch.mul}


def _call(func: Any, flat: list[Any], spec: Any) -> Any:
    args, kwargs = tree_unflatten(flat, spec)
    return func(*args, **kwargs)


def _linear(func: Any, name: str, flat: list[Any], spec: Any, tracked: list[int]) -> Map:
    constant = list(flat)
    for i, value in enumerate(flat):
        if i in tracked:
            constant[i] = None
        elif name in _JOINING and isinstance(value, Tensor):
            constant[i] = torch.zeros_like(value)

    def run(*tangents: Tensor) -> Any:
        values = list(constant)
        for i, tangent in zip(tracked, tangents, strict=True):
            values[i] = tangent
        return _call(func, values, spec)

    return run


def _product(func: Any, flat: list[Any], spec: Any, tracked: list[int], size: Any) -> Map:
    kept = list(flat)
    if len(tracked) == 1:
        kept[tracked[0]] = None

    def run(*tangents: Tensor) -> Tensor:
        total = None
        for i, tangent in zip(tracked, tangents, strict=True):
            values = list(kept)
            values[i] = tangent
            part = _call(func, values, spec)
            total = part if total is None else total + part
        assert total is not None
        return total.expand(size)

    return run


def _without_bias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Map:
    rest = list(args[1:])
    if len(rest) > 1:
        rest[1] = None
    named = {**kwargs, "bias": None} if "bias" in kwargs else kwargs

    def run(t: Tensor) -> Tensor:
        return func(t, *rest, **named)

    return run


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Map | None:
    norm = BatchNorm(*args, **kwargs)
    if not norm.is_line:
        return None
    scale = norm.scale

    def run(t: Tensor) -> Tensor:
        return t * scale.to(t.dtype).reshape(1, -1, *(1,) * (t.ndim - 2))

    return run


def _random_states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


def _is_random(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return bool(given.get("training", True)) and given.get("p", 0.5) > 0


def _pad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Map:
    given = dict(zip(("pad", "mode", "value"), args[1:], strict=False)) | kwargs
    given.pop("input", None)
    if given.get("mode", "constant") == "constant":
        given["value"] = 0.0
    return lambda t: func(t, **given)


def _forward_mode(func: Any, flat: list[Any], spec: Any, tracked: list[int]) -> Map:
    def run(*tangents: Tensor) -> Any:
        with fwAD.dual_level(), sdpa_kernel(SDPBackend.MATH):
            values = list(flat)
            for i, tangent in zip(tracked, tangents, strict=True):
                values[i] = fwAD.make_dual(flat[i], tangent.to(flat[i].dtype).reshape(flat[i].shape))
            outs = [o for o in tree_flatten(_call(func, values, spec))[0] if isinstance(o, Tensor)]
            pairs = [fwAD.unpack_dual(o) for o in outs if o.is_floating_point()]
            return tuple(torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs)

    return run
