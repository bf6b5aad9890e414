"""Makes deliveries come twice, late or in another order, by taking messages out of a queue and putting them back."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from common.settings import BrokerSettings
from common.transport.amqp import parameters

#: Messages taken at once: enough to bring them into another order.
_HANDFUL = 8


@dataclass(frozen=True)
class Taken:
    """A message as it was in its queue."""

    queue: str
    properties: pika.BasicProperties
    body: bytes


@contextmanager
def channel_of(settings: BrokerSettings) -> Iterator[BlockingChannel]:
    """A channel that confirms what is published."""
    connection = pika.BlockingConnection(parameters(settings))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        connection.close()


def put(channel: BlockingChannel, message: Taken) -> None:
    """Put a message into its queue; waits while that is full."""
    while True:
        try:
            return channel.basic_publish("", message.queue, message.body, message.properties, mandatory=True)
        except pika.exceptions.NackError:
            channel.connection.sleep(0.05)


def disturb(settings: BrokerSettings, queue: str, seconds: float, copies: int, rng: random.Random) -> list[Taken]:
    """Put every message of a queue back ``copies`` times, in any order, for so many seconds; returns the messages.

    The services get what we leave: our consumer has priority.
    """
    everything: list[Taken] = []
    with channel_of(settings) as channel:
        channel.basic_qos(prefetch_count=_HANDFUL)
        deadline = time.monotonic() + seconds
        handful: list[tuple[int, Taken]] = []
        for method, properties, body in channel.consume(queue, inactivity_timeout=0.2, arguments={"x-priority": 10}):
            if method is not None:
                handful.append((method.delivery_tag, Taken(queue, properties, body)))
            over = time.monotonic() > deadline
            if len(handful) == _HANDFUL or method is None or over:
                put_back = [taken for _, taken in handful] * copies
                rng.shuffle(put_back)
                for message in put_back:
                    put(channel, message)
                for tag, taken in handful:
                    channel.basic_ack(tag)
                    everything.append(taken)
                handful = []
            if over:
                break
        channel.cancel()  # what has been delivered since goes back to the queue
    return everything
