"""What RabbitMQ refuses: messages that are too large, rights, limits, and messages during an alarm."""

from __future__ import annotations

import logging
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from common import messages, submission, topology
from common.errors import BrokerError, MessageError
from common.messages import Chunk, ChunkFailed, Message, Result, RunFailed
from common.service import Service, serve
from common.settings import BrokerSettings, RunSettings
from common.topology import Queue
from common.transport.dead_letters import dead_letters
from common.transport.rabbitmq import RabbitMQSession, RabbitMQTransport
from physics import ANALYSES
from tests.support.broker import Broker
from tests.support.runs import QuietDisplay, before_deadline
from tests.support.waiting import wait_until

pytestmark = pytest.mark.broker

MAX_MESSAGE_BYTES = 10_000
TOO_LARGE = "x" * 2 * MAX_MESSAGE_BYTES


def transport(settings: BrokerSettings, timeout_s: float = 20) -> RabbitMQTransport:
    return RabbitMQTransport(settings, connect_timeout_s=timeout_s)


def failed(number: int, problem: str = "small") -> ChunkFailed:
    """A message to the queue ``plans``."""
    return ChunkFailed(Chunk("run", "Zee", number, number + 1), problem)


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
def small_messages(broker: Broker) -> Iterator[None]:
    """The broker accepts messages of MAX_MESSAGE_BYTES at most, on new channels."""

    def limit(size: int) -> None:
        broker.ctl(
            "eval",
            f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size}).",
        )

    limit(MAX_MESSAGE_BYTES)
    yield
    limit(16 * 2**20)


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
    broker: Broker, vhost: BrokerSettings, request: pytest.FixtureRequest
) -> None:
    sent = failed(1, TOO_LARGE)
    with closing(transport(vhost).open([])) as sender:
        sender.publish([sent])
    request.getfixturevalue("small_messages")
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


@pytest.fixture
def alarm(broker: Broker) -> Iterator[Callable[[bool], None]]:
    def set_alarm(active: bool) -> None:
        broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB" if active else "4GB")

    yield set_alarm
    set_alarm(False)
    broker.ctl("set_vm_memory_high_watermark", "absolute", "800MiB")


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
        following = threads.submit(submission.follow, other, "other", ANALYSES, display, before_deadline())
        alarm(True)
        submitting = threads.submit(submission.submit, session, "run", RunSettings())
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


@pytest.fixture
def user(broker: Broker, vhost: BrokerSettings) -> Iterator[BrokerSettings]:
    """A user who has no rights."""
    name = f"student-{secrets.token_hex(4)}"
    broker.api("PUT", f"users/{name}", {"password": "geheim", "tags": ""})
    yield replace(vhost, user=name, password="geheim")
    broker.api("DELETE", f"users/{name}")


EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}


def permit(broker: Broker, user: BrokerSettings, **rights: str) -> None:
    broker.api("PUT", f"permissions/{user.vhost}/{user.user}", EVERYTHING | rights)


@pytest.mark.parametrize("right", ["configure", "write", "read"])
def test_a_missing_right_is_a_final_refusal_that_is_named(broker: Broker, user: BrokerSettings, right: str) -> None:
    permit(broker, user, **{right: "^student-.*"})
    with pytest.raises(BrokerError, match=f"does not permit its user .* {right} access .*set_permissions") as refused:
        transport(user).open([topology.PLANS])
    assert "no RabbitMQ answers" not in str(refused.value)


def test_a_user_without_rights_on_the_virtual_host_is_refused_by_name(user: BrokerSettings) -> None:
    with pytest.raises(BrokerError, match="does not permit its user the virtual host"):
        transport(user).open([])
    with pytest.raises(BrokerError, match="does not permit its user the virtual host"):
        dead_letters(user)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"password": "wrong"}, "refuses the user or the password"), ({"vhost": "nowhere"}, "no virtual host 'nowhere'")],
)
def test_the_list_of_dead_letters_reports_a_refusal_in_the_same_words(
    vhost: BrokerSettings, wrong: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(BrokerError, match=f"^{vhost.__class__(vhost.host, vhost.port, vhost.user)}.*{words}"):
        dead_letters(replace(vhost, **wrong))


@pytest.fixture(params=["connections", "queues", "connections of the user", "channels of the user"])
def limit(request: pytest.FixtureRequest, broker: Broker, user: BrokerSettings) -> Callable[[], Any]:
    """A limit of the broker is reached; the value is the function that removes it."""
    permit(broker, user)
    path = {
        "connections": f"vhost-limits/{user.vhost}/max-connections",
        "queues": f"vhost-limits/{user.vhost}/max-queues",
        "connections of the user": f"user-limits/{user.user}/max-connections",
        "channels of the user": f"user-limits/{user.user}/max-channels",
    }[request.param]
    broker.api("PUT", path, {"value": 2 if request.param == "channels of the user" else 0})
    return lambda: broker.api("DELETE", path)


def test_a_limit_is_named_and_waited_for(
    user: BrokerSettings, limit: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with ThreadPoolExecutor(1) as thread:
        opening = thread.submit(transport(user).open, [topology.PLANS])
        wait_until(lambda: "has reached a limit" in caplog.text, "the limit is named", 10)
        limit()
        with closing(opening.result(20)) as session:
            session.publish([failed(1)])


def test_a_command_that_waited_in_vain_for_a_limit_names_it(broker: Broker, vhost: BrokerSettings) -> None:
    broker.api("PUT", f"vhost-limits/{vhost.vhost}/max-connections", {"value": 0})
    with pytest.raises(BrokerError, match=r"has reached a limit: .*connection limit \(0\) is reached"):
        transport(vhost, timeout_s=1).open([])


def test_a_deleted_queue_does_not_disturb_deliveries_when_queue_depths_are_requested(
    broker: Broker, vhost: BrokerSettings
) -> None:
    with closing(transport(vhost).open([topology.PLANS, topology.RUNS])) as session:
        session.publish([failed(1)])
        delivery = wait_until(lambda: session.receive(0.5), "the message came", 20)
        broker.api("DELETE", f"queues/{vhost.vhost}/{urllib.parse.quote('plans.dead')}")
        for _ in range(2):
            assert session.queue_depths().keys() == {"plans", "runs", "runs.dead"}
        session.publish_and_acknowledge(delivery, [failed(2)])
        following = wait_until(lambda: session.receive(0.5), "the outcome came", 20)
        assert messages.decode(following.kind, following.body, ANALYSES) == failed(2)
        assert not following.redelivered
        assert session.connections() == 1
