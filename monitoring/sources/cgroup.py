"""The CPU counter of a container of this machine, down to its very last value.

The engine forgets a container's counter when the container ends: what it used
since the last reading would be lost. The kernel tells the end of a process
through a pidfd; the end of a container's first process means that all others
have gone, and its cgroup stands for some ten milliseconds more, until the
runtime removes it. In that time the final counter is read.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

#: Between two glances at the counters of what may end any time, in seconds.
GLANCE_S = 0.05


class Cgroup:
    """The CPU counter of one cgroup, v1 (``cpuacct.usage``) or v2 (``cpu.stat``); kept open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unified = path.name == "cpu.stat"
        self._file = os.open(path, os.O_RDONLY)

    def cpu_seconds(self) -> float:
        """User and system seconds of everything that ran in it; raises OSError once it is removed."""
        text = os.pread(self._file, 128, 0)
        if self._unified:  # usage_usec 123456\n...
            return int(text.split(None, 2)[1]) / 1e6
        return int(text) / 1e9

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def cgroup_of(pid: int, container_id: str) -> Cgroup | None:
    """The cgroup of a container's first process; None where this is not the machine it runs on.

    ``container_id`` has to stand in the cgroup's path, so that a process of
    ours that happens to have the number is not taken for the engine's.
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
    """Where the CPU controller is mounted, and the name of its counter there."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup" and "cpuacct" in options.split(","):
            mounts.append((before.split()[4], "cpuacct.usage"))
        elif kind == "cgroup2":
            mounts.append((before.split()[4], "cpu.stat"))
    return sorted(mounts, key=lambda mount: mount[1], reverse=True)  # v1 first: on a hybrid v2 has no CPU


class ExitWatch:
    """Calls back at the moment a process ends.

    ``glance`` is called every GLANCE_S while anything is watched: on a machine
    so busy that the moment is missed, no more than that is lost.
    """

    def __init__(self, glance: Callable[[], None]) -> None:
        self._glance = glance
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake_out, self._wake_in = os.pipe()
        self._poll.register(self._wake_out, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def watch(self, pid: int, callback: Callable[[], None]) -> bool:
        """Call back, from another thread, when ``pid`` ends; False where the kernel cannot tell."""
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):
            return False
        self._callbacks[descriptor] = callback
        self._poll.register(descriptor, select.POLLIN)
        os.write(self._wake_in, b"+")
        return True

    def _run(self) -> None:
        # Few milliseconds count here, and it sleeps all the time: where we may, go before others.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        while True:
            events = self._poll.poll(GLANCE_S * 1000 if self._callbacks else None)
            if not events:
                self._glance()
            for descriptor, _ in events:
                if descriptor != self._wake_out:
                    self._poll.unregister(descriptor)
                    self._callbacks.pop(descriptor)()
                    os.close(descriptor)
                elif os.read(descriptor, 64).endswith(b"."):
                    return

    def close(self) -> None:
        """Watch no more."""
        os.write(self._wake_in, b".")
        self._thread.join()
        for descriptor in (*self._callbacks, self._wake_in, self._wake_out):
            os.close(descriptor)
        self._callbacks.clear()
