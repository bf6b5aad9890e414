"""Hostile messages for minutes in bounded memory: ``python -m tests.support.fuzz_messages --seconds 600 --seed 1``.

Each is an honest message with a few flips, cuts, insertions and splices, or an
honest pickle put together anew from hostile parts. It must be refused with a
MessageError or decode to what its kind declares. Nothing else may be raised,
nothing may run, and memory and time per message stay small.
"""

from __future__ import annotations

import argparse
import codecs
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common import messages
from common.errors import MessageError
from common.messages import Message
from physics import RELEASES
from tests.unit.test_array_pickle import BODY, bombs, calls, forms, mutated
from tests.unit.test_messages import JSON_MESSAGES

MEMORY_BYTES = 64 * 2**20
SLOWEST_S = 5.0


class Tally(NamedTuple):
    """What came of the messages, the slowest of them in seconds, and how much memory was asked for beyond the start."""

    refused: int
    sound: int
    slowest_s: float
    grown_bytes: int


class Forbidden(BaseException):
    """Something tried to run; no ``except Exception`` stops it."""


FORBIDDEN_EVENTS = (
    "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pickle.find_class", "open", "exec", "import",
)  # fmt: skip


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: decoding a message opens, starts, imports and looks up nothing."""
    if _decoding and event.startswith(FORBIDDEN_EVENTS):
        raise Forbidden(f"{event} {arguments!r:.200}")


_decoding = False


def hostile_json(dice: random.Random) -> tuple[str, bytes]:
    """A JSON message with a few bytes changed, or its values replaced by what has no business there."""
    message: Message = dice.choice(JSON_MESSAGES)
    body = bytearray(message.encode())
    for _ in range(dice.choice((1, 2, 5))):
        at = dice.randrange(len(body) + 1)
        match dice.randrange(4):
            case 0:
                body[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del body[at : at + dice.choice((1, 3, 20))]
            case 2:
                body[at:at] = dice.choice((b"null", b"1e999", b'"', b"{", b"[" * 2000, b"-1", b"\\ud800", b"9" * 400))
            case 3:
                body[at:at] = dice.randbytes(4)
    return message.kind, bytes(body)


def hostile_pickle(dice: random.Random) -> tuple[str, bytes]:
    """A mutated Events or Selected message, or a gadget with a few bytes changed."""
    kind = dice.choice(("events", "selected"))
    if dice.random() < 0.8:
        return kind, mutated(dice.randrange(2**64))
    body = bytearray(dice.choice(GADGETS))
    for _ in range(dice.choice((0, 1, 3))):
        body[dice.randrange(len(body))] = dice.randrange(256)
    return kind, bytes(body)


GADGETS = [body for made in (calls(), forms(), bombs()) for body in made.values() if len(body) < 100_000]


def fuzz(seconds: float, seed: int) -> Tally:
    """Decode hostile messages for so long; raises AssertionError for the first that is not dealt with as promised."""
    global _decoding  # noqa: PLW0603  the audit hook stays for the life of the process, and must know
    dice = random.Random(seed)
    tally: Counter[str] = Counter()
    slowest_s, end = 0.0, time.monotonic() + seconds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    number = 0
    while time.monotonic() < end:
        number += 1
        make: Callable[[random.Random], tuple[str, bytes]] = hostile_pickle if number % 4 else hostile_json
        kind, body = make(dice)
        started = time.perf_counter()
        _decoding = True
        try:
            messages.decode(kind, body, RELEASES)
            tally["sound"] += 1
        except MessageError:
            tally["refused"] += 1
        except BaseException as error:
            _decoding = False
            kept = Path(f"hostile-{seed}-{number}.{kind}")
            kept.write_bytes(body)
            raise AssertionError(f"message {number} of seed {seed}, kept in {kept}: {error!r}") from error
        finally:
            _decoding = False
        slowest_s = max(slowest_s, time.perf_counter() - started)
        assert slowest_s < SLOWEST_S, f"message {number} of seed {seed} took {slowest_s:.1f} s"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return Tally(tally["refused"], tally["sound"], slowest_s, grown)


def main() -> int:
    """Fuzz as the flags say, in a process that cannot have more memory than MEMORY_BYTES beyond what it starts with."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.fuzz_messages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    # Whatever decoding imports, it has imported now; pickletools reads the arguments of texts of every kind.
    for encoding in ("ascii", "latin-1", "raw-unicode-escape", "utf-8"):
        codecs.lookup(encoding)
    for message in JSON_MESSAGES:
        messages.decode(message.kind, message.encode(), RELEASES)
    messages.decode("events", BODY, RELEASES)
    sys.addaudithook(watch)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    tally = fuzz(flags.seconds, flags.seed)
    print(
        f"{tally.refused + tally.sound} messages: {tally.refused} refused, {tally.sound} sound; slowest "
        f"{1000 * tally.slowest_s:.0f} ms; memory grew by {tally.grown_bytes / 2**20:.1f} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
