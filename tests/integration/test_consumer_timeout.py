"""RabbitMQ redelivers a message that was not acknowledged within consumer_timeout; no message is lost by it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from common import messages, topology
from common.health import ServiceMetrics
from common.messages import Chunk, ChunkFailed, Message
from common.service import Service, serve
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport.dead_letters import dead_letters
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.support.broker import Broker
from tests.support.waiting import wait_until

pytestmark = pytest.mark.broker

TIMEOUT_S = 2
TOTAL = 40


@pytest.fixture
def short_timeout(broker: Broker) -> Iterator[Broker]:
    """The broker, with a consumer_timeout of two seconds on new channels, checked twice a second."""
    broker.ctl("eval", setting("consumer_timeout", 1000 * TIMEOUT_S) + setting("channel_tick_interval", 500) + "ok.")
    yield broker
    broker.ctl("eval", setting("consumer_timeout", 1_800_000) + setting("channel_tick_interval", 60_000) + "ok.")


def setting(name: str, value: int) -> str:
    return f"application:set_env(rabbit, {name}, {value}), "


class InEvents(ChunkFailed):
    """A small message in the queue ``events``."""

    route: ClassVar[str] = topology.EVENTS.name


class Forwarding(Service):
    """Forwards messages from ``plans`` to ``events``, which holds 16."""

    name: ClassVar[str] = "forwarding"
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS,)

    def __init__(self) -> None:
        self.handled: list[int] = []

    def handle(self, message: Message) -> Sequence[Message]:
        assert isinstance(message, ChunkFailed)
        self.handled.append(message.chunk.start)
        return [InEvents(message.chunk, message.problem)]


def test_waiting_for_a_full_queue_beyond_consumer_timeout_loses_no_message(
    short_timeout: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    vhost: BrokerSettings = short_timeout.new_vhost()
    transport = RabbitMQTransport(vhost, connect_timeout_s=20)
    sender, stop, service = transport.open([]), threading.Event(), Forwarding()
    sender.publish([ChunkFailed(Chunk("run", "Zee", number, number + 1), "whatever") for number in range(TOTAL)])
    session = transport.open(service.consumes)
    loop = threading.Thread(target=serve, args=(service, session, stop, ServiceMetrics("forwarding")))
    loop.start()
    try:
        # The queue events is full and has no consumer: no delivery is acknowledged until the timeout.
        wait_until(
            lambda: "acknowledgement" in caplog.text or "cancelled a consumer" in caplog.text, "it timed out", 60
        )
        wait_until(lambda: len(service.handled) > len(set(service.handled)), "a message was redelivered", 30)
        assert loop.is_alive()
        receiver, arrived = transport.open([topology.EVENTS]), set[int]()

        def all_arrived() -> bool:
            delivery = receiver.receive(0.5)
            if delivery is not None:
                message = messages.decode(delivery.kind, delivery.body, ANALYSES)
                assert isinstance(message, ChunkFailed)
                arrived.add(message.chunk.start)
                receiver.publish_and_acknowledge(delivery)
            return arrived == set(range(TOTAL))

        wait_until(all_arrived, "all messages had arrived", 60)
        assert dead_letters(vhost) == []
        receiver.close()
    finally:
        stop.set()
        loop.join(20)
        sender.close()
    assert not loop.is_alive()


def test_a_consumer_that_the_broker_cancels_consumes_again(short_timeout: Broker) -> None:
    """RabbitMQ cancels a consumer whose queue is deleted, and from 4.3 on one that exceeds consumer_timeout."""
    vhost = short_timeout.new_vhost()
    transport = RabbitMQTransport(vhost, connect_timeout_s=20)
    consumer, sender = transport.open([topology.PLANS]), transport.open([])
    short_timeout.api("DELETE", f"queues/{vhost.vhost}/plans")
    sender.publish([ChunkFailed(Chunk("run", "Zee", 0, 1), "whatever")])
    delivery = wait_until(lambda: consumer.receive(0.5), "the message came", 30)
    consumer.publish_and_acknowledge(delivery)
    for session in (consumer, sender):
        session.close()
