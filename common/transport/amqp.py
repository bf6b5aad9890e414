"""How to connect to RabbitMQ, what is declared there, and what its refusals mean."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pika
import pika.channel
import pika.exceptions

from common import topology
from common.settings import BrokerSettings
from common.topology import Queue

HEARTBEAT_S = 30

#: The channels of a connection: to consume, to publish, and to request the states of queues. The broker closes a
#: channel for an error on it, and redelivers the deliveries of that channel alone.
CHANNELS = 3

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


@dataclass(frozen=True)
class Refusal:
    """What the broker refuses, as text, and whether no later attempt can succeed before somebody changes a setting."""

    text: str
    is_final: bool = True


def refusal(settings: BrokerSettings, error: BaseException) -> Refusal | None:
    """What the broker refuses, from an error of pika; None where the broker did not answer, or gave no reason.

    A limit, which connections or queues of other programs may have reached, is not final.
    """
    for cause in causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return Refusal(
                    f"{settings} shows a certificate that is refused: {cause.verify_message} (RABBITMQ_TLS_CA)"
                )
            case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE"):
                return Refusal(f"{settings} does not speak TLS; is the port right (5671 by default)?")
            case pika.exceptions.NoFreeChannels():
                return Refusal(f"{settings} allows too few channels in a connection; set channel_max to {CHANNELS}")
            case pika.exceptions.AuthenticationError():
                return Refusal(f"{settings} offers no login with user and password (PLAIN)")
        reply = _reply(cause)
        if reply is not None:
            return _meaning(settings, *reply)
    return None


def _meaning(settings: BrokerSettings, code: int, text: str) -> Refusal:
    """What a reply code of the broker and its text mean."""
    if code in (403, 406, 530) and "limit" in text:
        return Refusal(f"{settings} has reached a limit: {text}", is_final=False)
    match code:
        case 403 if "Login was refused" in text:
            return Refusal(f"{settings} refuses the user or the password (RABBITMQ_USER, RABBITMQ_PASS): {text}")
        case 403:
            return Refusal(
                f"{settings} does not permit its user what the pipeline needs: {text}; grant the rights to configure, "
                "write and read with rabbitmqctl set_permissions"
            )
        case 404 | 530 if "vhost" in text and "not found" in text:
            return Refusal(f"{settings} has no virtual host {settings.vhost!r} (RABBITMQ_VHOST): {text}")
        case 530 if "access to vhost" in text:
            return Refusal(
                f"{settings} does not permit its user the virtual host {settings.vhost!r} (RABBITMQ_VHOST): {text}; "
                "grant it with rabbitmqctl set_permissions"
            )
        case 530:
            return Refusal(f"{settings} refuses the connection: {text}")
        case 406 if "inequivalent arg" in text or "invalid arg" in text:
            return Refusal(
                f"{settings} has queues with other arguments: {text}; delete the queue, or use another virtual host "
                "(RABBITMQ_VHOST)"
            )
        case 404 | 405 | 406:
            return Refusal(f"{settings} refuses to declare the queues: {text}", is_final=False)
    return Refusal(f"{settings} has closed the connection: {text}", is_final=False)


def _reply(error: BaseException) -> tuple[int, str] | None:
    """The code and the text with which the broker closed the connection or the channel; None where it sent none.

    pika reports a connection that ends in the handshake as a refused user or virtual host, even where it was only
    lost. Only the text shows whether the broker sent a reply code.
    """
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker | pika.exceptions.ChannelClosedByBroker):
        return error.reply_code, error.reply_text
    name = pika.exceptions.ConnectionClosedByBroker.__name__
    for argument in error.args:
        found = re.fullmatch(rf"{name}: \((\d+)\) (['\"])(.*)\2", argument) if isinstance(argument, str) else None
        if found:
            return int(found[1]), found[3]
    return None


def refused_size(error: BaseException) -> int | None:
    """The size in bytes of the message for which the broker closed the channel; None where it had another reason."""
    if isinstance(error, pika.exceptions.ChannelClosedByBroker) and error.reply_code == 406:
        found = re.search(r"message size (\d+)", error.reply_text)
        return int(found[1]) if found else None
    return None


def no_answer(settings: BrokerSettings, error: BaseException | None) -> str:
    """What to say where nothing answered as RabbitMQ does, with the last error."""
    reason = "" if error is None else f" ({brief(list(causes(error))[-1])})"
    return (
        f"no RabbitMQ answers at {settings}{reason}; is it running, and is --broker (RABBITMQ_HOST, RABBITMQ_PORT) "
        "right?"
    )


def causes(error: object) -> Iterator[BaseException]:
    """An exception of pika and those that it wraps, from the outside in."""
    if not isinstance(error, BaseException):
        return
    yield error
    for inner in (*error.args, *getattr(error, "exceptions", ()), getattr(error, "exception", None)):
        yield from causes(inner)


def brief(error: object) -> str:
    """A short description of an error."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
