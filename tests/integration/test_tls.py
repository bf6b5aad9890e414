"""AMQPS: the broker's certificate and host name are verified, and a refusal is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common import topology
from common.errors import BrokerError
from common.messages import Chunk, ChunkFailed
from common.settings import BrokerSettings
from common.transport.dead_letters import dead_letters
from common.transport.rabbitmq import RabbitMQTransport
from tests.integration.test_command import run
from tests.support.broker import Broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker


@pytest.fixture
def folder(session_folder: Path) -> Path:
    """The folder of the authority that signed the broker's certificate, and of another one."""
    return session_folder / "broker"


@pytest.fixture
def secure(broker: Broker, vhost: BrokerSettings, folder: Path) -> BrokerSettings:
    assert broker.tls_port is not None
    return replace(vhost, host="localhost", port=broker.tls_port, tls=True, tls_ca=folder / "ca.pem")


@pytest.fixture
def plain_port(broker: Broker) -> int:
    return broker.settings.port


def test_messages_are_sent_over_tls(secure: BrokerSettings) -> None:
    session = RabbitMQTransport(secure, connect_timeout_s=20).open([topology.PLANS])
    sent = ChunkFailed(Chunk("run", "Zee", 0, 10), "whatever" * 100_000)
    session.publish([sent])
    delivery = wait_until(lambda: session.receive(0.5), "the message came", 20)
    assert delivery.body == sent.encode()
    session.publish_and_acknowledge(delivery)
    session.close()
    assert dead_letters(secure) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"tls_ca": "other-ca.pem"},
            "a certificate that is refused: self-signed certificate in certificate chain",
        ),
        ({"tls_ca": None}, "a certificate that is refused: self-signed certificate in certificate chain"),
        ({"host": "127.0.0.1"}, "refused: IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
)
def test_a_wrong_certificate_is_an_error_at_once(
    secure: BrokerSettings, folder: Path, changes: dict[str, str | None], expected: str
) -> None:
    if changes.get("tls_ca"):
        changes = {**changes, "tls_ca": folder / str(changes["tls_ca"])}  # type: ignore[dict-item]
    wrong = replace(secure, **changes)  # type: ignore[arg-type]
    with pytest.raises(BrokerError) as refused:
        RabbitMQTransport(wrong, connect_timeout_s=None).open([])  # would wait for ever
    assert expected in str(refused.value)
    with pytest.raises(BrokerError, match="shows a certificate that is refused"):
        dead_letters(wrong)


def test_tls_at_a_port_without_tls_is_an_error(secure: BrokerSettings, plain_port: int) -> None:
    with pytest.raises(BrokerError, match=r"does not speak TLS; is the port right \(5671 by default\)\?"):
        RabbitMQTransport(replace(secure, port=plain_port), connect_timeout_s=None).open([])


@pytest.mark.slow
def test_the_command_and_the_services_use_tls_as_the_environment_says(
    secure: BrokerSettings, folder: Path, tmp_path: Path, cache: Path
) -> None:
    workers = Workers(secure, tmp_path, cache)
    try:
        workers.start_all()
        secret = {"RABBITMQ_USER": secure.user, "RABBITMQ_PASS": secure.password}
        flags = [
            "--release",
            "demo",
            "--demo-events",
            "500",
            "--broker",
            f"amqps://localhost:{secure.port}/{secure.vhost}",
        ]
        done = run(tmp_path, *flags, **secret, RABBITMQ_TLS_CA=str(secure.tls_ca))
        assert done.returncode == 0, done.stderr
        refused = run(tmp_path, *flags, **secret, RABBITMQ_TLS_CA=str(folder / "other-ca.pem"))
        assert refused.returncode == 1
        (line,) = refused.stderr.strip().splitlines()
        assert line.startswith(f"analysis.py: {secure} shows a certificate that is refused")
        assert "Traceback" not in refused.stderr
    finally:
        workers.stop()


def test_a_service_with_a_wrong_certificate_authority_ends_with_one_line(
    secure: BrokerSettings, folder: Path, tmp_path: Path
) -> None:
    workers = Workers(replace(secure, tls_ca=folder / "other-ca.pem"), tmp_path)
    try:
        (process,) = workers.start("data_processor")
        assert process.wait(30) == 1
        last = workers.log("data_processor").strip().splitlines()[-1]
        assert "shows a certificate that is refused" in last
        assert last.endswith("(RABBITMQ_TLS_CA)")
    finally:
        workers.stop()
