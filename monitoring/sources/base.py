"""Samples of cumulative counters, and the interface of the sources that provide them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from common.errors import PipelineError

#: The services of the pipeline, in the order in which events pass through them.
PIPELINE_SERVICES = ("data-loader", "data-processor", "analysis", "visualisation", "rabbitmq")
#: The names under which the rest of a machine is recorded: the processes of the container platform, all other
#: processes, and the whole machine. No total includes them. Services, PLATFORM and REST add up to HOST.
PLATFORM, REST, HOST = "platform", "rest", "host"
MACHINE = (PLATFORM, REST, HOST)

#: ``started``: the container has just started, its counter is 0; ``final``: the container has ended.
State = Literal["started", "running", "final"]


class MonitorError(PipelineError):
    """Nothing can be measured, or a recording cannot be read or written (exit code 1)."""


@dataclass(frozen=True)
class CounterSample:
    """The counters of one container at one time.

    Parameters
    ----------
    time
        When the counters had these values, in seconds since 1970 (UTC), by the clock of the machine that read them.
    service, replica, container
        Names of the service, of the replica within it, and of the container.
    started
        When this lifetime of the container began, in seconds since 1970 (UTC).
        A restart begins a new lifetime, whose counters start from zero.
    cpu_seconds
        User and system CPU time of all threads since ``started``.
    memory_bytes
        The working set: memory in use without inactive page cache.
    cores
        CPU seconds per second since an earlier sample of the same lifetime, see ``RateCalculator``.
        For the first sample it is the source's own figure, or None.

    None stands for values that the source does not provide.
    """

    time: float
    service: str
    replica: str
    container: str
    started: float
    cpu_seconds: float
    cores: float | None = None
    memory_bytes: int | None = None
    network_rx_bytes: int | None = None
    network_tx_bytes: int | None = None
    disk_read_bytes: int | None = None
    disk_write_bytes: int | None = None
    throttled_seconds: float | None = None
    restarts: int = 0
    state: State = "running"

    @property
    def lifetime(self) -> tuple[str, float]:
        """The key of the container's lifetime: its name and start time."""
        return self.container, self.started


def seconds(text: str) -> float:
    """Return an ISO 8601 time as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


class Source(Protocol):
    """A provider of counter samples: a Docker engine, a Kubernetes cluster, or the processes of this machine."""

    #: Seconds within which every counter is read again.
    refresh_s: float

    def now(self) -> float:
        """Return the time by the clock of the samples, in seconds since 1970; never earlier than that clock."""
        ...

    def read(self) -> Sequence[CounterSample]:
        """Return the samples taken since the last call, ordered by time within each container."""
        ...

    def is_current(self, since: float) -> bool:
        """Return whether the counters of all running containers were read at or after ``since``."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what a recording's header says about the platform, including its ``problems``."""
        ...

    def find_result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """Return the ``result.json`` of a run that the services keep, or None if there is none yet.

        With ``run_id`` None, this is the newest result that finished at or after ``since``, a time of ``now``.
        """
        ...

    def close(self) -> None:
        """Release connections, threads and files."""
        ...
