"""What could not be handled: the letters in the dead-letter queues, and how they get another chance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from common import topology
from common.errors import BrokerError, MessageError
from common.messages import RequeueNotice
from common.settings import BrokerSettings
from common.signature import NOTICE_SIGNATURE, Signer
from common.transport.amqp import parameters, refusal

#: How long a letter waits for room in the queue it goes back to.
ROOM_DEADLINE_S = 60.0
_ROOM_PAUSE_S = 0.2
#: What a message gets when it dies, from us and from the broker; what it had before is its own.
_OF_DEATH = ("problem", "queue", "died", NOTICE_SIGNATURE)


@dataclass(frozen=True)
class Letter:
    """A dead letter: the ``queue`` it was in, what its headers say it is, its size in bytes, and why it is there.

    ``died`` is a time in ISO 8601 (UTC); what the headers do not say is None.
    """

    queue: str
    kind: str
    run_id: str | None
    sample: str | None
    start: int | None
    stop: int | None
    size: int
    problem: str
    died: str | None


def dead_letters(settings: BrokerSettings, run_id: str | None = None) -> list[Letter]:
    """Every letter, or every one of a run, the queues in the order of the pipeline; all stay where they are.

    Raises BrokerError where the broker refuses or does not answer.
    """
    with _channel(settings) as channel:
        return [letter for letter, _ in _letters(channel) if run_id in (None, letter.run_id)]


def requeue(settings: BrokerSettings, run_id: str | None = None) -> list[Letter]:
    """Send every letter, or every one of a run, back to the queue it came from; returns what was sent.

    A letter leaves its dead-letter queue once the broker has confirmed that it
    is back in the other: whoever is killed in between leaves it in both, and
    its second handling changes nothing. Its run is told to wait for it first.
    Raises BrokerError also where a queue stays full.
    """
    sent = []
    signer = Signer(settings.message_key)
    with _channel(settings) as channel:
        channel.confirm_delivery()
        for letter, (tag, properties, body) in _letters(channel):
            if run_id not in (None, letter.run_id):
                continue
            for notice in _notices(letter):
                encoded = notice.encode()
                headers = signer.sign(notice.route, notice.kind, encoded, notice.headers)
                _publish(channel, notice.route, notice.kind, headers, encoded)
            own = {name: value for name, value in (properties.headers or {}).items() if not _is_of_death(name)}
            _publish(channel, letter.queue, letter.kind, own, body)
            channel.basic_ack(tag)
            sent.append(letter)
    return sent


def _is_of_death(header: str) -> bool:
    return header in _OF_DEATH or header.startswith("x-")


def _notices(letter: Letter) -> list[RequeueNotice]:
    known = {"run_id": letter.run_id, "sample": letter.sample, "start": letter.start, "stop": letter.stop}
    try:
        return [RequeueNotice.from_headers(letter.queue, known)] if letter.run_id is not None else []
    except MessageError:
        return []  # its headers name nothing that could wait for it


@contextmanager
def _channel(settings: BrokerSettings) -> Iterator[BlockingChannel]:
    """A channel; what was taken on it and not acknowledged goes back when it closes."""
    try:
        connection = pika.BlockingConnection(parameters(settings))
    except Exception as error:
        problem = refusal(settings, error) or f"no RabbitMQ answers at {settings}; is --broker right?"
        raise BrokerError(problem) from None
    try:
        yield connection.channel()
        connection.close()
    except pika.exceptions.AMQPError as error:
        raise BrokerError(f"{settings} has broken off: {type(error).__name__} {error}") from error
    finally:
        if connection.is_open:
            connection.close()


def _letters(channel: BlockingChannel) -> Iterator[tuple[Letter, tuple[int, pika.BasicProperties, bytes]]]:
    """The letters that are there at the beginning, each taken and not acknowledged."""
    for wanted in topology.QUEUES:
        if not wanted.has_dead_letter_queue:
            continue
        grave = topology.dead_letter_queue(wanted.name).name
        for _ in range(_count(channel, grave)):
            method, properties, body = channel.basic_get(grave)
            if method is None:
                break
            yield _letter(wanted.name, properties, len(body)), (method.delivery_tag, properties, body)


def _count(channel: BlockingChannel, queue: str) -> int:
    """How many letters a queue holds; none where it was never made, which closes the channel it was asked on."""
    asking = channel.connection.channel()
    try:
        count: int = asking.queue_declare(queue, passive=True).method.message_count
        asking.close()
        return count
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return 0


def _letter(queue: str, properties: pika.BasicProperties, size: int) -> Letter:
    headers: dict[str, Any] = properties.headers or {}

    def text(name: str) -> str | None:
        return str(headers[name]) if name in headers else None

    def number(name: str) -> int | None:
        return int(headers[name]) if isinstance(headers.get(name), int) else None

    died, problem = text("died"), text("problem")
    for death in headers.get("x-death") or ():
        died = died or death["time"].isoformat() + "Z"
        problem = problem or f"the broker dead-lettered it: {death['reason']}"
    return Letter(
        queue, properties.type or "", text("run_id"), text("sample"), number("start"), number("stop"), size,
        problem or "not said", died,
    )  # fmt: skip


def _publish(channel: BlockingChannel, queue: str, kind: str, headers: dict[str, Any], body: bytes) -> None:
    """Put a message into a queue; returns once that is confirmed."""
    properties = pika.BasicProperties(type=kind, delivery_mode=2, headers=headers)
    deadline = time.monotonic() + ROOM_DEADLINE_S
    while True:
        try:
            channel.basic_publish("", queue, body, properties, mandatory=True)
            return
        except pika.exceptions.UnroutableError:
            raise BrokerError(f"there is no queue {queue}; a service makes it when it starts") from None
        except pika.exceptions.NackError:
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"the queue {queue} stays full; start the service that consumes it, then try again: "
                    "the letters that are left stay where they are"
                ) from None
            channel.connection.sleep(_ROOM_PAUSE_S)
