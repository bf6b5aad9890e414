"""All four services in this process, over the embedded transport, with more processes for a run that takes longer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from types import TracebackType
from typing import Self

from common import topology
from common.errors import WorkerLost
from common.memory import keep_freed_memory
from common.service import Service, serve
from common.settings import Settings
from common.topology import Queue
from common.transport.embedded import EmbeddedTransport
from workers.analysis.service import Analysis
from workers.analysis.store import Store
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor
from workers.lane import Lane
from workers.visualisation.service import Visualisation

log = logging.getLogger(__name__)

#: A process takes about a second to start: what is done by then needs none.
LANES_AFTER_S = 1.0
_LOOK_EVERY_S = 0.1


class EmbeddedServices:
    """The services, one thread each; a context manager.

    Where chunks have waited for a second, a process a core (``lanes``, or as many
    cores as this process may use) is started, and takes them through data-loader
    and data-processor instead. The analysis keeps its rows in memory, and whoever
    follows a run writes its folder.
    """

    def __init__(
        self, settings: Settings, *, data_loaders: int = 1, data_processors: int = 1, lanes: int | None = None
    ) -> None:
        self.transport = EmbeddedTransport()
        self._settings = settings
        self._stop = threading.Event()
        self._lanes_wanted, self._lanes_ready = threading.Event(), threading.Event()
        self._unready = _cores() if lanes is None else lanes
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._add(DataLoader(settings), queues=[topology.RUNS])
        for _ in range(data_loaders):
            self._add(DataLoader(settings), queues=[topology.CHUNKS], until=self._lanes_ready)
        for _ in range(data_processors):
            self._add(DataProcessor(settings))
        self._add(Analysis(settings, Store(None)))
        self._add(Visualisation(settings, keep=False))
        if self._unready:
            for target in [self._want_lanes, *[self._lane] * self._unready]:
                self._threads.append(threading.Thread(target=target, name="lane", daemon=True))

    def is_alive(self) -> bool:
        """True while all services run; raises what ended one that does not."""
        for failure in self._failures:
            raise failure
        return True

    def prepare(self) -> None:
        """Start the other processes now, and return when they are ready: for who measures."""
        self._lanes_wanted.set()
        while self._unready and self.is_alive():
            self._lanes_ready.wait(_LOOK_EVERY_S)

    def __enter__(self) -> Self:
        keep_freed_memory()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for event in (self._stop, self._lanes_wanted, self._lanes_ready):
            event.set()
        self.transport.shut_down()
        for thread in self._threads:
            thread.join(timeout=5)

    def _add(
        self, service: Service, queues: Sequence[Queue] | None = None, until: threading.Event | None = None
    ) -> threading.Thread:
        """A thread in which a service takes what is in its queues, or in some of them."""

        def run() -> None:
            try:
                serve(service, self.transport.open(queues or service.consumes), until or self._stop)
            except BaseException as failure:
                self._failures.append(failure)

        thread = threading.Thread(target=run, name=service.name, daemon=True)
        self._threads.append(thread)
        return thread

    def _want_lanes(self) -> None:
        """Have the lanes started where chunks do not stop waiting."""
        idle_since = time.monotonic()
        while not self._lanes_wanted.wait(_LOOK_EVERY_S):
            if not self.transport.depth(topology.CHUNKS.name):
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > LANES_AFTER_S:
                self._lanes_wanted.set()

    def _lane(self) -> None:
        self._lanes_wanted.wait()
        if self._stop.is_set():
            return
        try:
            with closing(Lane(self._settings)) as lane:
                try:
                    lane.wait_until_ready(self._stop)
                finally:
                    self._count_ready()
                serve(lane, self.transport.open(lane.consumes), self._stop)
        except WorkerLost as lost:
            log.warning("%s; its chunks are read in this one", lost)
            self._add(DataLoader(self._settings), queues=[topology.CHUNKS]).start()
        except BaseException as failure:
            self._failures.append(failure)

    def _count_ready(self) -> None:
        """A lane is ready, or lost; after the last one of them the chunks are theirs alone."""
        with self._lock:
            self._unready -= 1
        if not self._unready:
            self._lanes_ready.set()


def _cores() -> int:
    """How many cores this process may use; on macOS, which does not say, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
