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
from pathlib import Path


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
