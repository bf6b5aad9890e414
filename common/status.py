"""The status messages of a replica: what it does, how much CPU time and memory it uses, and the states of queues."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from common import topology
from common.health import ServiceMetrics
from common.messages import Chunk, QueueState, QueueStatus, ServiceStatus, State, run_of
from common.replica import Replica, usage
from common.transport import Session
from common.version import VERSION

EVERY_S = 1.0


class StatusReporter:
    """Publishes the status of a replica every second, in a thread of its own; a context manager.

    The last message, at the end, says that the replica stops. With ``queues``, the states of the queues are published,
    too.
    """

    def __init__(
        self,
        service: str,
        replica: Replica,
        session: Session,
        metrics: ServiceMetrics,
        stop: threading.Event,
        *,
        queues: bool = False,
    ) -> None:
        self._service, self._replica, self._session = service, replica, session
        self._metrics, self._stop, self._reports_queues = metrics, stop, queues
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def status(self) -> ServiceStatus:
        """Return what the replica does at the moment."""
        replica, message = self._replica, self._metrics.message
        chunk = getattr(message, "chunk", None)
        cpu_seconds, rss_bytes = usage()
        return ServiceStatus(
            service=self._service,
            replica=replica.name,
            host=replica.host,
            pid=replica.pid,
            state=self._state(),
            run=(message and run_of(message)) or "",
            work=str(chunk) if isinstance(chunk, Chunk) else getattr(message, "sample", None) or "",
            events=self._metrics.events,
            received_bytes=dict(self._metrics.received_bytes),
            cpu_seconds=cpu_seconds,
            rss_bytes=rss_bytes,
            since=replica.since,
            at=time.time(),
            version=VERSION,
        )

    def _state(self) -> State:
        if self._stop.is_set() or self._ended.is_set():
            return "stopping"
        state = self._metrics.state()
        return "waiting" if state == "idle" and self._session.waits_for_confirm() else state

    def _run(self) -> None:
        while True:
            is_last = self._ended.is_set()
            self._session.publish_or_drop(self.status())
            if is_last:
                return
            if self._reports_queues:
                self._session.publish_or_drop(self._queue_status())
            self._ended.wait(EVERY_S)

    def _queue_status(self) -> QueueStatus:
        depths = self._session.queue_depths(topology.QUEUES)
        found = {}
        for queue in topology.QUEUES:
            if queue.name in depths:
                dead_letters = depths.get(topology.dead_letter_queue(queue.name).name)
                found[queue.name] = QueueState(depths[queue.name], queue.limit, dead_letters)
        return QueueStatus(found, time.time())
