"""A broker that restarts, is low on memory, refuses large messages, or redelivers after consumer_timeout.

These tests change the broker as a whole, so they have one of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from common import messages, submission, topology
from common.errors import BrokerError, MessageError
from common.health import ServiceMetrics
from common.messages import Chunk, ChunkFailed, Message, Result, RunFailed
from common.service import Service, serve
from common.settings import BrokerSettings, RunSettings
from common.submission import follow, submit
from common.topology import Queue
from common.transport.dead_letters import dead_letters
from common.transport.rabbitmq import RabbitMQSession, RabbitMQTransport
from physics import ANALYSES
from tests.support.broker import MAX_MESSAGE_BYTES, Broker, running_broker
from tests.support.runs import QuietDisplay, before_deadline, numbers, run_embedded, run_on_broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker

SMALL_BYTES = 10_000
TOO_LARGE = "x" * 2 * SMALL_BYTES
DEMO = RunSettings(release="demo", demo_events=20_000, chunk_entries=1_000, plots=False)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("rabbitmq")) as started:
        yield started


@pytest.fixture(scope="module")
def message_limit(broker: Broker) -> Callable[[int], None]:
    """Set the size that the broker accepts on new channels; each call takes a second, so the limit stays."""
    current = MAX_MESSAGE_BYTES

    def limit(size: int) -> None:
        nonlocal current
        if size != current:
            broker.limit_messages(size)
            current = size

    return limit


def transport(settings: BrokerSettings) -> RabbitMQTransport:
    return RabbitMQTransport(settings, connect_timeout_s=20)


def failed(number: int, problem: str = "small") -> ChunkFailed:
    """A message to the queue ``plans``."""
    return ChunkFailed(Chunk("run", "Zee", number, number + 1), problem)


def wait_for_chunks(session: RabbitMQSession, starts: set[int], timeout_s: float) -> None:
    """Receive failed chunks until those that begin at ``starts`` have arrived, and no others."""
    arrived: set[int] = set()

    def all_arrived() -> bool:
        delivery = session.receive(0.5)
        if delivery is not None:
            message = messages.decode(delivery.kind, delivery.body, ANALYSES)
            assert isinstance(message, ChunkFailed)
            arrived.add(message.chunk.start)
            session.publish_and_acknowledge(delivery)
        return arrived == starts

    wait_until(all_arrived, "all messages had arrived", timeout_s)


# --- restarts ---------------------------------------------------------------------


def test_a_session_waits_for_a_broker_that_restarts(broker: Broker, vhost: BrokerSettings) -> None:
    session = transport(vhost).open([topology.PLANS])
    session.publish([failed(1)])
    broker.kill()
    late = threading.Thread(target=lambda: session.publish([failed(2)]), daemon=True)
    late.start()
    broker.start()
    late.join(30)
    assert not late.is_alive()
    wait_for_chunks(session, {1, 2}, 30)
    session.close()


@pytest.mark.slow
def test_a_broker_killed_while_a_run_is_submitted_delays_no_run(
    broker: Broker, workers: Workers, cache: Path, message_limit: Callable[[int], None]
) -> None:
    """The follower's queue is exclusive: a durable one could come back without a leader and block all publishers."""
    message_limit(MAX_MESSAGE_BYTES)
    workers.start_all()
    reference = numbers(run_embedded(DEMO, cache))
    assert numbers(run_on_broker(workers.settings, DEMO)) == reference
    session_of = RabbitMQTransport(workers.settings, connect_timeout_s=30)
    follower, bystander = (session_of.open([topology.follower(name)], prefetch=100) for name in ("run", "bystander"))
    broker.kill()
    broker.start()
    submit(follower, "run", DEMO)
    assert numbers(follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline())) == reference
    for session in (follower, bystander):
        session.close()


# --- alarms -----------------------------------------------------------------------


@pytest.fixture
def alarm(broker: Broker) -> Iterator[Callable[[bool], None]]:
    current = False

    def set_alarm(active: bool) -> None:
        nonlocal current
        if active != current:
            broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB" if active else "4GB")
            current = active

    yield set_alarm
    set_alarm(False)


class Notes(QuietDisplay):
    """A display that keeps the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_an_alarm_of_the_broker_is_reported_until_it_ends(
    vhost: BrokerSettings,
    alarm: Callable[[bool], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission, "QUIET_S", 0.5)
    caplog.set_level(logging.WARNING)
    display = Notes()
    session, other = transport(vhost).open([]), transport(vhost).open([topology.follower("other")])
    with closing(session), closing(other), ThreadPoolExecutor(2) as threads:
        following = threads.submit(follow, other, "other", ANALYSES, display, before_deadline())
        alarm(True)
        submitting = threads.submit(submit, session, "run", RunSettings())
        wait_until(lambda: "accepts no messages: it reports an alarm (low on memory)" in caplog.text, "it is said", 20)
        wait_until(lambda: any("an alarm (low on memory)" in note for note in display.notes), "it is shown", 20)
        assert not submitting.done()
        assert "low on memory" in str(session.blocked())
        alarm(False)
        submitting.result(20)
        assert session.blocked() is None
        assert "accepts messages again" in caplog.text
        session.publish([RunFailed("other", "the end")])
        assert following.result(20).problem == "the end"


def test_a_session_can_be_closed_during_an_alarm(vhost: BrokerSettings, alarm: Callable[[bool], None]) -> None:
    stop = threading.Event()
    session = RabbitMQTransport(vhost, connect_timeout_s=20, stop=stop).open([topology.PLANS])
    alarm(True)
    with ThreadPoolExecutor(1) as thread:
        publishing = thread.submit(session.publish, [failed(1)])
        wait_until(session.blocked, "the alarm was reported", 20)
        stop.set()
        with pytest.raises(BrokerError, match="reports an alarm"):
            publishing.result(20)
        thread.submit(session.close).result(5)


# --- sizes of messages --------------------------------------------------------------


class Answering(Service):
    """Answers each message in ``plans`` with its problem, between two small answers; with TOO_LARGE for "large"."""

    name: ClassVar[str] = "answering"
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS,)

    def __init__(self, instead: Sequence[Message] = ()) -> None:
        self._instead = instead

    def handle(self, message: Message) -> Sequence[Message]:
        assert isinstance(message, ChunkFailed)
        middle = TOO_LARGE if message.problem == "large" else message.problem
        return [RunFailed("run", problem) for problem in ("first", middle, "last")]

    def outcome_refused(self, message: Message, problem: str) -> Sequence[Message]:
        return self._instead


@contextmanager
def serving(service: Service, session: RabbitMQSession) -> Iterator[None]:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(serve, service, session, stop)
        try:
            yield
        finally:
            stop.set()
            served.result(20)


def answers(follower: RabbitMQSession, until: str) -> list[str]:
    """Return the problems of the answers up to the one with this problem."""
    found: list[str] = []
    while not found or found[-1] != until:
        delivery = wait_until(lambda: follower.receive(0.5), f"the answer {until!r} came", 20)
        message = messages.decode(delivery.kind, delivery.body, ANALYSES)
        assert isinstance(message, RunFailed)
        follower.publish_and_acknowledge(delivery)
        found.append(message.problem)
    return found


@pytest.fixture
def small_messages(message_limit: Callable[[int], None]) -> None:
    """The broker accepts messages of SMALL_BYTES at most."""
    message_limit(SMALL_BYTES)


@pytest.fixture
def follower(vhost: BrokerSettings) -> Iterator[RabbitMQSession]:
    with closing(transport(vhost).open([topology.follower("run")], prefetch=50)) as session:
        yield session


def test_a_delivery_whose_outcome_is_too_large_is_dead_lettered_without_reconnecting(
    vhost: BrokerSettings, small_messages: None, follower: RabbitMQSession
) -> None:
    session = transport(vhost).open([topology.PLANS])
    with serving(Answering(), session):
        follower.publish([failed(1), failed(2, "large"), failed(3, "end")])
        received = answers(follower, "end")
        assert session.connections() == 1
    assert "small" in received
    assert received.count("first") <= 5  # of three messages, each at most twice: no flood of copies
    (dead_letter,) = dead_letters(vhost)
    assert (dead_letter.queue, dead_letter.start) == ("plans", 2)
    for words in ("the broker refuses the run-failed message", "message size 20", "larger than", "max_message_size"):
        assert words in dead_letter.problem


def test_a_service_can_publish_something_else_for_an_outcome_that_is_too_large(
    vhost: BrokerSettings, small_messages: None, follower: RabbitMQSession
) -> None:
    with serving(Answering([RunFailed("run", "instead")]), transport(vhost).open([topology.PLANS])):
        follower.publish([failed(1, "large")])
        assert answers(follower, "instead")
    assert dead_letters(vhost) == []


def test_a_delivery_whose_second_outcome_is_too_large_as_well_is_dead_lettered(
    vhost: BrokerSettings, small_messages: None, follower: RabbitMQSession
) -> None:
    with serving(Answering([RunFailed("run", TOO_LARGE)]), transport(vhost).open([topology.PLANS])):
        follower.publish([failed(1, "large"), failed(2, "end")])
        answers(follower, "end")
    assert [dead_letter.start for dead_letter in dead_letters(vhost)] == [1]


def test_a_dead_letter_that_is_too_large_is_dead_lettered_by_the_broker(
    vhost: BrokerSettings, message_limit: Callable[[int], None]
) -> None:
    sent = failed(1, TOO_LARGE)
    message_limit(MAX_MESSAGE_BYTES)
    with closing(transport(vhost).open([])) as sender:
        sender.publish([sent])
    message_limit(SMALL_BYTES)
    dead = topology.dead_letter_queue("plans")
    with closing(transport(vhost).open([topology.PLANS])) as session, closing(transport(vhost).open([dead])) as reader:
        session.dead_letter(wait_until(lambda: session.receive(0.5), "the message came", 20), "for a test")
        delivery = wait_until(lambda: reader.receive(0.5), "the dead letter came", 20)
        assert messages.decode(delivery.kind, delivery.body, ANALYSES) == sent


def test_publishing_a_message_that_is_too_large_raises_the_broker_s_words(
    vhost: BrokerSettings, small_messages: None
) -> None:
    with closing(transport(vhost).open([topology.PLANS])) as session:
        with pytest.raises(
            MessageError, match=r"refuses the result message \(20\d+ bytes\).*message size 20\d+ is larger"
        ):
            session.publish([failed(1), Result("run", True, {"text": TOO_LARGE})])
        session.publish_without_confirm(Result("run", True, {"text": TOO_LARGE}))
        session.publish([failed(2)])  # the session goes on
        assert session.connections() == 1


# --- consumer_timeout ---------------------------------------------------------------

TIMEOUT_S = 2
TOTAL = 40


@pytest.fixture
def short_timeout(broker: Broker) -> Iterator[None]:
    """The broker, with a consumer_timeout of two seconds on new channels, checked twice a second."""
    broker.ctl("eval", setting("consumer_timeout", 1000 * TIMEOUT_S) + setting("channel_tick_interval", 500) + "ok.")
    yield
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
    vhost: BrokerSettings, short_timeout: None, caplog: pytest.LogCaptureFixture
) -> None:
    sender, stop, service = transport(vhost).open([]), threading.Event(), Forwarding()
    sender.publish([ChunkFailed(Chunk("run", "Zee", number, number + 1), "whatever") for number in range(TOTAL)])
    session = transport(vhost).open(service.consumes)
    loop = threading.Thread(target=serve, args=(service, session, stop, ServiceMetrics("forwarding")))
    loop.start()
    try:
        # The queue events is full and has no consumer: no delivery is acknowledged until the timeout.
        wait_until(
            lambda: "acknowledgement" in caplog.text or "cancelled a consumer" in caplog.text, "it timed out", 60
        )
        wait_until(lambda: len(service.handled) > len(set(service.handled)), "a message was redelivered", 30)
        assert loop.is_alive()
        receiver = transport(vhost).open([topology.EVENTS])
        wait_for_chunks(receiver, set(range(TOTAL)), 60)
        assert dead_letters(vhost) == []
        receiver.close()
    finally:
        stop.set()
        loop.join(20)
        sender.close()
    assert not loop.is_alive()


def test_a_consumer_that_the_broker_cancels_consumes_again(broker: Broker, vhost: BrokerSettings) -> None:
    """RabbitMQ cancels a consumer whose queue is deleted, and from 4.3 on one that exceeds consumer_timeout."""
    consumer, sender = transport(vhost).open([topology.PLANS]), transport(vhost).open([])
    broker.api("DELETE", f"queues/{vhost.vhost}/plans")
    sender.publish([ChunkFailed(Chunk("run", "Zee", 0, 1), "whatever")])
    delivery = wait_until(lambda: consumer.receive(0.5), "the message came", 30)
    consumer.publish_and_acknowledge(delivery)
    for session in (consumer, sender):
        session.close()
