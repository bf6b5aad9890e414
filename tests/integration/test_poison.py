"""Malformed messages are dead-lettered with a reason, their run reports it, and the worker continues."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import awkward as ak
import numpy as np
import pika
import pytest

from common import array_pickle, topology
from common.delivery import Delivery
from common.messages import Events, Selected
from common.settings import BrokerSettings, RunSettings
from common.submission import follow, submit
from common.transport.amqp import parameters
from common.transport.dead_letters import dead_letters
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.integration.test_pipeline import QuietDisplay, before_deadline
from tests.support.broker import MAX_MESSAGE_BYTES, Broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers
from tests.unit.test_array_pickle import calls

#: Its 12 chunks fit into a queue, so that the test can replace them there.
RUN = RunSettings(release="demo", demo_events=5_000, chunk_entries=250, samples=("llll",), plots=False)
Malform = Callable[[bytes, type[Events] | type[Selected]], bytes]


def parts(body: bytes, kind: type[Events] | type[Selected]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the columns of a valid message."""
    message = kind.decode(body, ANALYSES)
    header = {
        "chunk": dataclasses.asdict(message.chunk),
        "settings": dataclasses.asdict(message.settings),
        "cutflow": message.cutflow,
    }
    return header, {name: ak.to_numpy(message.events[name]) for name in message.events.fields}


def _without_a_field(body: bytes, kind: type[Events] | type[Selected]) -> bytes:
    header, columns = parts(body, kind)
    columns.popitem()
    return array_pickle.dumps(header, ak.Array(columns))


def _of_another_type(body: bytes, kind: type[Events] | type[Selected]) -> bytes:
    header, columns = parts(body, kind)
    return array_pickle.dumps(header, ak.Array({name: value.astype(np.float64) for name, value in columns.items()}))


def _of_another_length(body: bytes, kind: type[Events] | type[Selected]) -> bytes:
    header, columns = parts(body, kind)
    valid = array_pickle.dumps(header, ak.Array(columns))
    number = len(next(iter(columns.values())))
    assert number < 256
    marker = b"K" + bytes([number])  # pickle's BININT1
    assert marker in valid
    return valid.replace(marker, b"K" + bytes([number + 1]))


def _cut(body: bytes, kind: type[Events] | type[Selected]) -> bytes:
    return body[: len(body) // 2]


def _offsets_outside(body: bytes, kind: type[Events] | type[Selected]) -> bytes:
    header, columns = parts(body, kind)
    name, values = next(iter(columns.items()))
    offsets = ak.index.Index64(np.array([0, *[10**12] * len(values)], np.int64))
    layout = ak.contents.ListOffsetArray(offsets, ak.contents.NumpyArray(np.ones(3, np.float32)))
    columns[name] = ak.Array(layout)
    record = ak.contents.RecordArray([ak.to_layout(value) for value in columns.values()], list(columns))
    return array_pickle.dumps(header, ak.Array(record))


def _with_another_cutflow(body: bytes, kind: type[Events] | type[Selected]) -> bytes:
    header, columns = parts(body, kind)
    return array_pickle.dumps({**header, "cutflow": {"invented": 1}}, ak.Array(columns))


MALFORMED: Mapping[str, tuple[Malform, str]] = {
    "empty": (lambda body, kind: b"", "the message is empty"),
    "no pickle": (lambda body, kind: b"<html>502 Bad Gateway</html>", "pickle"),
    "cut in the middle": (_cut, "not a pickled array"),
    "a call of os.system": (lambda body, kind: calls()["os.system"], "posix.system, which is not allowed"),
    "without a field": (_without_a_field, "has the fields"),
    "of another type": (_of_another_type, "not a plain"),
    "of another length": (_of_another_length, "bytes for"),
    "offsets outside their buffers": (_offsets_outside, "field"),
    "an invented cutflow": (_with_another_cutflow, "cutflow"),
    "nine megabytes": (lambda body, kind: body + bytes(9 * 2**20), "more than the 8388608 a message may have"),
    "a hundred megabytes": (lambda body, kind: bytes(100_000_000), "100000000 bytes are more than the 8388608"),
}


@pytest.fixture
def permissive(broker: Broker) -> Iterator[None]:
    """The broker accepts messages of 128 MiB on new channels, as RabbitMQ 3 does."""
    broker.limit_messages(128 * 2**20)
    yield
    broker.limit_messages(MAX_MESSAGE_BYTES)


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.parametrize(("kind", "consumer"), [(Events, "data_processor"), (Selected, "analysis")])
def test_every_malformed_array_is_a_problem_of_its_run_and_the_worker_continues(
    permissive: None, workers: Workers, kind: type[Events] | type[Selected], consumer: str
) -> None:
    queue = {"events": topology.EVENTS, "selected": topology.SELECTED}[kind.route]
    transport = RabbitMQTransport(workers.settings, connect_timeout_s=30)
    follower = transport.open([topology.follower("run")], prefetch=100)
    submit(follower, "run", RUN)
    for service in {"data_loader", "data_processor", "visualisation", "analysis"} - {consumer}:
        workers.start(service)
    consumer_session = transport.open([queue], prefetch=len(MALFORMED))
    taken = [wait_until(lambda: consumer_session.receive(0.5), "a message came", 60) for _ in MALFORMED]
    expected: dict[str, str] = {}
    for message, (malform, reason) in zip(taken, MALFORMED.values(), strict=True):
        replace(workers, message, malform(message.body, kind))
        consumer_session.publish_and_acknowledge(message)
        expected["{sample}[{start}:{stop}]".format(**message.headers)] = reason
    consumer_session.close()
    (process,) = workers.start(consumer)

    outcome = follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline())
    follower.close()

    assert outcome.result is not None
    assert not outcome.result["complete"]
    problems = dict(problem.split(": ", 1) for problem in outcome.result["problems"])
    assert problems.keys() == expected.keys()
    for chunk, reason in expected.items():
        assert problems[chunk].startswith(f"a message in {queue.name} could not be handled: ")
        assert reason in problems[chunk]
    found = dead_letters(workers.settings)
    assert {dead_letter.queue for dead_letter in found} == {queue.name}
    assert sorted(f"{dead_letter.sample}[{dead_letter.start}:{dead_letter.stop}]" for dead_letter in found) == sorted(
        expected
    )
    assert max(dead_letter.size for dead_letter in found) == 100_000_000
    assert process.poll() is None, "the worker has exited"


def replace(workers: Workers, taken: Delivery, body: bytes) -> None:
    """Publish another body under a message's headers."""
    with pika.BlockingConnection(parameters(workers.settings)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(type=taken.kind, headers=dict(taken.headers), delivery_mode=2)
        channel.basic_publish("", taken.queue, body, properties)


@pytest.mark.broker
def test_the_broker_rejects_a_message_of_a_hundred_megabytes(vhost: BrokerSettings) -> None:
    session = RabbitMQTransport(vhost, connect_timeout_s=20).open([topology.EVENTS])
    with pika.BlockingConnection(parameters(vhost)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="larger than configured max size 16777216"):
            channel.basic_publish("", "events", bytes(100_000_000))
    assert session.receive(0.5) is None
    session.close()


@pytest.mark.broker
def test_malformed_json_is_dead_lettered_and_the_next_run_is_complete(workers: Workers) -> None:
    workers.start_all()
    targets = (("runs", "run-request"), ("chunks", "chunk-task"), ("plans", "sample-plan"), ("plans", "x"))
    bodies = (b"", b"{", b"[]", b"\xff\xfe", b'{"run_id": "../../x"}', json.dumps({"chunk": [1] * 9}).encode())
    wait_until(lambda: "connected to" in workers.log("analysis"), "the analysis was connected", 60)
    with pika.BlockingConnection(parameters(workers.settings)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for queue, kind in targets:
            for body in bodies:
                channel.basic_publish("", queue, body, pika.BasicProperties(type=kind, headers={"run_id": "../../x"}))
    follower = RabbitMQTransport(workers.settings, connect_timeout_s=30).open([topology.follower("run")], prefetch=100)
    submit(follower, "run", RUN)
    outcome = follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline())
    follower.close()
    assert outcome.result is not None
    assert outcome.result["complete"]
    expected = len(targets) * len(bodies)
    wait_until(lambda: len(dead_letters(workers.settings)) == expected, "all were dead-lettered")
    found = dead_letters(workers.settings)
    assert all(dead_letter.problem != "not said" for dead_letter in found)
    assert sorted(path.name for path in (workers.folder / "service-results").iterdir()) == ["run"]
