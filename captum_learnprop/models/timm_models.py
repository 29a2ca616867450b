"""timm's classifiers, as ``timm:NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.models.checkpoints import load_into, read_state
from captum_learnprop.models.missing import package


def timm_model(name: str | None, weights: str | None = None, checkpoint: str | Path | None = None) -> nn.Module:
    """Returns a classifier of timm in evaluation mode.

    Args:
        name: One of ``timm.list_models()``, such as ``"resnet18"``.
        weights: ``"DEFAULT"`` or another of its weights, such as ``"a1_in1k"``; timm downloads them once.
        checkpoint: A ``.safetensors``, ``.pt`` or ``.pth`` file. The number of classes follows the file.
            With neither, parameters are random, drawn from torch's global generator.

    Raises:
        LearnpropError: timm is missing, or the model, the weights or the file do not exist or do not fit each other.
    """
    with package("timm", extra="vit"):
        import timm
    if name is None:
        raise LearnpropError("which model of timm? Name it as in 'timm:resnet18'")
    # A name of another kind, such as hf-hub:..., would be fetched without having been asked for.
    if not timm.is_model(name):
        raise LearnpropError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    if weights is not None and checkpoint is not None:
        raise LearnpropError(f"weights {weights!r} and checkpoint {str(checkpoint)!r} exclude each other")
    if weights is not None:
        return _published(timm, name, weights).eval()
    if checkpoint is not None:
        return _from_checkpoint(timm, name, Path(checkpoint)).eval()
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model.eval()


def _published(timm: Any, name: str, weights: str) -> nn.Module:
    architecture = name.partition(".")[0]
    known = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
    if weights != "DEFAULT" and weights not in known:
        raise LearnpropError(
            f"{architecture} has no weights {weights!r}; timm publishes: {', '.join(known) or 'none'}"
            f"{did_you_mean(weights, known)}"
        )
    try:
        model: nn.Module = timm.create_model(
            name if weights == "DEFAULT" else f"{architecture}.{weights}", pretrained=True
        )
    # Whatever the download of a hub raises.
    except Exception as error:
        raise LearnpropError(f"cannot get the weights {weights!r} of {name}: {error}") from error
    return model


def _from_checkpoint(timm: Any, name: str, path: Path) -> nn.Module:
    state = read_state(path)
    model: nn.Module = timm.create_model(name, pretrained=False)
    classes = _classes(model, state)
    if classes is not None and classes != model.num_classes:
        model = timm.create_model(name, pretrained=False, num_classes=classes)
    return load_into(model, name, path, state)


def _classes(model: Any, state: dict[str, Tensor]) -> int | None:
    """Returns the number of classes in a file; None where timm does not name the classifier, or the file has none."""
    classifier = model.pretrained_cfg.get("classifier")
    first = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    weight = state.get(f"{first}.weight")
    return None if weight is None else weight.shape[0]
