"""The four services in one process, over the embedded transport, with worker processes for longer runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, cast

from common import topology
from common.errors import SettingsError, WorkerProcessError
from common.memory import keep_freed_memory
from common.messages import ChunkFailed, ChunkTask, Message, Span
from common.replica import software, this_process
from common.service import Service, serve
from common.settings import Settings, in_address
from common.topology import Queue
from common.transport.embedded import EmbeddedTransport
from common.worker_pool import WorkerPool, default_processes
from physics import ANALYSES
from physics.files import with_code
from workers import chunk_worker
from workers.analysis.service import AnalysisService
from workers.analysis.statistics.fit_pool import FitPool
from workers.analysis.store import Store
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor
from workers.visualisation.plots.pool import DrawingPool
from workers.visualisation.service import Visualisation

log = logging.getLogger(__name__)

#: A worker process takes about a second of CPU time to start. Worker processes are started only if the waiting chunks
#: need more CPU seconds than this; the estimate needs chunks of half a CPU second.
PROCESSES_FROM_CPU_S, MEASURED_CPU_S = 2.0, 0.5
_CHECK_EVERY_S = 0.1
#: How long the services may take to end, in seconds; after an error or an interrupt, what they still do is of no use.
END_S, END_IN_ERROR_S = 5.0, 0.5
#: A chunk whose worker process exits this often fails.
CHUNK_ATTEMPTS = 3


class EmbeddedServices:
    """The services, each in a thread of its own; a context manager.

    If the chunks that wait would take seconds of CPU time, ``processes`` worker processes (by
    default as many as there are cores this process may use) are started, which read
    and select chunks from then on. The analysis keeps its database in memory, and
    the result folder is written by the command that follows the run. With ``with_page`` the web page is served on
    PAGE_PORT or, without one, on any free port; raises SettingsError if the port cannot be used. ``fits`` and
    ``drawing`` are pools that were started before, and are closed here.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        data_loaders: int = 1,
        data_processors: int = 1,
        processes: int | None = None,
        with_page: bool = False,
        fits: FitPool | None = None,
        drawing: DrawingPool | None = None,
    ) -> None:
        self.transport = EmbeddedTransport()
        self._settings = settings
        self._number = default_processes() if processes is None else processes
        self._pool = WorkerPool(max(self._number, 1), attempts=CHUNK_ATTEMPTS, prepare=chunk_worker.prepare)
        self._fits = fits or FitPool()
        self._drawing = drawing or DrawingPool(analyses=settings.analyses)
        self._stop, self._processes_wanted, self._processes_ready = (threading.Event() for _ in range(3))
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._starter = threading.Thread(target=self._start_processes, name="starter", daemon=True)
        self._add(DataLoader(settings), queues=[topology.RUNS])
        for _ in range(data_loaders):
            self._add(DataLoader(settings), queues=[topology.CHUNKS], until=self._processes_ready)
        for _ in range(data_processors):
            self._add(DataProcessor(settings))
        self._add(AnalysisService(settings, Store(None), self._fits))
        try:
            visualisation = Visualisation(
                settings, keep=False, pool=self._drawing, page_port=settings.page_port if with_page else None
            )
        except OSError as error:
            raise SettingsError(str(error)) from None
        #: The address of the page; None without one.
        self.page_url = f"http://{in_address(settings.page_host)}:{visualisation.page_port}/" if with_page else None
        self._add(visualisation)

    def is_alive(self) -> bool:
        """Return True while all services run; raises the error that ended one.

        Raises WorkerProcessError if worker processes cannot be started.
        """
        for failure in self._failures:
            raise failure
        self._fits.check_start()
        return True

    def prepare(self) -> None:
        """Start the worker processes now, and return when they are ready."""
        self._processes_wanted.set()
        while self._starter.is_alive() and self.is_alive():
            self._starter.join(_CHECK_EVERY_S)

    def __enter__(self) -> Self:
        try:
            keep_freed_memory()
            # No process is started in the main thread, in which an interrupt would leave it without its work.
            for thread in (*self._threads, self._starter):
                thread.start()
        except BaseException:  # an interrupt from the keyboard
            self._close(END_IN_ERROR_S)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(END_S if error is None else END_IN_ERROR_S)

    def _close(self, timeout_s: float) -> None:
        for event in (self._stop, self._processes_wanted, self._processes_ready):
            event.set()
        self.transport.shut_down()
        for pool in (self._pool, self._fits, self._drawing):
            pool.close()
        deadline = time.monotonic() + timeout_s
        for thread in (self._starter, *self._threads):
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _add(
        self, service: Service, queues: Sequence[Queue] | None = None, until: threading.Event | None = None
    ) -> threading.Thread:
        """Add a thread in which a service consumes its queues, or some of them, until an event is set."""
        number = sum(thread.name == service.name for thread in self._threads) + 1
        process = this_process()
        service.replica = replace(process, name=f"{process.name}.{number}")
        service.software = software(embedded=True)

        def run() -> None:
            try:
                session = self.transport.open(queues or service.consumes)
                serve(service, session, until or self._stop, interrupt=self._stop)
            except BaseException as failure:
                self._failures.append(failure)

        thread = threading.Thread(target=run, name=service.name, daemon=True)
        self._threads.append(thread)
        return thread

    def _start_processes(self) -> None:
        """Start the worker processes when chunks have been waiting, and leave the chunks to them."""
        if not self._number or not self._wait_for_backlog():
            return
        try:
            self._pool.start()
            self._pool.wait_until_ready()
        except WorkerProcessError as error:
            if not self._stop.is_set():
                log.warning("%s; a thread reads the chunks", error)
            return
        for _ in range(self._number):
            self._add(_PooledDataLoader(self._settings, self._pool), queues=[topology.CHUNKS]).start()
        self._processes_ready.set()

    def _wait_for_backlog(self) -> bool:
        """Wait until the waiting chunks need PROCESSES_FROM_CPU_S, or the processes are wanted; False at the end.

        The CPU time of a chunk is estimated from the chunks that were taken since the queue was longest.
        """
        longest, longest_at_s = 0, 0.0
        while not self._processes_wanted.wait(_CHECK_EVERY_S):
            depth, now_s = self.transport.depth(topology.CHUNKS.name), time.process_time()
            if depth > longest or not depth:
                longest, longest_at_s = depth, now_s
            passed_s = now_s - longest_at_s
            a_chunk_s = passed_s / max(1, longest - depth)
            if passed_s > MEASURED_CPU_S and depth * a_chunk_s > PROCESSES_FROM_CPU_S:
                break
        return not self._stop.is_set()


class _PooledDataLoader(DataLoader):
    """A data-loader that has its chunks read and selected by worker processes."""

    def __init__(self, settings: Settings, pool: WorkerPool) -> None:
        super().__init__(settings)
        self._settings, self._pool = settings, pool

    def read(self, task: ChunkTask, before: Sequence[Span] = ()) -> Sequence[Message]:
        """Have a worker process read the chunk and select its events."""
        published = None if before else self.receipt.published
        try:
            outcome = self._pool.call(
                with_code,
                ANALYSES.code_of(task.settings.analysis, task.settings.analysis_sha256),
                chunk_worker.process_chunk,
                self._settings,
                task.encode(),
                before,
                software=self.software,
                published=published,
                redeliveries=self.receipt.redeliveries,
            )
        except WorkerProcessError as error:
            problem = f"the chunk could not be processed: {error}"
            return [ChunkFailed(task.chunk, problem, task.digest, self.spans("read", before))]
        return cast("Sequence[Message]", outcome)
