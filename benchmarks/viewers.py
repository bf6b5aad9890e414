"""Measure what the viewers of a run's page cost: the run's time, CPU time, and the memory of the visualisation.

    python -m benchmarks.viewers [--viewers 1 200] [--events 30000000] [--rounds 3] [--cache DIR]

The services run with RabbitMQ on this machine. In each round there is a run without a viewer, and one with each of
these numbers of viewers. A viewer follows the stream of the run's page, and fetches each plot that this names, from
the run's first message to its end. The viewers use CPU time of the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import machine, markdown
from benchmarks.stack import READY_DEADLINE_S, WARM_UP, Stack, empty_stack, toy_release, wait_for_consumers
from common.settings import RunSettings
from common.submission import new_run_id
from tests.support.paths import ROOT
from tests.support.waiting import free_port

#: How often the memory is read, in seconds.
MEMORY_EVERY_S = 1.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_PLOT = re.compile(rb'src="(/runs/[^"]*/partial.png[^"]*)"')


@dataclass(frozen=True)
class Viewed:
    """A run with so many viewers: seconds, CPU seconds of all services and of the visualisation, and its memory.

    ``memory_mb`` has the resident memory of the visualisation's service every second, ``received_mb`` what the viewers
    received.
    """

    viewers: int
    seconds: float
    cpu_s: float
    visualisation_cpu_s: float
    memory_mb: list[float]
    received_mb: float


class Viewers:
    """Viewers of a run's page, in a thread; a context manager that ends when the streams of the page do.

    A viewer that has received nothing when the run ends, or is given up, receives no more.
    """

    def __init__(self, number: int, port: int, run_id: str) -> None:
        self.received = [0] * number
        self._ended = threading.Event()
        self._port, self._page = port, f"/runs/{run_id}/events"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._view_all()), daemon=True)

    def __enter__(self) -> Viewers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(READY_DEADLINE_S)

    async def _view_all(self) -> None:
        await asyncio.gather(*map(self._view, range(len(self.received))))

    async def _view(self, viewer: int) -> None:
        # The page does not know the run before its first message.
        while not self.received[viewer] and not self._ended.is_set():
            await asyncio.sleep(0.05)
            await self._follow(viewer)

    async def _follow(self, viewer: int) -> None:
        """Receive the stream of the page to its end, and each plot that it names on another connection."""
        plot, plots = None, await self._connect()
        stream, writer = await self._request(await self._connect(), self._page, "Connection: close\r\n")
        if b" 200 " in await stream.readline():
            while content := await stream.read(1 << 20):
                self.received[viewer] += len(content)
                named = _PLOT.search(content)
                if named and named[1] != plot:
                    plot = named[1]
                    plots = await self._request(plots, plot.decode())
                    self.received[viewer] += await self._receive(plots[0])
        for connection in (writer, plots[1]):
            connection.close()

    async def _connect(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _request(self, connection: Connection, path: str, header: str = "") -> Connection:
        """Send a request on a connection, or on a new one if the page has closed it; returns the connection."""
        if connection[0].at_eof():
            connection[1].close()
            connection = await self._connect()
        connection[1].write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n".encode())
        return connection

    async def _receive(self, reader: asyncio.StreamReader) -> int:
        """Receive a response; returns its size, 0 if the page closed the connection instead."""
        try:
            header = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return 0
        length = _LENGTH.search(header)
        assert length is not None, header
        return len(await reader.readexactly(int(length[1])))


@contextmanager
def memory_of_visualisation(stack: Stack) -> Iterator[list[float]]:
    """Read the resident memory of the visualisation's service in MB again and again; yields the list of them."""
    found: list[float] = []
    ended = threading.Event()
    (process,) = stack.processes["visualisation"]

    def read() -> None:
        while True:
            found.append(process.memory_info().rss / 1e6)
            if ended.wait(MEMORY_EVERY_S):
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def measure(stack: Stack, viewers: int, run: RunSettings, port: int) -> Viewed:
    """Measure a run with so many viewers of its page."""
    run_id = new_run_id(run.release)
    with memory_of_visualisation(stack) as memory_mb, Viewers(viewers, port, run_id) as viewing:
        measured = stack.run(run, run_id)
    cpu_s = measured.cpu_seconds
    received_mb = sum(viewing.received) / 1e6
    return Viewed(viewers, measured.seconds, sum(cpu_s.values()), cpu_s["visualisation"], memory_mb, received_mb)


def rows_of(measured: list[Viewed], numbers: list[int]) -> list[list[str]]:
    """Return the medians by number of viewers, and the ratios to the runs without one, round by round."""
    rows = [["viewers", "run [s]", "ratio", "CPU [s]", "ratio", "visualisation [s]", "memory [MB]", "received [MB]"]]
    without = [one for one in measured if not one.viewers]
    for number in numbers:
        of_number = [one for one in measured if one.viewers == number]
        pairs = list(zip(of_number, without, strict=True))
        memory = [value for one in of_number for value in one.memory_mb]
        rows.append(
            [
                str(number),
                f"{statistics.median(one.seconds for one in of_number):.2f}",
                f"{statistics.median(one.seconds / other.seconds for one, other in pairs):.3f}",
                f"{statistics.median(one.cpu_s for one in of_number):.2f}",
                f"{statistics.median(one.cpu_s / other.cpu_s for one, other in pairs):.3f}",
                f"{statistics.median(one.visualisation_cpu_s for one in of_number):.2f}",
                f"{min(memory):.0f} to {max(memory):.0f}",
                f"{statistics.median(one.received_mb for one in of_number):.1f}",
            ]
        )
    return rows


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.viewers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--viewers", type=int, nargs="+", default=[1, 200])
    parser.add_argument("--events", type=int, default=30_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="directory of the toy releases")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    for events in (arguments.events, WARM_UP.demo_events):
        toy_release(events, cache)
    numbers, port = [0, *arguments.viewers], free_port()
    measured = []
    with empty_stack(cache) as stack:
        for service in ("data_loader", "data_processor", "analysis"):
            stack.workers.start(service)
        stack.workers.start("visualisation", PAGE_PORT=str(port))
        wait_for_consumers(stack.vhost)
        stack.run(WARM_UP)
        for _ in range(arguments.rounds):
            for viewers in numbers:
                run = RunSettings(release="demo", demo_events=arguments.events)
                measured.append(measure(stack, viewers, run, port))
                print(measured[-1], flush=True)
    print(f"\n{markdown(rows_of(measured, numbers))}\n\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
