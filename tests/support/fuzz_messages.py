"""Fuzz the decoding of messages: ``python -m tests.support.fuzz_messages --seconds 600 --seed 1``.

Each message is a valid one with a few bytes changed, removed, inserted or copied,
or a pickle with hostile parts. It has to be rejected with a MessageError or to be
valid; any other exception is a failure. Decoding must not run code, and needs
little memory and time.
"""

from __future__ import annotations

import argparse
import codecs
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from common import messages
from common.errors import MessageError
from common.messages import Message
from physics import ANALYSES
from tests.unit.test_array_pickle import BODY, bombs, calls, forms, mutated
from tests.unit.test_messages import JSON_MESSAGES

MEMORY_BYTES = 64 * 2**20
SLOWEST_S = 5.0


class Tally(NamedTuple):
    """Numbers of rejected and valid messages, the longest time for one of them, and the growth of the memory."""

    rejected: int
    valid: int
    slowest_s: float
    growth_bytes: int


class Forbidden(BaseException):
    """Decoding a message has tried to run code; a BaseException, so that no ``except Exception`` hides it."""


FORBIDDEN_EVENTS = (
    "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pickle.find_class", "open", "exec", "import",
)  # fmt: skip


class Guard:
    """An audit hook that raises Forbidden if a file is opened, a process started, or a module or class looked up.

    It is ``active`` only while a message is decoded, because Python never removes an audit hook.
    """

    def __init__(self) -> None:
        self.active = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event.startswith(FORBIDDEN_EVENTS):
            raise Forbidden(f"{event} {arguments!r:.200}")

    def decode(self, kind: str, body: bytes) -> None:
        """Decode a message under the guard."""
        self.active = True
        try:
            messages.decode(kind, body, ANALYSES)
        finally:
            self.active = False


def hostile_json(rng: random.Random) -> tuple[str, bytes]:
    """Return a JSON message with a few bytes changed, or with unexpected values."""
    message: Message = rng.choice(JSON_MESSAGES)
    body = bytearray(message.encode())
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(4):
            case 0:
                body[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del body[at : at + rng.choice((1, 3, 20))]
            case 2:
                body[at:at] = rng.choice((b"null", b"1e999", b'"', b"{", b"[" * 2000, b"-1", b"\\ud800", b"9" * 400))
            case 3:
                body[at:at] = rng.randbytes(4)
    return message.kind, bytes(body)


def hostile_pickle(rng: random.Random) -> tuple[str, bytes]:
    """Return a mutated Events or Selected message, or a hostile pickle with a few bytes changed."""
    kind = rng.choice(("events", "selected"))
    if rng.random() < 0.8:
        return kind, mutated(rng.randrange(2**64))
    body = bytearray(rng.choice(GADGETS))
    for _ in range(rng.choice((0, 1, 3))):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return kind, bytes(body)


GADGETS = [body for made in (calls(), forms(), bombs()) for body in made.values() if len(body) < 100_000]


def fuzz(seconds: float, seed: int, guard: Guard) -> Tally:
    """Decode hostile messages for ``seconds``; raises AssertionError for the first unexpected exception."""
    rng = random.Random(seed)
    tally: Counter[str] = Counter()
    slowest_s, end = 0.0, time.monotonic() + seconds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    number = 0
    while time.monotonic() < end:
        number += 1
        make: Callable[[random.Random], tuple[str, bytes]] = hostile_pickle if number % 4 else hostile_json
        kind, body = make(rng)
        started = time.perf_counter()
        try:
            guard.decode(kind, body)
            tally["valid"] += 1
        except MessageError:
            tally["rejected"] += 1
        except BaseException as error:
            kept = Path(f"hostile-{seed}-{number}.{kind}")
            kept.write_bytes(body)
            raise AssertionError(f"message {number} of seed {seed}, kept in {kept}: {error!r}") from error
        slowest_s = max(slowest_s, time.perf_counter() - started)
        assert slowest_s < SLOWEST_S, f"message {number} of seed {seed} took {slowest_s:.1f} s"
    growth_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return Tally(tally["rejected"], tally["valid"], slowest_s, growth_bytes)


def main() -> int:
    """Fuzz with a limit of MEMORY_BYTES on the growth of the process (on Linux only)."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.fuzz_messages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    # Import all modules and codecs that decoding needs before the guard is active.
    for encoding in ("ascii", "latin-1", "raw-unicode-escape", "utf-8"):
        codecs.lookup(encoding)
    for message in JSON_MESSAGES:
        messages.decode(message.kind, message.encode(), ANALYSES)
    messages.decode("events", BODY, ANALYSES)
    guard = Guard()
    sys.addaudithook(guard)
    if sys.platform == "linux":
        limit = psutil.Process().memory_info().vms + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tally = fuzz(flags.seconds, flags.seed, guard)
    print(
        f"{tally.rejected + tally.valid} messages: {tally.rejected} rejected, {tally.valid} valid; slowest "
        f"{1000 * tally.slowest_s:.0f} ms; memory grew by {tally.growth_bytes / 2**20:.1f} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
