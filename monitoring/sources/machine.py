"""CPU time of everything that runs on this machine, in groups of processes: services, the container platform, the rest.

The kernel keeps for each process the CPU time of its own threads and that of the
child processes that it has waited for. Of the sum over all processes, no CPU
time is lost when a process exits and its parent waits for it, but it moves to
the parent, which may be in another group. ``CpuAccounts`` follows these moves.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from monitoring.sources.base import HOST, PLATFORM, REST, CounterSample
from monitoring.sources.cgroup import Cgroup, cgroup_of

#: Names of a container platform's processes, as far as the kernel keeps them: 15 characters.
DOCKER_PROCESSES = frozenset(("dockerd", "containerd", "containerd-shim", "docker-proxy", "buildkitd", "runc"))
KUBERNETES_PROCESSES = DOCKER_PROCESSES | {
    *("kubelet", "kube-apiserver", "etcd", "kube-scheduler", "kube-controller", "kube-proxy", "coredns", "dnsmasq"),
    *("cloud-controlle", "pause", "crio", "conmon", "cri-dockerd", "flanneld", "calico-node", "kindnetd"),
    *("k3s-server", "k3s-agent", "kubelite", "metrics-server", "local-path-prov", "storage-provisi"),
}
#: A new process may execute another program (fork, then exec) or enter a container within this many seconds.
_EXEC_LIMIT_S = 3.0
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
#: The CPU time of all tasks in nanoseconds, if control groups of version 1 are mounted.
_SCHEDULER_COUNTER = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")
_IS_LINUX = sys.platform == "linux"


class Process(NamedTuple):
    """A process: start in seconds since 1970, CPU seconds of itself and of waited-for children, resident bytes."""

    started: float
    parent: int
    name: str
    own: float
    children: float
    memory_bytes: int


@cache
def _boot_time() -> float:
    return float(psutil.boot_time())


def _read_stat(pid: int) -> Process:
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    with open(f"/proc/{pid}/stat", "rb") as file:
        before, _, after = file.read().rpartition(b")")
    value = after.split()  # from the third field of proc_pid_stat(5) on
    own, children = int(value[11]) + int(value[12]), int(value[13]) + int(value[14])
    name = before.partition(b"(")[2].decode(errors="replace")
    started = _boot_time() + int(value[19]) / tick
    return Process(started, int(value[1]), name, own / tick, children / tick, int(value[21]) * page)


def _read_psutil(pid: int) -> Process:
    process = psutil.Process(pid)
    with process.oneshot():
        times = process.cpu_times()
        return Process(
            process.create_time(),
            process.ppid(),
            process.name(),
            times.user + times.system,
            getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0),
            process.memory_info().rss,
        )


def read_processes(
    pids: Callable[[], Iterable[int]] = psutil.pids,
    read: Callable[[int], Process] = _read_stat if _IS_LINUX else _read_psutil,
) -> dict[int, Process]:
    """Return all processes that may be read and that still exist after the last one was read, by number.

    A child that was read and has ended since may also be in the children's CPU
    time of its parent, which was read later. It is left out: its CPU time is in
    that of its parent, now or in the next reading.
    """
    found = {}
    for pid in pids():
        with contextlib.suppress(OSError, psutil.Error):
            found[pid] = read(pid)
    exist = set(pids())
    return {pid: process for pid, process in found.items() if pid in exist}


def container_path(pid: int) -> str | None:
    """Return the cgroup of the container that a process is in; None if it is in none, or in that of this process."""
    path = _cgroup_path(pid)
    return path if path and path != _cgroup_path("self") else None


def _cgroup_path(pid: int | str) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            path = line.split(":", 2)[2]
            if _CONTAINER_ID.search(path) or "buildkit" in path:
                return path
    return None


def is_this_machine(boot_id: str | None) -> bool:
    """Return whether ``boot_id`` is that of the running kernel."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() == boot_id
    return False


class _Container:
    """A container's counter, and the part of it that no process was seen to use."""

    def __init__(self, pid: int, path: str) -> None:
        found = _CONTAINER_ID.findall(path)
        self.cgroup: Cgroup | None = cgroup_of(pid, found[-1]) if found else None
        #: The process outside the container that waits for its processes.
        self.parent = 0
        self.unseen = 0.0
        #: Whether its CPU time is known from elsewhere; None until that is answered.
        self.is_counted: bool | None = None
        #: CPU seconds that are in no account until then.
        self.unbooked = 0.0
        self._counter = 0.0

    def increase(self) -> float | None:
        """Return the CPU seconds since the last call; None without a counter."""
        if self.cgroup is None:
            return None
        try:
            counter = self.cgroup.cpu_seconds()
        except OSError:
            self.close()
            return None
        self._counter, before = counter, self._counter
        return counter - before

    def close(self) -> None:
        """Close the counter's file."""
        if self.cgroup is not None:
            self.cgroup.close()
            self.cgroup = None


class CpuAccounts:
    """CPU seconds of each group of processes, those from before the first scan included.

    ``group_of`` names the group of a process from its number, the process and
    the group of its parent. Without one, a process belongs to its container, or
    to REST. ``counted`` is asked once about each container: of the cgroups that it
    receives, it returns those whose CPU time is known from elsewhere, or None if
    that is not known now; it is asked again then. Containers that are counted
    elsewhere are left out; all others are in REST. ``read`` returns no process whose CPU time is
    also in the children's time of another one.
    """

    def __init__(
        self,
        group_of: Callable[[int, Process, str], str | None],
        counted: Callable[[Set[str]], Set[str] | None] = lambda cgroups: frozenset(),
        read: Callable[[], dict[int, Process]] = read_processes,
    ) -> None:
        self._read = read
        self._group_of = group_of
        self._counted = counted
        self._last: dict[int, Process] = {}
        self._groups: dict[int, str] = {}
        #: CPU seconds of processes that exited before the last scan and that no parent had inherited yet.
        self._passed: dict[int, float] = {}
        self._containers: dict[str, _Container] = {}
        self.time = self.previous_time = time.time()
        self.host = host_sample(self.time)
        self.cpu_seconds: dict[str, float] = {}
        self.memory_bytes: dict[str, int] = {}

    def scan(self) -> None:
        """Read all processes and add what they have used since the last scan to their groups."""
        self.previous_time, self.time = self.time, time.time()
        # One after the other at once: on a busy machine, what is between them would be missing in one of them.
        now, self.host = self._read(), host_sample(self.time)
        new = self._passed_to_parents(now)
        old = {pid: seconds for pid, seconds in self._passed.items() if pid in now}
        used: defaultdict[str, float] = defaultdict(float)
        memory: defaultdict[str, int] = defaultdict(int)
        inherited: dict[int, float] = {}
        groups: dict[int, str] = {}
        # In the order of starts a parent comes before its children. The init process comes last.
        for pid in sorted(now, key=lambda pid: (pid == 1, now[pid].started, pid)):
            process, before = now[pid], self._last.get(pid)
            if before is not None and before.started != process.started:
                before = None
            groups[pid] = group = self._group(pid, process, groups, self._groups.get(pid) if before else None)
            from_children = process.children - (before.children if before else 0.0)
            for passed in (old, new):
                for heir in [pid, *passed] if pid == 1 else [pid]:  # the init process waits for orphans, too
                    known = min(passed.get(heir, 0.0), from_children)
                    from_children -= known
                    passed[heir] = passed.get(heir, 0.0) - known
            inherited[pid] = from_children
            used[group] += process.own - (before.own if before else 0.0) + from_children
            memory[group] += process.memory_bytes
        # A parent that was read before it waited for a child inherits in the next scan.
        self._passed = new
        self._correct_containers(used, inherited, groups, now)
        new_paths = {path for path, container in self._containers.items() if container.is_counted is None}
        counted = self._counted(new_paths) if new_paths else None
        if counted is not None:
            for path in new_paths:
                self._containers[path].is_counted = path in counted
        for path, container in self._containers.items():
            container.unbooked += used.pop(path, 0.0)
            if container.is_counted is False:
                used[REST] += container.unbooked
            if container.is_counted is not None:
                container.unbooked = 0.0
        for group, seconds in used.items():
            self.cpu_seconds[group] = self.cpu_seconds.get(group, 0.0) + seconds
        self._last, self._groups, self.memory_bytes = now, groups, dict(memory)

    def close(self) -> None:
        """Close the counters of containers."""
        for container in self._containers.values():
            container.close()

    def _group(self, pid: int, process: Process, groups: dict[int, str], known: str | None) -> str:
        if known is not None and process.started < self.time - _EXEC_LIMIT_S:
            return known
        parent_group = groups.get(process.parent, REST)
        group = self._group_of(pid, process, known or REST if parent_group == REST else parent_group)
        if group is None:
            group = container_path(pid) or REST
        if group.startswith("/"):
            if group not in self._containers:
                self._containers[group] = _Container(pid, group)
            container = self._containers[group]
            if parent_group != group:
                container.parent = process.parent
        return group

    def _passed_to_parents(self, now: dict[int, Process]) -> dict[int, float]:
        """Return the CPU seconds, already counted, of exited processes, by the ancestor that they passed to."""
        passed: defaultdict[int, float] = defaultdict(float)
        for pid, process in self._last.items():
            if not self._runs(pid, now):
                seconds = process.own + process.children + self._passed.get(pid, 0.0)
                passed[self._heir(process.parent, now)] += seconds
        return passed

    def _runs(self, pid: int, now: dict[int, Process]) -> bool:
        """Return whether a process of the last scan still runs."""
        return pid in now and now[pid].started == self._last[pid].started

    def _heir(self, pid: int, now: dict[int, Process]) -> int:
        """Return a process or, if it has exited, the ancestor that its CPU time passed to."""
        while pid in self._last and not self._runs(pid, now):
            pid = self._last[pid].parent
        return pid if pid in now else 1

    def _correct_containers(
        self, used: dict[str, float], inherited: dict[int, float], groups: dict[int, str], now: dict[int, Process]
    ) -> None:
        """Replace what the processes of a container used by its counter.

        A process that started and ended between two scans, for example a health
        probe, is in the counter of its container. The process outside that
        waited for it has inherited the same CPU time, from which it is taken: also
        in the scan after the container has ended.
        """
        for path, container in list(self._containers.items()):
            seen, increase = used.get(path, 0.0), container.increase()
            if increase is not None:
                used[path] = increase
                container.unseen += increase - seen
            heir = self._heir(container.parent, now)
            moved = min(max(container.unseen, 0.0), inherited.get(heir, 0.0))
            if moved:
                inherited[heir] -= moved
                used[groups[heir]] -= moved
            container.unseen = 0.0 if increase is None else container.unseen - moved


class MachineSource:
    """Samples of the container platform's processes, of all other processes, and of the whole machine."""

    #: Seconds between two scans at least; a scan of 250 processes uses 4 ms.
    interval_s = 2.0

    def __init__(self, names: frozenset[str], counted: Callable[[Set[str]], Set[str] | None]) -> None:
        self._names = names
        self._accounts = CpuAccounts(self._group_of, counted)
        # The first scan lacks the children that end during it; what they used before must not seem to be used later.
        self._accounts.scan()
        self._scanned_at = float("-inf")
        self._time = float("-inf")
        self._returned: set[str] = set()

    def _group_of(self, pid: int, process: Process, parent_group: str) -> str | None:
        if process.name in self._names:
            return f"{PLATFORM} {process.name}"
        path = container_path(pid)
        if path and "buildkit" in path:
            return f"{PLATFORM} buildkit"
        return None if path or not parent_group.startswith(PLATFORM) else parent_group

    def read(self, now: float) -> Iterator[CounterSample]:
        """Yield samples, unless the last are younger than ``interval_s``; ``now`` is the time by the source's clock."""
        if time.monotonic() - self._scanned_at < 0.95 * self.interval_s:
            return
        is_first = not self._returned
        self._scanned_at = time.monotonic()
        ahead_s = now - time.time()
        accounts = self._accounts
        accounts.scan()
        self._time = accounts.time + ahead_s
        for group in sorted({REST, *accounts.cpu_seconds}):
            service, _, component = group.partition(" ")
            sample = CounterSample(
                time=self._time,
                service=service,
                replica=component or "1",
                container=group,
                started=accounts.host.started,
                cpu_seconds=accounts.cpu_seconds.get(group, 0.0),
                memory_bytes=accounts.memory_bytes.get(group, 0),
            )
            if group not in self._returned and not is_first:
                zero_time = accounts.previous_time + ahead_s
                yield replace(sample, time=zero_time, cpu_seconds=0.0, memory_bytes=None, state="started")
            self._returned.add(group)
            yield sample
        yield replace(accounts.host, time=self._time)

    def is_current(self, since: float) -> bool:
        """Return whether the last scan was at or after ``since``, by the source's clock."""
        return self._time >= since

    def close(self) -> None:
        """Close the counters of containers."""
        self._accounts.close()


def host_sample(time_s: float) -> CounterSample:
    """Return the machine's busy CPU seconds since boot and the memory in use, read now, at ``time_s``.

    With control groups of version 1, the scheduler's counter is read. That of /proc/stat is what psutil reads: the
    kernel adds to it at every tick of its clock, and misses tasks that end before the next one (2 % of the CPU time of
    an idle Kubernetes node). Idle, I/O wait and stolen time are not busy time. Guest time is part of user time and is
    not added again.
    """
    try:
        cpu_seconds = int(_SCHEDULER_COUNTER.read_text()) / 1e9
    except (OSError, ValueError):
        times = psutil.cpu_times()
        cpu_seconds = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    memory = psutil.virtual_memory()
    return CounterSample(
        time=time_s,
        service=HOST,
        replica="1",
        container=platform.node(),
        started=_boot_time(),
        cpu_seconds=cpu_seconds,
        memory_bytes=memory.total - memory.available,
    )
