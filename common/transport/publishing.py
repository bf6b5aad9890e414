"""Publishing on one channel of RabbitMQ: each message is sent until the broker has confirmed it."""

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
from common.delivery import published_now
from common.messages import Message
from common.signature import Signer
from common.topology import Queue

log = logging.getLogger(__name__)

#: The pause before another attempt where a queue is full, or is being declared again.
PAUSE_S = 0.05

_Address = tuple[str, str]


@dataclass(frozen=True)
class OutgoingMessage:
    """An encoded message and its address: an exchange, or a queue (by the default exchange and its routing key).

    ``mandatory``: the broker returns it where no queue takes it.
    """

    exchange: str
    routing_key: str
    kind: str
    body: bytes
    headers: Mapping[str, Any]
    mandatory: bool

    def __str__(self) -> str:
        sample, start, stop = (self.headers.get(name) for name in ("sample", "start", "stop"))
        chunk = "" if start is None else f" of {sample}[{start}:{stop}]"
        return f"the {self.kind} message{chunk} ({len(self.body)} bytes)"

    @property
    def address(self) -> _Address:
        """Exchange and routing key."""
        return self.exchange, self.routing_key

    @classmethod
    def of(cls, message: Message, signer: Signer) -> OutgoingMessage:
        """A message, encoded and signed, to its route."""
        route, kind, body = message.route, message.kind, message.encode()
        headers = signer.sign(route, kind, body, message.headers)
        if topology.is_exchange(route):
            return cls(route, "", kind, body, headers, mandatory=False)
        return cls("", route, kind, body, headers, mandatory=True)


@dataclass(frozen=True)
class _Sent:
    """A message that is not confirmed, what to call when it is, and what to call with the reason if it is refused."""

    message: OutgoingMessage
    then: Callable[[], None]
    refused: Callable[[str], None]


def bounded_queues(queues: Mapping[str, Queue]) -> dict[_Address, Queue]:
    """The bounded queue behind each address: a queue's own, and the exchange that it is bound to."""
    bounded = [queue for queue in queues.values() if queue.limit is not None]
    return {("", queue.name): queue for queue in bounded} | {
        (exchange, ""): queue for queue in bounded for exchange in queue.exchanges
    }


class Publisher:
    """Sends messages until they are confirmed, on one channel.

    Where a queue is full (``bounded``: the bounded queue behind each address), its depth is requested, and as many
    messages are sent as there is room for. A queue that was deleted is declared again with ``declare``.
    Used from the connection's thread only. When its channel is closed, what it has not confirmed is published by
    another one.
    """

    def __init__(
        self, channel: pika.channel.Channel, bounded: Mapping[_Address, Queue], declare: Callable[[], None]
    ) -> None:
        self._channel = channel
        self._bounded = bounded
        self._declare = declare
        self._sequence = 0
        self._unconfirmed: dict[int, _Sent] = {}
        self._returned: set[int] = set()
        #: By address: the messages that a full queue rejected, and those that came after them.
        self._waiting: dict[_Address, deque[_Sent]] = {}
        channel.add_on_return_callback(self._on_returned)
        channel.confirm_delivery(self._on_confirm)

    def send(self, message: OutgoingMessage, then: Callable[[], None], refused: Callable[[str], None]) -> None:
        """Publish a message; ``then`` is called once the broker has confirmed it.

        ``refused`` is called instead with the reason if the broker closed the channel because of this message.
        """
        sent = _Sent(message, then, refused)
        waiting = self._waiting.get(message.address)
        if waiting is None:
            self._publish(sent)
        else:
            waiting.append(sent)

    def report_refused(self, size: int, reason: str) -> bool:
        """Report the message of this size in bytes, for which the broker has closed the channel, as refused.

        The broker handles messages in their order, so that it is the first one of this size. Returns False if there
        is none.
        """
        for sent in self._unconfirmed.values():
            if len(sent.message.body) == size:
                advice = "raise its max_message_size" + (
                    ", or choose smaller CHUNK_ENTRIES" if "start" in sent.message.headers else ""
                )
                sent.refused(f"the broker refuses {sent.message}: {reason}; {advice}")
                return True
        return False

    def _publish(self, sent: _Sent) -> None:
        message = sent.message
        self._sequence += 1
        self._unconfirmed[self._sequence] = sent
        headers = {**message.headers, **published_now()}
        properties = pika.BasicProperties(
            type=message.kind, delivery_mode=2, headers=headers, message_id=str(self._sequence)
        )
        self._channel.basic_publish(
            message.exchange, message.routing_key, message.body, properties, mandatory=message.mandatory
        )

    def _on_returned(
        self,
        channel: pika.channel.Channel,
        method: pika.spec.Basic.Return,
        properties: pika.spec.BasicProperties,
        body: bytes,
    ) -> None:
        """Note a message whose queue was deleted; its confirm follows."""
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
                log.warning("queue %s does not exist any more; declaring it again", sent.message.routing_key)
                self._later(partial(self._declare_and_publish, sent))
            elif isinstance(method, pika.spec.Basic.Ack):
                sent.then()
            else:
                self._wait_for_room(sent)

    def _declare_and_publish(self, sent: _Sent) -> None:
        self._declare()
        self._publish(sent)

    def _wait_for_room(self, sent: _Sent) -> None:
        address = sent.message.address
        if address not in self._waiting:
            self._waiting[address] = deque()
            self._later(partial(self._look_for_room, address))
        self._waiting[address].append(sent)

    def _look_for_room(self, address: _Address) -> None:
        queue = self._bounded.get(address)
        if queue is None or queue.limit is None:  # rejected for another reason
            self._publish_waiting(address, len(self._waiting[address]))
            return
        limit = queue.limit

        def answered(frame: pika.frame.Method[Any]) -> None:
            self._publish_waiting(address, limit - frame.method.message_count)

        self._channel.queue_declare(queue.name, passive=True, callback=answered)

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
