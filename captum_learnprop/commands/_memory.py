"""Freed memory is kept for the next tensor: handed back and fetched anew, its pages cost more than the computing."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt, by the numbers in its malloc.h."""


def keep_freed_memory() -> bool:
    """Tells the C library of Linux to serve large tensors from memory that it keeps, and returns whether it will.

    By default it maps every large block anew, and the kernel clears its pages: forward passes of EfficientNet-Lite0 on
    64 images of 224 pixels spent two thirds of their time there. It is a setting of the whole process, which is why
    only the command line makes it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 28))
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)
