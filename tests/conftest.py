"""Fixtures: a real RabbitMQ, a virtual host a test, both transports, and the services as processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.settings import BrokerSettings
from common.transport import Transport
from common.transport.embedded import EmbeddedTransport
from common.transport.rabbitmq import RabbitMQTransport
from tests.support.broker import Broker, running_broker
from tests.support.workers import Workers

# As in the services: of a broker that is away, our own words say enough.
logging.getLogger("pika").setLevel(logging.CRITICAL)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ of this test session's own."""
    with running_broker(tmp_path_factory.mktemp("rabbitmq")) as started:
        yield started


@pytest.fixture
def vhost(broker: Broker) -> Iterator[BrokerSettings]:
    """A virtual host of this test's own."""
    made = broker.new_vhost()
    yield made
    broker.delete_vhost(made)


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.broker)])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Each transport in turn, with queues of this test's own."""
    if request.param == "embedded":
        return EmbeddedTransport()
    return RabbitMQTransport(request.getfixturevalue("vhost"), connect_timeout_s=20)


@pytest.fixture
def workers(vhost: BrokerSettings, tmp_path: Path) -> Iterator[Workers]:
    """Starts services on this test's virtual host, and stops them in the end."""
    running = Workers(vhost, tmp_path)
    yield running
    running.stop()
