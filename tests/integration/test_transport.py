"""Both transports behave alike; RabbitMQ also where connections are lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from pika.channel import Channel

from common import messages, topology
from common.delivery import Delivery
from common.errors import BrokerError
from common.messages import Chunk, ChunkFailed, Message, Progress, QueueState, QueueStatus, RunFailed
from common.settings import BrokerSettings
from common.topology import Queue
from common.transport import Session, Transport
from common.transport.amqp import DELIVERY_LIMIT
from common.transport.embedded import EmbeddedTransport
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.chaos.proxy import Proxy
from tests.support.broker import Broker
from tests.support.waiting import wait_until


@pytest.fixture
def open_session(transport: Transport) -> Iterator[Callable[..., Session]]:
    opened: list[Session] = []

    def make(*queues: Queue, prefetch: int = 1) -> Session:
        opened.append(transport.open(queues, prefetch))
        return opened[-1]

    yield make
    if isinstance(transport, EmbeddedTransport):
        transport.shut_down()
    for session in opened:
        session.close()


def failed(number: int, run_id: str = "run") -> ChunkFailed:
    """A small message that goes to the queue ``plans``."""
    return ChunkFailed(Chunk(run_id, "Zee", number, number + 1), f"number {number}")


def take(session: Session) -> Delivery:
    delivery = wait_until(lambda: session.receive(0.5), "a message came", 20)
    assert isinstance(delivery, Delivery)
    return delivery


def read(delivery: Delivery) -> Message:
    return messages.decode(delivery.kind, delivery.body, ANALYSES)


def test_receive_can_be_ended_from_another_thread(open_session: Callable[..., Session]) -> None:
    session = open_session(topology.PLANS)
    waiter = threading.Thread(target=session.receive, args=(60.0,), daemon=True)
    waiter.start()

    session.wake()

    waiter.join(10)
    assert not waiter.is_alive()


def test_a_receive_that_waits_ends_when_the_embedded_transport_is_shut_down() -> None:
    transport = EmbeddedTransport()
    session = transport.open([topology.PLANS])
    with ThreadPoolExecutor(1) as thread:
        received = thread.submit(session.receive, 60)
        transport.shut_down()
        assert received.result(20) is None
    assert session.receive(60) is None


def test_published_messages_arrive_unchanged_and_in_order(open_session: Callable[..., Session]) -> None:
    sender, receiver = open_session(), open_session(topology.PLANS)
    sent = [failed(number) for number in range(50)]
    sender.publish(sent)
    received = []
    for _ in sent:
        delivery = take(receiver)
        received.append(read(delivery))
        receiver.publish_and_acknowledge(delivery)
    assert received == sent
    assert receiver.receive(0.2) is None


def test_a_delivery_has_its_queue_its_kind_and_the_headers_of_its_chunk(
    open_session: Callable[..., Session],
) -> None:
    session = open_session(topology.PLANS)
    before = time.time()
    session.publish([failed(7)])
    delivery = take(session)
    assert (delivery.queue, delivery.kind, delivery.redelivered) == ("plans", "chunk-failed", False)
    of_the_chunk = {"run_id": "run", "sample": "Zee", "start": 7, "stop": 8}
    assert dict(delivery.headers) == of_the_chunk | {"published_us": delivery.headers["published_us"]}
    assert delivery.published is not None
    assert before - 1e-5 < delivery.published <= time.time()
    assert delivery.redeliveries == 0


def test_a_status_message_reaches_the_visualisation_and_is_dropped_where_there_is_none(
    open_session: Callable[..., Session],
) -> None:
    sender = open_session()
    sent = [QueueStatus({"events": QueueState(number, 16, 0)}, 1.0) for number in range(3)]
    sender.publish_or_drop(sent[0])
    sender.publish([failed(1)])  # confirmed after the status
    receiver = open_session(*topology.consumed_by("visualisation"))
    for message in sent[1:]:
        sender.publish_or_drop(message)
        delivery = take(receiver)
        assert (delivery.queue, read(delivery)) == ("status.visualisation", message)
        receiver.publish_and_acknowledge(delivery)
        sender.publish([failed(2)])
    assert not sender.waits_for_confirm()


def test_unacknowledged_deliveries_are_redelivered_to_the_next_consumer(open_session: Callable[..., Session]) -> None:
    first = open_session(topology.PLANS)
    first.publish([failed(1), failed(2)])
    take(first)
    first.close()
    second = open_session(topology.PLANS, prefetch=2)
    deliveries = [take(second), take(second)]
    assert [read(delivery) for delivery in deliveries] == [failed(1), failed(2)]
    assert deliveries[0].redelivered
    assert deliveries[0].redeliveries == 1


def test_a_delivery_is_acknowledged_after_its_outcome_is_published(open_session: Callable[..., Session]) -> None:
    worker, sender = open_session(topology.RUNS), open_session()
    sender.publish([messages.RunRequest("run", 1.0, messages.RunSettings())])
    worker.publish_and_acknowledge(take(worker), [failed(1), failed(2)])
    worker.close()
    successor = open_session(topology.RUNS, topology.PLANS, prefetch=2)
    received = [read(take(successor)), read(take(successor))]
    assert received == [failed(1), failed(2)]


def test_an_exchange_gives_every_bound_queue_a_copy(open_session: Callable[..., Session]) -> None:
    one, two = open_session(topology.follower("one")), open_session(topology.follower("two"))
    failure = RunFailed("run", "no reason")
    one.publish([failure])
    assert [read(take(one)), read(take(two))] == [failure, failure]


def test_a_message_published_without_confirm_reaches_the_bound_queues(open_session: Callable[..., Session]) -> None:
    listener, worker = open_session(topology.follower("one")), open_session()
    progress = Progress("plan", Chunk("run", "Zee", 0, 5))
    worker.publish_without_confirm(progress)
    assert read(take(listener)) == progress


def test_a_dead_letter_is_kept_with_its_reason_and_the_analysis_is_notified(
    open_session: Callable[..., Session],
) -> None:
    worker = open_session(topology.PLANS)
    worker.publish([failed(3)])
    worker.dead_letter(take(worker), "cannot be read")
    dead = open_session(topology.dead_letter_queue("plans"), topology.DEAD_NOTICES)
    found = {delivery.queue: delivery for delivery in (take(dead), take(dead))}
    assert found.keys() == {"plans.dead", "dead-notices"}
    for dead_letter in found.values():
        assert read(dead_letter) == failed(3)
        assert dead_letter.headers["problem"] == "cannot be read"
        assert dead_letter.headers["queue"] == "plans"
        assert dead_letter.headers["start"] == 3


def test_a_publisher_waits_for_a_full_queue_and_no_message_is_lost(
    open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Queue("small", limit=4)
    monkeypatch.setattr(topology, "QUEUES", (*topology.QUEUES, small))
    monkeypatch.setattr(ChunkFailed, "route", small.name)
    sender, receiver = open_session(), open_session(small, prefetch=1)
    sent = [failed(number) for number in range(40)]
    done = threading.Event()

    def publish_all() -> None:
        for message in sent:
            sender.publish([message])
        done.set()

    publisher = threading.Thread(target=publish_all, daemon=True)
    publisher.start()
    assert not done.wait(1.0)
    received = []
    while len(received) < len(sent):
        delivery = take(receiver)
        received.append(read(delivery))
        receiver.publish_and_acknowledge(delivery)
    assert done.wait(20)
    publisher.join(20)
    assert received == sent


def test_a_publisher_waits_for_a_full_queue_that_is_bound_to_an_exchange(
    open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Queue("small", exchanges=(topology.RESULTS.name,), limit=4)
    monkeypatch.setattr(topology, "QUEUES", (*topology.QUEUES, small))
    sender, receiver = open_session(), open_session(small)
    sent = {f"number {number}" for number in range(40)}
    with ThreadPoolExecutor(1) as thread:
        published = thread.submit(sender.publish, [RunFailed("run", problem) for problem in sent])
        received = set()
        while received != sent:
            delivery = take(receiver)
            message = read(delivery)
            assert isinstance(message, RunFailed)
            received.add(message.problem)
            receiver.publish_and_acknowledge(delivery)
        published.result(20)


@pytest.mark.broker
def test_messages_that_a_full_queue_rejected_are_sent_again_when_there_is_room(
    vhost: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Queue("small", limit=4)
    monkeypatch.setattr(topology, "QUEUES", (*topology.QUEUES, small))
    monkeypatch.setattr(ChunkFailed, "route", small.name)
    times_sent, publish = Counter[int](), Channel.basic_publish

    def count(channel: Channel, exchange: str, routing_key: str, body: bytes, properties: Any, **others: Any) -> None:
        times_sent[properties.headers["start"]] += 1
        publish(channel, exchange, routing_key, body, properties, **others)

    monkeypatch.setattr(Channel, "basic_publish", count)
    transport = RabbitMQTransport(vhost, connect_timeout_s=20)
    sender, receiver = transport.open([]), transport.open([small], prefetch=1)
    with ThreadPoolExecutor(1) as thread:
        published = thread.submit(sender.publish, [failed(number) for number in range(40)])
        received = set()
        while len(received) < 40:
            delivery = take(receiver)
            received.add(read(delivery))
            receiver.publish_and_acknowledge(delivery)
        published.result(20)
    assert len(times_sent) == 40
    assert sum(times_sent.values()) <= 2 * 40 + 4  # the room may be gone before the messages arrive
    for session in (sender, receiver):
        session.close()


def test_a_session_names_the_queues_without_a_consumer(open_session: Callable[..., Session]) -> None:
    session = open_session(topology.RUNS, topology.CHUNKS)
    expected = {"events", "selected", "plans", "dead-notices", "results.visualisation"}
    wait_until(lambda: set(session.queues_without_consumer()) == expected, "the names were reported", 10)


def test_a_session_reports_the_depths_of_its_queues(open_session: Callable[..., Session]) -> None:
    session, sender = open_session(topology.PLANS), open_session()
    sender.publish([failed(number) for number in range(5)])
    dead_letter = take(session)
    session.dead_letter(dead_letter, "for a test")
    wait_until(lambda: session.queue_depths().get("plans.dead") == 1, "the dead letter is counted", 10)
    assert session.queue_depths().keys() == {"plans", "plans.dead"}


@pytest.mark.broker
def test_queue_depths_are_the_broker_s_and_empty_without_a_connection(vhost: BrokerSettings) -> None:
    transport = RabbitMQTransport(vhost, connect_timeout_s=20)
    sender, receiver = transport.open([]), transport.open([topology.PLANS], prefetch=2)
    sender.publish([failed(number) for number in range(5)])
    wait_until(lambda: receiver.queue_depths() == {"plans": 3, "plans.dead": 0}, "three wait, two were delivered", 10)
    receiver.close()
    assert receiver.queue_depths() == {}
    sender.close()


@pytest.mark.broker
def test_a_session_survives_broken_connections_and_delivers_everything(broker: Broker, vhost: BrokerSettings) -> None:
    transport = RabbitMQTransport(vhost, connect_timeout_s=20)
    sender, receiver = transport.open([]), transport.open([topology.PLANS])
    total, seen = 300, set[int]()
    sending = threading.Thread(
        target=lambda: [sender.publish([failed(number)]) for number in range(total)], daemon=True
    )
    sending.start()
    cuts = 0
    while len(seen) < total:
        delivery = receiver.receive(0.5)
        if delivery is not None:
            message = read(delivery)
            assert isinstance(message, ChunkFailed)
            seen.add(message.chunk.start)
            receiver.publish_and_acknowledge(delivery)
        if len(seen) > 100 * cuts and cuts < 2:
            cuts += 1
            wait_until(lambda: broker.cut_connections(vhost, at_least=2), "both connections were cut", 30)
    sending.join(20)
    assert not sending.is_alive()
    assert seen == set(range(total))
    for session in (sender, receiver):
        session.close()


@pytest.mark.broker
@pytest.mark.parametrize("pieces", [1, 2], ids=["after Connection.Start", "after Connection.Tune"])
def test_a_connection_that_is_lost_in_the_handshake_is_made_again(vhost: BrokerSettings, pieces: int) -> None:
    with Proxy(vhost.port) as proxy:
        session = RabbitMQTransport(replace(vhost, port=proxy.port), connect_timeout_s=20).open([topology.PLANS])
        proxy.cut_new_after = pieces
        proxy.cut()
        wait_until(lambda: proxy.cuts >= 2, "two handshakes were cut", 20)
        proxy.cut_new_after = None
        session.publish([failed(1)])
        assert read(take(session)) == failed(1)
        session.close()


@pytest.mark.broker
def test_a_queue_that_was_deleted_is_declared_again_and_the_message_is_kept(
    broker: Broker, vhost: BrokerSettings
) -> None:
    session = RabbitMQTransport(vhost, connect_timeout_s=20).open([])
    broker.api("DELETE", f"queues/{vhost.vhost}/plans")
    session.publish([failed(1)])
    receiver = RabbitMQTransport(vhost, connect_timeout_s=20).open([topology.PLANS])
    assert read(take(receiver)) == failed(1)
    for opened in (session, receiver):
        opened.close()


@pytest.mark.broker
def test_every_queue_is_a_durable_quorum_queue_with_its_limits(broker: Broker, vhost: BrokerSettings) -> None:
    RabbitMQTransport(vhost, connect_timeout_s=20).open([topology.DEAD_NOTICES]).close()
    queues = {queue["name"]: queue for queue in broker.api("GET", f"queues/{vhost.vhost}")}
    assert {"runs", "chunks", "events", "selected", "plans", "events.dead", "dead-notices"} <= queues.keys()
    for queue in queues.values():
        assert (queue["type"], queue["durable"]) == ("quorum", True)
    for name in ("events", "selected"):
        assert queues[name]["arguments"]["x-max-length"] == 16
    for name in (queue.name for queue in topology.QUEUES if queue.has_dead_letter_queue):
        arguments = queues[name]["arguments"]
        assert arguments["x-delivery-limit"] == DELIVERY_LIMIT
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"


@pytest.mark.broker
def test_each_follower_has_a_queue_that_ends_with_its_connection(broker: Broker, vhost: BrokerSettings) -> None:
    def theirs() -> list[str]:
        return [queue["name"] for queue in broker.api("GET", f"queues/{vhost.vhost}") if "follow." in queue["name"]]

    transport = RabbitMQTransport(vhost, connect_timeout_s=20)
    one, two = (transport.open([topology.follower("me")]) for _ in range(2))
    one.publish([RunFailed("me", "why")])
    assert read(take(one)) == read(take(two)) == RunFailed("me", "why")
    assert one.connections() == 1
    before = theirs()
    wait_until(lambda: broker.cut_connections(vhost, at_least=2), "the connections were cut", 30)
    wait_until(lambda: one.connections() == two.connections() == 2, "both were connected again", 30)
    after = wait_until(lambda: len(found := theirs()) == 2 and found, "they had new queues", 30)
    assert not set(before) & set(after)
    for session in (one, two):
        session.close()
    wait_until(lambda: not theirs(), "their queues were deleted", 30)


@pytest.mark.broker
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"password": "wrong"}, ["refuses the user or the password", "RABBITMQ_PASS"]),
        ({"vhost": "nowhere"}, ["nowhere", "RABBITMQ_VHOST"]),
    ],
)
def test_the_error_says_what_the_broker_refuses(
    vhost: BrokerSettings, wrong: dict[str, str], expected: Sequence[str]
) -> None:
    with pytest.raises(BrokerError) as refused:
        RabbitMQTransport(replace(vhost, **wrong), connect_timeout_s=20).open([])
    for text in expected:
        assert text in str(refused.value)
    assert "wrong" not in str(refused.value)


def test_a_broker_that_does_not_answer_is_reported_with_its_address() -> None:
    unreachable = BrokerSettings("127.0.0.1", 1)
    with pytest.raises(BrokerError, match=r"no RabbitMQ answers at amqp://atlas@127\.0\.0\.1:1"):
        RabbitMQTransport(unreachable, connect_timeout_s=1).open([])
