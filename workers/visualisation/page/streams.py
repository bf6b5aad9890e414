"""Send the main part of a page to its viewers whenever it changes, as server-sent events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

TICK_S = 0.5
HEARTBEAT_TICKS = 20
MAX_VIEWERS = 500


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
        if self._viewers >= MAX_VIEWERS:
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
