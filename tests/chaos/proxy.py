"""A TCP proxy between the services and the broker that can cut, refuse, delay and hold connections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass

_PIECE = 16_384
#: The SO_LINGER option with which closing a socket sends a reset, and drops the data not sent yet.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class ProxiedConnection:
    """One connection through the proxy; it is cut after ``cut_after`` more pieces from the broker (None: never)."""

    client: socket.socket
    broker: socket.socket
    client_port: int
    cut_after: int | None = None

    def close(self, *, reset: bool) -> None:
        """Close both sides; with a reset, the data in transit is lost."""
        for end in (self.client, self.broker):
            if reset:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            end.close()


class Proxy:
    """Forwards 127.0.0.1:``port`` to 127.0.0.1:``broker_port``; a context manager.

    ``delay_s`` delays every piece of data; ``refuses`` resets every new
    connection; ``cut_new_after`` cuts new connections after so many pieces of
    data from the broker: the first is Connection.Start, the second
    Connection.Tune.
    """

    def __init__(self, broker_port: int) -> None:
        self.delay_s = 0.0
        self.refuses = False
        self.cut_new_after: int | None = None
        self.cuts = 0
        self._broker_port = broker_port
        self._forwarding = threading.Event()
        self._forwarding.set()
        self._connections: set[ProxiedConnection] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.cut()

    def cut(self) -> int:
        """Reset all connections, and return their number."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            self._end(connection, reset=True)
        return len(connections)

    def hold(self) -> None:
        """Forward no data in either direction; the connections stay open."""
        self._forwarding.clear()

    def release(self) -> None:
        """Forward data again."""
        self._forwarding.set()

    def client_ports(self) -> set[int]:
        """The ports of the connected clients."""
        with self._lock:
            return {connection.client_port for connection in self._connections}

    def _accept(self) -> None:
        while True:
            try:
                client, (_, client_port) = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                client.close()
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self._broker_port), timeout=5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            connection = ProxiedConnection(client, broker, client_port, self.cut_new_after)
            with self._lock:
                self._connections.add(connection)
            for source, sink, from_broker in ((client, broker, False), (broker, client, True)):
                threading.Thread(target=self._pump, args=(connection, source, sink, from_broker), daemon=True).start()

    def _pump(
        self, connection: ProxiedConnection, source: socket.socket, sink: socket.socket, from_broker: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._forwarding.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(piece)
                if from_broker and connection.cut_after is not None:
                    connection.cut_after -= 1
                    if connection.cut_after <= 0:
                        self.cuts += 1
                        break
        self._end(connection, reset=False)

    def _end(self, connection: ProxiedConnection, *, reset: bool) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close(reset=reset)
