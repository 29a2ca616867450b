"""Run what comes after a layer of a model, again and again, without what comes before it.

The model is run once. Later runs go through the same code, but every module that was finished before the layer is
called gives back what it gave then; so does the layer itself, under a mask. What is written between modules is
computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from zennit_rules.core.interpose import interposed

from ..errors import LearnpropError
from ..forward import output_of, tensor_of, with_batch


@dataclass
class _ModuleRecord:
    """What a module gave in the one full run, call by call, and whether anything but recorded modules reads it."""

    values: list[Any] = field(default_factory=list)
    read: list[bool] = field(default_factory=list)


class Suffix:
    """The part of a model behind a layer, for samples of one batch.

    Args:
        model: The model that contains the layer.
        layer: A module that is called once in a forward pass and returns a tensor.
        inputs: Positional arguments of the model.

    Attributes:
        activation: Output of the layer, ``(B, ...)``.
        output: Output of the model, ``(B, ...)``.

    Raises:
        LearnpropError: If the layer is no module of the model, is not called or is called several times, or returns no
            tensor, or if running the rest alone gives another output than running all.
    """

    def __init__(self, model: nn.Module, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        names = [name for name, module in model.named_modules() if module is layer]
        if not names or layer is model:
            raise LearnpropError(f"layer {type(layer).__name__} is no module inside the model; pass model.<name>")
        self.model, self.layer, self.name = model, layer, names[0]
        self.inputs = inputs
        around = {id(module) for module in model.modules() if layer in set(module.modules())} - {id(layer)}
        self._others = [module for module in model.modules() if id(module) not in around]
        self._records: dict[nn.Module, _ModuleRecord] = {module: _ModuleRecord() for module in self._others}
        with torch.no_grad():
            self.output, self.activation = self._run_and_record()
            # In another order, so that what is not of the samples but happens to have as many rows is noticed.
            order = torch.arange(len(self.activation)).flip(0)
            again = self.run(lambda activation: activation, order).flip(0)
        if not torch.allclose(again, self.output, rtol=1e-3, atol=1e-5 * float(self.output.abs().max() + 1)):
            raise LearnpropError(
                f"running only what follows {self.name!r} gives another output than the whole model; its forward "
                "pass depends on more than each sample (chance, a state, the batch): call model.eval(), or choose "
                "another layer"
            )

    def _run_and_record(self) -> tuple[Tensor, Tensor]:
        calls: list[Tensor] = []
        depth = 0
        readers = _ReadTensors()

        def around(module: nn.Module) -> Callable[..., Any]:
            def run(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                nonlocal depth
                before = not calls
                if depth == 0 and not before:
                    readers.note((args, kwargs))
                outermost = depth == 0
                depth += 1
                readers.off += 1
                try:
                    result = call_next(*args, **kwargs)
                    if outermost and before:  # what follows may change it in place
                        copied = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, result)
                finally:
                    depth -= 1
                    readers.off -= 1
                if module is self.layer:
                    if not isinstance(result, Tensor):
                        raise LearnpropError(f"layer {self.name!r} returns a {type(result).__name__}, no tensor")
                    calls.append(result)
                if outermost and before:
                    readers.made.append((self._records[module], result, copied))
                return result

            return run

        with interposed(self._others, around), readers:
            output = output_of(self.model, self.inputs[:1], self.inputs[1:])
        readers.note(output)
        if len(calls) != 1:
            raise LearnpropError(
                f"layer {self.name!r} is called {len(calls)} times in a forward pass; choose one that is called once"
            )
        for record, value, copied in readers.made:
            record.read.append(readers.reads(value))
            record.values.append(copied if record.read[-1] else value)
        return output.detach(), calls[0].detach()

    def run(self, change: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
        """Output of the model for some samples ``(R,)`` with the layer's output changed.

        Args:
            change: Makes, of the activation of those samples ``(R, ...)``, what takes its place.
            samples: Indices into the batch, ``(R,)``.

        Returns:
            ``(R, ...)``.
        """
        batch = len(self.activation)
        counts: dict[nn.Module, int] = {}
        seen = False

        def rows(value: Any) -> Any:
            fits = isinstance(value, Tensor) and value.dim() and len(value) == batch
            return value[samples.to(value.device)] if fits else value

        def around(module: nn.Module) -> Callable[..., Any]:
            record = self._records[module]

            def run(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                if seen:
                    return call_next(*args, **kwargs)
                index = counts.get(module, 0)
                counts[module] = index + 1
                if module is self.layer:
                    seen = True
                    return change(self.activation[samples.to(self.activation.device)])
                value = record.values[index]
                return tree_map(rows, value) if record.read[index] else value

            return run

        used = [module for module in self._others if self._records[module].values]
        with interposed(used, around):
            output = self.model(*map(rows, self.inputs))
        return with_batch(tensor_of(output, self.model), len(samples))


class _ReadTensors(TorchFunctionMode):
    """Which tensors are read by functions outside of finished modules."""

    def __init__(self) -> None:
        super().__init__()
        self.off = 0
        self.made: list[tuple[_ModuleRecord, Any, Any]] = []
        self._read: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.off:
            self.note((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def note(self, values: Any) -> None:
        """Tensors that are read; kept, so that their identity stays theirs."""
        self._read.update((id(value), value) for value in tree_flatten(values)[0] if isinstance(value, Tensor))

    def reads(self, values: Any) -> bool:
        """Whether one of the tensors was read."""
        return any(id(value) in self._read for value in tree_flatten(values)[0] if isinstance(value, Tensor))
