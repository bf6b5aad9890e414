"""An HTTP server on this machine that answers as a test says, and the bytes of a ROOT file for it to send."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.paths import ROOT
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Address, Fetcher
from workers.data_loader.remote.http import CHUNK_BYTES
from workers.data_loader.remote.policy import DEFAULT_POLICY, RetryPolicy

SIZE = 3 * CHUNK_BYTES + 1000
HALF = 2 * CHUNK_BYTES
QUICK = RetryPolicy(first_delay_s=0.001, connect_timeout_s=0.6, read_timeout_s=1.0)


def root_file(seed: int, size: int = SIZE) -> bytes:
    """Return ``size`` random bytes between the header of a ROOT file and its list of free segments."""
    free_list = struct.pack(">ihiIhh", 28, 4, 10, 0, 18, 1) + struct.pack(">hii", 1, size, 2_000_000_000)
    header = struct.pack(">4sii", b"root", 62206, 100)
    header += struct.pack(">iiiiiBiiih", size, size - len(free_list), len(free_list), 1, 0, 4, 1, 0, 0, 1)
    return header + random.Random(seed).randbytes(size - len(header) - len(free_list)) + free_list


BODY, CHANGED_BODY = root_file(1), root_file(2)


def fetch(url: str, cache: Path, *, control: FetchControl | None = None, policy: RetryPolicy = DEFAULT_POLICY) -> Path:
    return Fetcher(cache, policy).fetch(Address(url), control)


def fetch_first(urls: Sequence[str], cache: Path, policy: RetryPolicy = QUICK) -> Path:
    return Fetcher(cache, policy).fetch_first([Address(url) for url in urls])[0]


class Request(BaseHTTPRequestHandler):
    """A request that is answered by the next step of the server's script."""

    server: ScriptedServer

    def do_GET(self) -> None:
        with self.server.counting:
            self.server.requests.append(dict(self.headers))
            step = self.server.script[min(len(self.server.requests), len(self.server.script)) - 1]
        step(self)

    def reply(self, status: int, body: bytes, announced: int | None = None, /, **headers: str) -> None:
        """Send a response; ``announced`` replaces the Content-Length of the body, -1 leaves it out."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if announced != -1:
            self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


Step = Callable[[Request], None]


class ScriptedServer(ThreadingHTTPServer):
    """An HTTP server that answers its n-th request by the n-th step; the last step repeats."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Request)
        self.script: list[Step] = []
        self.requests: list[dict[str, str]] = []
        self.counting = threading.Lock()
        self.release = threading.Event()

    def url(self, path: str = "/4lep/data_A.root") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[ScriptedServer]:
    with ScriptedServer(port) as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield it
        it.release.set()
        it.shutdown()
        thread.join()


def complete(body: bytes = BODY, **headers: str) -> Step:
    return lambda request: request.reply(200, body, **headers)


def status(code: int) -> Step:
    return lambda request: request.reply(code, b"no")


def short(**headers: str) -> Step:
    """Announce the full length, send half of it and close the connection."""
    return lambda request: request.reply(200, BODY[:HALF], SIZE, **headers)


def dropped(**headers: str) -> Step:
    """Reset the connection before the first byte of the body."""

    def step(request: Request) -> None:
        request.reply(200, b"", SIZE, **headers)
        request.wfile.flush()
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(request.connection.detach())

    return step


def ranged(body: bytes = BODY, etag: str = '"v1"') -> Step:
    """Answer Range and If-Range as RFC 9110 requires."""

    def step(request: Request) -> None:
        span = re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("Range", ""))
        if span and request.headers.get("If-Range") == etag:
            start = int(span[1])
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            request.reply(206, body[start:], Content_Range=content_range, ETag=etag)
        else:
            request.reply(200, body, ETag=etag)

    return step


def left_in(cache: Path) -> set[str]:
    """Return the names of the files in the cache, except for lock files, which are never removed."""
    return {path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


FETCH_IN_A_PROCESS = """
import sys
from pathlib import Path
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Address, Fetcher
control = FetchControl(lambda done, total: print(done, flush=True))
Fetcher(Path(sys.argv[2])).fetch(Address(sys.argv[1]), control)
print("there", flush=True)
"""


@contextlib.contextmanager
def fetching_process(url: str, cache: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FETCH_IN_A_PROCESS, url, str(cache)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
