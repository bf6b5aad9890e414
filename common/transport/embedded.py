"""The transport inside this process: the queues of the broker, in memory.

It keeps the promises that RabbitMQ keeps: bounded queues make publishers wait,
a delivery that was not settled comes again, a message crosses as its bytes.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Condition, Event
from typing import Any

from common import topology
from common.messages import Message
from common.topology import Queue
from common.transport import Delivery, dead_letter_headers


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

    def open(self, queues: Sequence[Queue], prefetch: int = 2) -> EmbeddedSession:
        """Open a session. ``prefetch`` has no meaning here: a delivery leaves its queue when it is asked for."""
        with self._changed:
            for queue in queues:
                self._declared[queue.name] = queue
                self._consumers[queue.name] += 1
        return EmbeddedSession(self, queues)

    def shut_down(self) -> None:
        """Let no publisher wait any longer: what is published from now on is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue."""
        with self._changed:
            return len(self._stored[queue])

    def _store(self, route: str, stored: _Stored) -> None:
        """Put a message into its queue, or into the queues that listen to its exchange."""
        with self._changed:
            if route in topology.EXCHANGES:
                targets = [q for q in self._declared.values() if route in q.exchanges]
            else:
                targets = [self._declared.get(route) or Queue(route)]
            for queue in targets:
                waiting = self._stored[queue.name]
                while queue.limit is not None and len(waiting) >= queue.limit and not self._closed:
                    self._changed.wait()
                waiting.append(stored)
                while queue.keep is not None and len(waiting) > queue.keep:
                    waiting.popleft()
            self._changed.notify_all()

    def _take(self, queues: Sequence[Queue], timeout_s: float, woken: Event) -> tuple[str, _Stored] | None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not woken.is_set():
                for queue in queues:
                    if self._stored[queue.name]:
                        stored = self._stored[queue.name].popleft()
                        self._changed.notify_all()
                        return queue.name, stored
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    break
        woken.clear()
        return None

    def _wake(self, woken: Event) -> None:
        with self._changed:
            woken.set()
            self._changed.notify_all()

    def _give_back(self, queues: Sequence[Queue], unsettled: Sequence[tuple[str, _Stored]]) -> None:
        with self._changed:
            for queue in queues:
                self._consumers[queue.name] -= 1
            for name, stored in reversed(unsettled):
                self._stored[name].appendleft(_Stored(stored.kind, stored.body, stored.headers, redelivered=True))
            self._changed.notify_all()

    def _queues_without_consumer(self) -> Sequence[str]:
        with self._changed:
            return [queue.name for queue in topology.QUEUES if not self._consumers[queue.name]]


class EmbeddedSession:
    """One service's side of the in-process broker."""

    def __init__(self, transport: EmbeddedTransport, queues: Sequence[Queue]) -> None:
        self._transport = transport
        self._queues = queues
        self._unsettled: dict[int, tuple[str, _Stored]] = {}
        self._tag = 0
        self._woken = Event()

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next delivery; None where there was none in time."""
        taken = self._transport._take(self._queues, timeout_s, self._woken)
        if taken is None:
            return None
        self._tag += 1
        self._unsettled[self._tag] = taken
        name, stored = taken
        return Delivery(name, stored.kind, stored.body, stored.headers, stored.redelivered, token=self._tag)

    def wake(self) -> None:
        """End the ``receive`` that waits, or else the next one."""
        self._transport._wake(self._woken)

    def take_in_hand(self, delivery: Delivery) -> int:
        """Nobody has died: all that works here is this one process."""
        return 0

    def publish_and_acknowledge(self, delivery: Delivery, messages: Sequence[Message] = ()) -> None:
        """Publish what came of a delivery, waiting where a queue is full, and forget the delivery."""
        self.publish(messages)
        self._unsettled.pop(delivery.token, None)

    def dead_letter(self, delivery: Delivery, problem: str) -> None:
        """Move a delivery to its dead-letter queue, and notify the analysis service."""
        headers = {**delivery.headers, **dead_letter_headers(delivery, problem)}
        stored = _Stored(delivery.kind, delivery.body, headers)
        for queue in (topology.dead_letter_queue(delivery.queue), topology.DEAD_NOTICES):
            self._transport._store(queue.name, stored)
        self._unsettled.pop(delivery.token, None)

    def publish(self, messages: Sequence[Message]) -> None:
        """Put messages into their queues, waiting where one is full."""
        for message in messages:
            self._transport._store(message.route, _Stored(message.kind, message.encode(), message.headers))

    def publish_without_confirm(self, message: Message) -> None:
        """Put news into its queues."""
        self.publish([message])

    def connections(self) -> int:
        """Always 1."""
        return 1

    def is_connected(self) -> bool:
        """Always true: the queues are in this process."""
        return True

    def queues_without_consumer(self) -> Sequence[str]:
        """The queues that nobody consumes at the moment."""
        return self._transport._queues_without_consumer()

    def queue_depths(self) -> Mapping[str, int]:
        """How many messages wait in the queues consumed here and in their dead-letter queues."""
        dead = [topology.dead_letter_queue(queue.name) for queue in self._queues if queue.has_dead_letter_queue]
        return {queue.name: self._transport.depth(queue.name) for queue in (*self._queues, *dead)}

    def close(self) -> None:
        """End the session; what was not settled goes back to the head of its queue."""
        self._transport._give_back(self._queues, list(self._unsettled.values()))
        self._unsettled.clear()
