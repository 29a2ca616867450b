"""Small nets that ship with the package, as ``digits_cnn`` and ``reference:NAME``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.scenes import digits_net, reference_nets


def digits_cnn(
    argument: str | None = None, weights: str | None = None, checkpoint: str | Path | None = None
) -> nn.Module:
    """Returns the small digit classifier, trained, in evaluation mode.

    Args:
        argument: Nothing; there is one such model.
        weights: Nothing; its weights ship with the package.
        checkpoint: A file written by ``examples/train_reference_nets.py``, in place of the shipped one.

    Raises:
        LearnpropError: If an argument or weights are named, or the file is missing or damaged.
    """
    if argument is not None or weights is not None:
        raise LearnpropError(f"digits_cnn is one model with its own weights; leave out {argument or weights!r}")
    try:
        return _several_at_once(digits_net.load(checkpoint))
    except (ValueError, OSError) as error:
        raise LearnpropError(f"digits_cnn: {error}") from error


def reference_net(
    argument: str | None = None, weights: str | None = None, checkpoint: str | Path | None = None
) -> nn.Module:
    """Returns one of the small reference nets of the scenes, trained, in evaluation mode.

    Args:
        argument: ``"<architecture>-<task>"``, such as ``"resnet-digits"``: one of vgg, resnet, inception, and
            one of digits, patch, parts; or ``"vit-digits"``.
        weights: Nothing; the weights ship with the package.
        checkpoint: A file written by ``examples/train_reference_nets.py``, in place of the shipped one.

    Raises:
        LearnpropError: If there is no such net, weights are named, or the file is missing or damaged.
    """
    known = [f"{kind}-{task}" for kind in reference_nets.ARCHITECTURES for task in reference_nets.OUTPUT_OF_TASK]
    known += [f"{kind}-{reference_nets.TRANSFORMER_TASK}" for kind in reference_nets.TRANSFORMERS]
    if argument is None:
        raise LearnpropError("which reference net? Name it as in 'reference:resnet-digits'")
    if argument not in known:
        raise LearnpropError(
            f"no reference net {argument!r}{did_you_mean(argument, known) or '; choose ' + ', '.join(known)}"
        )
    if weights is not None:
        raise LearnpropError(f"reference nets have their own weights; leave out {weights!r}")
    kind, task = argument.split("-")
    exclusive = reference_nets.OUTPUT_OF_TASK.get(task) == "softmax"
    try:
        net = reference_nets.load(kind, task, path=checkpoint)
        return net if exclusive else _several_at_once(net)
    except (ValueError, OSError) as error:
        raise LearnpropError(f"reference net {argument}: {error}") from error


def _several_at_once(net: nn.Module) -> nn.Module:
    """Returns the net, which says that its classes do not exclude each other."""
    net.multi_label = True  # type: ignore[assignment]
    return net
