"""CPU time of services that run as plain processes of this machine, including their child processes."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from monitoring import run_results
from monitoring.sources.base import CounterSample
from monitoring.sources.host import host_sample

#: A new process may execute another program (fork, then exec) within this many seconds.
_EXEC_LIMIT_S = 3.0


def service_of(command: Sequence[str]) -> str | None:
    """Return the service of a command line: ``python -m workers.data_loader``, a RabbitMQ broker, or None."""
    for flag, value in pairwise(command):
        package, _, module = value.partition(".")
        if flag == "-m" and package == "workers" and module.isidentifier() and "python" in command[0]:
            return module.replace("_", "-")
    if command and Path(command[0]).name == "beam.smp" and any("rabbit" in argument for argument in command):
        return "rabbitmq"
    return None


class _ProcessTree:
    """A service's process with its child processes, and the CPU time of those that have exited."""

    def __init__(self, service: str, root: psutil.Process, started: float) -> None:
        self.service = service
        self.root = root
        self.started = started
        self.read_at = started
        #: Each process by its number, with its parent's number and its CPU seconds at the last reading.
        self.members: dict[int, tuple[psutil.Process, int, float]] = {}
        self._exited_seconds = 0.0
        self.add(root)

    def add(self, process: psutil.Process) -> None:
        """Add the root or a child process; raises psutil.Error if it has exited."""
        self.members[process.pid] = process, process.ppid(), 0.0

    def cpu_seconds_and_bytes(self) -> tuple[float, int]:
        """Return the CPU seconds of all processes and the resident bytes of the running ones.

        A process that exits passes its CPU time, and that of its children, to
        the parent that waits for it. If its parent has exited, its time is
        added here. Raises psutil.NoSuchProcess if the root has exited.
        """
        memory = 0
        for pid, (process, parent, seconds) in list(self.members.items()):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    if process.status() != psutil.STATUS_ZOMBIE:
                        memory += process.memory_info().rss
            except psutil.NoSuchProcess:
                if process is self.root:
                    raise
                del self.members[pid]
                if parent not in self.members:
                    self._exited_seconds += seconds
            else:
                waited_for = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
                self.members[pid] = process, parent, times.user + times.system + waited_for
        return self._exited_seconds + sum(seconds for _, _, seconds in self.members.values()), memory


class ProcessSource:
    """Samples of the services among this machine's processes, without those inside containers."""

    refresh_s = 0.5

    def __init__(self) -> None:
        self._begin = time.time()
        self._create_times: dict[int, float] = {}
        self._trees: dict[int, _ProcessTree] = {}
        self._problems: list[str] = []
        self._result_folders: set[Path] = set()
        list(self._find(is_new=False))

    def now(self) -> float:
        """Return the time of this machine."""
        return time.time()

    def read(self) -> Sequence[CounterSample]:
        """Find new processes and read the CPU times of all."""
        samples = list(self._find(is_new=True))
        for pid, tree in list(self._trees.items()):
            try:
                seconds, memory = tree.cpu_seconds_and_bytes()
            except psutil.Error:
                age = time.time() - tree.read_at
                self._problems.append(f"{tree.service} (process {pid}) ended up to {age:.2f} s after its last sample")
                del self._trees[pid]
                continue
            tree.read_at = time.time()
            samples.append(_sample(tree, tree.read_at, seconds, memory))
        return [*samples, host_sample(self.now())] if samples else []

    def is_current(self, since: float) -> bool:
        """Return True: ``read`` always reads the current times."""
        return True

    def describe(self) -> Mapping[str, Any]:
        """Return the facts of this machine."""
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

    def find_result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """Return the ``result.json`` in the folder of a visualisation process."""
        return run_results.find_in_folders(self._result_folders, run_id, since)

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def _find(self, is_new: bool) -> Iterator[CounterSample]:
        """Find processes that have started since the last call; yields the first samples of new services."""
        now = time.time()
        pids = psutil.pids()
        self._create_times = {pid: self._create_times[pid] for pid in pids if pid in self._create_times}
        for pid in pids:
            if self._create_times.get(pid, now) < now - _EXEC_LIMIT_S:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                self._create_times[pid] = process.create_time()
                parent = process.ppid()
                for tree in self._trees.values():
                    if parent in tree.members and pid not in tree.members:
                        tree.add(process)
                if any(pid in tree.members for tree in self._trees.values()):
                    continue
                service = service_of(process.cmdline())
                if service is None or _is_in_container(pid):
                    continue
                # The kernel's start times differ from the clock by up to a second. A process that was
                # absent before has started since, whatever its start time.
                started = max(self._begin, self._create_times[pid]) if is_new else self._create_times[pid]
                self._trees[pid] = tree = _ProcessTree(service, process, min(started, now))
                if service == "visualisation":
                    with contextlib.suppress(psutil.Error):
                        self._result_folders.add(Path(process.cwd(), process.environ().get("OUTPUT", "results")))
                if is_new:
                    yield _sample(tree, tree.started, 0.0, None)


def _sample(tree: _ProcessTree, time_s: float, cpu_seconds: float, memory_bytes: int | None) -> CounterSample:
    return CounterSample(
        time=time_s,
        service=tree.service,
        replica=str(tree.root.pid),
        container=f"{tree.service}-{tree.root.pid}",
        started=tree.started,
        cpu_seconds=cpu_seconds,
        state="started" if memory_bytes is None else "running",
        memory_bytes=memory_bytes,
    )


def _is_in_container(pid: int) -> bool:
    """Return whether a process is in a PID namespace below ours, which only Linux has."""
    return len(_namespace_pids(pid)) > len(_namespace_pids("self"))


def _namespace_pids(pid: int | str) -> list[str]:
    """Return the process's number in each PID namespace that it belongs to, as far as this system says."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[1:]
    return []
