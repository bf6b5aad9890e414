"""Repeats and reorders deliveries, by taking messages from a queue and putting them back."""

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
from tests.support.waiting import wait_until

#: How many messages are taken at once, to be put back in another order.
_BATCH_SIZE = 8
#: How long a message waits for room in its queue, in seconds.
PUT_DEADLINE_S = 60


@dataclass(frozen=True)
class Taken:
    """A message as it was in its queue."""

    queue: str
    properties: pika.BasicProperties
    body: bytes


@contextmanager
def open_channel(settings: BrokerSettings) -> Iterator[BlockingChannel]:
    """A channel with publisher confirms."""
    connection = pika.BlockingConnection(parameters(settings))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        connection.close()


def put(channel: BlockingChannel, message: Taken) -> None:
    """Put a message into its queue; waits while the queue is full, and fails after a minute."""

    def is_put() -> bool:
        try:
            channel.basic_publish("", message.queue, message.body, message.properties, mandatory=True)
        except pika.exceptions.NackError:
            channel.connection.process_data_events()
            return False
        return True

    wait_until(is_put, f"the queue {message.queue} had room", PUT_DEADLINE_S)


def redeliver(settings: BrokerSettings, queue: str, seconds: float, copies: int, rng: random.Random) -> list[Taken]:
    """Put every message of a queue back ``copies`` times, in random order, and return the messages.

    Repeats this for so many seconds. Its consumer has priority over those of the services.
    """
    everything: list[Taken] = []
    with open_channel(settings) as channel:
        channel.basic_qos(prefetch_count=_BATCH_SIZE)
        deadline = time.monotonic() + seconds
        batch: list[tuple[int, Taken]] = []
        for method, properties, body in channel.consume(queue, inactivity_timeout=0.2, arguments={"x-priority": 10}):
            if method is not None:
                batch.append((method.delivery_tag, Taken(queue, properties, body)))
            over = time.monotonic() > deadline
            if len(batch) == _BATCH_SIZE or method is None or over:
                put_back = [taken for _, taken in batch] * copies
                rng.shuffle(put_back)
                for message in put_back:
                    put(channel, message)
                for tag, taken in batch:
                    channel.basic_ack(tag)
                    everything.append(taken)
                batch = []
            if over:
                break
        channel.cancel()  # messages delivered since go back to the queue
    return everything
