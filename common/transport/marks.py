"""Marks in the broker of messages in hand: what a worker that dies leaves of them, the next one counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pika
import pika.channel

from common.topology import Queue
from common.transport.amqp import arguments, brief

log = logging.getLogger(__name__)

#: Which delivery: the generation of the connection, and its tag in it.
Token = tuple[int, int]


class Marks:
    """One session's marks, on a channel of their own: a queue that a broker has lost may hold it up or close it.

    A mark stays where its worker dies. It is taken back when its message is settled, and by whoever
    lives: neither a lost connection nor a stop is the message's doing.
    Used from the connection's thread alone.
    """

    def __init__(self) -> None:
        self._channel: pika.channel.Channel | None = None
        self._in_hand: dict[Token, Queue] = {}
        self._left: set[Queue] = set()
        self._sequence = 0
        self._unconfirmed: dict[int, Callable[[], None]] = {}

    def open(self, connection: pika.SelectConnection, then: Callable[[], None]) -> None:
        """Open a channel, take back what a lost connection left, and call ``then``."""

        def opened(channel: pika.channel.Channel) -> None:
            channel.add_on_close_callback(self._on_closed)
            channel.confirm_delivery(self._on_confirm)
            self._channel, self._sequence, self._unconfirmed = channel, 0, {}
            self._delete(self._left)
            self._left.clear()
            then()

        connection.channel(on_open_callback=opened)

    def forget_connection(self) -> None:
        """The connection is lost: what was in hand comes again."""
        self._channel = None
        self._left.update(self._in_hand.values())
        self._in_hand.clear()

    def put(self, token: Token, marks: Queue, then: Callable[[int], None]) -> None:
        """Count the marks in a queue and add one; ``then`` is called with their number once that is confirmed.

        A mark of our own says nothing: it is that of another copy of the message, and we live.
        """
        if self._channel is None or not self._channel.is_open:
            then(0)
            return
        self._in_hand[token] = marks
        counted = partial(self._on_counted, self._channel, token, then)
        self._channel.queue_declare(marks.name, durable=True, arguments=arguments(marks), callback=counted)

    def take_back(self, token: Token) -> None:
        """A message is settled: its mark, if it has one, says nothing any more."""
        if token in self._in_hand:
            self._delete([self._in_hand.pop(token)])

    def take_back_all(self) -> None:
        """Leave nothing behind."""
        self._delete(self._in_hand.values())
        self._in_hand.clear()

    def _on_counted(
        self, channel: pika.channel.Channel, token: Token, then: Callable[[int], None], frame: pika.frame.Method[Any]
    ) -> None:
        if token not in self._in_hand:  # nobody waited so long: it is settled
            return
        marks = self._in_hand[token]
        ours = sum(other == marks for other in self._in_hand.values()) - 1
        self._sequence += 1
        self._unconfirmed[self._sequence] = partial(then, max(0, frame.method.message_count - ours))
        channel.basic_publish("", marks.name, b"", pika.BasicProperties(type="death", delivery_mode=2))

    def _on_confirm(self, frame: pika.frame.Method[Any]) -> None:
        method = frame.method
        last = method.delivery_tag
        for tag in [tag for tag in self._unconfirmed if tag == last or (method.multiple and tag < last)]:
            self._unconfirmed.pop(tag)()

    def _on_closed(self, channel: pika.channel.Channel, error: Exception) -> None:
        """The broker cannot give us a queue: the next one gets another channel."""
        if channel.connection.is_open:
            log.warning("marks of redelivered messages: %s", brief(error))
            self.open(channel.connection, lambda: None)

    def _delete(self, queues: Iterable[Queue]) -> None:
        if self._channel is not None and self._channel.is_open:
            for marks in queues:
                self._channel.queue_delete(marks.name)
