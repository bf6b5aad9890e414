"""A connection to the page: how long it may wait for a request, and which one is closed if there are too many."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from common.listeners import connection_limit

MAX_CONNECTIONS = 1000


class PageConnection(H11Protocol):
    """A connection that is closed unless the header of each request arrives within ``timeout_keep_alive`` seconds.

    uvicorn alone closes only a connection that stays silent after a response. Where ``connection_limit`` is exceeded,
    the connection that has waited longest for a request is closed, or the new one if all have a response under way.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait_for_request()
        if len(self.connections) > connection_limit(MAX_CONNECTIONS):
            waiting = [one for one in self.connections if isinstance(one, PageConnection) and one.waits_until_s]
            min(waiting, key=lambda one: one.waits_until_s).abort()

    def data_received(self, data: bytes) -> None:
        """Handle data; after the header of a request, there is no deadline until its response is complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def waits_until_s(self) -> float:
        """When the header of a request must have arrived, by the clock of the event loop; 0 during a response."""
        return 0.0 if self._timer is None else self._timer.when()

    def abort(self) -> None:
        """Close the connection at once."""
        self._stop_waiting()
        self.transport.abort()

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.timeout_keep_alive, self.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
