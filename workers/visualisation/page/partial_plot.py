"""The picture of a run under way: drawn only while somebody watches, and never two at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from workers.visualisation.drawing import ONE_AT_A_TIME
from workers.visualisation.page.live import LiveRun
from workers.visualisation.plots import histogram_figure
from workers.visualisation.rendering import rendered

log = logging.getLogger(__name__)

EVERY_S = 1.0
#: Drawing takes at most a third of the time, however slow the machine.
SHARE = 3
DPI = 100
MAX_PICTURES = 20


@dataclass(frozen=True)
class Picture:
    """A png, and the version of the partial result that it shows."""

    version: int
    png: bytes


class Painter:
    """Draws the m4l histogram of partial results, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="painter")
        self._lock = threading.Lock()
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._drawing: dict[str, Future[None]] = {}
        self._not_before = 0.0

    def picture(self, run_id: str) -> Picture | None:
        """The last picture of a run, if there is one."""
        with self._lock:
            return self._pictures.get(run_id)

    def watch(self, run: LiveRun) -> Future[None] | None:
        """Somebody looks at a run: draw it anew if there is news and it is time; returns what is being drawn."""
        with self._lock:
            under_way = self._drawing.get(run.run_id)
            known = self._pictures.get(run.run_id)
            is_old = run.result is not None and (known is None or known.version < run.result_version)
            if under_way is None and is_old and time.monotonic() >= self._not_before:
                under_way = self._drawing[run.run_id] = self._thread.submit(self._draw, run)
            return under_way

    def close(self) -> None:
        """Draw nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw(self, run: LiveRun) -> None:
        began = time.monotonic()
        png = b""
        try:
            with ONE_AT_A_TIME:
                png = rendered(histogram_figure(run.result or {}), "png", dpi=DPI)["png"]
        except Exception as error:  # whatever is in it: the page goes on without this picture
            log.warning("the partial result of run %s cannot be drawn: %s", run.run_id, error)
        finally:
            now = time.monotonic()
            with self._lock:
                self._not_before = now + max(EVERY_S, SHARE * (now - began)) - (now - began)
                self._drawing.pop(run.run_id, None)
                self._pictures[run.run_id] = Picture(run.result_version, png)
                self._pictures.move_to_end(run.run_id)
                while len(self._pictures) > MAX_PICTURES:
                    self._pictures.popitem(last=False)
