"""One reading of one container's cumulative CPU counter, and the sources that give readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from common.errors import PipelineError

#: The services of the pipeline, in the order events go through them.
PIPELINE = ("data-loader", "data-processor", "analysis", "visualisation", "rabbitmq")
#: The name under which the machine itself is recorded; it belongs to no sum.
HOST = "host"

#: ``started``: the counter is 0, the container is born; ``final``: it has ended, and this is all it used.
State = Literal["started", "running", "final"]


class MonitorError(PipelineError):
    """Nothing can be measured, or a recording cannot be read (exit code 1)."""


@dataclass(frozen=True)
class Reading:
    """One reading of a counter.

    ``time`` is when the counter had this value, not when we asked, and
    ``started`` when this life of the container began, both in seconds since
    1970 (UTC); a restarted container begins another life, whose counter starts
    from zero. ``cpu_seconds`` is user and system time of all threads since
    then. ``memory_bytes`` is the working set: what is in use without the
    inactive part of the page cache. None is what the source does not have.
    ``rate_cores`` is the source's own figure for the first reading, when there
    is no earlier one to subtract.
    """

    time: float
    service: str
    replica: str
    container: str
    started: float
    cpu_seconds: float
    state: State = "running"
    restarts: int = 0
    memory_bytes: int | None = None
    network_rx_bytes: int | None = None
    network_tx_bytes: int | None = None
    disk_read_bytes: int | None = None
    disk_write_bytes: int | None = None
    throttled_seconds: float | None = None
    rate_cores: float | None = None

    @property
    def life(self) -> tuple[str, float]:
        """What the counter belongs to: a container between one start and one end."""
        return self.container, self.started


class Source(Protocol):
    """Where readings come from: a Docker engine, a cluster, or this machine's processes."""

    #: How long ``fresh`` may take to become true.
    refresh_s: float

    def read(self) -> Sequence[Reading]:
        """The readings that are new since the last call, in order of time for each container."""
        ...

    def fresh(self, since: float) -> bool:
        """Whether the counter of everything that runs has been read at or after ``since``."""
        ...

    def about(self) -> Mapping[str, Any]:
        """What a recording's header says of the platform; see ``recording.Header``."""
        ...

    def result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """The result.json of a run that the services have kept.

        With ``run_id`` None it is the newest that was finished after ``since``.
        None where there is none yet.
        """
        ...

    def close(self) -> None:
        """Stop reading."""
        ...
