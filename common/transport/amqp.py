"""How to connect to RabbitMQ, what is declared there, and what its refusals mean."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pika
import pika.channel
import pika.exceptions

from common import topology
from common.settings import BrokerSettings
from common.topology import Queue

HEARTBEAT_S = 30

#: Bytes of a frame. pika reads 4 KiB at a time, and at each read copies the part of a frame that it has; of smaller
#: frames it copies less. To receive 290 messages of 0.3 MB takes 0.23 s of CPU time with the default of 128 KiB, and
#: 0.19 s with 32 KiB; reads of 128 KiB would take 0.17 s, but pika has no setting for their size (open question
#: upstream: make it a connection parameter).
FRAME_BYTES = 32 * 1024

#: How many deliveries of a message may fail; at the next failure the broker moves it to the dead-letter queue, with
#: the reason ``delivery_limit``. So a message that kills its worker ends after 11 workers: half an hour where
#: Kubernetes restarts them with its back-off, two minutes under Compose.
#: Before RabbitMQ 4.3 every return of a message to its queue counts: the exit of a worker, a lost connection, a restart
#: of the broker, an exceeded consumer_timeout. From 4.3 on, only exits and lost connections do. Ten is more than the
#: eight faults that one run of the chaos suite has, and fewer than the 20 that RabbitMQ 4 sets by itself.
DELIVERY_LIMIT = 10

#: The limit of queues without a dead-letter queue, where the broker would delete the message: none is ever reached.
#: Each listing of dead letters is a delivery. RabbitMQ 3 refuses -1, which means "unlimited" from 4.0 on.
NO_DELIVERY_LIMIT = 1_000_000


def parameters(settings: BrokerSettings) -> pika.ConnectionParameters:
    """The connection's parameters. With TLS the broker's certificate and host name are verified."""
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
        frame_max=FRAME_BYTES,
        blocked_connection_timeout=None,
        socket_timeout=5,
        stack_timeout=10,
    )


def arguments(queue: Queue) -> dict[str, Any]:
    """The arguments that a queue is declared with."""
    if queue.exclusive:
        found: dict[str, Any] = {"x-queue-type": "classic"}
    else:
        limit = DELIVERY_LIMIT if queue.has_dead_letter_queue else NO_DELIVERY_LIMIT
        found = {"x-queue-type": "quorum", "x-delivery-limit": limit}
    if queue.keep is not None:
        found |= {"x-max-length": queue.keep, "x-overflow": "drop-head"}
    if queue.limit is not None:
        found |= {"x-max-length": queue.limit, "x-overflow": "reject-publish"}
    if queue.has_dead_letter_queue:
        found |= {
            "x-dead-letter-exchange": topology.DEAD_LETTER_EXCHANGE,
            "x-dead-letter-routing-key": queue.name,
            # A dead letter leaves its queue once its dead-letter queue has confirmed it; needs reject-publish.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
    return found


def declare(
    channel: pika.channel.Channel, queues: Iterable[Queue], names: Mapping[str, str], then: Callable[[], None]
) -> None:
    """Declare every exchange and queue of the routing table, and ``queues``; call ``then`` when that is done.

    ``names`` gives the names in the broker of those queues whose name there is another.
    """
    channel.exchange_declare(topology.DEAD_LETTER_EXCHANGE, "topic", durable=True)
    for exchange in topology.EXCHANGES:
        channel.exchange_declare(exchange.name, "fanout", durable=True)
    for queue in {queue.name: queue for queue in (*topology.QUEUES, *queues)}.values():
        name = names.get(queue.name, queue.name)
        channel.queue_declare(name, durable=not queue.exclusive, exclusive=queue.exclusive, arguments=arguments(queue))
        for exchange_name in queue.exchanges:
            channel.queue_bind(name, exchange_name)
        if queue.has_dead_letter_queue:
            dead = topology.dead_letter_queue(queue.name)
            channel.queue_declare(dead.name, durable=True, arguments=arguments(dead))
            channel.queue_bind(dead.name, topology.DEAD_LETTER_EXCHANGE, queue.name)
    # The answers to a channel's calls come in order: the last one answers for all.
    channel.queue_bind(topology.DEAD_NOTICES.name, topology.DEAD_LETTER_EXCHANGE, "#", callback=lambda _: then())


def refusal(settings: BrokerSettings, error: BaseException) -> str | None:
    """What the broker refused, as text; None where another attempt may succeed."""
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
    """The reply code with which the broker refused or closed the connection; None where it sent none.

    pika reports a connection that ends in the handshake as a refused user or virtual host, even where it was only
    lost. Only the text shows whether the broker sent a reply code.
    """
    if isinstance(error, pika.exceptions.AuthenticationError):  # the broker accepts no password at all
        return 403
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker):
        return int(error.reply_code)
    found = re.search(rf"{pika.exceptions.ConnectionClosedByBroker.__name__}: \((\d+)\)", str(error.args))
    return int(found[1]) if found else None


def causes(error: object) -> Iterator[BaseException]:
    """An exception of pika and those that it wraps, from the outside in."""
    if not isinstance(error, BaseException):
        return
    yield error
    for inner in (*error.args, *getattr(error, "exceptions", ()), getattr(error, "exception", None)):
        yield from causes(inner)


def brief(error: object) -> str:
    """A short description of an error."""
    return str(error) or type(error).__name__
