"""What the C library does with memory that arrays have been in."""

from __future__ import annotations

import ctypes
import platform

#: The parameters of mallopt(3), by glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: The largest threshold that glibc takes: half of an arena's heap.
_MMAP_THRESHOLD_BYTES = 32 * 2**20
_TRIM_THRESHOLD_BYTES = 256 * 2**20


def keep_freed_memory() -> None:
    """Have this process keep what it frees for its next arrays, up to 256 MiB, rather than give it back.

    Every chunk brings arrays and messages of megabytes, of which glibc by itself
    returns each to the system as soon as it is freed: the kernel then hands out
    and clears the same pages again and again. Without glibc nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
