"""The memory that there is, and a setting of the C library for processes that allocate and free many arrays."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from pathlib import Path

#: Parameters of mallopt(3), as in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: The largest threshold that glibc accepts: half of the heap of an arena.
_MMAP_THRESHOLD_BYTES = 32 * 2**20
_TRIM_THRESHOLD_BYTES = 256 * 2**20
#: The limit of a container, as its cgroup (version 2 or 1) has it.
LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> int:
    """Return the memory of this machine, or of this container if that is limited to less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in LIMIT_FILES:
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            limits.append(int(file.read_text()))
    return min(limits)


def keep_freed_memory() -> None:
    """Let this process reuse up to 256 MiB of freed memory instead of returning it to the system.

    A chunk needs arrays and messages of several megabytes. By default glibc returns each of them to the system when
    it is freed, and the kernel allocates and clears the same pages again for the next chunk. Other C libraries than
    glibc are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
