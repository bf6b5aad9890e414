"""The transport inside this process: the queues of the broker, in memory.

It behaves as RabbitMQ does: publishers wait for room in a bounded queue, a
delivery that was not acknowledged is redelivered, and messages are encoded.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Condition, Event
from typing import Any

from common import topology
from common.delivery import Delivery, dead_letter_headers, published_now
from common.messages import Message
from common.topology import Queue


@dataclass(frozen=True)
class _Stored:
    kind: str
    body: bytes
    headers: Mapping[str, Any]
    redelivered: bool = False


class EmbeddedTransport:
    """An in-process broker; all its sessions share the queues."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._declared: dict[str, Queue] = {}
        self._stored: defaultdict[str, deque[_Stored]] = defaultdict(deque)
        self._consumers: defaultdict[str, int] = defaultdict(int)
        self._closed = False
        for queue in topology.QUEUES:
            self._declared[queue.name] = queue

    def open(self, queues: Sequence[Queue], prefetch: int = 1, alone_as: str | None = None) -> EmbeddedSession:
        """Open a session.

        ``alone_as`` has no effect, because one process has each service once.
        """
        with self._changed:
            for queue in queues:
                self._declared[queue.name] = queue
                self._consumers[queue.name] += 1
        return EmbeddedSession(self, queues, prefetch)

    def shut_down(self) -> None:
        """Release the services that wait: bounded queues accept any number of messages from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def depth(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        with self._changed:
            return len(self._stored[queue])

    def store(self, route: str, stored: _Stored) -> None:
        """Put a message into a queue, or into every queue that is bound to an exchange."""
        with self._changed:
            if topology.is_exchange(route):
                targets = [q for q in self._declared.values() if route in q.exchanges]
            else:
                targets = [self._declared.get(route) or Queue(route)]
            for queue in targets:
                waiting = self._stored[queue.name]
                while queue.limit is not None and len(waiting) >= queue.limit and not self._closed:
                    self._changed.wait()
                waiting.append(replace(stored, headers={**stored.headers, **published_now()}))
                while queue.keep is not None and len(waiting) > queue.keep:
                    waiting.popleft()
            self._changed.notify_all()

    def take(self, queues: Sequence[Queue], timeout_s: float, woken: Event) -> tuple[str, _Stored] | None:
        """Take the first message of the first queue that has one.

        Returns None after the timeout, once ``woken`` is set, or if there is none after ``shut_down``.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not woken.is_set():
                for queue in queues:
                    if self._stored[queue.name]:
                        stored = self._stored[queue.name].popleft()
                        self._changed.notify_all()
                        return queue.name, stored
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._closed or not self._changed.wait(remaining):
                    break
        woken.clear()
        return None

    def wake(self, woken: Event) -> None:
        """Set ``woken``, and end the ``take`` that waits with it."""
        with self._changed:
            woken.set()
            self._changed.notify_all()

    def end(self, queues: Sequence[Queue], unacknowledged: Sequence[tuple[str, _Stored]]) -> None:
        """End a session that consumed ``queues``: put its unacknowledged messages back to the heads of their queues."""
        with self._changed:
            for queue in queues:
                self._consumers[queue.name] -= 1
            for name, stored in reversed(unacknowledged):
                self._stored[name].appendleft(_Stored(stored.kind, stored.body, stored.headers, redelivered=True))
            self._changed.notify_all()

    def queues_without_consumer(self) -> Sequence[str]:
        """Return the names of the services' queues that no session consumes."""
        with self._changed:
            return [queue.name for queue in topology.QUEUES if not self._consumers[queue.name]]


class EmbeddedSession:
    """One service's session with the in-process broker."""

    def __init__(self, transport: EmbeddedTransport, queues: Sequence[Queue], prefetch: int) -> None:
        self._transport = transport
        self._queues = queues
        self._prefetch = prefetch
        self._unacknowledged: dict[int, tuple[str, _Stored]] = {}
        self._tag = 0
        self._woken = Event()

    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next delivery, or None after the timeout or where ``wake`` was called."""
        unacknowledged = [name for name, _ in self._unacknowledged.values()]
        queues = [queue for queue in self._queues if unacknowledged.count(queue.name) < self._prefetch]
        taken = self._transport.take(queues, timeout_s, self._woken)
        if taken is None:
            return None
        self._tag += 1
        self._unacknowledged[self._tag] = taken
        name, stored = taken
        return Delivery(name, stored.kind, stored.body, stored.headers, stored.redelivered, token=self._tag)

    def wake(self) -> None:
        """End the ``receive`` that waits, or else the next one."""
        self._transport.wake(self._woken)

    def publish_and_acknowledge(self, delivery: Delivery, messages: Sequence[Message] = ()) -> None:
        """Publish the outcome of a delivery, waiting while a queue is full, and acknowledge the delivery."""
        self.publish(messages)
        self._unacknowledged.pop(delivery.token, None)

    def dead_letter(self, delivery: Delivery, problem: str) -> None:
        """Move a delivery to its dead-letter queue, and notify the analysis service."""
        headers = {**delivery.headers, **dead_letter_headers(delivery, problem)}
        stored = _Stored(delivery.kind, delivery.body, headers)
        for queue in (topology.dead_letter_queue(delivery.queue), topology.DEAD_NOTICES):
            self._transport.store(queue.name, stored)
        self._unacknowledged.pop(delivery.token, None)

    def publish(self, messages: Sequence[Message]) -> None:
        """Put messages into their queues, waiting while one is full."""
        for message in messages:
            self._transport.store(message.route, _Stored(message.kind, message.encode(), message.headers))

    def publish_without_confirm(self, message: Message) -> None:
        """Put a message into its queues."""
        self.publish([message])

    def publish_or_drop(self, message: Message) -> None:
        """Put a message into its queues, which drop the oldest."""
        self.publish([message])

    def waits_for_confirm(self) -> bool:
        """Return False: ``publish_and_acknowledge`` returns when the queues have had room."""
        return False

    def connections(self) -> int:
        """Return 1: the connection is never lost."""
        return 1

    def is_connected(self) -> bool:
        """Return True: the queues are in this process."""
        return True

    def blocked(self) -> None:
        """Return None: messages are always accepted."""

    def queues_without_consumer(self) -> Sequence[str]:
        """Return the names of the services' queues that no session consumes at the moment."""
        return self._transport.queues_without_consumer()

    def queue_depths(self, queues: Sequence[Queue] | None = None) -> Mapping[str, int]:
        """Return the number of waiting messages of queues and of their dead-letter queues."""
        queues = self._queues if queues is None else queues
        dead = [topology.dead_letter_queue(queue.name) for queue in queues if queue.has_dead_letter_queue]
        return {queue.name: self._transport.depth(queue.name) for queue in (*queues, *dead)}

    def close(self) -> None:
        """End the session; messages that were not acknowledged go back to the heads of their queues."""
        self._transport.end(self._queues, list(self._unacknowledged.values()))
        self._unacknowledged.clear()
