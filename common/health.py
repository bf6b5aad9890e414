"""What a service does at the moment: its metrics, and health checks over HTTP.

``/healthz`` answers 200 while the service's loop runs, ``/readyz`` while it is
also connected to the broker, and ``/metrics`` in Prometheus' text format. No
port is opened unless METRICS_PORT is set.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common import messages
from common.delivery import Delivery
from common.listeners import connection_limit, listening_socket
from common.messages import Message, Progress, State
from common.settings import LOCAL_HOST

log = logging.getLogger(__name__)

#: The most connections at a time, and how long each may stay silent.
MAX_CONNECTIONS = 32
REQUEST_TIMEOUT_S = 10
_ACCEPT_PAUSE_S = 1.0
#: A loop without a heartbeat for so long is stuck, unless it is handling a message ...
STUCK_S = 30.0
#: ... which may take longer. While a file is fetched, each part that arrives is a heartbeat.
STUCK_IN_A_MESSAGE_S = 1800.0


class ServiceMetrics:
    """The metrics of one service, and the state of its loop.

    ``message`` is the message that it handles, None while it has none or has not decoded it. ``is_publishing`` is set
    while it publishes the outcome. ``events`` and ``received_bytes`` are those of ``ServiceStatus``.
    """

    def __init__(self, service: str, connected: Callable[[], bool] = lambda: False) -> None:
        self.connected = connected
        self.queue_depths: Callable[[], Mapping[str, int]] = dict
        self.message: Message | None = None
        self.is_publishing = False
        self.events = 0
        self.received_bytes: dict[str, int] = {}
        self._last_heartbeat: float | None = None
        self._busy = False
        self.registry = CollectorRegistry()
        r = self.registry
        Gauge("atlas_service", "The service, always 1", ["service"], registry=r).labels(service).set(1)
        self._handled = Counter("atlas_messages_handled", "Messages handled, by queue", ["queue"], registry=r)
        self._failed = Counter("atlas_messages_failed", "Messages dead-lettered, by queue", ["queue"], registry=r)
        self._events = Counter("atlas_events", "Events (file entries) handled", registry=r)
        self._seconds = Histogram(
            "atlas_handling_seconds", "Seconds a message took, by its queue and kind", ["queue", "kind"], registry=r
        )
        in_flight = Gauge("atlas_messages_in_flight", "Messages being handled", registry=r)
        in_flight.set_function(lambda: float(self._busy))
        is_connected = Gauge("atlas_connected", "1 while connected to the broker", registry=r)
        is_connected.set_function(lambda: float(self.connected()))
        r.register(_QueueDepths(self))

    def heartbeat(self) -> None:
        """Note that the loop runs, or that the handling of a message makes progress."""
        self._last_heartbeat = time.monotonic()

    @contextmanager
    def handling(self, delivery: Delivery) -> Iterator[None]:
        """Note, as a context manager, that a delivery is being handled."""
        queue, kind = delivery.queue, delivery.kind
        self.received_bytes[queue] = self.received_bytes.get(queue, 0) + len(delivery.body)
        self._busy = True
        self.heartbeat()
        try:
            with self._seconds.labels(queue, kind if kind in messages.KINDS else "unknown").time():
                yield
        finally:
            self._busy = self.is_publishing = False
            self.message = None
            self.heartbeat()

    def handled(self, queue: str, outcome: Sequence[Message]) -> None:
        """Count a message that was handled, and the events in its outcome."""
        self._handled.labels(queue).inc()
        events = sum(m.chunk.stop - m.chunk.start for m in outcome if isinstance(m, Progress) and m.stage != "plan")
        self.events += events
        self._events.inc(events)

    def failed(self, queue: str) -> None:
        """Count a message that was dead-lettered."""
        self._failed.labels(queue).inc()

    def state(self) -> State:
        """Return what the loop does at the moment."""
        if self.is_publishing:
            return "waiting"
        return "busy" if self._busy else "idle"

    def problem(self) -> str | None:
        """Return why the loop seems stuck; None while it runs, or waits for its first connection."""
        if self._last_heartbeat is None:
            return None
        quiet_s = time.monotonic() - self._last_heartbeat
        if quiet_s > (STUCK_IN_A_MESSAGE_S if self._busy else STUCK_S):
            return f"stuck for {quiet_s:.0f} s {'in a message' if self._busy else 'between messages'}"
        return None


@contextmanager
def listen(service: ServiceMetrics, port: int, host: str = LOCAL_HOST) -> Iterator[None]:
    """Serve /healthz, /readyz and /metrics in the background; raises OSError where ``host`` or ``port`` is unusable."""
    metrics = make_wsgi_app(service.registry)

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environment.get("PATH_INFO")
        if path == "/metrics":
            result: Iterable[bytes] = metrics(environment, start_response)
            return result
        problem: str | None
        if path == "/healthz":
            problem = service.problem()
        elif path == "/readyz":
            problem = service.problem() or (None if service.connected() else "not connected to the broker")
        else:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/healthz, /readyz or /metrics\n"]
        status = "200 OK" if problem is None else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{problem or 'ok'}\n".encode()]

    try:
        made = _Server(host, port)
    except OSError as error:
        raise OSError(f"METRICS_HOST={host}, METRICS_PORT={port}: {error.strerror}; choose another port") from error
    with made as server:
        server.set_app(answer)
        thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _QueueDepths(Collector):
    """Reads the queue depths from the broker each time /metrics is requested."""

    def __init__(self, service: ServiceMetrics) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Return the number of waiting messages by queue."""
        what = "Messages waiting in the queues that the service consumes and in their dead-letter queues"
        depths = GaugeMetricFamily("atlas_queue_messages", what, labels=["queue"])
        for queue, depth in self._service.queue_depths().items():
            depths.add_metric([queue], depth)
        yield depths


class _Server(ThreadingMixIn, WSGIServer):
    """A server that closes the oldest connection if too many are open, so that silent ones do not block probes."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self._open: deque[Any] = deque()
        self._is_logged = False
        super().__init__((host, port), _Silent, bind_and_activate=False)
        self.socket.close()
        self.socket = listening_socket(host, port, MAX_CONNECTIONS)
        # The server would look up its own name.
        self.server_name, self.server_port = host, port
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; if no file can be opened for it, that is logged once."""
        try:
            return super().get_request()
        except OSError as error:
            if not self._is_logged:
                self._is_logged = True
                log.error("METRICS_PORT accepts no connection for now: %s", error)
            time.sleep(_ACCEPT_PAUSE_S)  # the connection is still there, and would be reported again at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread."""
        self._open.append(request)
        if len(self._open) > connection_limit(MAX_CONNECTIONS):
            with suppress(OSError, IndexError):
                self._open.popleft().shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Close a connection."""
        with suppress(ValueError):
            self._open.remove(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: a client that is silent or goes away is no error of the service."""


class _Silent(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a probe comes every few seconds."""
