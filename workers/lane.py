"""A process of an embedded run that takes chunks through data-loader and data-processor.

Threads share one interpreter, which keeps an embedded run from using more than
one core and a half. A lane is one more consumer of the chunks, in a process of
its own: it answers a task with what comes of it behind the data-processor.
What the services promise is kept where it was, in the embedded run's process: a
task is settled when its outcome is there, and goes back to its queue where the
lane has died.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import msgspec

from common import messages, settings, topology
from common.errors import MessageError, WorkerLost
from common.memory import keep_freed_memory
from common.messages import Events, Message
from common.releases import Releases
from common.service import Service
from common.settings import Settings
from common.topology import Queue
from physics import RELEASES
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor

_ROOT = Path(__file__).parents[1]
#: What the process says: it is ready; this is news; this is part of the outcome, that was all of it; and why not.
_Word = Literal["ready", "news", "outcome", "end", "refused"]


@dataclass(frozen=True)
class _Encoded:
    """A message as its bytes."""

    route: str
    kind: str
    headers: Mapping[str, Any]
    body: bytes

    def encode(self) -> bytes:
        return self.body


class Lane(Service):
    """The side of the embedded run: a data-loader that has its tasks done by the process."""

    name: ClassVar[str] = "data-loader"
    consumes: ClassVar[Sequence[Queue]] = (topology.CHUNKS,)
    releases: ClassVar[Releases] = RELEASES

    def __init__(self, settings: Settings) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own command
                [sys.executable, "-m", "workers.lane", str(theirs.fileno()), str(settings.cache)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # an interrupt at the keyboard is for the run
            )
        self._line = Connection(ours.detach())

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Wait until the process can take a task, or ``stop`` is set; raises WorkerLost where it ends before."""
        while not stop.is_set():
            if self._line.poll(0.1):
                self._receive()
                return

    def handle(self, message: Message) -> Sequence[Message]:
        """Have a task done; raises MessageError as the data-loader does, WorkerLost where the process has ended."""
        try:
            self._line.send_bytes(message.kind.encode())
            self._line.send_bytes(message.encode())
        except OSError:
            raise self._lost() from None
        outcome: list[Message] = []
        while True:
            what, encoded = self._receive()
            if what == "news":
                self.publish_without_confirm(encoded)
            elif what == "outcome":
                outcome.append(encoded)
            elif what == "refused":
                raise MessageError(encoded.encode().decode())
            else:
                return outcome

    def close(self) -> None:
        """End the process; nothing of it is kept."""
        self._line.close()
        self._process.kill()
        self._process.wait()

    def _receive(self) -> tuple[_Word, Message]:
        try:
            what, route, kind, headers = msgspec.json.decode(self._line.recv_bytes())
            return what, cast("Message", _Encoded(route, kind, headers, self._line.recv_bytes()))
        except (EOFError, OSError):
            raise self._lost() from None

    def _lost(self) -> WorkerLost:
        return WorkerLost(f"a process that reads and selects ended with code {self._process.wait()}")


class _Worker:
    """The side of the process: data-loader and data-processor, one after the other."""

    def __init__(self, line: Connection, read: Settings) -> None:
        self._line = line
        self._loader, self._processor = DataLoader(read, decompression_threads=0), DataProcessor(read)
        self._loader.publish_without_confirm = lambda news: self._send("news", news)

    def work(self) -> None:
        """Do one task after the other; returns when there is nobody to ask for them."""
        self._answer("ready")
        while True:
            try:
                kind, body = self._line.recv_bytes().decode(), self._line.recv_bytes()
            except EOFError:
                return
            try:
                outcome = self._loader.handle(messages.decode(kind, body, RELEASES))
            except MessageError as error:
                self._answer("refused", str(error).encode())
                continue
            for message in outcome:
                self._process(message)
            self._answer("end")

    def _process(self, message: Message) -> None:
        if isinstance(message, Events):
            try:
                processed = self._processor.handle(message)
            except Exception:  # the data-processor that gets the events says what is wrong with them
                processed = [message]
        else:
            processed = [message]
        for one in processed:
            self._send("outcome", one)

    def _send(self, what: _Word, message: Message) -> None:
        self._line.send_bytes(msgspec.json.encode((what, message.route, message.kind, message.headers)))
        self._line.send_bytes(message.encode())

    def _answer(self, what: _Word, body: bytes = b"") -> None:
        self._line.send_bytes(msgspec.json.encode((what, "", "", {})))
        self._line.send_bytes(body)


def main() -> None:
    """Do the tasks that come through the socket of the first argument; the second is the cache."""
    keep_freed_memory()
    with Connection(int(sys.argv[1])) as line, suppress(ConnectionError):  # nobody waits for the answer any more
        _Worker(line, settings.read({"CACHE": sys.argv[2]})).work()


if __name__ == "__main__":
    main()
