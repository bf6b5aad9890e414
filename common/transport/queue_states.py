"""Requests the states of queues from RabbitMQ, on a channel of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.channel
import pika.exceptions
import pika.spec

from common.transport.connection import Connection


@dataclass
class StatesRequest:
    """The names of the queues that are left to request, and the states that were found."""

    names: deque[str]
    found: dict[str, pika.spec.Queue.DeclareOk] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, names: Iterable[str]) -> StatesRequest:
        """A request for the states of the queues with these names."""
        return cls(deque(names))


class QueueStates:
    """Answers requests for the states of queues, during one connection.

    For a queue that does not exist, the broker closes the channel; another one is opened, and the queue is left out.
    Used from the connection's thread only.
    """

    def __init__(self, connection: Connection, then: Callable[[], None]) -> None:
        self._connection = connection
        self._then: Callable[[], None] | None = then
        self._channel: pika.channel.Channel | None = None
        self._requests: deque[StatesRequest] = deque()
        connection.open_channel(self._on_channel, self._on_closed)

    def request(self, request: StatesRequest) -> None:
        """Find the states, and set ``request.done`` at the end."""
        self._requests.append(request)
        if len(self._requests) == 1:
            self._next()

    def publish_to_no_queue(self) -> None:
        """Publish an empty message that the broker drops: it reports an alarm only to a connection that publishes."""
        if self._channel is not None and self._channel.is_open:
            self._channel.basic_publish("", "", b"")

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        self._channel = channel
        then, self._then = self._then, None
        if then is not None:
            then()
        self._next()

    def _next(self) -> None:
        while self._requests and not self._requests[0].names:
            self._requests.popleft().done.set()
        if self._requests and self._channel is not None and self._channel.is_open:
            self._channel.queue_declare(self._requests[0].names[0], passive=True, callback=self._on_state)

    def _on_state(self, frame: pika.frame.Method[Any]) -> None:
        request = self._requests[0]
        request.found[request.names.popleft()] = frame.method
        self._next()

    def _on_closed(self, channel: pika.channel.Channel, error: Exception) -> None:
        if not isinstance(error, pika.exceptions.ChannelClosedByBroker):
            return  # the connection is closed
        if self._requests:
            self._requests[0].names.popleft()
        self._connection.open_channel(self._on_channel, self._on_closed)
