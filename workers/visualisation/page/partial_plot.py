"""Draw the plot of a run under way, only while a viewer has the run's page open."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

from workers.visualisation.page.live import LiveRun
from workers.visualisation.plots.pool import DrawingPool

log = logging.getLogger(__name__)

#: The shortest time from one drawing of a run to the next, in seconds, and in units of the time that one takes.
MIN_INTERVAL_S = 1.0
MIN_INTERVAL_DRAWINGS = 3
DPI = 100
MAX_PLOTS = 20

Drawing = Future[dict[str, bytes]]


@dataclass(frozen=True)
class Plot:
    """The plot of one version of a partial result; ``png`` is empty if the result cannot be drawn."""

    version: int
    png: bytes
    next_s: float  # when the next version may be drawn, by the monotonic clock


class PartialPlots:
    """The latest plots of up to MAX_PLOTS runs: the m4l histograms of their partial results."""

    def __init__(self, pool: DrawingPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._plots: OrderedDict[str, Plot] = OrderedDict()
        self._drawings: dict[str, Drawing] = {}

    def plot(self, run_id: str) -> Plot | None:
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
            drawing = self._pool.submit(run.result, "m4l", ("png",), DPI)
            self._drawings[run.run_id] = drawing
        drawing.add_done_callback(lambda drawing: self._keep(run, drawing, now))
        return drawing

    def _keep(self, run: LiveRun, drawing: Drawing, started_s: float) -> None:
        png = b""
        try:
            png = drawing.result()["m4l.png"]
        except Exception as error:  # the page is shown without the plot
            log.warning("run %s: the partial result cannot be drawn: %s", run.run_id, error)
        next_s = started_s + max(MIN_INTERVAL_S, MIN_INTERVAL_DRAWINGS * (time.monotonic() - started_s))
        with self._lock:
            self._drawings.pop(run.run_id, None)
            self._plots[run.run_id] = Plot(run.result_version, png, next_s)
            self._plots.move_to_end(run.run_id)
            while len(self._plots) > MAX_PLOTS:
                self._plots.popitem(last=False)
