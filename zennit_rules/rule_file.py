"""Files of tensors with a document: written whole, and read only if they are whole.

A safetensors file whose metadata has a document in JSON, and in that a checksum of its other fields and all tensors.
Files from before there was one are read without it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_CHECKSUM = "sha256"
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class FileFault(ValueError):
    """An error in a file; whoever asked puts its path before the message, and the way out behind it."""


def write(path: Path, key: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file under a temporary name, then moves it.

    Args:
        path: Target; an existing file is replaced in one move.
        key: Says in the metadata whose document it is.
        document: What ``json`` can write.
        tensors: By name.

    Raises:
        OSError: No space, no folder, no permission; an earlier file is kept.
    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(document)
    signed = json.dumps({**json.loads(text), _CHECKSUM: _checksum(text, kept)})
    temporary = path.with_name(f".{uuid4().hex}.part")  # the final name may be as long as the disk allows
    try:
        temporary.write_bytes(save(kept, metadata={key: signed}))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path, key: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors of a file.

    Args:
        path: The file.
        key: Says in the metadata whose document it is.
        what: What it should be, with its article, for the error.

    Raises:
        FileFault: No file, truncated or changed, of another kind, or a document that is none.
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
        ValueError: Naming a tensor that is not of a floating type, or has values that are NaN or infinite.
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


__all__ = ["FileFault", "check_tensors", "read", "write"]
