"""How RabbitMQ is spoken to: where it is, the arguments of its queues, and what its refusals mean."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import Any

import pika
import pika.exceptions

from common import topology
from common.settings import BrokerSettings
from common.topology import Queue

HEARTBEAT_S = 30
#: Deliveries after which the broker drops a message. It counts lost connections, and whoever only waited in
#: the hands of a worker that died: no measure of what is poisonous. Left out, RabbitMQ 4 takes 20.
DELIVERY_LIMIT = 1_000_000


def parameters(settings: BrokerSettings) -> pika.ConnectionParameters:
    """Where and as whom to connect; with TLS the broker's certificate and host name are verified."""
    tls = None
    if settings.tls:
        tls = pika.SSLOptions(ssl.create_default_context(cafile=settings.tls_ca), settings.host)
    return pika.ConnectionParameters(
        host=settings.host,
        port=settings.port,
        virtual_host=settings.vhost,
        credentials=pika.PlainCredentials(settings.user, settings.password),
        ssl_options=tls,
        heartbeat=HEARTBEAT_S,
        blocked_connection_timeout=None,
        socket_timeout=5,
        stack_timeout=10,
    )


def arguments(queue: Queue) -> dict[str, Any]:
    """The arguments a queue is declared with."""
    found: dict[str, Any] = {"x-queue-type": "classic"}
    if queue.replicated:
        found = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    if queue.keep is not None:
        found |= {"x-max-length": queue.keep, "x-overflow": "drop-head"}
    if queue.limit is not None:
        found |= {"x-max-length": queue.limit, "x-overflow": "reject-publish"}
    if queue.expires_s is not None:
        found |= {"x-expires": queue.expires_s * 1000}
    if queue.has_dead_letter_queue:
        found |= {"x-dead-letter-exchange": topology.DEAD_LETTER_EXCHANGE, "x-dead-letter-routing-key": queue.name}
    return found


def refusal(settings: BrokerSettings, error: BaseException) -> str | None:
    """What a failed connection says that waiting cannot mend, in words; None where it may work later."""
    for cause in causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return f"{settings} shows a certificate that is refused: {cause.verify_message} (RABBITMQ_TLS_CA)"
            case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE"):
                return f"{settings} does not speak TLS; is the port right (5671 by default)?"
        match _reply_code(cause):
            case 403:
                return f"{settings} refuses the user or the password (RABBITMQ_USER, RABBITMQ_PASS)"
            case 530:
                return f"{settings} has no virtual host {settings.vhost!r}, or denies it to us (RABBITMQ_VHOST)"
    return None


def _reply_code(error: BaseException) -> int | None:
    """The code with which the broker itself refused or closed the connection; None where it did not.

    Of a connection that ends in its handshake, pika supposes the user or the virtual host to be refused, also
    where it was merely lost; whether the broker said so stands only in the text.
    """
    if isinstance(error, pika.exceptions.AuthenticationError):  # it offers no way for us to give a password
        return 403
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker):
        return int(error.reply_code)
    said = re.search(rf"{pika.exceptions.ConnectionClosedByBroker.__name__}: \((\d+)\)", str(error.args))
    return int(said[1]) if said else None


def causes(error: object) -> Iterator[BaseException]:
    """An error of pika's and what it wraps, from the outside in."""
    if not isinstance(error, BaseException):
        return
    yield error
    for inner in (*error.args, *getattr(error, "exceptions", ()), getattr(error, "exception", None)):
        yield from causes(inner)


def brief(error: object) -> str:
    """An error in a few words."""
    return str(error) or type(error).__name__
