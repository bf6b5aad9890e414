"""The transports: how messages get from one service to the next.

There are two behind one interface, RabbitMQ and queues inside this process.
No code above them depends on which one it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from common.delivery import Delivery
from common.messages import Message
from common.topology import Queue


class Session(Protocol):
    """One service's connection: it consumes queues and publishes messages.

    Used from one thread, except for ``wake``, ``queue_depths``, ``publish_or_drop`` and
    ``waits_for_confirm``. A delivery that is not acknowledged when the session ends is redelivered to the next
    consumer of its queue.
    """

    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next delivery, or None where there is none within ``timeout_s`` or ``wake`` was called."""
        ...

    def wake(self) -> None:
        """End the ``receive`` that waits, or else the next one; may be called from any thread."""
        ...

    def publish_and_acknowledge(self, delivery: Delivery, messages: Sequence[Message] = ()) -> None:
        """Publish the outcome of a delivery, and acknowledge the delivery once all of it is confirmed.

        May return before that. While a queue of the outcome is full, the acknowledgement waits. If the broker refuses
        a message of the outcome, for example as too large, ``receive`` returns the delivery again, with the reason as
        its ``refused_outcome``.
        """
        ...

    def dead_letter(self, delivery: Delivery, problem: str) -> None:
        """Move a delivery that cannot be handled to its dead-letter queue, and notify the analysis service."""
        ...

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages, and return once they are confirmed; raises MessageError where the broker refuses one."""
        ...

    def publish_without_confirm(self, message: Message) -> None:
        """Publish a message that may be lost with the connection, and return at once."""
        ...

    def publish_or_drop(self, message: Message) -> None:
        """Publish a message that may be lost, and return at once.

        It is dropped while the last one of its kind is not confirmed, so that none collect if the broker does not
        accept messages.
        """
        ...

    def waits_for_confirm(self) -> bool:
        """Return whether the outcome of a delivery is not confirmed yet: a queue may be full."""
        ...

    def connections(self) -> int:
        """Return how many times the session has connected, the first time included.

        An exclusive queue misses what is published between two connections.
        """
        ...

    def is_connected(self) -> bool:
        """Return whether the session can consume and publish at the moment."""
        ...

    def blocked(self) -> str | None:
        """Return why the broker accepts no messages at the moment, where it has reported that."""
        ...

    def queues_without_consumer(self) -> Sequence[str]:
        """Return the names of the services' queues that have no consumer at the moment."""
        ...

    def queue_depths(self, queues: Sequence[Queue] | None = None) -> Mapping[str, int]:
        """Return the number of waiting messages by queue, where known: of ``queues`` and their dead-letter queues.

        By default of the queues that the session consumes.
        """
        ...

    def close(self) -> None:
        """Wait until what was published is confirmed, then end the session."""
        ...


class Transport(Protocol):
    """Opens sessions."""

    def open(self, queues: Sequence[Queue], prefetch: int = 1, alone_as: str | None = None) -> Session:
        """Open a session that consumes ``queues``, with up to ``prefetch`` unacknowledged deliveries of each.

        With ``alone_as``, the name of a service, the session waits until no other has this name.

        Raises BrokerError where the broker refuses.
        """
        ...
