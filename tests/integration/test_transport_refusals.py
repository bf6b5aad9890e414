"""What RabbitMQ refuses: a missing right, a wrong password, and more connections or queues than a limit."""

from __future__ import annotations

import logging
import secrets
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from common import messages, topology
from common.errors import BrokerError
from common.messages import Chunk, ChunkFailed
from common.settings import BrokerSettings
from common.transport.dead_letters import dead_letters
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.support.broker import Broker
from tests.support.waiting import wait_until

pytestmark = pytest.mark.broker


def transport(settings: BrokerSettings, timeout_s: float = 20) -> RabbitMQTransport:
    return RabbitMQTransport(settings, connect_timeout_s=timeout_s)


def failed(number: int, problem: str = "small") -> ChunkFailed:
    """A message to the queue ``plans``."""
    return ChunkFailed(Chunk("run", "Zee", number, number + 1), problem)


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
    access = "access" if broker.version.startswith("3.10.") else f"{right} access"  # 3.10 does not say which
    with pytest.raises(BrokerError, match=f"does not permit its user .* {access} .*set_permissions") as refused:
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
