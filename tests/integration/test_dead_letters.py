"""Dead letters can be listed and requeued, and are in at least one queue at any time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pika
import pytest
from pika.exceptions import NackError

from common import topology
from common.delivery import PUBLISHED_US, Delivery
from common.errors import BrokerError
from common.messages import Chunk, ChunkFailed, Message
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport import dead_letters as module
from common.transport.amqp import parameters
from common.transport.dead_letters import dead_letters, requeue
from common.transport.rabbitmq import RabbitMQSession, RabbitMQTransport
from tests.integration.test_command import run
from tests.support.broker import Broker
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker


def failed(run_id: str, start: int = 0) -> ChunkFailed:
    """A small message that goes to ``plans``."""
    return ChunkFailed(Chunk(run_id, "Zee", start, start + 10), "whatever")


@pytest.fixture
def open_session(vhost: BrokerSettings) -> Iterator[Callable[..., RabbitMQSession]]:
    opened: list[RabbitMQSession] = []

    def make(*queues: Queue) -> RabbitMQSession:
        opened.append(RabbitMQTransport(vhost, connect_timeout_s=20).open(queues, 50))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


@pytest.fixture
def dead_letter(open_session: Callable[..., RabbitMQSession]) -> Callable[..., None]:
    """Dead-letters messages, each with its number as the reason."""

    def dead_letter(*messages: Message) -> None:
        worker = open_session(topology.PLANS)
        for number, message in enumerate(messages):
            worker.publish([message])
            worker.dead_letter(take(worker), f"reason {number}")
        worker.close()

    return dead_letter


def take(session: RabbitMQSession) -> Delivery:
    delivery = wait_until(lambda: session.receive(0.5), "a delivery came", 20)
    assert isinstance(delivery, Delivery)
    return delivery


def test_dead_letters_are_listed_with_their_headers_and_kept(
    vhost: BrokerSettings, dead_letter: Callable[..., None]
) -> None:
    message = failed("one", 30)
    dead_letter(message, failed("two"))
    for _ in range(10):  # a listing returns when what it received is back in the queues
        first, second = dead_letters(vhost)
        assert (first.queue, first.kind, first.run_id, first.sample) == ("plans", "chunk-failed", "one", "Zee")
        assert (first.start, first.stop, first.size) == (30, 40, len(message.encode()))
        assert (first.problem, second.problem) == ("reason 0", "reason 1")
        assert first.died is not None
        assert abs((datetime.now(UTC) - datetime.fromisoformat(first.died)).total_seconds()) < 60
        assert dead_letters(vhost, "two") == [second]
        assert dead_letters(vhost, "three") == []


def test_a_requeued_dead_letter_is_its_original_message(
    vhost: BrokerSettings, dead_letter: Callable[..., None], open_session: Callable[..., RabbitMQSession]
) -> None:
    message = failed("one", 30)
    dead_letter(message, failed("two"))
    (sent,) = requeue(vhost, "one")
    assert sent.run_id == "one"
    plans = open_session(topology.PLANS)
    delivery = take(plans)
    headers = {name: value for name, value in delivery.headers.items() if name != PUBLISHED_US}
    assert (delivery.kind, delivery.body, headers) == (message.kind, message.encode(), message.headers)
    assert [dead_letter.run_id for dead_letter in dead_letters(vhost)] == ["two"]


def test_the_analysis_is_notified_of_a_dead_letter_before_it_is_requeued(
    vhost: BrokerSettings, dead_letter: Callable[..., None], open_session: Callable[..., RabbitMQSession]
) -> None:
    dead_letter(failed("one"))
    requeue(vhost)
    notices = open_session(topology.DEAD_NOTICES)
    assert [take(notices).kind, take(notices).kind] == ["chunk-failed", "requeued"]


KILLED_BEFORE_IT_ACKNOWLEDGES = """
import os, signal
from pika.adapters.blocking_connection import BlockingChannel
from common import settings
from common.transport.dead_letters import requeue
BlockingChannel.basic_ack = lambda channel, tag: os.kill(os.getpid(), signal.SIGKILL)
requeue(settings.read(os.environ).broker)
"""


def test_a_requeue_that_is_killed_halfway_leaves_the_message_in_both_queues(
    vhost: BrokerSettings,
    dead_letter: Callable[..., None],
    open_session: Callable[..., RabbitMQSession],
    workers: Workers,
) -> None:
    dead_letter(failed("one"))
    command = [sys.executable, "-c", KILLED_BEFORE_IT_ACKNOWLEDGES]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | workers.environment(), timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: len(dead_letters(vhost)) == 1, "the dead letter was still there", 20)
    assert take(open_session(topology.PLANS)).headers["run_id"] == "one"


def test_requeuing_to_a_full_queue_is_an_error_and_the_dead_letters_are_kept(
    vhost: BrokerSettings, open_session: Callable[..., RabbitMQSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = open_session(topology.EVENTS)
    monkeypatch.setattr(ChunkFailed, "route", topology.EVENTS.name)
    worker.publish([failed("one")])
    worker.dead_letter(take(worker), "for a test")
    worker.close()
    monkeypatch.setattr(module, "ROOM_TIMEOUT_S", 1.0)
    fill(vhost, topology.EVENTS.name)

    with pytest.raises(BrokerError, match="the queue events may be full; start the service that consumes it"):
        requeue(vhost)

    (kept,) = wait_until(lambda: dead_letters(vhost), "the dead letter was back", 20)
    assert kept.problem == "for a test"


def fill(vhost: BrokerSettings, queue: str) -> None:
    """Publish to a queue until it rejects a message."""
    with pika.BlockingConnection(parameters(vhost)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for _ in range(200):
            try:
                channel.basic_publish("", queue, b"filling")
            except NackError:
                return
    pytest.fail(f"the queue {queue} does not fill")


def test_the_command_lists_dead_letters_as_text_or_json_and_requeues_them(
    vhost: BrokerSettings, dead_letter: Callable[..., None], tmp_path: Path
) -> None:
    dead_letter(failed("one", 30), failed("two"))
    broker = ["--broker", f"amqp://{vhost.host}:{vhost.port}/{vhost.vhost}"]
    secret = {"RABBITMQ_USER": vhost.user, "RABBITMQ_PASS": vhost.password, "COLUMNS": "200"}

    listing = run(tmp_path, "dead-letters", *broker, **secret)
    assert listing.returncode == 0, listing.stderr
    for text in ("plans", "one", "two", "Zee", "30:40", "chunk-failed", "reason 0", "2 dead letters"):
        assert text in listing.stdout
    listed = json.loads(run(tmp_path, "dead-letters", *broker, "--json", "--run", "two", **secret).stdout)
    assert [(dead_letter["run_id"], dead_letter["problem"]) for dead_letter in listed] == [("two", "reason 1")]
    done = run(tmp_path, "dead-letters", *broker, "--requeue", **secret)
    assert "2 dead letters requeued" in done.stdout
    assert run(tmp_path, "dead-letters", *broker, **secret).stdout == "0 dead letters\n"


def test_a_broker_that_does_not_answer_is_one_line(tmp_path: Path, broker: Broker) -> None:
    done = run(tmp_path, "dead-letters", "--broker", "amqp://127.0.0.1:1")
    assert done.returncode == 1
    assert re.fullmatch(
        r"analysis\.py: no RabbitMQ answers at amqp://atlas@127\.0\.0\.1:1 \(.*refused\); is it running.*\n",
        done.stderr,
    )
