"""The broker dead-letters a message that kills its workers again and again, and no other message with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import ClassVar

import pytest

from common import topology
from common.delivery import Delivery
from common.messages import Chunk, ChunkFailed
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport import Session
from common.transport.amqp import DELIVERY_LIMIT
from common.transport.dead_letters import dead_letters
from common.transport.rabbitmq import RabbitMQTransport
from tests.chaos.proxy import Proxy
from tests.support.dying_service import VICTIM
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker


class InEvents(ChunkFailed):
    """A small message in the queue ``events``."""

    route: ClassVar[str] = topology.EVENTS.name


def message(number: int, sample: str = "Zee", kind: type[ChunkFailed] = ChunkFailed) -> ChunkFailed:
    return kind(Chunk("run", sample, number, number + 1), f"number {number}")


@pytest.fixture
def open_session(vhost: BrokerSettings) -> Iterator[Callable[..., Session]]:
    opened: list[Session] = []

    def make(*queues: Queue) -> Session:
        opened.append(RabbitMQTransport(vhost, connect_timeout_s=20).open(queues))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def take(session: Session) -> Delivery:
    delivery = wait_until(lambda: session.receive(0.5), "a delivery came", 30)
    assert isinstance(delivery, Delivery)
    return delivery


class RestartedService:
    """A dying service that is started again whenever it has died, as Compose and Kubernetes do."""

    def __init__(self, workers: Workers) -> None:
        self._environment = os.environ | workers.environment()
        self._log = workers.folder / "dying.log"
        self.deaths = 0
        self._start()

    def _start(self) -> None:
        with open(self._log, "ab") as log:
            command = [sys.executable, "-m", "tests.support.dying_service"]
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

    def restart_if_dead(self) -> None:
        if (code := self._process.poll()) is not None:
            assert code == -signal.SIGKILL, self._log.read_text()
            self.deaths += 1
            self._start()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture
def dying(workers: Workers) -> Iterator[Callable[[], RestartedService]]:
    started: list[RestartedService] = []

    def start() -> RestartedService:
        started.append(RestartedService(workers))
        return started[-1]

    yield start
    for service in started:
        service.stop()


def test_a_message_that_kills_its_workers_is_dead_lettered_and_no_other(
    open_session: Callable[..., Session],
    dying: Callable[[], RestartedService],
    vhost: BrokerSettings,
) -> None:
    sender, answers = open_session(), open_session(topology.follower("run"))
    others = [message(number, kind=other) for other in (ChunkFailed, InEvents) for number in range(3)]
    sender.publish([*others[:1], *others[3:4], message(9, VICTIM, InEvents), *others[1:3], *others[4:]])
    service, answered = dying(), []

    def is_done() -> bool:
        service.restart_if_dead()
        delivery = answers.receive(0.1)
        if delivery is not None:
            answered.append(delivery.body)
            answers.publish_and_acknowledge(delivery)
        reached_the_limit = service.deaths > DELIVERY_LIMIT
        return reached_the_limit and len(dead_letters(vhost)) == 1 and len(answered) >= len(others)

    # The broker publishes a dead letter again if its queue has not confirmed it within three minutes.
    wait_until(is_done, "the message was dead-lettered and the others were handled", 240)
    (dead_letter,) = dead_letters(vhost)
    assert (dead_letter.queue, dead_letter.sample, dead_letter.start) == (topology.EVENTS.name, VICTIM, 9)
    assert dead_letter.problem == "the broker dead-lettered it: delivery_limit"
    assert service.deaths == DELIVERY_LIMIT + 1


@pytest.fixture
def proxy(vhost: BrokerSettings) -> Iterator[Proxy]:
    with Proxy(vhost.port) as running:
        yield running


def open_through(proxy: Proxy, vhost: BrokerSettings) -> Session:
    return RabbitMQTransport(replace(vhost, port=proxy.port), connect_timeout_s=20).open([topology.PLANS])


def lose_connection_with_a_delivery(session: Session, proxy: Proxy, times: int) -> None:
    """Take a delivery and lose the connection before it is acknowledged, several times."""
    for _ in range(times):
        take(session)
        connections = session.connections()
        proxy.cut()
        wait_until(lambda: session.connections() > connections, "it is connected again", 30)  # noqa: B023


def test_the_analysis_is_notified_of_a_message_that_the_broker_dead_letters(
    vhost: BrokerSettings, proxy: Proxy, open_session: Callable[..., Session]
) -> None:
    notices = open_session(topology.DEAD_NOTICES)
    notices.publish([message(7)])
    with closing(
        RabbitMQTransport(replace(vhost, port=proxy.port), connect_timeout_s=20).open([topology.PLANS])
    ) as lost:
        lose_connection_with_a_delivery(lost, proxy, DELIVERY_LIMIT + 1)
        notice = take(notices)
        assert notice.headers["x-first-death-queue"] == "plans"
        assert notice.headers["x-first-death-reason"] == "delivery_limit"
        assert (notice.headers["start"], notice.body) == (7, message(7).encode())
        assert lost.receive(0.5) is None


def test_a_message_survives_as_many_lost_connections_as_the_limit_allows(
    vhost: BrokerSettings, proxy: Proxy, open_session: Callable[..., Session]
) -> None:
    open_session().publish([message(7)])
    with closing(
        RabbitMQTransport(replace(vhost, port=proxy.port), connect_timeout_s=20).open([topology.PLANS])
    ) as lost:
        lose_connection_with_a_delivery(lost, proxy, DELIVERY_LIMIT)
        delivery = take(lost)
        assert delivery.body == message(7).encode()
        lost.publish_and_acknowledge(delivery)
    assert dead_letters(vhost) == []


def test_listing_dead_letters_a_hundred_times_keeps_them(
    vhost: BrokerSettings, open_session: Callable[..., Session]
) -> None:
    """From RabbitMQ 4.0 on, a queue drops a message after 20 deliveries unless its arguments say otherwise."""
    session = open_session(topology.PLANS)
    session.publish([message(7)])
    session.dead_letter(take(session), "for a test")
    wait_until(lambda: dead_letters(vhost), "the dead letter is listed", 20)
    for _ in range(100):
        dead_letters(vhost)
    assert [dead_letter.problem for dead_letter in dead_letters(vhost)] == ["for a test"]
