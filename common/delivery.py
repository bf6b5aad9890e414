"""A message as it arrives from a queue."""

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
    """

    queue: str
    kind: str
    body: bytes
    headers: Mapping[str, Any]
    redelivered: bool
    token: Any = field(repr=False)
    rejection_reason: str | None = None


def dead_letter_headers(delivery: Delivery, problem: str) -> dict[str, str]:
    """The headers that are added to a dead letter: the reason, its queue, and the time (UTC, ISO 8601)."""
    died = datetime.now(UTC).isoformat(timespec="seconds")
    return {"problem": problem, "queue": delivery.queue, "died": died}
