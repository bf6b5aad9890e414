"""The loop of every service: a message that fails is dead-lettered with the reason, and the loop continues."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from common import messages, topology
from common.delivery import Delivery
from common.errors import MessageError, Unavailable
from common.health import ServiceMetrics, listen
from common.messages import Chunk, ChunkFailed, Message, RunFailed
from common.service import Service, serve
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport import Session, amqp
from common.transport.embedded import EmbeddedTransport
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.support.broker import Broker
from tests.support.waiting import free_port, wait_until


def failed(problem: str) -> ChunkFailed:
    return ChunkFailed(Chunk("run", "Zee", 0, 1), problem)


class Echo(Service):
    """Answers messages in ``plans`` with messages on ``results``, after it has raised each of ``errors`` once."""

    name: ClassVar[str] = "echo"
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS, topology.DEAD_NOTICES)

    def __init__(self, errors: Sequence[Exception] = ()) -> None:
        self.errors = list(errors)
        self.closed = threading.Event()

    def decode(self, delivery: Delivery) -> Message:
        if delivery.queue == topology.DEAD_NOTICES.name:
            raise MessageError("cannot read dead letters")
        return super().decode(delivery)

    def handle(self, message: Message) -> Sequence[Message]:
        assert isinstance(message, ChunkFailed)
        if self.errors:
            raise self.errors.pop(0)
        return [RunFailed("run", message.problem)]

    def close(self) -> None:
        self.closed.set()


class Running:
    """An Echo in its loop over an embedded transport, and a session that receives its answers."""

    def __init__(self, service: Echo) -> None:
        self.transport = EmbeddedTransport()
        self.stop = threading.Event()
        self.metrics = ServiceMetrics("echo")
        self.session = self.transport.open([topology.follower("run")])
        arguments = (service, self.transport.open(service.consumes), self.stop, self.metrics)
        self.thread = threading.Thread(target=serve, args=arguments, daemon=True)
        self.thread.start()

    def answer(self) -> str:
        delivery = wait_until(lambda: self.session.receive(0.5), "an answer came", 20)
        message = messages.decode(delivery.kind, delivery.body, ANALYSES)
        assert isinstance(message, RunFailed)
        return message.problem


@pytest.fixture
def start() -> Iterator[Callable[[Echo], Running]]:
    started: list[Running] = []

    def begin(service: Echo) -> Running:
        started.append(Running(service))
        return started[-1]

    yield begin
    for running in started:
        running.stop.set()
        running.thread.join(10)
        assert not running.thread.is_alive()


def test_a_message_is_answered_and_the_service_is_closed_at_the_end(start: Callable[[Echo], Running]) -> None:
    service = Echo()
    running = start(service)
    running.session.publish([failed("one")])
    assert running.answer() == "one"
    running.stop.set()
    assert service.closed.wait(10)


def test_a_message_is_tried_again_while_something_is_unavailable(
    start: Callable[[Echo], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.service.RETRY_PAUSE_S", 0.01)
    running = start(Echo([Unavailable("the disk is full")] * 3))
    running.session.publish([failed("again")])
    assert running.answer() == "again"
    assert running.transport.depth("plans.dead") == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MessageError("no use for it"), "no use for it"), (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero")],
)
def test_a_message_that_cannot_be_handled_is_dead_lettered_with_its_reason(
    start: Callable[[Echo], Running], error: Exception, reason: str
) -> None:
    running = start(Echo([error]))
    running.session.publish([failed("bad"), failed("good")])
    assert running.answer() == "good"
    dead = running.transport.open([topology.dead_letter_queue("plans")])
    dead_letter = wait_until(lambda: dead.receive(0.5), "the dead letter is there", 10)
    assert reason in dead_letter.headers["problem"]
    assert messages.decode(dead_letter.kind, dead_letter.body, ANALYSES) == failed("bad")


def test_an_unreadable_dead_letter_notice_makes_no_new_dead_letter(start: Callable[[Echo], Running]) -> None:
    running = start(Echo([MessageError("bad")]))
    running.session.publish([failed("bad"), failed("good")])
    assert running.answer() == "good"
    wait_until(lambda: running.transport.depth("dead-notices") == 0, "the notice was read", 10)
    assert running.transport.depth("dead-notices.dead") == 0
    assert running.transport.depth("plans.dead") == 1


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_service_reports_its_health_and_its_metrics(start: Callable[[Echo], Running]) -> None:
    running = start(Echo([MessageError("bad")]))
    port = free_port()
    with listen(running.metrics, port):
        running.session.publish([failed("bad"), failed("good")])
        assert running.answer() == "good"
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (200, "ok\n")
        assert get(port, "/elsewhere")[0] == 404
        status, metrics = wait_until(
            lambda: (found := get(port, "/metrics")) and 'handled_total{queue="plans"} 1.0' in found[1] and found,
            "the message is counted",
            10,
        )
        assert status == 200
        assert 'atlas_messages_failed_total{queue="plans"} 1.0' in metrics
        assert "atlas_connected 1.0" in metrics
        assert "atlas_messages_in_flight 0.0" in metrics
        assert "atlas_events_total 0.0" in metrics
        assert 'atlas_handling_seconds_count{kind="chunk-failed",queue="plans"} 2.0' in metrics
        assert 'atlas_queue_messages{queue="plans"} 0.0' in metrics
        assert 'atlas_queue_messages{queue="plans.dead"} 1.0' in metrics
        described = set(re.findall(r"^# HELP (\S+) \S", metrics, re.MULTILINE))
        assert described == set(re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE))


def test_a_service_that_is_not_connected_is_alive_but_not_ready() -> None:
    metrics, port = ServiceMetrics("echo"), free_port()
    with listen(metrics, port):
        assert get(port, "/healthz")[0] == 200
        assert get(port, "/readyz") == (503, "not connected to the broker\n")


def test_a_loop_that_is_stuck_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, port = ServiceMetrics("echo"), free_port()
    monkeypatch.setattr("common.health.STUCK_S", 0.0)
    metrics.heartbeat()
    with listen(metrics, port):
        status, text = get(port, "/healthz")
        assert (status, "stuck" in text) == (503, True)
        with metrics.handling(Delivery("plans", "run-plan", b"", {}, redelivered=False, token=None)):
            assert get(port, "/healthz")[0] == 200


@pytest.mark.broker
def test_heartbeats_are_answered_while_a_message_is_handled(
    broker: Broker, vhost: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker closes a connection that misses two heartbeats; this one lasts for five."""
    monkeypatch.setattr(amqp, "HEARTBEAT_S", 1)
    session: Session = RabbitMQTransport(vhost, connect_timeout_s=20).open([topology.PLANS])
    session.publish([failed("slow")])
    delivery = wait_until(lambda: session.receive(0.5), "the message came", 10)

    def connection() -> dict[str, Any]:
        listed = broker.api("GET", f"vhosts/{vhost.vhost}/connections")
        return listed[0] if listed else {}

    first = wait_until(lambda: (found := connection()).get("recv_oct") and found, "its statistics came", 20)
    assert first["timeout"] == 1
    heartbeats = 5 * 8  # bytes
    wait_until(lambda: connection()["recv_oct"] >= first["recv_oct"] + heartbeats, "five heartbeats came", 30)
    assert session.is_connected()
    session.publish_and_acknowledge(delivery)
    assert session.receive(1.0) is None
    assert connection()["name"] == first["name"]
    session.close()
