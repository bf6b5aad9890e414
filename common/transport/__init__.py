"""How messages get from one service to the next.

Two transports stand behind one interface: RabbitMQ and one inside this
process. Nothing above them knows which it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from common.messages import Message
from common.topology import Queue


@dataclass(frozen=True)
class Delivery:
    """A message as it arrives: from which queue, of what kind, and its body not decoded yet.

    ``token`` is the transport's own: what it needs to acknowledge the message.
    ``refused`` says why the message must not be decoded: its signature is not ours.
    """

    queue: str
    kind: str
    body: bytes
    headers: Mapping[str, Any]
    redelivered: bool
    token: Any = field(repr=False)
    rejection_reason: str | None = None


def dead_letter_headers(delivery: Delivery, problem: str) -> dict[str, str]:
    """The headers that a delivery gets as a dead letter: why, from which queue, and when (UTC)."""
    died = datetime.now(UTC).isoformat(timespec="seconds")
    return {"problem": problem, "queue": delivery.queue, "died": died}


class Session(Protocol):
    """One service's connection: what it consumes, and where it publishes.

    Used from one thread, but for ``wake`` and ``lengths``. A delivery that is not settled when the session ends
    is delivered again, to whoever consumes the queue next.
    """

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next delivery; None where there was none in time."""
        ...

    def wake(self) -> None:
        """End the ``receive`` that waits, or else the next one; may be called from any thread."""
        ...

    def take_in_hand(self, delivery: Delivery) -> int:
        """Note that a redelivered message is about to be handled; returns how many workers died handling it.

        The note is taken back when the delivery is settled, its connection lost
        or the session closed: only who dies leaves it behind.
        """
        ...

    def publish_and_acknowledge(self, delivery: Delivery, messages: Sequence[Message] = ()) -> None:
        """Publish what came of a delivery, and acknowledge it once all of that is confirmed.

        Returns before that: the next delivery can be worked on meanwhile. A
        queue that is full makes the acknowledgement wait.
        """
        ...

    def dead_letter(self, delivery: Delivery, problem: str) -> None:
        """Put a delivery that cannot be handled into its dead-letter queue, and notify the analysis service."""
        ...

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages that come of no delivery; returns when they are confirmed."""
        ...

    def publish_without_confirm(self, message: Message) -> None:
        """Publish news that nobody needs: it is not waited for, and may be lost with the connection."""
        ...

    def connections(self) -> int:
        """How often the session has connected, the first time included.

        What is published between two connections does not come to an exclusive queue.
        """
        ...

    def is_connected(self) -> bool:
        """Whether the session can consume and publish right now."""
        ...

    def queues_without_consumer(self) -> Sequence[str]:
        """The queues of the four services that nobody consumes at the moment."""
        ...

    def queue_depths(self) -> Mapping[str, int]:
        """How many messages wait in the queues consumed here and in their dead-letter queues, where that is known."""
        ...

    def close(self) -> None:
        """Wait for what is under way to be confirmed, then end the session."""
        ...


class Transport(Protocol):
    """Opens sessions."""

    def open(self, queues: Sequence[Queue], prefetch: int = 2) -> Session:
        """Open a session that consumes ``queues``, with at most ``prefetch`` unsettled deliveries of each.

        Raises BrokerError where the broker refuses.
        """
        ...
