"""Everything that leans on non-public names of captum; each has a test of its own."""

from __future__ import annotations

from captum._utils.common import (
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _select_targets,
)
from captum._utils.gradient import compute_gradients

__all__ = [
    "_format_additional_forward_args",
    "_format_output",
    "_format_tensor_into_tuples",
    "_select_targets",
    "compute_gradients",
]
