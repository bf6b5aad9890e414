"""With a key, messages that were made, changed or redirected without it are rejected and not decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pika
import pytest

from common import submission, topology
from common.delivery import Delivery, dead_letter_headers
from common.errors import RunError
from common.messages import Chunk, ChunkFailed, Message, ResultFiles, RunFailed, RunPlan, RunRequest, RunStarted
from common.settings import BrokerSettings, RunSettings
from common.signature import SIGNATURE, Signer
from common.submission import Outcome, follow, submit
from common.topology import Queue
from common.transport.amqp import parameters
from common.transport.dead_letters import dead_letters, requeue
from common.transport.rabbitmq import RabbitMQSession, RabbitMQTransport
from physics import ANALYSES
from tests.integration.test_command import run
from tests.integration.test_pipeline import DEMO, QuietDisplay, before_deadline, numbers, run_embedded
from tests.support.waiting import wait_until
from tests.support.workers import Workers

KEY = "0123456789abcdef-of-this-test"
SIGNER = Signer(KEY)
MESSAGE = ChunkFailed(Chunk("run", "Zee", 0, 10), "whatever")


def delivery(signer: Signer = SIGNER, queue: str = "plans", message: Message = MESSAGE) -> Delivery:
    headers = signer.sign(message.route, message.kind, message.encode(), message.headers)
    return Delivery(queue, message.kind, message.encode(), headers, redelivered=False, token=None)


def test_a_message_signed_with_the_key_is_accepted() -> None:
    assert SIGNER.problem(delivery()) is None
    assert SIGNER.problem(replace(delivery(), redelivered=True)) is None


def _without_signature(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name != SIGNATURE}


def changed_deliveries() -> Iterator[tuple[str, Delivery]]:
    valid = delivery()
    yield "another key", delivery(Signer("fedcba9876543210-of-another"))
    yield "another body", replace(valid, body=valid.body + b" ")
    yield "another kind", replace(valid, kind="chunk-task")
    yield "another queue", replace(valid, queue="chunks")
    yield "no signature", replace(valid, headers=_without_signature(valid.headers))
    yield "an empty signature", replace(valid, headers={**valid.headers, SIGNATURE: ""})
    yield "a signature of bytes", replace(valid, headers={**valid.headers, SIGNATURE: b"\xff"})
    yield "half a signature", replace(valid, headers={**valid.headers, SIGNATURE: valid.headers[SIGNATURE][:32]})
    for name in ("run_id", "sample", "start", "stop"):
        yield f"another {name}", replace(valid, headers={**valid.headers, name: "other"})
        left = {other: value for other, value in valid.headers.items() if other != name}
        yield f"no {name}", replace(valid, headers=left)


CHANGED = dict(changed_deliveries())


@pytest.mark.parametrize("what", CHANGED)
def test_every_changed_message_is_rejected_with_the_same_reason(what: str) -> None:
    problem = SIGNER.problem(CHANGED[what])
    assert problem == "its signature is missing or wrong (MESSAGE_KEY must be the same everywhere)"


def test_without_a_key_no_message_is_signed_and_none_is_rejected() -> None:
    unsigned = Signer("")
    assert delivery(unsigned).headers == MESSAGE.headers
    assert unsigned.problem(delivery(unsigned)) is None
    assert unsigned.problem(delivery(SIGNER)) is None


def test_a_message_to_an_exchange_is_accepted_in_the_bound_queues() -> None:
    folder = ResultFiles("run", {"result.json": b"{}"})
    assert SIGNER.problem(delivery(queue="follow.run", message=folder)) is None
    assert SIGNER.problem(delivery(queue="plans", message=folder)) is not None


def dead(signer: Signer, dead_letter: Delivery, problem: str = "cannot be read") -> Delivery:
    headers = signer.sign_notice(
        dead_letter.kind, dead_letter.body, {**dead_letter.headers, **dead_letter_headers(dead_letter, problem)}
    )
    return replace(dead_letter, queue=topology.DEAD_NOTICES.name, headers=headers)


def test_a_dead_letter_notice_is_accepted_only_from_a_worker_with_the_key() -> None:
    foreign = delivery(Signer(""))
    assert SIGNER.problem(dead(SIGNER, foreign)) is None
    assert SIGNER.problem(dead(Signer("fedcba9876543210-of-another"), foreign)) is not None
    notice = dead(SIGNER, foreign)
    assert SIGNER.problem(replace(notice, headers={**notice.headers, "problem": "another"})) is not None
    assert SIGNER.problem(replace(notice, headers={**notice.headers, "run_id": "another"})) is not None


def test_a_message_that_the_broker_dead_lettered_keeps_its_signature() -> None:
    headers = {**delivery().headers, "x-first-death-queue": "plans", "x-first-death-reason": "expired"}
    notice = replace(delivery(), queue=topology.DEAD_NOTICES.name, headers=headers)
    assert SIGNER.problem(notice) is None
    assert SIGNER.problem(replace(notice, headers=_without_signature(headers))) is not None


# --- over a broker --------------------------------------------------------------


@pytest.fixture
def keyed(vhost: BrokerSettings) -> BrokerSettings:
    return replace(vhost, message_key=KEY)


@pytest.fixture
def keyed_workers(keyed: BrokerSettings, tmp_path: Path, cache: Path) -> Iterator[Workers]:
    running = Workers(keyed, tmp_path, cache)
    yield running
    running.stop()


@pytest.fixture
def open_session() -> Iterator[Callable[..., RabbitMQSession]]:
    opened: list[RabbitMQSession] = []

    def make(settings: BrokerSettings, *queues: Queue) -> RabbitMQSession:
        opened.append(RabbitMQTransport(settings, connect_timeout_s=20).open(queues, 50))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def take(session: RabbitMQSession) -> Delivery:
    found = wait_until(lambda: session.receive(0.5), "a delivery came", 30)
    assert isinstance(found, Delivery)
    return found


@pytest.mark.broker
def test_a_signature_survives_dead_lettering_and_requeuing(
    keyed: BrokerSettings, open_session: Callable[..., RabbitMQSession]
) -> None:
    session = open_session(keyed, topology.PLANS, topology.DEAD_NOTICES)
    session.publish([MESSAGE])
    session.dead_letter(take(session), "for a test")
    notice = take(session)
    assert (notice.queue, notice.rejection_reason) == ("dead-notices", None)
    session.publish_and_acknowledge(notice)
    assert len(requeue(keyed)) == 1
    back = {found.kind: found for found in (take(session), take(session))}
    assert {kind: found.rejection_reason for kind, found in back.items()} == {"requeued": None, "chunk-failed": None}
    assert back["chunk-failed"].body == MESSAGE.encode()


@pytest.mark.slow
@pytest.mark.broker
def test_signed_runs_give_the_same_bits_despite_forged_and_replayed_messages(
    keyed_workers: Workers, vhost: BrokerSettings, open_session: Callable[..., RabbitMQSession], cache: Path
) -> None:
    """A publisher without the key sends forged messages, and publishes a signed one several times."""
    forged = [RunPlan("run", 1.0, DEMO), RunRequest("run", 1.0, DEMO), MESSAGE]
    open_session(vhost).publish(forged)
    for service in ("data_loader", "data_processor", "visualisation"):
        keyed_workers.start(service)
    reader = open_session(vhost, topology.SELECTED)
    follower = open_session(keyed_workers.settings, topology.follower("signed"))
    submit(follower, "signed", DEMO)
    copied = take(reader)
    reader.close()
    with pika.BlockingConnection(parameters(vhost)) as connection:
        properties = pika.BasicProperties(type=copied.kind, headers=dict(copied.headers))
        for _ in range(3):
            connection.channel().basic_publish("", copied.queue, copied.body, properties)
    keyed_workers.start("analysis")

    outcome = follow(follower, "signed", ANALYSES, QuietDisplay(), before_deadline())

    assert numbers(outcome) == numbers(run_embedded(DEMO, cache))
    refused = {(dead_letter.queue, dead_letter.kind): dead_letter.problem for dead_letter in dead_letters(vhost)}
    assert refused.keys() == {("plans", "run-plan"), ("plans", "chunk-failed"), ("runs", "run-request")}
    assert all("its signature is missing or wrong" in problem for problem in refused.values())


@pytest.mark.slow
@pytest.mark.broker
def test_a_command_needs_the_key_for_its_result(keyed_workers: Workers, tmp_path: Path) -> None:
    keyed_workers.start_all()
    variables = keyed_workers.environment()
    url = "amqp://{RABBITMQ_HOST}:{RABBITMQ_PORT}/{RABBITMQ_VHOST}".format(**variables)
    secret = {name: variables[name] for name in ("RABBITMQ_USER", "RABBITMQ_PASS")}
    flags = ["--release", "demo", "--demo-events", "500", "--broker", url]
    refused = run(tmp_path, *flags, **secret)
    assert refused.returncode == 1
    assert "its signature is missing or wrong (MESSAGE_KEY" in refused.stderr.strip().splitlines()[-1]
    assert run(tmp_path, *flags, **secret, MESSAGE_KEY=KEY).returncode == 0
    other = run(tmp_path, *flags, **secret, MESSAGE_KEY=KEY[::-1])
    assert other.returncode == 1
    assert "MESSAGE_KEY must be the same here and in the services" in other.stderr.strip().splitlines()[-1]


@pytest.mark.broker
def test_a_follower_ignores_a_forged_result(
    keyed: BrokerSettings, vhost: BrokerSettings, open_session: Callable[..., RabbitMQSession]
) -> None:
    follower = open_session(keyed, topology.follower("run"))
    open_session(vhost).publish([ResultFiles("run", {"result.json": b'{"forged": true}'})])
    open_session(keyed).publish([ResultFiles("run", {"result.json": b'{"forged": false}'})])
    outcome: Outcome = follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline())
    assert outcome.result == {"forged": False}


@pytest.mark.broker
def test_a_follower_with_another_key_than_the_services_ends_and_says_so(
    keyed: BrokerSettings,
    vhost: BrokerSettings,
    open_session: Callable[..., RabbitMQSession],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(submission, "ONLY_REJECTED_S", 1.0)
    follower = open_session(keyed, topology.follower("run"))
    open_session(vhost).publish([RunFailed("run", "whatever"), ResultFiles("run", {"result.json": b"{}"})])
    with pytest.raises(RunError, match=r"run run cannot be followed: .* MESSAGE_KEY must be the same here"):
        follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline(20))
    assert caplog.text.count("MESSAGE_KEY") == 1


@pytest.mark.broker
def test_a_forged_message_does_not_end_a_follower_that_has_received_a_valid_one(
    keyed: BrokerSettings,
    vhost: BrokerSettings,
    open_session: Callable[..., RabbitMQSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission, "ONLY_REJECTED_S", 0.5)
    follower = open_session(keyed, topology.follower("run"))
    open_session(keyed).publish([RunStarted("run", ANALYSES.resolve(RunSettings(release="demo")))])
    open_session(vhost).publish([RunFailed("run", "forged")])
    outcome = follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline(3))
    assert outcome.problem == "the run was stopped before its result arrived"
