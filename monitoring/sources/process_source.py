"""CPU time of services that run as plain processes of this machine, including their child processes."""

from __future__ import annotations

import contextlib
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from monitoring import run_results
from monitoring.sources.base import REST, CounterSample
from monitoring.sources.machine import CpuAccounts, Process, container_path

#: The directory of this project, in which its services run.
ROOT = Path(__file__).resolve().parents[2]
_SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")


def service_of(command: Sequence[str]) -> str | None:
    """Return the service of a command line: ``python -m workers.data_loader``, a RabbitMQ broker, or None."""
    for flag, value in pairwise(command):
        package, _, module = value.partition(".")
        if flag == "-m" and package == "workers" and module in _SERVICES and "python" in command[0]:
            return module.replace("_", "-")
    if command and Path(command[0]).name == "beam.smp" and any("rabbit" in argument for argument in command):
        return "rabbitmq"
    return None


def belongs_to(project: Path, directory: Path, executable: Path) -> bool:
    """Return whether a service's process is one of ``project``, from its working directory and its Python.

    It runs in the project's directory. If the project is installed as a package, ``project`` is the directory of
    Python's packages: then it runs with the same Python, in a directory that has no package ``workers`` of its own.
    """
    if directory == project:
        return True
    installed = project.name in ("site-packages", "dist-packages")
    return installed and executable == Path(sys.executable) and not (directory / "workers").exists()


@dataclass
class _Service:
    """A service's first process, and whether it has started since the source was opened."""

    service: str
    pid: int
    started: float
    is_new: bool
    #: The ports that a broker listens on; None if they may not be read.
    ports: frozenset[int] | None = frozenset()

    def listens_on(self, ports: set[int]) -> bool:
        """Return whether a broker listens on one of ``ports``. While it starts, its ports are read again."""
        if self.ports is not None and not ports & self.ports:
            try:
                connections = psutil.Process(self.pid).net_connections("tcp")
                self.ports = frozenset(one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN)
            except psutil.Error:
                self.ports = None
        return self.ports is None or bool(ports & self.ports)


class ProcessSource:
    """Samples of this project's services among this machine's processes, without those inside containers.

    A broker is the project's if it listens on the port that a service was given, or if its ports may not be read.
    """

    refresh_s = 0.5

    def __init__(self, project: Path = ROOT) -> None:
        self._project = project
        #: The services by the names of their groups of processes.
        self._services: dict[str, _Service] = {}
        #: The brokers' ports that the services were given.
        self._ports: set[int] = set()
        self._broker: str | None = None
        self._problems: list[str] = []
        self._result_folders: set[Path] = set()
        self._accounts = CpuAccounts(self._group_of)
        self._began = time.time()
        self._is_open = False
        self._accounts.scan()
        self._is_open = True

    def now(self) -> float:
        """Return the time of this machine."""
        return time.time()

    def read(self) -> Sequence[CounterSample]:
        """Read the CPU times of all processes."""
        before = self._accounts.time
        self._accounts.scan()
        samples = []
        for group, one in list(self._services.items()):
            if group in self._accounts.memory_bytes:
                samples += list(self._samples(group, one))
                continue
            age = self._accounts.time - before
            self._problems.append(f"{one.service} (process {one.pid}) ended up to {age:.2f} s after its last sample")
            del self._services[group]
        if all(sample.service == REST for sample in samples):
            return []
        rest = self._accounts.cpu_seconds.get(REST, 0.0)
        host = self._accounts.host
        return [*samples, CounterSample(self._accounts.time, REST, "1", REST, host.started, rest), host]

    def is_current(self, since: float) -> bool:
        """Return True: ``read`` always reads the current times."""
        return True

    def describe(self) -> Mapping[str, Any]:
        """Return the facts of this machine."""
        return {
            "platform": "process",
            "source": "this machine's processes: user and system time, children included",
            "versions": {"kernel": platform.release(), "python": platform.python_version(), "rabbitmq": self._broker},
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "limits": {},
            "images": {},
            "unseen": [],
            "problems": list(self._problems),
        }

    def find_result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """Return the ``result.json`` in the folder of a visualisation process."""
        return run_results.find_in_folders(self._result_folders, run_id, since)

    def close(self) -> None:
        """Close the counters of containers."""
        self._accounts.close()

    def _group_of(self, pid: int, process: Process, parent_group: str) -> str | None:
        """Return the group of a service's first process and of its children."""
        if parent_group in self._services:
            return parent_group
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            found = psutil.Process(pid)
            service = service_of(found.cmdline())
            if service is None or container_path(pid) is not None:
                return None
            if service == "rabbitmq":
                version = re.search(r"rabbitmq_server-([\d.]+)", " ".join(found.cmdline()))
                self._broker = version[1] if version else None
            else:
                directory = Path(found.cwd())
                if not belongs_to(self._project, directory, Path(found.exe())):
                    return None
                variables = found.environ()
                default = "5671" if variables.get("RABBITMQ_TLS_CA") else "5672"
                self._ports.add(int(variables.get("RABBITMQ_PORT") or default))
                if service == "visualisation":
                    self._result_folders.add(directory / variables.get("OUTPUT", "results"))
            group = f"{service}-{pid}"
            if group not in self._services:
                # The kernel's start times differ from the clock by up to a second. A process that was
                # absent before has started since, whatever its start time.
                started = min(max(process.started, self._began), time.time()) if self._is_open else process.started
                self._services[group] = _Service(service, pid, started, self._is_open)
            return group
        return None

    def _samples(self, group: str, one: _Service) -> Iterator[CounterSample]:
        accounts = self._accounts
        sample = CounterSample(
            time=accounts.time,
            service=one.service if one.service != "rabbitmq" or one.listens_on(self._ports) else REST,
            replica=str(one.pid),
            container=group,
            started=one.started,
            cpu_seconds=accounts.cpu_seconds[group],
            memory_bytes=accounts.memory_bytes[group],
        )
        if one.is_new:
            one.is_new = False
            yield replace(sample, time=one.started, cpu_seconds=0.0, memory_bytes=None, state="started")
        yield sample
