"""CPU counters of local containers, read from the kernel's cgroup files up to the last value.

The Docker engine discards a container's counter when the container ends, and
with it the CPU time used since the last sample. A pidfd reports the exit of a
container's first process. At that time all its other processes have exited, and
the cgroup exists for about ten milliseconds more until the container runtime
removes it. The final counter is read in that time.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

#: Seconds between two samples of the counters of containers that may end at any time.
SAMPLE_INTERVAL_S = 0.05


class Cgroup:
    """The CPU counter of one cgroup, version 1 (``cpuacct.usage``) or 2 (``cpu.stat``). Its file is kept open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_v2 = path.name == "cpu.stat"
        self._file = os.open(path, os.O_RDONLY)

    def cpu_seconds(self) -> float:
        """Return user and system CPU seconds of all processes; raises OSError if the cgroup was removed."""
        text = os.pread(self._file, 128, 0)
        if self._is_v2:  # usage_usec 123456\n...
            return int(text.split(None, 2)[1]) / 1e6
        return int(text) / 1e9

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def cgroup_of(pid: int, container_id: str) -> Cgroup | None:
    """Return the cgroup of a container's first process, or None if the container does not run on this machine.

    The cgroup's path must contain ``container_id``: on a remote engine, ``pid``
    may be the number of an unrelated local process.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, inside = line.split(":", 2)
            if container_id not in inside:
                continue
            for mount, name in _mounts():
                wanted = "cpuacct" in controllers.split(",") if name == "cpuacct.usage" else controllers == ""
                path = Path(f"{mount}{inside}/{name}")
                if wanted and path.exists():
                    return Cgroup(path)
    return None


def _mounts() -> list[tuple[str, str]]:
    """Return the mount points of the CPU controller, each with the name of its counter file."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup" and "cpuacct" in options.split(","):
            mounts.append((before.split()[4], "cpuacct.usage"))
        elif kind == "cgroup2":
            mounts.append((before.split()[4], "cpu.stat"))
    # Version 1 first: on a hybrid system, version 2 has no CPU controller.
    return sorted(mounts, key=lambda mount: mount[1], reverse=True)


class ExitWatcher:
    """A thread that calls back when a process exits.

    It also calls ``sample`` every SAMPLE_INTERVAL_S while it watches any
    process, which bounds the loss if a busy machine delays the callback until
    the cgroup is gone.
    """

    def __init__(self, sample: Callable[[], None]) -> None:
        self._sample = sample
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake_out, self._wake_in = os.pipe()
        self._poll.register(self._wake_out, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def watch(self, pid: int, callback: Callable[[], None]) -> bool:
        """Call ``callback`` from the thread when ``pid`` exits; returns False if the kernel has no pidfd for it."""
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):
            return False
        self._callbacks[descriptor] = callback
        self._poll.register(descriptor, select.POLLIN)
        os.write(self._wake_in, b"+")
        return True

    def _run(self) -> None:
        # The callback has milliseconds, and the thread is nearly always asleep: raise its priority if permitted.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        while True:
            events = self._poll.poll(SAMPLE_INTERVAL_S * 1000 if self._callbacks else None)
            if not events:
                self._sample()
            for descriptor, _ in events:
                if descriptor != self._wake_out:
                    self._poll.unregister(descriptor)
                    self._callbacks.pop(descriptor)()
                    os.close(descriptor)
                elif os.read(descriptor, 64).endswith(b"."):
                    return

    def close(self) -> None:
        """Stop the thread and close all descriptors."""
        os.write(self._wake_in, b".")
        self._thread.join()
        for descriptor in (*self._callbacks, self._wake_in, self._wake_out):
            os.close(descriptor)
        self._callbacks.clear()
