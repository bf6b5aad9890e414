"""Lists the dead letters in RabbitMQ's dead-letter queues, and requeues them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from common import topology
from common.delivery import DeadLetter
from common.errors import BrokerError, MessageError
from common.messages import RequeueNotice
from common.settings import BrokerSettings
from common.signature import NOTICE_SIGNATURE, Signer
from common.transport.amqp import no_answer, parameters, refusal
from common.transport.publishing import OutgoingMessage
from common.transport.rabbitmq import RabbitMQTransport

#: How long a dead letter waits for room in the queue that it goes back to.
ROOM_TIMEOUT_S = 60.0
#: How long dead letters that were listed take at most to be back in their queue, and how often that is checked.
RETURN_TIMEOUT_S, RETURN_CHECK_S = 10.0, 0.02
_CONNECT_TIMEOUT_S = 15.0
#: Headers that a message gets when it is dead-lettered; the broker's own begin with x-.
_DEAD_LETTER_HEADERS = ("problem", "queue", "died", NOTICE_SIGNATURE)


@dataclass(frozen=True)
class _Received:
    """A dead letter, its delivery tag, and the message itself."""

    dead_letter: DeadLetter
    tag: int
    headers: dict[str, Any]
    body: bytes

    def original(self) -> OutgoingMessage:
        """The message as it was published to its queue, with the signature it had."""
        own = {
            name: value
            for name, value in self.headers.items()
            if name not in _DEAD_LETTER_HEADERS and not name.startswith("x-")
        }
        return OutgoingMessage("", self.dead_letter.queue, self.dead_letter.kind, self.body, own, mandatory=True)

    def notices(self, signer: Signer) -> list[OutgoingMessage]:
        """The notice to its run to wait for it; none where its headers do not name a run."""
        dead_letter = self.dead_letter
        if dead_letter.run_id is None:
            return []
        named = {
            "run_id": dead_letter.run_id,
            "sample": dead_letter.sample,
            "start": dead_letter.start,
            "stop": dead_letter.stop,
        }
        try:
            return [
                OutgoingMessage.of(RequeueNotice.from_headers(dead_letter.queue, named, notice_id=uuid4().hex), signer)
            ]
        except MessageError:
            return []


def dead_letters(settings: BrokerSettings, run_id: str | None = None) -> list[DeadLetter]:
    """List all dead letters, or those of a run, in the order of the routing table; they stay in their queues.

    Raises BrokerError where the broker refuses or does not answer.
    """
    with _channel(settings) as channel:
        found = [received.dead_letter for received in _receive_all(channel)]
        _return(channel, found)
    return [dead_letter for dead_letter in found if run_id in (None, dead_letter.run_id)]


def requeue(settings: BrokerSettings, run_id: str | None = None) -> list[DeadLetter]:
    """Move all dead letters, or those of a run, back to the queues they came from, and return them.

    A dead letter is deleted from its dead-letter queue once the broker has confirmed that it is back in its queue. A
    command that is killed in between leaves it in both; handling it twice changes no result. Before that its run is
    notified to wait for it. Raises BrokerError also where a queue stays full.
    """
    moved: list[DeadLetter] = []
    others: list[DeadLetter] = []
    signer = Signer(settings.message_key)
    with _channel(settings) as channel, closing(RabbitMQTransport(settings, _CONNECT_TIMEOUT_S).open([])) as session:
        for received in _receive_all(channel):
            dead_letter = received.dead_letter
            if run_id not in (None, dead_letter.run_id):
                others.append(dead_letter)
                continue
            session.publish_encoded(received.notices(signer))
            try:
                session.publish_encoded([received.original()], ROOM_TIMEOUT_S)
            except BrokerError as error:
                raise BrokerError(
                    f"{error}: the queue {dead_letter.queue} may be full; start the service that consumes it, and try "
                    "again. The dead letters that are left stay in their queues"
                ) from None
            channel.basic_ack(received.tag)
            moved.append(dead_letter)
        _return(channel, others)
    return moved


@contextmanager
def _channel(settings: BrokerSettings) -> Iterator[BlockingChannel]:
    """A channel; messages that were received on it and not acknowledged go back when it is closed."""
    try:
        connection = pika.BlockingConnection(parameters(settings))
    except Exception as error:
        found = refusal(settings, error)
        raise BrokerError(found.text if found else no_answer(settings, error)) from None
    try:
        yield connection.channel()
        connection.close()
    except pika.exceptions.AMQPError as error:
        found = refusal(settings, error)
        raise BrokerError(found.text if found else f"lost the connection to {settings}: {error!r}") from error
    finally:
        if connection.is_open:
            connection.close()


def _receive_all(channel: BlockingChannel) -> Iterator[_Received]:
    """Receive, without acknowledging them, the dead letters that are there at the beginning."""
    for queue in topology.QUEUES:
        if not queue.has_dead_letter_queue:
            continue
        dead = topology.dead_letter_queue(queue.name).name
        for _ in range(_depth(channel, dead)):
            method, properties, body = channel.basic_get(dead)
            if method is None:
                break
            headers = properties.headers or {}
            dead_letter = _described(queue.name, properties.type or "", headers, len(body))
            yield _Received(dead_letter, method.delivery_tag, headers, body)


def _return(channel: BlockingChannel, received: Sequence[DeadLetter]) -> None:
    """Return what the channel has received and not acknowledged, and wait until it is back in its queues.

    Otherwise a command that begins in this moment would not find it. The wait has an end, because such a command may
    receive it first.
    """
    if not received:
        return
    channel.basic_nack(multiple=True)
    deadline = time.monotonic() + RETURN_TIMEOUT_S
    for queue, number in Counter(dead_letter.queue for dead_letter in received).items():
        while _depth(channel, topology.dead_letter_queue(queue).name) < number and time.monotonic() < deadline:
            channel.connection.sleep(RETURN_CHECK_S)


def _depth(channel: BlockingChannel, queue: str) -> int:
    """The number of messages in a queue; 0 where there is no such queue, for which the broker closes the channel."""
    own = channel.connection.channel()
    try:
        depth: int = own.queue_declare(queue, passive=True).method.message_count
        own.close()
        return depth
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return 0


def _described(queue: str, kind: str, headers: dict[str, Any], size: int) -> DeadLetter:
    """What the headers of a dead letter say; its reason and time are ours, or else the broker's (``x-death``)."""

    def text(name: str) -> str | None:
        return str(headers[name]) if name in headers else None

    def number(name: str) -> int | None:
        return int(headers[name]) if isinstance(headers.get(name), int) else None

    died, problem = text("died"), text("problem")
    for death in headers.get("x-death") or ():
        died = died or death["time"].isoformat() + "Z"
        problem = problem or f"the broker dead-lettered it: {death['reason']}"
    return DeadLetter(
        queue, kind, text("run_id"), text("sample"), number("start"), number("stop"), size, problem or "not said", died
    )
