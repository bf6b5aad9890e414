"""The loop's turn: what a service does unasked, over both transports."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar

import pytest

from common import messages, topology
from common.errors import Unavailable
from common.messages import Message, RunFailed
from common.service import Service, serve
from common.topology import Queue
from common.transport import Transport
from common.transport.embedded import EmbeddedTransport
from common.transport.rabbitmq import RabbitMQTransport
from tests.conftest import wait_until


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.broker)])
def transport(request: pytest.FixtureRequest) -> Transport:
    if request.param == "embedded":
        return EmbeddedTransport()
    return RabbitMQTransport(request.getfixturevalue("vhost"), patience_s=20)


class Punctual(Service):
    """Publishes once, unasked; at its first turn what it needs is away."""

    name: ClassVar[str] = "punctual"
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS,)

    def __init__(self) -> None:
        self.turns = 0
        self.confirmed = threading.Event()

    def handle(self, message: Message) -> Sequence[Message]:
        return []

    def turn(self) -> None:
        self.turns += 1
        if self.turns == 1:
            raise Unavailable("the disk is full")
        if not self.confirmed.is_set():
            self.publish([RunFailed("run", "nobody asked")])
            self.confirmed.set()


def test_what_a_service_publishes_in_its_turn_arrives_though_something_was_away(transport: Transport) -> None:
    listener = transport.open([topology.follower("run")])
    service, stop = Punctual(), threading.Event()
    loop = threading.Thread(target=serve, args=(service, transport.open(service.consumes), stop))
    loop.start()
    try:
        delivery = wait_until(lambda: listener.receive(0.5), "the news came", 20)
        assert messages.decode(delivery.kind, delivery.body) == RunFailed("run", "nobody asked")
        assert service.confirmed.wait(20)
    finally:
        stop.set()
        loop.join(20)
        listener.close()
    assert not loop.is_alive()
