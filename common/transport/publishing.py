"""Publishing on one channel of RabbitMQ: each message is the publisher's until the broker has confirmed it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
import pika.channel
import pika.spec

from common import topology
from common.messages import Message
from common.signature import Signer

log = logging.getLogger(__name__)

#: How long a publisher waits before it looks again whether a full queue has room, or a lost one is there.
PAUSE_S = 0.05

_Address = tuple[str, str]


@dataclass(frozen=True)
class Publication:
    """One message on its way: to a queue (by the default exchange) or to an exchange."""

    exchange: str
    routing_key: str
    kind: str
    body: bytes
    headers: dict[str, Any]
    must_arrive: bool

    @property
    def address(self) -> _Address:
        """Exchange and routing key."""
        return self.exchange, self.routing_key

    @classmethod
    def of(cls, message: Message, signer: Signer) -> Publication:
        """A message as it is sent by its route, signed."""
        route, kind, body = message.route, message.kind, message.encode()
        headers = signer.sign(route, kind, body, message.headers)
        if route in topology.EXCHANGES:
            return cls(route, "", kind, body, headers, must_arrive=False)
        return cls("", route, kind, body, headers, must_arrive=True)


@dataclass(frozen=True)
class _Sent:
    """A publication that is not confirmed, and what is called when it is."""

    publication: Publication
    then: Callable[[], None]


class Publisher:
    """Sends publications until they are confirmed, on a channel that ends with its connection.

    A queue that is full (``limits``: how many messages each holds) is asked for room, rather than sent megabytes
    again and again that it refuses; one that was deleted under us is declared again by ``declare``.
    Used from the connection's thread alone.
    """

    def __init__(self, channel: pika.channel.Channel, limits: Mapping[str, int], declare: Callable[[], None]) -> None:
        self._channel = channel
        self._limits = limits
        self._declare = declare
        self._sequence = 0
        self._unconfirmed: dict[int, _Sent] = {}
        self._returned: set[int] = set()
        #: What was refused by a full queue, or came after that; an entry only while there is any.
        self._waiting: dict[_Address, deque[_Sent]] = {}
        channel.add_on_return_callback(self._on_returned)
        channel.confirm_delivery(self._on_confirm)

    def send(self, publication: Publication, then: Callable[[], None]) -> None:
        """Publish; ``then`` is called once the broker has confirmed it."""
        sent = _Sent(publication, then)
        waiting = self._waiting.get(publication.address)
        if waiting is None:
            self._publish(sent)
        else:
            waiting.append(sent)

    def _publish(self, sent: _Sent) -> None:
        publication = sent.publication
        self._sequence += 1
        self._unconfirmed[self._sequence] = sent
        self._channel.basic_publish(
            publication.exchange,
            publication.routing_key,
            publication.body,
            pika.BasicProperties(
                type=publication.kind,
                delivery_mode=2,
                headers=publication.headers,
                message_id=str(self._sequence),
            ),
            mandatory=publication.must_arrive,
        )

    def _on_returned(
        self,
        channel: pika.channel.Channel,
        method: pika.spec.Basic.Return,
        properties: pika.spec.BasicProperties,
        body: bytes,
    ) -> None:
        """A queue has been deleted under us: its message came back, and its confirm is to follow."""
        self._returned.add(int(properties.message_id))

    def _on_confirm(self, frame: pika.frame.Method[Any]) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
        for tag in tags:
            sent = self._unconfirmed.pop(tag)
            if tag in self._returned:
                self._returned.discard(tag)
                log.warning("queue %s was gone; it is declared again", sent.publication.routing_key)
                self._later(partial(self._declare_and_publish, sent))
            elif isinstance(method, pika.spec.Basic.Ack):
                sent.then()
            else:
                self._wait_for_room(sent)

    def _declare_and_publish(self, sent: _Sent) -> None:
        self._declare()
        self._publish(sent)

    def _wait_for_room(self, sent: _Sent) -> None:
        address = sent.publication.address
        if address not in self._waiting:
            self._waiting[address] = deque()
            self._later(partial(self._look_for_room, address))
        self._waiting[address].append(sent)

    def _look_for_room(self, address: _Address) -> None:
        exchange, queue = address
        limit = None if exchange else self._limits.get(queue)
        if limit is None:
            self._publish_waiting(address, len(self._waiting[address]))
            return

        def answered(frame: pika.frame.Method[Any]) -> None:
            self._publish_waiting(address, limit - frame.method.message_count)

        self._channel.queue_declare(queue, passive=True, callback=answered)

    def _publish_waiting(self, address: _Address, room: int) -> None:
        waiting = self._waiting[address]
        for _ in range(min(room, len(waiting))):
            self._publish(waiting.popleft())
        if waiting:
            self._later(partial(self._look_for_room, address))
        else:
            del self._waiting[address]

    def _later(self, call: Callable[[], None]) -> None:
        def unless_closed() -> None:
            if self._channel.is_open:
                call()

        self._channel.connection.ioloop.call_later(PAUSE_S, unless_closed)
