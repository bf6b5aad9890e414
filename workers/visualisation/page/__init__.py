"""The web page: runs under way, and finished runs from the output folder.

This module serves it with uvicorn in a thread, and adds the security headers to every response.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from common.analyses import Analyses
from common.listeners import listening_socket
from workers.visualisation.archive import Archive
from workers.visualisation.page.live import LiveRuns
from workers.visualisation.plots.pool import DrawingPool

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn import Server

log = logging.getLogger(__name__)

#: How long a connection may take to send the header of a request.
REQUEST_TIMEOUT_S = 10
#: The number of connections that wait to be accepted. One iteration of the event loop accepts as many, before it
#: closes those above the limit.
_BACKLOG = 32
_TICK_S = 0.5
_SHUTDOWN_S = 2

#: The names of this machine. With another one, a browser shows the address of a foreign site that has given it the
#: address of this machine (DNS rebinding), and would let that site read the page.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")

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
    """Serves the page on ``port`` of the address ``host`` in a thread. Raises OSError if they cannot be used.

    Port 0 is any free one; ``port`` has its number then.
    On an address of this machine alone (127.0.0.1), a request must name this machine as its host. On others, the
    name by which viewers reach it is not known, and any is answered.
    """

    def __init__(
        self,
        host: str,
        port: int,
        live: LiveRuns,
        archive: Archive,
        pool: DrawingPool,
        *,
        analyses: Analyses,
        request_timeout_s: int = REQUEST_TIMEOUT_S,
    ) -> None:
        self._live, self._archive, self._pool, self._analyses = live, archive, pool, analyses
        self._host, self._request_timeout_s = host, request_timeout_s
        self._stopping = threading.Event()
        self._server: Server | None = None
        try:
            listener = listening_socket(host, port, _BACKLOG)
            address, self.port, *_ = listener.getsockname()
        except OSError as error:
            raise OSError(
                f"PAGE_HOST={host}, PAGE_PORT={port}: {error.strerror}; choose another port or address"
            ) from error
        self._is_local = ipaddress.ip_address(address).is_loopback
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
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            from workers.visualisation.page.app import Page
            from workers.visualisation.page.connections import PageConnection

            page = Page(self._live, self._archive, self._pool, self._stopping, self._analyses).application()
            hosts = (*LOCAL_HOSTS, self._host) if self._is_local else ("*",)
            self._server = uvicorn.Server(
                uvicorn.Config(
                    SecurityHeaders(TrustedHostMiddleware(page, hosts, www_redirect=False)), http=PageConnection,
                    ws="none", lifespan="off", log_config=None, log_level="error", access_log=False,
                    server_header=False, backlog=_BACKLOG, timeout_keep_alive=self._request_timeout_s,
                    timeout_graceful_shutdown=_SHUTDOWN_S,
                )
            )  # fmt: skip
            if not self._stopping.is_set():
                asyncio.run(_run(self._server, listener))


async def _run(server: Server, listener: socket.socket) -> None:
    """Run the server. If no file can be opened for a connection, that is logged once, not at each attempt."""
    is_logged = False

    def log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal is_logged
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif not is_logged:
            is_logged = True
            log.error("the page accepts no connection for now: %s", error)

    asyncio.get_running_loop().set_exception_handler(log_error)
    await server.serve(sockets=[listener])


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
