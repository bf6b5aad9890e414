"""CPU time of services that run as plain processes of this machine, their children included."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from monitoring import run_results as runs
from monitoring.sources.base import Reading
from monitoring.sources.host import host_reading

#: A process may still become another program so long after its birth (fork, then exec).
_YOUNG_S = 3.0
_MODULE = re.compile(r"workers[./](\w+)")


def service_of(command: Sequence[str]) -> str | None:
    """The service that a command line is: ``-m workers.data_loader``, a broker, or None."""
    for flag, value in pairwise(command):
        module = re.fullmatch(_MODULE, value) if flag == "-m" else None
        if module and "python" in command[0]:
            return module[1].replace("_", "-")
    if command and Path(command[0]).name == "beam.smp" and any("rabbit" in word for word in command):
        return "rabbitmq"
    return None


class _Member:
    """One process of a service: itself, or a child of it."""

    def __init__(self, process: psutil.Process, parent: int) -> None:
        self.process = process
        self.parent = parent
        self.seconds = 0.0


class _Tree:
    """A service's process with all its children, and what those that are gone have used."""

    def __init__(self, service: str, process: psutil.Process, parent: int, started: float) -> None:
        self.service = service
        self.root = process
        self.started = started
        self.members = {process.pid: _Member(process, parent)}
        self.gone_seconds = 0.0
        self.read_at = 0.0

    def seconds_and_bytes(self) -> tuple[float, int]:
        """CPU seconds of all, resident bytes of those that live; raises NoSuchProcess when the root has ended.

        A process that ends hands its time, and that of the children it waited
        for, to the parent that waits for it; an orphan's is kept here.
        """
        memory = 0
        for pid, member in list(self.members.items()):
            try:
                with member.process.oneshot():
                    seconds = _cpu_seconds(member.process)
                    memory += 0 if member.process.status() == psutil.STATUS_ZOMBIE else member.process.memory_info().rss
                member.seconds = seconds
            except psutil.NoSuchProcess:
                if member.process is self.root:
                    raise
                del self.members[pid]
                if member.parent not in self.members:
                    self.gone_seconds += member.seconds
        return self.gone_seconds + sum(member.seconds for member in self.members.values()), memory


class ProcessSource:
    """Readings of the services among this machine's processes; those in containers are left to their engine."""

    refresh_s = 0.5

    def __init__(self) -> None:
        self._begin = time.time()
        self._seen: dict[int, float] = {}
        self._trees: dict[int, _Tree] = {}
        self._replicas: dict[str, int] = {}
        self._problems: list[str] = []
        self._outputs: set[Path] = set()
        self._looked = False
        list(self._look())
        self._looked = True

    def read(self) -> Sequence[Reading]:
        """Look for processes that have come, and read the times of all."""
        readings = list(self._look())
        for pid, tree in list(self._trees.items()):
            try:
                seconds, memory = tree.seconds_and_bytes()
            except psutil.Error:
                unseen = time.time() - tree.read_at
                self._problems.append(
                    f"{tree.service} (process {pid}) ended up to {unseen:.2f} s after its last reading"
                )
                del self._trees[pid]
                continue
            tree.read_at = time.time()
            readings.append(self._reading(tree, tree.read_at, seconds, memory))
        return [*readings, host_reading()] if readings else []

    def fresh(self, since: float) -> bool:
        """Whether all have been read since; reading is what makes it so."""
        return True

    def about(self) -> Mapping[str, Any]:
        """The machine."""
        return {
            "platform": "processes",
            "source": "this machine's processes (psutil): user and system time, children included",
            "versions": {"kernel": platform.release(), "python": platform.python_version()},
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "limits": {},
            "images": {},
            "problems": list(self._problems),
        }

    def result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """The result.json in the folder that a visualisation process writes to."""
        for output in self._outputs:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                chosen = run_id or max(path.name for path in output.iterdir() if not path.name.startswith("."))
                result = json.loads((output / chosen / "result.json").read_text())
                if run_id or runs.finished(result) >= since:
                    return dict(result)
        return None

    def close(self) -> None:
        """Nothing is held."""

    def _look(self) -> Iterator[Reading]:
        """Take in the processes that have come since; returns the births of services."""
        now = time.time()
        pids = psutil.pids()
        for pid in self._seen.keys() - set(pids):
            del self._seen[pid]
        for pid in pids:
            if self._seen.get(pid, now) < now - _YOUNG_S:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                self._seen[pid] = process.create_time()
                parent = process.ppid()
                for tree in self._trees.values():
                    if parent in tree.members and pid not in tree.members:
                        tree.members[pid] = _Member(process, parent)
                if any(pid in tree.members for tree in self._trees.values()):
                    continue
                service = service_of(process.cmdline())
                if service is not None and not _in_container(pid):
                    # The kernel's start time is off by up to a second against the clock: whether a process
                    # is new says its absence before.
                    started = max(self._begin, self._seen[pid]) if self._looked else self._seen[pid]
                    self._trees[pid] = tree = _Tree(service, process, parent, min(started, now))
                    self._replicas[service] = self._replicas.get(service, 0) + 1
                    self._note_output(service, process)
                    if self._looked:
                        yield self._reading(tree, tree.started, 0.0, None)

    def _note_output(self, service: str, process: psutil.Process) -> None:
        if service == "visualisation":
            with contextlib.suppress(psutil.Error):
                self._outputs.add(Path(process.cwd()) / process.environ().get("OUTPUT", "results"))

    def _reading(self, tree: _Tree, at: float, seconds: float, memory: int | None) -> Reading:
        return Reading(
            time=at,
            service=tree.service,
            replica=str(tree.root.pid),
            container=f"{tree.service}-{tree.root.pid}",
            started=tree.started,
            cpu_seconds=seconds,
            state="running" if memory is not None else "started",
            memory_bytes=memory,
        )


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and of the children it waited for.

    Linux has a clock for every process's CPU time (clock_getcpuclockid(3)),
    exact where /proc counts in ticks of 10 ms; a zombie has no clock any more.
    """
    times = process.cpu_times()
    own = times.user + times.system
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            own = time.clock_gettime((~process.pid << 3) | 2)
    waited_for: float = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return float(own + waited_for)


def _in_container(pid: int) -> bool:
    """Whether a process lives in a PID namespace below ours."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return len(line.split()) > len(_own_namespaces()) + 1
    return False


def _own_namespaces() -> list[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:]
    return [""]
