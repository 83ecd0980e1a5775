"""Memory that tensors free on the CPU, kept for the next ones.

glibc takes every block above a threshold, which it raises to 32 MB at most, from the system and
gives it back when it is freed; the system then fills each page with zeros again when it is next
touched. Feature maps of a slice are such blocks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

#: mallopt's numbers for them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Blocks above it, such as a whole volume, still go back, bytes.
_KEPT_BYTES = 256 * 2**20
#: Where glibc's own adaptation of the two ends, bytes.
_USUAL_MMAP, _USUAL_TRIM = 32 * 2**20, 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to its peak, unless the user has tuned glibc already.

    Returns:
        whether that was done; not where another C library is in use.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    return _set(_KEPT_BYTES, -1)


@contextlib.contextmanager
def as_glibc_does() -> Iterator[None]:
    """What :func:`keep_freed_memory` changed as it was meanwhile, for comparisons: the least that
    keeping pays, for blocks that are free already stay to be used again.
    """
    kept = _set(_USUAL_MMAP, _USUAL_TRIM)
    try:
        yield
    finally:
        if kept:
            keep_freed_memory()


def _set(mmap: int, trim: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, mmap) and mallopt(_TRIM_THRESHOLD, trim))
