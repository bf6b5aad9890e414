"""Server-sent events: the main part of a page, sent anew whenever it has changed, to all who watch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

TICK_S = 0.5
HEARTBEAT_TICKS = 20
MAX_WATCHERS = 500

#: What a page depends on (another key, another page), how to render it, and whether it will change no more.
State = tuple[object, Callable[[], str], bool]


class Streams:
    """The streams of one page's server; they end when ``stopping`` is set."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._watchers = 0
        self._rendered: dict[str, tuple[object, str]] = {}

    def of(self, what: str, state: Callable[[], State]) -> Response:
        """The stream of the page called ``what``; it ends with the run. A 503 where too many watch."""
        if self._watchers >= MAX_WATCHERS:
            raise HTTPException(503)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._stream(what, state), media_type="text/event-stream", headers=headers)

    async def _stream(self, what: str, state: Callable[[], State]) -> AsyncIterator[str]:
        self._watchers += 1
        try:
            last, quiet = None, 0
            while not self._stopping.is_set():
                try:
                    last, text, is_last = await run_in_threadpool(self._news, what, state, last)
                except HTTPException:  # the run is gone
                    break
                if text is not None:
                    quiet = 0
                    yield "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
                elif (quiet := quiet + 1) % HEARTBEAT_TICKS == 0:
                    yield ": still here\n\n"
                if is_last:
                    yield "event: end\ndata: end\n\n"
                    break
                await asyncio.sleep(TICK_S)
        finally:
            self._watchers -= 1

    def _news(self, what: str, state: Callable[[], State], last: object) -> tuple[object, str | None, bool]:
        """The page's key, its main part where that key is not the ``last``, and whether it will change no more."""
        key, render, is_last = state()
        if key == last:
            return key, None, is_last
        known = self._rendered.get(what)
        if known is None or known[0] != key:  # one rendering for all who watch
            known = (key, render())
            if len(self._rendered) > MAX_WATCHERS:
                self._rendered.clear()
            self._rendered[what] = known
        return key, known[1], is_last
