"""Send the main part of a page to its viewers whenever it changes, and draw the plots of the runs that they view."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from common.listeners import connection_limit
from workers.visualisation.page.document import main_histogram, to_document
from workers.visualisation.page.live import LiveRun
from workers.visualisation.page.partial import scaled_result
from workers.visualisation.plots.pool import DrawingPool

log = logging.getLogger(__name__)

TICK_S = 1.0
HEARTBEAT_TICKS = 20
#: Half of the connections that the page may have, so that the others can reload.
MAX_VIEWERS = 500

#: The shortest time from one drawing of a run to the next, in seconds, and in units of the time that one takes. It
#: doubles with each drawing: those of a longer run take a fiftieth of a core.
MIN_INTERVAL_S = 1.0
MIN_INTERVAL_DRAWINGS, MAX_INTERVAL_DRAWINGS = 3, 50
DPI = 100
MAX_PLOTS = 20

Drawing = Future[dict[str, bytes]]


@dataclass(frozen=True)
class State:
    """The state of a page: the content has changed if ``key`` has; ``is_last`` says that it will not change again."""

    key: object
    render: Callable[[], str]
    is_last: bool = False


@dataclass(frozen=True)
class _Rendered:
    """A rendered state, as the event that is sent to the viewers."""

    key: object
    event: bytes
    is_last: bool


class Streams:
    """The streams of a server; they end when ``stopping`` is set. Used from the thread of its event loop only.

    The state of a page is looked up and rendered once in TICK_S, whatever the number of its viewers.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._viewers = 0
        #: For each page, when its state was last looked up (by the clock of the event loop), and that state.
        self._pages: dict[str, tuple[float, asyncio.Task[_Rendered]]] = {}
        self._rendered: dict[str, _Rendered] = {}

    def response(self, page: str, state: Callable[[], State]) -> Response:
        """Return the stream of a page; raises an HTTPException (503) if there are too many viewers."""
        if self._viewers >= connection_limit(2 * MAX_VIEWERS) // 2:
            raise HTTPException(503)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._stream(page, state), media_type="text/event-stream", headers=headers)

    async def _stream(self, page: str, state: Callable[[], State]) -> AsyncIterator[bytes]:
        self._viewers += 1
        try:
            sent_key, unchanged_ticks = None, 0
            while not self._stopping.is_set():
                try:
                    now = await asyncio.shield(self._lookup(page, state))
                except HTTPException:  # the run is no longer known
                    break
                if now.key != sent_key:
                    sent_key, unchanged_ticks = now.key, 0
                    yield now.event
                elif (unchanged_ticks := unchanged_ticks + 1) % HEARTBEAT_TICKS == 0:
                    yield b": heartbeat\n\n"
                if now.is_last:
                    yield b"event: end\ndata: end\n\n"
                    break
                await asyncio.sleep(TICK_S)
        finally:
            self._viewers -= 1

    def _lookup(self, page: str, state: Callable[[], State]) -> asyncio.Task[_Rendered]:
        """Return the task that looks up the state of a page, or that of the last TICK_S."""
        now_s = asyncio.get_running_loop().time()
        if page not in self._pages or now_s - self._pages[page][0] >= TICK_S:
            if len(self._pages) > MAX_VIEWERS:
                self._pages.clear()
                self._rendered.clear()
            task = asyncio.create_task(self._render(page, state))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may have no viewer left
            self._pages[page] = now_s, task
        return self._pages[page][1]

    async def _render(self, page: str, state: Callable[[], State]) -> _Rendered:
        now, last = await run_in_threadpool(state), self._rendered.get(page)
        if last is None or last.key != now.key or last.is_last != now.is_last:
            text = await run_in_threadpool(now.render)
            event = "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
            last = self._rendered[page] = _Rendered(now.key, event.encode(), now.is_last)
        return last


@dataclass(frozen=True)
class PartialPlot:
    """The plot of one version of a partial result; ``png`` is empty if the result cannot be drawn."""

    version: int
    png: bytes
    next_s: float  # when the next version may be drawn, by the monotonic clock
    units: int  # the interval to then, in units of the time that one drawing takes


class PartialPlots:
    """The latest plots of up to MAX_PLOTS runs: the main histograms of their partial results."""

    def __init__(self, pool: DrawingPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._plots: OrderedDict[str, PartialPlot] = OrderedDict()
        self._drawings: dict[str, Drawing] = {}

    def plot(self, run_id: str) -> PartialPlot | None:
        """Return the latest plot of a run, if there is one."""
        with self._lock:
            return self._plots.get(run_id)

    def request(self, run: LiveRun) -> Drawing | None:
        """Draw a run if its partial result has changed; returns the drawing that has not finished, if any."""
        now = time.monotonic()
        with self._lock:
            drawing, latest = self._drawings.get(run.run_id), self._plots.get(run.run_id)
            if drawing is not None or run.result is None:
                return drawing
            if latest is not None and (latest.version == run.result_version or now < latest.next_s):
                return None
            histogram = main_histogram(to_document(run.result))
            if histogram is None:
                return None
            drawing = self._pool.submit(scaled_result(run) or run.result, histogram, ("png",), DPI)
            self._drawings[run.run_id] = drawing
        drawing.add_done_callback(lambda drawing: self._keep(run, drawing, now))
        return drawing

    def _keep(self, run: LiveRun, drawing: Drawing, started_s: float) -> None:
        png = b""
        try:
            png = next(iter(drawing.result().values()))
        except Exception as error:  # the page is shown without the plot
            log.warning("run %s: the partial result cannot be drawn: %s", run.run_id, error)
        took_s = time.monotonic() - started_s
        with self._lock:
            self._drawings.pop(run.run_id, None)
            latest = self._plots.get(run.run_id)
            units = MIN_INTERVAL_DRAWINGS if latest is None else min(2 * latest.units, MAX_INTERVAL_DRAWINGS)
            next_s = started_s + max(MIN_INTERVAL_S, units * took_s)
            self._plots[run.run_id] = PartialPlot(run.result_version, png, next_s, units)
            self._plots.move_to_end(run.run_id)
            while len(self._plots) > MAX_PLOTS:
                self._plots.popitem(last=False)
