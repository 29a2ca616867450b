"""Classifiers of Hugging Face's transformers, as ``huggingface:FOLDER``; nothing is ever downloaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.images import Preprocessing
from captum_learnprop.models.checkpoints import load_into, read_state
from captum_learnprop.models.missing import package

_LOG = logging.getLogger(__name__)

# A model in several files has an index in place of the one file.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

_PREPROCESSOR = "preprocessor_config.json"
_RESCALE = 1 / 255
"""Factor that brings bytes to [0, 1]."""

_SQUEEZED_FROM = 384
"""The side from which on processors with ``crop_pct`` squeeze pictures instead of cropping them."""

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""What numbers of PIL's filters are called."""


def hugging_face_model(
    path: str | None = None, weights: str | None = None, checkpoint: str | Path | None = None
) -> nn.Module:
    """Returns an image classifier in evaluation mode, whose forward gives logits.

    The names of its modules and parameters are those that transformers gives them: rules of the one fit the other.

    Args:
        path: A folder with ``config.json`` and, unless its weights shall be random, ``model.safetensors``; or the file
            ``config.json`` itself, for random weights; or the name of a model on the hub that is in the local cache.
        weights: Nothing; the folder has them.
        checkpoint: A ``.safetensors``, ``.pt`` or ``.pth`` file in their place.

    Raises:
        LearnpropError: transformers is missing, there is no such folder, or its files do not fit each other.
    """
    with package("transformers", extra="vit"):
        import transformers
    if path is None:
        raise LearnpropError("which model? Name a local folder, as in 'huggingface:path/to/folder'")
    if weights is not None:
        raise LearnpropError(f"the weights of huggingface:{path} lie in that folder; leave out {weights!r}")
    config, folder = _configuration(transformers, _located(path))
    model: nn.Module
    if checkpoint is not None or folder is None or not _has_weights(folder):
        model = _random(transformers, config, path)
        if checkpoint is None:
            _LOG.warning("huggingface:%s has no model.safetensors: the model has random weights", path)
        else:
            load_into(model, f"huggingface:{path}", Path(checkpoint), read_state(Path(checkpoint)))
    else:
        model = _trained(transformers, config, folder)
    _give_logits(model)
    preprocessing = None if folder is None else _preprocessing(folder)
    if preprocessing is not None:
        model.preprocessing = preprocessing  # type: ignore[assignment]
    return model.eval()


def _located(path: str) -> Path:
    """Returns a local folder or file: one of that path, or a model of that name in the local cache of the hub."""
    given = Path(path)
    if given.exists():
        return given
    folder = cached(path, "config.json")
    if folder is None and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        raise LearnpropError(
            f"there is no folder {path}, and no model of that name in the local cache of Hugging Face's hub; nothing "
            f"is downloaded here: get it with 'hf download {path}'"
        )
    return given if folder is None else folder


def _configuration(transformers: Any, path: Path) -> tuple[Any, Path | None]:
    """Returns the configuration, and the folder where one was named."""
    folder = path if path.is_dir() else None
    file = path if folder is None else path / "config.json"
    if not file.is_file():
        what = f"{path} has no config.json" if folder is not None else f"there is no folder or file {path}"
        raise LearnpropError(f"{what}: 'huggingface:' takes a local folder, as save_pretrained() writes it")
    content = _json(file)
    kind = content.pop("model_type", None)
    try:
        return transformers.AutoConfig.for_model(kind, **content), folder
    except (ValueError, KeyError, TypeError) as error:
        known = did_you_mean(kind, transformers.CONFIG_MAPPING) if kind is not None else ""
        raise LearnpropError(
            f"{file} describes no model that transformers {transformers.__version__} knows: model_type {kind!r}{known}"
        ) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LearnpropError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise LearnpropError(f"{file} is no configuration, but {type(content).__name__}")
    return content


def _has_weights(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _WEIGHTS):
        return True
    other = sorted([*folder.glob("*.bin"), *folder.glob("*.safetensors")])
    if other:
        raise LearnpropError(
            f"{folder} has no model.safetensors, but {other[0].name}: save it with save_pretrained(), or name a file "
            "of parameters with --checkpoint"
        )
    return False


def _random(transformers: Any, config: Any, path: str) -> nn.Module:
    try:
        model: nn.Module = transformers.AutoModelForImageClassification.from_config(config)
    except ValueError as error:
        raise LearnpropError(f"huggingface:{path}: {config.model_type} is no image classifier") from error
    return model


def _trained(transformers: Any, config: Any, folder: Path) -> nn.Module:
    try:
        model, found = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), config=config, local_files_only=True, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise LearnpropError(f"{folder} cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    # transformers would go on with random numbers in place of these.
    absent = sorted([*found["missing_keys"], *(str(one[0]) for one in found["mismatched_keys"])])
    if absent:
        raise LearnpropError(
            f"the weights in {folder} have no fitting {', '.join(absent[:3])}{' ...' if absent[3:] else ''}: it is not "
            f"a trained {type(model).__name__}; name a folder of a classifier"
        )
    return model.float().eval()  # saved in half precision, it would compute in it


def _give_logits(model: nn.Module) -> None:
    """Makes a model's forward return logits alone; modules, parameters and the name of its class stay as they are."""
    kind: Any = type(model)

    def forward(self: nn.Module, pixel_values: Tensor) -> Tensor:
        """Returns logits ``(B, classes)`` for images ``(B, 3, H, W)``."""
        logits: Tensor = kind.forward(self, pixel_values=pixel_values).logits
        return logits

    # A module around it would put its own name before all others, and rules would no longer fit the bare model.
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def preprocessing_beside(model: nn.Module) -> Preprocessing | None:
    """Returns what the image processor says that lies beside the files a model of transformers was loaded from.

    Args:
        model: A model of transformers, from a folder or from the local cache of the hub; nothing is downloaded.

    Returns:
        None where there is no such file.
    """
    origin = getattr(model, "name_or_path", "") or getattr(getattr(model, "config", None), "_name_or_path", "")
    if not isinstance(origin, str) or not origin:
        return None
    folder = Path(origin) if Path(origin).is_dir() else cached(origin)
    return None if folder is None else _preprocessing(folder)


def cached(name: str, file: str = _PREPROCESSOR) -> Path | None:
    """Returns the folder of a model in the local cache of Hugging Face's hub; None where a file of it is not there.

    Args:
        name: Name on the hub, such as ``"google/vit-base-patch16-224"``.
        file: A file that the folder must have.
    """
    with package("huggingface_hub", extra="vit"):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _preprocessing(folder: Path) -> Preprocessing | None:
    """Returns what the image processor beside a model says; None where there is none."""
    if not (folder / _PREPROCESSOR).is_file():
        return None
    content = _json(folder / _PREPROCESSOR)
    _require_usual(folder / _PREPROCESSOR, content)
    usual, (resize, crop, squeeze) = Preprocessing(), _geometry(content)
    preprocessing = Preprocessing(
        resize,
        crop,
        tuple(content.get("image_mean") or usual.mean),
        tuple(content.get("image_std") or usual.std),
        _INTERPOLATIONS.get(content.get("resample", 2), "bilinear"),
        squeeze,
    )
    normalized = content.get("do_normalize", "image_mean" in content)
    return preprocessing if normalized else preprocessing.without_normalization()


def _geometry(content: dict[str, Any]) -> tuple[int, int, bool]:
    """Returns resize, crop and whether the picture is squeezed into the square, from how processors write it."""
    size = content.get("size")
    cropped = bool(content.get("do_center_crop") and content.get("crop_size"))
    crop = _side(content.get("crop_size") if cropped else size) or 224
    share = content.get("crop_pct")
    if share and not cropped:  # ConvNeXT's: a crop of small inputs, none of large ones
        return (crop, crop, True) if crop >= _SQUEEZED_FROM else (int(crop / share), crop, False)
    squeeze = "height" in size if isinstance(size, dict) else not cropped
    return max(crop, _side(size) or crop), crop, squeeze


def _require_usual(path: Path, content: dict[str, Any]) -> None:
    """Checks that images become inputs as a `Preprocessing` makes them.

    Raises:
        LearnpropError: The processor does something else.
    """
    factor = content.get("rescale_factor", _RESCALE)
    odd = [name for name, wrong in (
        ("do_flip_channel_order", content.get("do_flip_channel_order", False)),
        ("do_rescale", not content.get("do_rescale", True)),
        ("rescale_factor", not isinstance(factor, (int, float)) or abs(factor - _RESCALE) > 1e-6),
        ("image_mean", not isinstance(content.get("image_mean", []), list)),
        ("image_std", not isinstance(content.get("image_std", []), list)),
    ) if wrong]  # fmt: skip
    if odd:
        raise LearnpropError(
            f"{path} has {odd[0]} {content.get(odd[0])!r}, which is not known here: do that in the forward pass of a "
            "model of your own, FILE.py:FUNCTION"
        )


def _side(size: Any) -> int | None:
    """Returns the shorter side, from any of the ways in which processors write a size."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) else None
