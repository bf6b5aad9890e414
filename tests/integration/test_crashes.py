"""A message that crashes its worker three times is put aside; nothing else is, however often it comes again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import awkward as ak
import numpy as np
import pika.exceptions
import pytest

from common import topology
from common.messages import Chunk, ChunkFailed, Events, Progress
from common.service import CRASH_LIMIT
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport import Delivery, Session, rabbitmq
from common.transport.amqp import arguments
from common.transport.rabbitmq import RabbitMQSession, RabbitMQTransport
from tests.chaos.redelivery import channel_of
from tests.support.broker import Broker
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker

VICTIM = "Zmumu"


def events(sample: str, start: int) -> Events:
    """A chunk of three events that nothing is wrong with."""
    columns = dict.fromkeys(("lep_pt", "lep_eta", "lep_phi", "lep_energy"), np.ones((3, 4), np.float32))
    columns |= dict.fromkeys(("lep_charge", "lep_type"), np.ones((3, 4), np.int8))
    array = ak.Array({**columns, "weight": np.ones(3, np.float32)})
    cutflow = {"read": 10, "four_leptons": 3, "pt_cuts": 3}
    return Events(Chunk("run", sample, start, start + 10), "2020e-13tev", cutflow, array)


def open_session(vhost: BrokerSettings, *queues: Queue, prefetch: int = 50) -> RabbitMQSession:
    return RabbitMQTransport(vhost, connect_timeout_s=20).open(queues, prefetch)


def take(session: Session) -> Delivery:
    delivery = wait_until(lambda: session.receive(0.5), "a delivery came", 30)
    assert isinstance(delivery, Delivery)
    return delivery


def names(broker: Broker, vhost: BrokerSettings, prefix: str) -> list[str]:
    return [queue["name"] for queue in broker.api("GET", f"queues/{vhost.vhost}") if queue["name"].startswith(prefix)]


class Restarted:
    """A dying data-processor, started again whenever it has died, as Compose and Kubernetes do."""

    def __init__(self, workers: Workers) -> None:
        self._environment = os.environ | workers.environment() | {"VICTIM": VICTIM}
        self._log = workers.folder / "dying.log"
        self.deaths = 0
        self._start()

    def _start(self) -> None:
        with open(self._log, "ab") as log:
            command = [sys.executable, "-m", "tests.support.dying_processor"]
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

    def look(self) -> None:
        """Restart it if it has died."""
        if (code := self._process.poll()) is not None:
            assert code == -signal.SIGKILL, self._log.read_text()
            self.deaths += 1
            self._start()

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(20)


@pytest.fixture
def restarted(workers: Workers) -> Iterator[Restarted]:
    running = Restarted(workers)
    yield running
    running.stop()


def test_a_message_that_kills_its_worker_three_times_is_dead_lettered_and_its_neighbours_are_handled(
    restarted: Restarted, broker: Broker, vhost: BrokerSettings
) -> None:
    innocent = [*range(0, 30, 10), *range(40, 70, 10)]
    sender = open_session(vhost)
    sender.publish([events("Zee", start) for start in innocent[:3]])
    sender.publish([events(VICTIM, 30)])
    sender.publish([events("Zee", start) for start in innocent[3:]])
    graves = open_session(vhost, topology.dead_letter_queue("events"), topology.SELECTED)
    letters, selected = [], set[int]()

    def all_came() -> bool:
        restarted.look()
        delivery = graves.receive(0.1)
        if delivery is not None and delivery.queue == "selected":
            selected.add(delivery.headers["start"])
        elif delivery is not None:
            letters.append(delivery)
        return len(letters) > 0 and len(selected) == len(innocent)

    wait_until(all_came, "the killer is put aside, and all others are selected", 120)
    assert selected == set(innocent)
    (letter,) = letters
    assert (letter.headers["sample"], letter.headers["start"]) == (VICTIM, 30)
    assert letter.headers["problem"] == "data-processor died 3 times with this message in hand"
    assert restarted.deaths == CRASH_LIMIT
    wait_until(lambda: not names(broker, vhost, "deaths."), "no mark is left", 10)
    for session in (sender, graves):
        session.close()


def test_lost_connections_and_restarts_of_the_broker_are_no_deaths(broker: Broker, vhost: BrokerSettings) -> None:
    session = open_session(vhost, topology.PLANS)
    session.publish([ChunkFailed(Chunk("run", "Zee", 0, 10), "whatever")])
    delivery = take(session)
    for number in range(5):
        if number == 2:
            broker.ctl("stop_app")
            broker.ctl("start_app")
        else:
            wait_until(lambda: broker.cut_connections(vhost), "the connection was cut", 30)
        delivery = take(session)
        assert delivery.redelivered
        assert session.take_in_hand(delivery) == 0
    session.publish_and_acknowledge(delivery)
    wait_until(lambda: not names(broker, vhost, "deaths."), "no mark is left", 10)
    session.close()


def redelivered(broker: Broker, vhost: BrokerSettings, session: RabbitMQSession, start: int = 0) -> Delivery:
    """A message that has come a second time."""
    session.publish([ChunkFailed(Chunk("run", "Zee", start, start + 10), "whatever")])
    take(session)
    wait_until(lambda: broker.cut_connections(vhost), "the connection was cut", 30)
    delivery = take(session)
    assert (delivery.redelivered, delivery.headers["start"]) == (True, start)
    return delivery


def test_two_copies_of_a_message_in_one_hand_are_no_death(broker: Broker, vhost: BrokerSettings) -> None:
    session = open_session(vhost, topology.PLANS)
    session.publish([ChunkFailed(Chunk("run", "Zee", 0, 10), "whatever")] * 2)
    for _ in range(2):
        take(session)
    wait_until(lambda: broker.cut_connections(vhost), "the connection was cut", 30)
    copies = [take(session) for _ in range(2)]
    assert [session.take_in_hand(copy) for copy in copies] == [0, 0]
    for copy in copies:
        session.publish_and_acknowledge(copy)
    wait_until(lambda: not names(broker, vhost, "deaths."), "no mark is left", 10)
    session.close()


def test_a_message_that_was_lost_before_it_was_taken_in_hand_leaves_no_mark(
    broker: Broker, vhost: BrokerSettings
) -> None:
    session = open_session(vhost, topology.PLANS)
    lost = redelivered(broker, vhost, session)
    connections = session.connections()
    wait_until(lambda: broker.cut_connections(vhost), "the connection was cut", 30)
    wait_until(lambda: session.connections() > connections, "it is back", 30)
    assert session.take_in_hand(lost) == 0
    session.publish_and_acknowledge(take(session))
    session.publish([ChunkFailed(Chunk("run", "Zee", 10, 20), "whatever")])
    other = take(session)
    assert session.take_in_hand(other) == 0  # marks are put one after the other: one of the lost message would be there
    assert names(broker, vhost, "deaths.") == [topology.deaths(other.queue, other.kind, other.body).name]
    session.close()


def test_a_queue_of_marks_that_was_made_in_the_moment_of_a_power_cut_holds_nobody_up(
    broker: Broker, vhost: BrokerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_session(vhost, topology.PLANS)
    delivery = redelivered(broker, vhost, session)
    marks = topology.deaths(delivery.queue, delivery.kind, delivery.body)
    with suppress(pika.exceptions.AMQPError), channel_of(vhost) as channel:
        channel.queue_declare(marks.name, durable=True, arguments=arguments(marks))
        broker.kill()
    broker.start()
    delivery = take(session)
    assert session.take_in_hand(delivery) == 0
    assert "is handled unmarked" not in caplog.text
    session.publish_and_acknowledge(delivery)
    wait_until(lambda: not names(broker, vhost, "deaths."), "no mark is left", 10)
    session.close()


def test_a_queue_of_marks_that_the_broker_refuses_costs_the_marks_of_its_message_and_no_more(
    broker: Broker, vhost: BrokerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rabbitmq, "MARK_DEADLINE_S", 0.3)
    session = open_session(vhost, topology.PLANS)
    first = redelivered(broker, vhost, session)
    marks = topology.deaths(first.queue, first.kind, first.body)
    with channel_of(vhost) as channel:
        channel.queue_declare(marks.name, durable=True, arguments={"x-queue-type": "quorum"})
    assert session.take_in_hand(first) == 0
    assert "is handled unmarked" in caplog.text
    session.publish_and_acknowledge(first)
    caplog.clear()
    second = redelivered(broker, vhost, session, start=10)
    assert session.take_in_hand(second) == 0
    assert "is handled unmarked" not in caplog.text
    session.publish_and_acknowledge(second)
    session.close()


def test_a_mark_that_the_broker_does_not_take_in_time_is_none(
    broker: Broker, vhost: BrokerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rabbitmq, "MARK_DEADLINE_S", 0.3)
    session = open_session(vhost, topology.PLANS)
    delivery = redelivered(broker, vhost, session)
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")  # the broker takes nothing from who publishes
    try:
        wait_until(lambda: broker.api("GET", "nodes")[0]["mem_alarm"], "the broker raised its alarm")
        session.publish_without_confirm(Progress("plan", Chunk("run", "Zee", 0, 10)))  # the last that it takes
        assert session.take_in_hand(delivery) == 0
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.6")
    assert "is handled unmarked" in caplog.text
    session.publish_and_acknowledge(delivery)
    session.close()
    with channel_of(vhost) as channel:
        marks = topology.deaths(delivery.queue, delivery.kind, delivery.body)
        declared = channel.queue_declare(marks.name, durable=True, arguments=arguments(marks))
        assert declared.method.message_count == 0


def test_a_worker_that_stops_in_the_middle_of_a_message_is_no_death(broker: Broker, vhost: BrokerSettings) -> None:
    first = open_session(vhost, topology.PLANS)
    first.publish([ChunkFailed(Chunk("run", "Zee", 0, 10), "whatever")])
    take(first)
    first.close()
    for _ in range(4):
        session = open_session(vhost, topology.PLANS)
        assert session.take_in_hand(take(session)) == 0
        session.close()
    assert not names(broker, vhost, "deaths.")


def test_a_letter_that_was_looked_at_a_hundred_times_is_still_there(vhost: BrokerSettings) -> None:
    """RabbitMQ 4 drops a message for good after 20 deliveries, unless the queue says otherwise."""
    grave = topology.dead_letter_queue("plans")
    worker = open_session(vhost, topology.PLANS)
    worker.publish([ChunkFailed(Chunk("run", "Zee", 0, 10), "whatever")])
    worker.dead_letter(take(worker), "for a test")
    worker.close()
    for _ in range(100):
        session = open_session(vhost, grave)
        take(session)
        session.close()
    session = open_session(vhost, grave)
    assert take(session).headers["problem"] == "for a test"
    session.close()
