"""The work that a service does in its poll, over both transports."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from common import messages, topology
from common.errors import BrokerError, Unavailable
from common.messages import Chunk, ChunkFailed, Message, RunFailed
from common.service import Service, serve
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport import Transport
from common.transport.embedded import EmbeddedTransport
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.chaos.proxy import Proxy
from tests.support.waiting import wait_until


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.broker)])
def transport(request: pytest.FixtureRequest) -> Transport:
    if request.param == "embedded":
        return EmbeddedTransport()
    return RabbitMQTransport(request.getfixturevalue("vhost"), connect_timeout_s=20)


class Polling(Service):
    """Publishes a message in its second poll; the first one raises Unavailable."""

    name: ClassVar[str] = "polling"
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS,)

    def __init__(self) -> None:
        self.polls = 0
        self.confirmed = threading.Event()

    def handle(self, message: Message) -> Sequence[Message]:
        return []

    def poll(self) -> None:
        self.polls += 1
        if self.polls == 1:
            raise Unavailable("the disk is full")
        if not self.confirmed.is_set():
            self.publish([RunFailed("run", "from a poll")])
            self.confirmed.set()


def test_a_service_publishes_in_its_poll_after_something_was_unavailable(transport: Transport) -> None:
    listener = transport.open([topology.follower("run")])
    service, stop = Polling(), threading.Event()
    loop = threading.Thread(target=serve, args=(service, transport.open(service.consumes), stop))
    loop.start()
    try:
        delivery = wait_until(lambda: listener.receive(0.5), "the message came", 20)
        assert messages.decode(delivery.kind, delivery.body, ANALYSES) == RunFailed("run", "from a poll")
        assert service.confirmed.wait(20)
    finally:
        stop.set()
        loop.join(20)
        listener.close()
    assert not loop.is_alive()


@pytest.mark.broker
def test_a_message_is_redelivered_where_the_broker_was_lost_before_the_stop(vhost: BrokerSettings) -> None:
    stop, outcome = threading.Event(), RunFailed("run", "never confirmed")

    class LosesBroker(Polling):
        def poll(self) -> None: ...

        def handle(self, message: Message) -> Sequence[Message]:
            proxy.refuses = True
            proxy.cut()
            stop.set()
            self.publish([outcome])
            return []

    direct = RabbitMQTransport(vhost, connect_timeout_s=20).open([topology.dead_letter_queue("plans")])
    sent = ChunkFailed(Chunk("run", "Zee", 0, 1), "no reason")
    direct.publish([sent])
    with Proxy(vhost.port) as proxy:
        service = LosesBroker()
        session = RabbitMQTransport(replace(vhost, port=proxy.port), connect_timeout_s=20, stop=stop).open(
            service.consumes
        )
        with pytest.raises(BrokerError, match="has not confirmed"):
            serve(service, session, stop)
    successor = RabbitMQTransport(vhost, connect_timeout_s=20).open([topology.PLANS])
    delivery = wait_until(lambda: successor.receive(0.5), "the message was redelivered", 20)
    assert messages.decode(delivery.kind, delivery.body, ANALYSES) == sent
    assert direct.receive(0.5) is None
    for opened in (direct, successor):
        opened.close()
