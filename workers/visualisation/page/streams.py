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

TICK_S = 0.5
HEARTBEAT_TICKS = 20
#: Half of the connections that the page may have, so that the others can reload.
MAX_VIEWERS = 500

#: The shortest time from one drawing of a run to the next, in seconds, and in units of the time that one takes.
MIN_INTERVAL_S = 1.0
MIN_INTERVAL_DRAWINGS = 3
DPI = 100
MAX_PLOTS = 20

Drawing = Future[dict[str, bytes]]


@dataclass(frozen=True)
class State:
    """The state of a page: the content has changed if ``key`` has; ``is_last`` says that it will not change again."""

    key: object
    render: Callable[[], str]
    is_last: bool = False


class Streams:
    """The streams of a server; they end when ``stopping`` is set."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._viewers = 0
        self._rendered: dict[str, tuple[object, str]] = {}

    def response(self, page: str, state: Callable[[], State]) -> Response:
        """Return the stream of a page; raises an HTTPException (503) if there are too many viewers."""
        if self._viewers >= connection_limit(2 * MAX_VIEWERS) // 2:
            raise HTTPException(503)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._stream(page, state), media_type="text/event-stream", headers=headers)

    async def _stream(self, page: str, state: Callable[[], State]) -> AsyncIterator[str]:
        self._viewers += 1
        try:
            sent_key, unchanged_ticks = None, 0
            while not self._stopping.is_set():
                try:
                    now, text = await run_in_threadpool(self._changed, page, state, sent_key)
                except HTTPException:  # the run is no longer known
                    break
                sent_key = now.key
                if text is not None:
                    unchanged_ticks = 0
                    yield "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
                elif (unchanged_ticks := unchanged_ticks + 1) % HEARTBEAT_TICKS == 0:
                    yield ": heartbeat\n\n"
                if now.is_last:
                    yield "event: end\ndata: end\n\n"
                    break
                await asyncio.sleep(TICK_S)
        finally:
            self._viewers -= 1

    def _changed(self, page: str, state: Callable[[], State], sent_key: object) -> tuple[State, str | None]:
        """Return the state of a page, and its main part if it has changed; all viewers share one rendering."""
        now = state()
        if now.key == sent_key:
            return now, None
        rendered = self._rendered.get(page)
        if rendered is None or rendered[0] != now.key:
            rendered = (now.key, now.render())
            if len(self._rendered) > MAX_VIEWERS:
                self._rendered.clear()
            self._rendered[page] = rendered
        return now, rendered[1]


@dataclass(frozen=True)
class PartialPlot:
    """The plot of one version of a partial result; ``png`` is empty if the result cannot be drawn."""

    version: int
    png: bytes
    next_s: float  # when the next version may be drawn, by the monotonic clock


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
        next_s = started_s + max(MIN_INTERVAL_S, MIN_INTERVAL_DRAWINGS * (time.monotonic() - started_s))
        with self._lock:
            self._drawings.pop(run.run_id, None)
            self._plots[run.run_id] = PartialPlot(run.result_version, png, next_s)
            self._plots.move_to_end(run.run_id)
            while len(self._plots) > MAX_PLOTS:
                self._plots.popitem(last=False)
