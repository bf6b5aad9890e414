"""What a replica of a service is: its name, its software, and how much CPU time and memory it uses."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import resource
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata

import psutil

from common import version
from common.messages import Software
from common.names import MAX_NAME

#: The packages that read, select, add up, fit and draw.
PACKAGES = ("awkward", "awkward-cpp", "matplotlib", "mplhep", "numpy", "pyhf", "scipy", "uproot")

_STARTED = time.time()


@dataclass(frozen=True)
class Replica:
    """A replica of a service; ``name`` is that of ``ServiceStatus``, ``since`` in seconds since 1970."""

    name: str
    host: str
    pid: int
    since: float


@cache
def this_process() -> Replica:
    """Return this process as a replica."""
    host = socket.gethostname()
    name = host if os.getpid() == 1 else f"{host}-{os.getpid()}"
    # A name as in ``common.names``, with room for a suffix.
    name = ".".join(filter(None, re.sub(r"[^A-Za-z0-9_.-]", "-", name[-MAX_NAME + 8 :]).lstrip("-_").split(".")))
    return Replica(name, host, os.getpid(), _STARTED)


@cache
def software(*, embedded: bool = False) -> Software:
    """Return the software of this process; ``embedded`` if it is the command, with all services."""
    packages = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    system = f"{'embedded' if embedded else _platform()}, {platform.system()} {platform.machine()}"
    return Software(version.VERSION, version.commit(os.environ) or "unknown", system, packages)


def usage() -> tuple[float, int]:
    """Return the CPU time in seconds and the memory in bytes of this process and its worker processes.

    The CPU time includes that of worker processes which have ended, the memory is the resident set.
    """
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(part.ru_utime + part.ru_stime for part in parts)
    rss_bytes = _process(os.getpid()).memory_info().rss
    for child in multiprocessing.active_children():
        with suppress(psutil.Error):
            process = _process(child.pid)
            times = process.cpu_times()
            cpu_seconds += times.user + times.system
            rss_bytes += process.memory_info().rss
    return cpu_seconds, rss_bytes


#: psutil's object of a process, by its number: to make one takes longer than to read from it.
_process = lru_cache(maxsize=64)(psutil.Process)


def _platform() -> str:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return "docker" if os.path.exists("/.dockerenv") else "process"
