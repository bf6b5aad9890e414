"""The transport over RabbitMQ (3.10 or later, 4.x), by pika.

A session has a thread of its own for the connection, so that heartbeats are
answered while a chunk takes minutes. The service's thread hands over what it
has done; the connection's thread publishes it, waits for the broker's
confirms and then acknowledges. Where the broker is away it reconnects, with
back-off, for as long as it takes: what was not acknowledged comes again.
"""

from __future__ import annotations

import logging
import queue
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pika
import pika.adapters.utils.io_services_utils
import pika.channel
import pika.exceptions
import pika.spec

from common import topology
from common.errors import BrokerError
from common.messages import Message
from common.settings import BrokerSettings
from common.signature import Signer
from common.topology import Queue
from common.transport import Delivery, dead_letter_headers
from common.transport.amqp import arguments, brief, causes, parameters, refusal
from common.transport.marks import Marks, Token
from common.transport.publishing import Publication, Publisher

log = logging.getLogger(__name__)

# pika takes 4 KiB from the socket at a time and copies what it has of a frame to put them behind it, each frame of
# 128 KiB sixteen times over. It has no setting for that.
_PIKA_STREAM = pika.adapters.utils.io_services_utils._AsyncTransportBase
_PIKA_STREAM._MAX_RECV_BYTES = 2**17
_PIKA_STREAM._MAX_CONSUME_BYTES = 2**20

_TICK_S = 0.05
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
#: How long the broker may take to say how long a queue is.
ANSWER_DEADLINE_S = 1.0
CLOSE_DEADLINE_S = 8.0
#: How long the broker may take to confirm the mark of a message in hand.
MARK_DEADLINE_S = 5.0
#: How long a publisher that is to stop waits for a broker that does not confirm.
CONFIRM_DEADLINE_S = 2.0


class RabbitMQTransport:
    """Sessions on one broker.

    A broker that does not answer yet is waited for: for ``connect_timeout_s``, for
    ever where that is None, and no longer than until ``stop`` is set.
    """

    def __init__(
        self, settings: BrokerSettings, connect_timeout_s: float | None = None, stop: threading.Event | None = None
    ) -> None:
        self._settings = settings
        self._connect_timeout_s = connect_timeout_s
        self._stop = stop or threading.Event()

    def open(self, queues: Sequence[Queue], prefetch: int = 2) -> RabbitMQSession:
        """Open a session; returns when it is connected. Raises BrokerError where the broker refuses."""
        session = RabbitMQSession(self._settings, queues, prefetch, self._stop)
        session.connect(self._connect_timeout_s, self._stop)
        return session


@dataclass(eq=False)
class _Settlement:
    """What is to be confirmed before a delivery (if there is one) is acknowledged.

    ``token`` is the generation of the connection and the delivery's tag in it: 0
    for news. What has a token ends with its connection; what has none is sent again.
    """

    publications: Sequence[Publication]
    token: Token | None = None
    outstanding: int = 0
    confirmed: threading.Event = field(default_factory=threading.Event)


class RabbitMQSession:
    """One service's connection.

    Public methods are called from the service's thread only, but for ``wake`` and ``lengths``.
    """

    def __init__(
        self, settings: BrokerSettings, queues: Sequence[Queue], prefetch: int, stop: threading.Event | None = None
    ) -> None:
        self._settings = settings
        self._signer = Signer(settings.message_key)
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._stop_asked = stop or threading.Event()
        self._limits = {q.name: q.limit for q in (*topology.QUEUES, *queues) if q.limit is not None}
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._outbox: deque[_Settlement] = deque()
        self._lock = threading.Condition()
        self._unfinished: dict[_Settlement, None] = {}
        self._stopping = False
        self._failure: BrokerError | None = None
        self._ready = threading.Event()
        # Touched by the connection's thread alone:
        self._connection: pika.SelectConnection | None = None
        self._channel: pika.channel.Channel | None = None
        self._generation = 0
        self._publisher: Publisher | None = None
        self._marks = Marks()
        self._connected_before = False
        self._connections = 0
        self._nonce = ""
        self._away = False
        self._thread = threading.Thread(target=self._run, name="rabbitmq", daemon=True)

    # --- the service's side -------------------------------------------------

    def connect(self, connect_timeout_s: float | None, stop: threading.Event) -> None:
        """Start the connection and wait until it stands.

        Raises BrokerError where the broker refuses, or has not answered within
        ``connect_timeout_s`` or before ``stop`` was set.
        """
        self._thread.start()
        deadline = None if connect_timeout_s is None else time.monotonic() + connect_timeout_s
        while not self._ready.wait(0.2):
            if not stop.is_set() and (deadline is None or time.monotonic() < deadline):
                continue
            self._stop()
            raise BrokerError(
                f"no RabbitMQ answers at {self._settings}; is it running, and is --broker (RABBITMQ_HOST, "
                "RABBITMQ_PORT) right?"
            )
        self._raise_failure()

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next delivery; None where there was none in time. Raises BrokerError where the broker refuses."""
        try:
            delivery = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            delivery = None
        self._raise_failure()
        return None if delivery is None else replace(delivery, rejection_reason=self._signer.problem(delivery))

    def take_in_hand(self, delivery: Delivery) -> int:
        """Note in the broker that a redelivered message is handled; returns how many workers died handling it.

        A broker that does not take the note is not waited for: the message is handled without it.
        """
        marks = topology.deaths(delivery.queue, delivery.kind, delivery.body)
        counted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._on_loop(partial(self._mark, delivery.token, marks, counted.put))
        deadline = time.monotonic() + MARK_DEADLINE_S
        # A delivery whose connection is lost comes again: whatever is done about this one does not count.
        while delivery.token[0] == self._generation and not self._stop_asked.is_set():
            with suppress(queue.Empty):
                return counted.get(timeout=_TICK_S)
            if time.monotonic() > deadline:
                log.warning("no confirm from queue %s; a redelivered message is handled unmarked", marks.name)
                break
        return 0

    def wake(self) -> None:
        """End the ``receive`` that waits, or else the next one."""
        self._inbox.put(None)

    def publish_and_acknowledge(self, delivery: Delivery, messages: Sequence[Message] = ()) -> None:
        """Publish what came of a delivery, and acknowledge it once all of that is confirmed."""
        self._submit(_Settlement(self._publications(messages), delivery.token))

    def dead_letter(self, delivery: Delivery, problem: str) -> None:
        """Move a delivery to its dead-letter queue, and notify the analysis service."""
        headers = self._signer.sign_notice(
            delivery.kind, delivery.body, {**delivery.headers, **dead_letter_headers(delivery, problem)}
        )
        dead = Publication(
            topology.DEAD_LETTER_EXCHANGE, delivery.queue, delivery.kind, delivery.body, headers, must_arrive=True
        )
        self._submit(_Settlement([dead], delivery.token))

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages that come of no delivery; returns when the broker has confirmed them all.

        Raises BrokerError where the broker stays away though the transport's ``stop`` is set.
        """
        if not messages:
            return
        settlement = _Settlement(self._publications(messages))
        self._submit(settlement)
        while not settlement.confirmed.wait(CONFIRM_DEADLINE_S):
            self._raise_failure()
            if self._stop_asked.is_set():
                raise BrokerError(f"{self._settings} has not confirmed {len(messages)} messages before the stop")
        self._raise_failure()

    def publish_without_confirm(self, message: Message) -> None:
        """Publish news, without waiting for the broker."""
        self._submit(_Settlement(self._publications([message]), token=(self._generation, 0)))

    def connections(self) -> int:
        """How often the session has connected."""
        return self._connections

    def is_connected(self) -> bool:
        """Whether the channel is open and declared."""
        channel = self._channel
        return channel is not None and channel.is_open

    def queues_without_consumer(self) -> Sequence[str]:
        """The queues of the four services that nobody consumes; none where the broker does not answer."""
        asked = self._ask([wanted.name for wanted in topology.QUEUES])
        return [name for name, state in asked.items() if not state.consumer_count]

    def queue_depths(self) -> Mapping[str, int]:
        """Messages that wait in the queues consumed here and in their dead-letter queues. Safe in any thread."""
        dead = [topology.dead_letter_queue(wanted.name) for wanted in self._queues if wanted.has_dead_letter_queue]
        asked = self._ask([wanted.name for wanted in (*self._queues, *dead) if not wanted.exclusive])
        return {name: state.message_count for name, state in asked.items()}

    def _ask(self, names: Sequence[str]) -> dict[str, pika.spec.Queue.DeclareOk]:
        """What the broker says of queues within a second."""
        found: dict[str, pika.spec.Queue.DeclareOk] = {}
        if not self.is_connected():
            return found
        answers: queue.SimpleQueue[tuple[str, pika.spec.Queue.DeclareOk]] = queue.SimpleQueue()
        self._on_loop(partial(self._look, names, answers))
        with suppress(queue.Empty):
            while len(found) < len(names):
                name, state = answers.get(timeout=ANSWER_DEADLINE_S)
                found[name] = state
        return found

    def close(self) -> None:
        """Wait for what is under way to be confirmed, then end the connection."""
        deadline = time.monotonic() + CLOSE_DEADLINE_S
        with self._lock:
            while self._unfinished and self._failure is None and time.monotonic() < deadline:
                self._lock.wait(deadline - time.monotonic())
        self._stopping = True  # from here on, what ends is meant to end
        self._on_loop(self._marks.take_back_all)
        self._stop()

    def _publications(self, messages: Sequence[Message]) -> list[Publication]:
        return [Publication.of(message, self._signer) for message in messages]

    def _submit(self, settlement: _Settlement) -> None:
        with self._lock:
            self._unfinished[settlement] = None
            self._outbox.append(settlement)
        self._on_loop(self._send_outbox)

    def _stop(self) -> None:
        self._stopping = True
        self._on_loop(self._close_connection)
        self._thread.join(CLOSE_DEADLINE_S)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _on_loop(self, call: Callable[[], Any]) -> None:
        """Have the connection's thread call something; nothing where there is no connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.ioloop.add_callback_threadsafe(call)

    # --- the connection's thread: connecting --------------------------------

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping and self._failure is None:
            self._connected_before = False
            self._nonce = secrets.token_hex(4)
            try:
                self._connection = pika.SelectConnection(
                    parameters(self._settings),
                    on_open_callback=self._on_connected,
                    on_open_error_callback=self._on_connection_error,
                    on_close_callback=self._on_connection_error,
                )
                self._connection.ioloop.start()
            except Exception as error:  # whatever a broken connection does to pika, a new one mends
                log.warning("the connection to %s broke: %s: %s", self._settings, type(error).__name__, error)
            self._forget_connection()
            if self._stopping or self._failure is not None:
                break
            pause_s = FIRST_PAUSE_S if self._connected_before else min(2 * pause_s, LONGEST_PAUSE_S)
            time.sleep(pause_s * random.uniform(0.5, 1.0))
        self._ready.set()
        self._inbox.put(None)
        self._release_waiting()

    def _on_connected(self, connection: pika.SelectConnection) -> None:
        self._marks.open(connection, lambda: connection.channel(on_open_callback=self._on_channel))

    def _on_connection_error(self, connection: pika.SelectConnection, error: BaseException) -> None:
        problem = refusal(self._settings, error)
        if problem is not None:
            self._fail(problem)
        elif not self._stopping and not self._away:
            cause = list(causes(error))[-1]
            log.warning("RabbitMQ at %s is away (%s); trying again", self._settings, brief(cause))
        self._away = True
        connection.ioloop.stop()

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(self._on_cancelled)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._publisher = Publisher(channel, self._limits, lambda: self._declare(channel, lambda: None))
        self._declare(channel, lambda: self._on_declared(channel))

    def _on_channel_closed(self, channel: pika.channel.Channel, error: Exception) -> None:
        if (
            isinstance(error, pika.exceptions.ChannelClosedByBroker)
            and error.reply_code == 406
            and not self._ready.is_set()
        ):
            self._fail(
                f"{self._settings} has queues of other arguments: {error.reply_text}; delete the queue, or use "
                "another virtual host (RABBITMQ_VHOST)"
            )
        elif not self._stopping:
            log.warning("the channel was closed: %s", brief(error))
        self._close_connection()

    def _on_cancelled(self, frame: pika.frame.Method[Any]) -> None:
        """Our queue was deleted, or (from RabbitMQ 4.3 on) a delivery took longer than consumer_timeout."""
        if self._stopping:
            return
        log.warning("the broker has ended a consumer; connecting again")
        self._close_connection()

    def _declare(self, channel: pika.channel.Channel, then: Callable[[], None]) -> None:
        """Declare every exchange and queue. A channel's calls are answered in order, so the last answers for all."""
        channel.exchange_declare(topology.DEAD_LETTER_EXCHANGE, "topic", durable=True)
        for exchange in topology.EXCHANGES:
            channel.exchange_declare(exchange, "fanout", durable=True)
        for wanted in {q.name: q for q in (*topology.QUEUES, *self._queues)}.values():
            name = self._name_of(wanted)
            channel.queue_declare(
                name, durable=not wanted.exclusive, exclusive=wanted.exclusive, arguments=arguments(wanted)
            )
            for exchange in wanted.exchanges:
                channel.queue_bind(name, exchange)
            if wanted.has_dead_letter_queue:
                dead = topology.dead_letter_queue(wanted.name)
                channel.queue_declare(dead.name, durable=True, arguments=arguments(dead))
                channel.queue_bind(dead.name, topology.DEAD_LETTER_EXCHANGE, wanted.name)
        channel.queue_bind(topology.DEAD_NOTICES.name, topology.DEAD_LETTER_EXCHANGE, "#", callback=lambda _: then())

    def _name_of(self, wanted: Queue) -> str:
        """A queue's name in the broker: an exclusive one's is new with each connection, for the last may linger."""
        return f"{wanted.name}.{self._nonce}" if wanted.exclusive else wanted.name

    def _on_declared(self, channel: pika.channel.Channel) -> None:
        self._channel = channel
        self._connected_before = True
        self._connections += 1
        self._away = False
        for consumed in self._queues:
            channel.basic_consume(self._name_of(consumed), self._deliverer(consumed.name))
        log.info("connected to %s", self._settings)
        self._ready.set()
        self._send_outbox()

    def _forget_connection(self) -> None:
        """Deliveries of the lost connection come again; only what came of none must be sent once more."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.ioloop.close()
        self._channel = None
        self._generation += 1
        with suppress(queue.Empty):  # the service's thread may take the last one while we look
            while True:
                self._inbox.get_nowait()
        self._publisher = None
        self._marks.forget_connection()
        with self._lock:
            kept = [settlement for settlement in self._unfinished if settlement.token is None]
            self._unfinished = dict.fromkeys(kept)
            self._outbox = deque(kept)
            self._lock.notify_all()

    def _fail(self, problem: str) -> None:
        self._failure = BrokerError(problem)

    def _release_waiting(self) -> None:
        with self._lock:
            for settlement in self._unfinished:
                settlement.confirmed.set()
            self._lock.notify_all()

    def _close_connection(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if connection.is_open:
            connection.close()
        elif not connection.is_closing:
            connection.ioloop.stop()

    # --- the connection's thread: consuming and publishing -------------------

    def _deliverer(self, name: str) -> Callable[..., None]:
        def deliver(
            _: pika.channel.Channel,
            method: pika.spec.Basic.Deliver,
            properties: pika.spec.BasicProperties,
            body: bytes,
        ) -> None:
            token = (self._generation, method.delivery_tag)
            headers = properties.headers or {}
            self._inbox.put(Delivery(name, properties.type or "", body, headers, bool(method.redelivered), token))

        return deliver

    def _send_outbox(self) -> None:
        if self._channel is None or not self._channel.is_open:
            return
        while self._outbox:
            settlement = self._outbox.popleft()
            if settlement.token is not None and settlement.token[0] != self._generation:
                self._done(settlement)
                continue
            settlement.outstanding = len(settlement.publications)
            for publication in settlement.publications:
                self._send(settlement, publication)
            if not settlement.publications:
                self._finish(settlement)

    def _send(self, settlement: _Settlement, publication: Publication) -> None:
        assert self._publisher is not None
        self._publisher.send(publication, partial(self._confirmed, settlement))

    def _confirmed(self, settlement: _Settlement) -> None:
        settlement.outstanding -= 1
        if not settlement.outstanding:
            self._finish(settlement)

    def _finish(self, settlement: _Settlement) -> None:
        """Everything is confirmed: acknowledge the delivery it came from."""
        if settlement.token is not None and settlement.token[1] and self._channel is not None:
            self._channel.basic_ack(settlement.token[1])
            self._marks.take_back(settlement.token)
        self._done(settlement)

    def _mark(self, token: Token, marks: Queue, then: Callable[[int], None]) -> None:
        if token[0] == self._generation:
            self._marks.put(token, marks, then)

    def _done(self, settlement: _Settlement) -> None:
        settlement.confirmed.set()
        with self._lock:
            self._unfinished.pop(settlement, None)
            self._lock.notify_all()

    def _look(self, names: Sequence[str], answers: queue.SimpleQueue[tuple[str, pika.spec.Queue.DeclareOk]]) -> None:
        if self._channel is None or not self._channel.is_open:
            return
        for name in names:
            self._channel.queue_declare(
                name, passive=True, callback=lambda frame, name=name: answers.put((name, frame.method))
            )
