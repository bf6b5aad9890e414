"""The page's own thread: listens at once, and loads the framework when the first visitor comes."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING

from workers.visualisation.archive import Archive
from workers.visualisation.page.live import LiveRuns

if TYPE_CHECKING:
    from uvicorn import Server

MAX_CONNECTIONS = 1000
_TICK_S = 0.5
_GRACE_S = 2


class PageServer:
    """Answers on ``port``, in the background. Raises OSError where the port is taken."""

    def __init__(self, port: int, live: LiveRuns, archive: Archive) -> None:
        self._live, self._archive = live, archive
        self._stopping = threading.Event()
        self._server: Server | None = None
        try:
            listener = socket.create_server(("0.0.0.0", port), backlog=128)  # noqa: S104  viewers come from outside
        except OSError as error:
            raise OSError(f"PAGE_PORT={port}: {error.strerror}; choose another port") from error
        self._thread = threading.Thread(target=self._serve, args=(listener,), name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the viewers away, and stop."""
        self._stopping.set()
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(timeout=2 * _GRACE_S)

    def _serve(self, listener: socket.socket) -> None:
        with listener:
            while not select.select([listener], [], [], _TICK_S)[0]:
                if self._stopping.is_set():
                    return
            import uvicorn

            from workers.visualisation.page.app import Page

            page = Page(self._live, self._archive, self._stopping)
            self._server = uvicorn.Server(
                uvicorn.Config(
                    page.application(), http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
                    server_header=False, limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=_GRACE_S,
                )
            )  # fmt: skip
            try:
                if not self._stopping.is_set():
                    self._server.run(sockets=[listener])
            finally:
                page.close()
