"""The work that a service does in its poll, over both transports."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar, TypeVar

import pytest

from common import messages, topology
from common.errors import BrokerError, Unavailable
from common.messages import Chunk, ChunkFailed, Message, Progress, QueueStatus, RunFailed, ServiceStatus
from common.service import Service, serve
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport import Transport
from common.transport.embedded import EmbeddedTransport
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.chaos.proxy import Proxy
from tests.support.waiting import wait_until

T = TypeVar("T", bound=Message)


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


class Working(Service):
    """Handles a message until it may continue."""

    name: ClassVar[str] = "data-loader"
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS,)
    reports_queues: ClassVar[bool] = True

    def __init__(self) -> None:
        self.may_continue = threading.Event()

    def handle(self, message: Message) -> Sequence[Message]:
        self.may_continue.wait(20)
        return [Progress("data-loader", Chunk("run", "Zee", 0, 10))]


def test_a_service_reports_what_it_does_and_how_many_messages_wait(transport: Transport) -> None:
    listener = transport.open(topology.consumed_by("visualisation"))
    service, stop = Working(), threading.Event()
    sender = transport.open([])
    loop = threading.Thread(target=serve, args=(service, transport.open(service.consumes), stop))

    def reported(kind: type[T], state: str = "") -> T:
        def find() -> T | None:
            delivery = listener.receive(0.5)
            if delivery is None:
                return None
            listener.publish_and_acknowledge(delivery)
            message = messages.decode(delivery.kind, delivery.body, ANALYSES)
            return message if isinstance(message, kind) and getattr(message, "state", "") == state else None

        return wait_until(find, f"{kind.kind} {state}", 20)

    loop.start()
    try:
        idle = reported(ServiceStatus, "idle")
        sender.publish([ChunkFailed(Chunk("run", "Zee", number, number + 1), "") for number in range(3)])
        busy = reported(ServiceStatus, "busy")
        wait_until(lambda: reported(QueueStatus).queues["plans"].messages == 2, "two messages wait", 20)
        service.may_continue.set()
        wait_until(lambda: reported(ServiceStatus, "idle").events == 30, "three messages are handled", 20)
    finally:
        stop.set()
        loop.join(20)
    last = reported(ServiceStatus, "stopping")
    for opened in (listener, sender):
        opened.close()
    assert (busy.service, busy.run, busy.work) == ("data-loader", "run", "Zee[0:1]")
    assert (idle.run, idle.work, idle.events, idle.received_bytes) == ("", "", 0, {})
    assert last.replica == idle.replica
    assert idle.since < idle.at < last.at
    assert 0 < idle.cpu_seconds <= last.cpu_seconds
    assert last.rss_bytes > 2**20
    assert last.received_bytes["plans"] > 100


class Drawing(Service):
    """Handles a message by work in another thread, which ends when the service has handled a status message."""

    name: ClassVar[str] = "visualisation"
    consumes: ClassVar[Sequence[Queue]] = topology.consumed_by("visualisation")

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(1)
        self.status = threading.Event()
        self.handled: list[str] = []

    def handle(self, message: Message) -> Sequence[Message]:
        if isinstance(message, ServiceStatus):
            self.status.set()
        elif isinstance(message, RunFailed):
            self.handled.append(f"{message.problem} begins")
            assert self.outcome_of(self.threads.submit(self.status.wait, 20))
            self.handled.append(f"{message.problem} ends")
        return []

    def close(self) -> None:
        self.threads.shutdown()


def test_a_service_handles_the_status_of_others_while_it_draws(transport: Transport) -> None:
    service, stop = Drawing(), threading.Event()
    session, sender = transport.open(service.consumes), transport.open([])
    sender.publish([RunFailed("run", "first"), RunFailed("run", "second")])
    loop = threading.Thread(target=serve, args=(service, session, stop))
    loop.start()
    try:
        wait_until(lambda: len(service.handled) == 4, "both messages were handled", 30)
    finally:
        stop.set()
        loop.join(20)
        sender.close()
    assert service.handled == ["first begins", "first ends", "second begins", "second ends"]


class NeverTold(Drawing):
    """Does not look at the status messages."""

    def handle(self, message: Message) -> Sequence[Message]:
        return [] if isinstance(message, ServiceStatus) else super().handle(message)


def test_a_service_that_is_to_stop_waits_for_its_drawing_and_receives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    service, stop, transport = NeverTold(), threading.Event(), EmbeddedTransport()
    session, received = transport.open(service.consumes), itertools.count()
    receive = session.receive
    monkeypatch.setattr(session, "receive", lambda timeout_s: next(received) >= 0 and receive(timeout_s))
    session.publish([RunFailed("run", "first")])
    loop = threading.Thread(target=serve, args=(service, session, stop))
    loop.start()
    wait_until(lambda: service.handled == ["first begins"], "the message is handled", 30)
    stop.set()
    transport.shut_down()
    loop.join(0.5)
    assert loop.is_alive()
    service.status.set()
    loop.join(20)
    assert service.handled == ["first begins", "first ends"]
    assert next(received) < 20


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
