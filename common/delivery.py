"""A message as it arrives from a queue, and what the headers of a dead letter say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

#: The header with the time of publishing, the last one if a queue was full, in microseconds since 1970 (pika has no
#: headers of type float).
PUBLISHED_US = "published_us"
_YEAR_9999_US = 253_402_300_799_000_000


@dataclass(frozen=True)
class Delivery:
    """A message as it arrives, not yet decoded.

    Parameters
    ----------
    queue
        The name of the queue it was in.
    kind
        What kind of message it is.
    body
        The encoded message.
    headers
        The message's headers, and those that the broker added.
    redelivered
        True where it may have been delivered before.
    token
        What the transport needs to acknowledge it; of no meaning elsewhere.
    rejection_reason
        Why it must not be decoded: its signature is missing or wrong.
    refused_outcome
        Why the broker refuses what was published as its outcome; the delivery is not acknowledged.
    """

    queue: str
    kind: str
    body: bytes
    headers: Mapping[str, Any]
    redelivered: bool
    token: Any = field(repr=False)
    rejection_reason: str | None = None
    refused_outcome: str | None = None

    @property
    def published(self) -> float | None:
        """When it was published, in seconds since 1970; None for a message of version 0.1."""
        published_us = self.headers.get(PUBLISHED_US)
        return published_us / 1e6 if isinstance(published_us, int) and 0 <= published_us < _YEAR_9999_US else None

    @property
    def redeliveries(self) -> int:
        """How often it was delivered before, as far as the broker counts that, and at least once if it was."""
        count = self.headers.get("x-delivery-count")
        # pika gives numbers of 64 bits as a class of its own, which cannot be encoded.
        return max(int(self.redelivered), int(count) if isinstance(count, int) else 0)


@dataclass(frozen=True)
class Receipt:
    """When a message was published (None if that is not known) and received, and how often it was delivered before.

    ``published`` and ``received`` are in seconds since 1970; ``began`` is the monotonic clock at ``received``.
    """

    published: float | None = None
    redeliveries: int = 0
    received: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Return the time in seconds since 1970: when the message was received, and what has passed since."""
        return self.received + time.monotonic() - self.began


@dataclass(frozen=True)
class DeadLetter:
    """What the headers of a dead letter say; a value that they do not contain is None.

    Parameters
    ----------
    queue
        The name of the queue it was in.
    kind
        What kind of message it is.
    run_id, sample, start, stop
        The run, the sample and the entries that it is about.
    size
        The size of its body in bytes.
    problem
        Why it could not be handled.
    died
        When it was dead-lettered (UTC, ISO 8601).
    """

    queue: str
    kind: str
    run_id: str | None
    sample: str | None
    start: int | None
    stop: int | None
    size: int
    problem: str
    died: str | None


def published_now() -> dict[str, int]:
    """The header of a message that is published now."""
    return {PUBLISHED_US: time.time_ns() // 1_000}


def dead_letter_headers(delivery: Delivery, problem: str) -> dict[str, str]:
    """The headers that are added to a dead letter: the reason, its queue, and the time (UTC, ISO 8601)."""
    died = datetime.now(UTC).isoformat(timespec="seconds")
    return {"problem": problem, "queue": delivery.queue, "died": died}
