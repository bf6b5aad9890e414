"""A message as it arrives from a queue, and what the headers of a dead letter say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


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


def dead_letter_headers(delivery: Delivery, problem: str) -> dict[str, str]:
    """The headers that are added to a dead letter: the reason, its queue, and the time (UTC, ISO 8601)."""
    died = datetime.now(UTC).isoformat(timespec="seconds")
    return {"problem": problem, "queue": delivery.queue, "died": died}
