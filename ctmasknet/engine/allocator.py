"""Memory that tensors free on the CPU, kept for the next ones.

glibc takes every block above a threshold, which it raises to 32 MB at most, from the system and
gives it back when it is freed; the system then fills each page with zeros again when it is next
touched. Feature maps of a slice are such blocks.
"""

from __future__ import annotations

import ctypes
import os
import platform

#: mallopt's numbers for them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Blocks above it, such as a whole volume, still go back, bytes.
_KEPT_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to its peak, unless the user has tuned glibc already.

    Returns:
        whether that was done; not where another C library is in use.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT_BYTES) and mallopt(_TRIM_THRESHOLD, -1))
