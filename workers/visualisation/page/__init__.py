"""The web page: runs under way, and finished runs from the output folder.

This module serves it with uvicorn in a thread, and adds the security headers to every response.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING

from workers.visualisation.archive import Archive
from workers.visualisation.page.live import LiveRuns
from workers.visualisation.plots.pool import DrawingPool

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn import Server

MAX_CONNECTIONS = 1000
_TICK_S = 0.5
_SHUTDOWN_S = 2

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class PageServer:
    """Serves the page on ``port`` in a thread. Raises OSError if the port cannot be used."""

    def __init__(self, port: int, live: LiveRuns, archive: Archive, pool: DrawingPool) -> None:
        self._live, self._archive, self._pool = live, archive, pool
        self._stopping = threading.Event()
        self._server: Server | None = None
        try:
            listener = socket.create_server(("0.0.0.0", port), backlog=128)  # noqa: S104  viewers are on other machines
        except OSError as error:
            raise OSError(f"PAGE_PORT={port}: {error.strerror}; choose another port") from error
        self._thread = threading.Thread(target=self._serve, args=(listener,), name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the viewers' streams and stop the server."""
        self._stopping.set()
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(timeout=2 * _SHUTDOWN_S)

    def _serve(self, listener: socket.socket) -> None:
        with listener:
            while not select.select([listener], [], [], _TICK_S)[0]:
                if self._stopping.is_set():
                    return
            # Imported at the first connection, because many services have no viewer.
            import uvicorn

            from workers.visualisation.page.app import Page

            page = Page(self._live, self._archive, self._pool, self._stopping)
            self._server = uvicorn.Server(
                uvicorn.Config(
                    SecurityHeaders(page.application()), http="h11", ws="none", lifespan="off", log_config=None,
                    access_log=False, server_header=False, limit_concurrency=MAX_CONNECTIONS,
                    timeout_graceful_shutdown=_SHUTDOWN_S,
                )
            )  # fmt: skip
            if not self._stopping.is_set():
                self._server.run(sockets=[listener])


class SecurityHeaders:
    """Middleware that adds the security headers which a response does not have."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application
        self._headers = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and add the headers to its response."""

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message.get("headers", [])
                names = {name for name, _ in given}
                message["headers"] = [*given, *(header for header in self._headers if header[0] not in names)]
            await send(message)

        await self._application(scope, receive, send_secured)
