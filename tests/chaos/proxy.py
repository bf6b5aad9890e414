"""A TCP proxy on loopback between services and broker, which cuts, refuses, delays and holds connections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass

_PIECE = 16_384
#: Closing such a socket sends a reset, and nothing that was still to be sent.
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Line:
    """One connection through the proxy; ``cut_after`` more pieces from the broker it is cut, None: never."""

    client: socket.socket
    broker: socket.socket
    client_port: int
    cut_after: int | None = None

    def close(self, *, reset: bool) -> None:
        """Close both sides; with a reset, what is on its way is lost."""
        for end in (self.client, self.broker):
            if reset:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            end.close()


class Proxy:
    """Forwards 127.0.0.1:``port`` to 127.0.0.1:``broker_port``; a context manager.

    ``delay_s`` holds every piece of data up; ``refuses`` resets whoever
    connects; ``cut_new_after`` cuts new connections after so many pieces of
    data from the broker, of which the first is Connection.Start, the second
    Connection.Tune.
    """

    def __init__(self, broker_port: int) -> None:
        self.delay_s = 0.0
        self.refuses = False
        self.cut_new_after: int | None = None
        self.cuts = 0
        self._broker_port = broker_port
        self._flows = threading.Event()
        self._flows.set()
        self._lines: set[Line] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.let_flow()
        self.cut()

    def cut(self) -> int:
        """Reset every connection, and return how many there were."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            self._end(line, reset=True)
        return len(lines)

    def hold(self) -> None:
        """Let nothing through, in either direction, while the connections stand."""
        self._flows.clear()

    def let_flow(self) -> None:
        """Let everything through again."""
        self._flows.set()

    def client_ports(self) -> set[int]:
        """The ports of the clients that are connected."""
        with self._lock:
            return {line.client_port for line in self._lines}

    def _accept(self) -> None:
        while True:
            try:
                client, (_, client_port) = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
                client.close()
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self._broker_port), timeout=5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            line = Line(client, broker, client_port, self.cut_new_after)
            with self._lock:
                self._lines.add(line)
            for source, sink, from_broker in ((client, broker, False), (broker, client, True)):
                threading.Thread(target=self._pump, args=(line, source, sink, from_broker), daemon=True).start()

    def _pump(self, line: Line, source: socket.socket, sink: socket.socket, from_broker: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._flows.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(piece)
                if from_broker and line.cut_after is not None:
                    line.cut_after -= 1
                    if line.cut_after <= 0:
                        self.cuts += 1
                        break
        self._end(line, reset=False)

    def _end(self, line: Line, *, reset: bool) -> None:
        with self._lock:
            self._lines.discard(line)
        line.close(reset=reset)
