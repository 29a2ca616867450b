"""Files of tensors with a document: written whole, and read only if they are whole.

They are safetensors files whose metadata has a document in JSON, and in that a checksum of its other fields and all
tensors. Files from before there was one are read without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import replacing

_CHECKSUM = "sha256"
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class FileFault(ValueError):
    """Something is wrong with a file; whoever asked puts its path before the message, and the way out behind it."""


def packed(key: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Returns the content of a file of tensors with a document and a checksum of both.

    Args:
        key: Says in the metadata whose document it is.
        document: What ``json`` can write.
        tensors: Any tensors by their names.
    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(document)
    signed = json.dumps({**json.loads(text), _CHECKSUM: _checksum(text, kept)})
    return save(kept, metadata={key: signed})


def write(path: Path, key: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file of tensors with a document as a whole.

    Args:
        path: Where the file goes; an earlier file is replaced in one move.
        key: Says in the metadata whose document it is.
        document: What ``json`` can write.
        tensors: Any tensors by their names.

    Raises:
        OSError: There is no space, no folder, or no permission; an earlier file is kept.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(packed(key, document, tensors))


def read(path: Path, key: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the document and the tensors of a file.

    Args:
        path: The file.
        key: Says in the metadata whose document it is.
        what: What it should be, with its article, for the error.

    Raises:
        FileFault: There is no file, it is truncated, changed or of another kind, or its document is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FileFault(f"is truncated or no safetensors file ({error})") from error
    if key not in metadata:
        raise FileFault(f"is a safetensors file but not {what}: it lacks the {key!r} metadata")
    try:
        document = json.loads(metadata[key])
        if not isinstance(document, dict):
            raise FileFault(f"is damaged (its document is a {type(document).__name__})")
        whole = _CHECKSUM not in document or document.pop(_CHECKSUM) == _checksum(json.dumps(document), tensors)
    except (ValueError, TypeError, RuntimeError) as error:  # RecursionError is a RuntimeError
        raise error if isinstance(error, FileFault) else FileFault(f"is damaged ({error!r})") from error
    if not whole:
        raise FileFault("is damaged (its contents do not have the checksum that it was written with)")
    return document, tensors


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuses what cannot be a parameter.

    Raises:
        ValueError: A tensor, which is named, is not of a floating type, or has values that are NaN or infinite.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise ValueError(f"{name} is of type {tensor.dtype}, no floating-point one")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has {int((~tensor.isfinite()).sum())} values that are NaN or infinite")


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


__all__ = ["FileFault", "check_tensors", "packed", "read", "write"]
