"""The CPU time of the whole machine, for comparison with the sum of the services."""

from __future__ import annotations

import platform

import psutil

from monitoring.sources.base import HOST, CounterSample


def host_sample(time_s: float) -> CounterSample:
    """Return the machine's busy CPU seconds since boot and the memory in use, read now, at ``time_s``.

    Idle, I/O wait and stolen time are not busy time. Guest time is part of user
    time and is not added again.
    """
    times = psutil.cpu_times()
    memory = psutil.virtual_memory()
    return CounterSample(
        time=time_s,
        service=HOST,
        replica="1",
        container=platform.node(),
        started=psutil.boot_time(),
        cpu_seconds=sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")),
        memory_bytes=memory.total - memory.available,
    )
