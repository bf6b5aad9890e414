"""The CPU time of the whole machine, for what the services share it with."""

from __future__ import annotations

import platform
import time

import psutil

from monitoring.sources.base import HOST, Reading


def host_reading() -> Reading:
    """The machine's busy CPU seconds since it was started, and the memory in use.

    Guest time is a part of user time and is not added again; time that was
    idle, waited for a disk or was stolen by other machines is not busy.
    """
    times = psutil.cpu_times()
    busy = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    memory = psutil.virtual_memory()
    return Reading(
        time=time.time(),
        service=HOST,
        replica="1",
        container=platform.node(),
        started=psutil.boot_time(),
        cpu_seconds=busy,
        memory_bytes=memory.total - memory.available,
    )
