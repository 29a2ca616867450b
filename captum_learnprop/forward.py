"""Running the explained model: one tensor comes out, with a row per sample, whatever the model returns.

Every method, the trainer and the evaluation call the model through `output_of`, so that a model's habits (a structured
output, a batch dimension that is squeezed away) and faults (an input of another size) are met in one way.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from captum_learnprop.errors import InputWarning, LearnpropError, TargetError
from zennit_rules import RuleError

Shapes = tuple[tuple[int, ...], ...]

_TOOK: WeakKeyDictionary[nn.Module, Shapes] = WeakKeyDictionary()
"""Shapes that each model took last, without the batch. Kept beside the models, which stay untouched."""

_ABOUT_SHAPES = re.compile(
    r"shape|size|dim|channel|expected|match|broadcast|height|width|batched|multipl", re.IGNORECASE
)
"""Words of errors that are about the form of an input: those of torch, timm, torchvision and transformers."""

_CHANCES = ("p", "dropout", "drop_prob", "drop_rate", "attention_dropout")
"""Names under which modules keep the probability of what they do in training mode alone."""

SIDE, MANY = 8, 32
"""An image of bytes has sides of at least `SIDE` pixels, which have more than `MANY` different values."""


def output_of(
    forward: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional: tuple[Any, ...] = (),
    *,
    model: Any = None,
    known: str = "",
) -> Tensor:
    """Run a model and return its output as one tensor ``(B, ...)``.

    Args:
        forward: What is called.
        inputs: ``(B, ...)`` each.
        additional: Further positional arguments.
        model: What errors are about; ``forward`` by default.
        known: What else is known of the shape that the model takes, for the error.

    Raises:
        TargetError: If the output holds no single tensor, see `tensor_of`.
        LearnpropError: If the model does not take inputs of that shape.
    """
    model = forward if model is None else model
    with shapes_told(model, inputs, known):
        output = forward(*inputs, *additional)
    return with_batch(tensor_of(output, model), inputs[0].shape[0])


def tensor_of(output: Any, model: Any) -> Tensor:
    """The explained tensor of what a model returned: the tensor itself, or its ``logits``, as Hugging Face names them.

    Raises:
        TargetError: For anything else; it says what the model returned.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TargetError(
        f"{name_of(model)} returned {_output_text(output)}, but what is explained must be one tensor, batch first, or "
        "the 'logits' of a structured output; wrap the model in a module whose forward returns that tensor"
    )


def with_batch(output: Tensor, samples: int) -> Tensor:
    """The output with a row per sample: that of one sample gets back the dimension that a ``squeeze()`` took.

    All of the output belongs to a single sample, so that the missing dimension is known there, and only there.
    """
    return output.unsqueeze(0) if samples == 1 and output.shape[:1] != (1,) else output


@contextmanager
def shapes_told(model: Any, inputs: tuple[Tensor, ...], known: str = "") -> Iterator[None]:
    """What a model raises because of the shape of its inputs is raised as an error that says which shape it takes.

    Raises:
        LearnpropError: In place of the model's own error, from which it is raised. Errors that are not about shapes
            pass.
    """
    try:
        yield
    except (LearnpropError, RuleError, NotImplementedError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        said = str(error).strip().split("\n")[0]
        shapes = _shapes(inputs)
        took = _TOOK.get(model) if isinstance(model, nn.Module) else None
        if took == shapes or not _ABOUT_SHAPES.search(said):
            raise
        given = ", ".join(str(tuple(x.shape)) for x in inputs)
        hints = "; ".join(_hints(model, inputs[0], took)) or known or "check the size that it was made for"
        raise LearnpropError(f"{name_of(model)} does not take inputs of shape {given}: {hints} ({said})") from error
    if isinstance(model, nn.Module):
        _TOOK[model] = _shapes(inputs)


def _hints(model: Any, x: Tensor, took: Shapes | None) -> Iterator[str]:
    """What is known of the shape that a model takes."""
    if took is not None:
        yield "it took " + ", ".join(f"(B, {', '.join(map(str, shape))})" for shape in took) + " last"
    name, layer = first_layer(model)
    wanted = getattr(layer, "in_channels", None)
    if not isinstance(wanted, int):
        features = getattr(layer, "in_features", None)
        if isinstance(features, int) and features not in (x.shape[-1], x[:1].numel()):
            yield f"its first layer {name!r} takes {features} features"
        return
    space = len(getattr(layer, "kernel_size", ())) or 2
    if x.dim() == space + 1:
        yield f"its first layer {name!r} takes (B, {wanted}, ...), the batch dimension is missing: pass inputs[None]"
    elif x.dim() > 1 and x.shape[1] != wanted:
        yield f"its first layer {name!r} takes {wanted} channels, dimension 1 has {x.shape[1]}"
        if x.dim() > 2 and x.shape[-1] == wanted:
            yield "the inputs look channels-last, (B, ..., C): pass inputs.movedim(-1, 1)"


def first_layer(model: Any) -> tuple[str, nn.Module | None]:
    """Returns the first module of a model with a number of input channels or features, and its name; None without."""
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if isinstance(getattr(module, "in_channels", getattr(module, "in_features", None)), int):
                return name or type(module).__name__, module
    return "", None


def _shapes(inputs: tuple[Tensor, ...]) -> Shapes:
    return tuple(tuple(x.shape[1:]) for x in inputs)


def name_of(model: Any) -> str:
    """How errors call a model."""
    return type(model).__name__ if isinstance(model, nn.Module) else "the model"


def _output_text(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, list(output)[:6])) or 'nothing'}"
    if isinstance(output, (tuple, list)):
        inside = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in output[:6])
        return f"a {type(output).__name__} of {len(output)} ({inside})"
    return "None" if output is None else f"a {type(output).__name__}"


def training_mode(model: Any, *, strict: bool = False) -> str | None:
    """A sentence for models in training mode, None for others.

    A module counts if its methods ask for ``self.training`` (dropout, batch norm, stochastic depth, their like
    in any library) and the chance that it keeps for that is not 0.

    Args:
        model: Anything; only a module has a mode.
        strict: Any module counts.
    """
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if module.training and (strict or _depends_on_mode(module)):
            return (
                f"the model is in training mode (module {name or type(module).__name__}), where outputs depend on "
                "chance or on the other samples of a batch; call model.eval()"
            )
    return None


def _depends_on_mode(module: nn.Module) -> bool:
    if not _asks_for_mode(type(module)):
        return False
    if isinstance(module, nn.modules.batchnorm._NormBase) and not module.track_running_stats:
        return False  # statistics of the batch in either mode
    chances = [vars(module)[name] for name in _CHANCES if isinstance(vars(module).get(name), (int, float))]
    return any(chances) if chances else True


def _asks_for_mode(kind: type) -> bool:
    """Whether a method of a class of modules, beside those that set it, reads ``self.training``."""
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, method in vars(base).items():
            code = getattr(method, "__code__", None)
            if code is not None and "training" in code.co_names and name not in ("__init__", "train", "eval"):
                return True
    return False


def warn_of_training(model: Any) -> None:
    """Warn once of a model in training mode whose outputs depend on that."""
    said = training_mode(model)
    if said is not None:
        warnings.warn(said, UserWarning, stacklevel=5)


def warn_of_bytes(inputs: tuple[Tensor, ...], *, stacklevel: int = 5) -> None:
    """Warn once of pixels 0 to 255 in floating point, which a model that was trained on normalised ones cannot read.

    The rule is made to be silent where it could be wrong. An image has one or three channels, in front or behind, and
    sides of at least `SIDE`. Bytes are whole numbers from 0 to 255, and a picture of them uses more than `MANY`
    different ones, some in the upper half of the range. Tables, sequences, one-hot codes, masks and counts do not.
    """
    for x in inputs:
        channels = next((dim for dim in (1, -1) if x.dim() > 3 and x.shape[dim] in (1, 3)), None)
        if channels is None:
            continue
        space = x.shape[2:] if channels == 1 else x.shape[1:-1]
        low, high = (float(value) for value in x.detach().aminmax())
        if min(space) < SIDE or low < 0 or not 127 < high <= 255:
            continue
        if bool((x == x.floor()).all()) and len(x.detach().unique()) > MANY:
            warnings.warn(
                "the inputs look like images of bytes, 0 to 255: unless the model normalises them itself, divide by "
                "255 and normalise as it was trained",
                InputWarning,
                stacklevel=stacklevel,
            )
            return
