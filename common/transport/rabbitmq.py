"""The transport over RabbitMQ (3.10 or later, 4.x), with pika.

The service's thread passes what it has done to the connection's thread, which
publishes it, waits for the broker's confirms, and then acknowledges the
delivery. Deliveries that were not acknowledged when the connection was lost are
redelivered.

A connection has a channel to consume, one to publish, and one for the states of
queues. The broker closes a channel for an error on it: a message that it refuses
causes no redelivery, and a queue that does not exist interrupts neither.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field, replace
from functools import partial

import pika
import pika.channel
import pika.exceptions
import pika.spec

from common import topology
from common.delivery import Delivery, dead_letter_headers
from common.errors import BrokerError, MessageError
from common.messages import Message
from common.settings import BrokerSettings
from common.signature import Signer
from common.topology import Queue
from common.transport.amqp import arguments, declare, refused_size
from common.transport.connection import Connection
from common.transport.publishing import OutgoingMessage, Publisher, bounded_queues
from common.transport.queue_states import QueueStates, StatesRequest

log = logging.getLogger(__name__)

#: How long the broker may take to report the states of queues.
ANSWER_TIMEOUT_S = 1.0
#: How long ``close`` waits for the confirms of what was published.
CLOSE_TIMEOUT_S = 8.0
#: How long ``publish`` waits for confirms between two checks of ``stop``.
CONFIRM_TIMEOUT_S = 2.0

#: The number of the connection, and the delivery tag in it.
_Token = tuple[int, int]


class RabbitMQTransport:
    """Opens sessions on one broker.

    Parameters
    ----------
    settings
        The broker.
    connect_timeout_s
        How long ``open`` waits for a broker that does not answer; None: for ever.
    stop
        Ends every wait for the broker when it is set.
    """

    def __init__(
        self, settings: BrokerSettings, connect_timeout_s: float | None = None, stop: threading.Event | None = None
    ) -> None:
        self._settings = settings
        self._connect_timeout_s = connect_timeout_s
        self._stop = stop or threading.Event()

    def open(self, queues: Sequence[Queue], prefetch: int = 1, alone_as: str | None = None) -> RabbitMQSession:
        """Open a session; returns when it is connected and, with ``alone_as``, no other session has this name.

        Raises BrokerError where the broker refuses, or has not answered within ``connect_timeout_s`` or before
        ``stop`` was set.
        """
        session = RabbitMQSession(self._settings, queues, prefetch, self._stop, alone_as)
        session.connect(self._connect_timeout_s)
        return session


@dataclass(eq=False)
class _Batch:
    """Messages that are published together, and the delivery (if any) that is acknowledged once all are confirmed.

    A batch ends with the connection of its delivery or, without a delivery, with that of number ``connection``; one
    without either is published again. ``unconfirmed`` has the messages that are not confirmed, by their index.
    ``problem`` says why the broker refuses one of them.
    """

    messages: InitVar[Sequence[OutgoingMessage]]
    delivery: Delivery | None = None
    is_dead_letter: bool = False
    connection: int | None = None
    problem: str | None = None
    unconfirmed: dict[int, OutgoingMessage] = field(init=False)
    confirmed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self, messages: Sequence[OutgoingMessage]) -> None:
        self.unconfirmed = dict(enumerate(messages))
        if self.delivery is not None:
            self.connection = self.delivery.token[0]


class RabbitMQSession:
    """One service's session, used from its thread only, except for the methods that ``Session`` names."""

    def __init__(
        self,
        settings: BrokerSettings,
        queues: Sequence[Queue],
        prefetch: int,
        stop: threading.Event,
        alone_as: str | None,
    ) -> None:
        self._settings = settings
        self._signer = Signer(settings.message_key)
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._alone_as = alone_as
        self._stop = stop
        self._bounded = bounded_queues({one.name: one for one in (*topology.QUEUES, *queues)})
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._postponed: Delivery | None = None
        self._outbox: deque[_Batch] = deque()
        self._changed = threading.Condition()
        self._unfinished: dict[_Batch, None] = {}
        #: By kind: the last message that ``publish_or_drop`` published.
        self._droppable: dict[str, _Batch] = {}
        # Set by the connection's thread only:
        self._channel: pika.channel.Channel | None = None
        self._publisher: Publisher | None = None
        self._states: QueueStates | None = None
        #: The names in the broker of the exclusive queues of this connection.
        self._names: dict[str, str] = {}
        self._connection = Connection(settings, self._on_channel, self._on_lost, alone_as)

    # --- called by the service ------------------------------------------------

    def connect(self, timeout_s: float | None) -> None:
        """Connect, and wait until that is done; raises BrokerError as ``RabbitMQTransport.open`` does."""
        self._connection.start()
        deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while not self._connection.wait(0.2):
            if self._stop.is_set() or time.monotonic() >= deadline:
                self._connection.stop()
                raise BrokerError(self._connection.problem)
        self._raise_failure()

    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next delivery, or None after the timeout or where ``wake`` was called.

        A redelivered message, which may be the one that killed its last consumer, is returned once everything before
        it is acknowledged, so that no other is redelivered with it. Raises BrokerError where the broker refuses.
        """
        deadline = time.monotonic() + timeout_s
        delivery, self._postponed = self._postponed, None
        if delivery is None:
            with suppress(queue.Empty):
                delivery = self._inbox.get(timeout=timeout_s)
        self._raise_failure()
        if delivery is None or not self._is_current(delivery.token):
            return None
        if delivery.redelivered and not self._wait_for_confirms(deadline):
            self._postponed = delivery
            return None
        return replace(delivery, rejection_reason=delivery.rejection_reason or self._signer.problem(delivery))

    def wake(self) -> None:
        """End the ``receive`` that waits, or else the next one."""
        self._inbox.put(None)

    def publish_and_acknowledge(self, delivery: Delivery, messages: Sequence[Message] = ()) -> None:
        """Publish the outcome of a delivery, and acknowledge the delivery once all of it is confirmed.

        If the broker refuses a message of the outcome, ``receive`` returns the delivery again, with the reason.
        """
        self._submit(_Batch(self._sign(messages), delivery))

    def dead_letter(self, delivery: Delivery, problem: str) -> None:
        """Move a delivery to its dead-letter queue, and notify the analysis service."""
        headers = self._signer.sign_notice(
            delivery.kind, delivery.body, {**delivery.headers, **dead_letter_headers(delivery, problem)}
        )
        dead = OutgoingMessage(
            topology.DEAD_LETTER_EXCHANGE, delivery.queue, delivery.kind, delivery.body, headers, mandatory=True
        )
        self._submit(_Batch([dead], delivery, is_dead_letter=True))

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages, and return once the broker has confirmed them.

        Raises MessageError where the broker refuses one, for example as too large, and BrokerError where they are
        not confirmed though the transport's ``stop`` is set.
        """
        self.publish_encoded(self._sign(messages))

    def publish_encoded(self, messages: Sequence[OutgoingMessage], timeout_s: float = math.inf) -> None:
        """Publish messages as they are, and return once the broker has confirmed them.

        Raises MessageError where the broker refuses one, and BrokerError where they are not confirmed within
        ``timeout_s``, or though ``stop`` is set.
        """
        if not messages:
            return
        batch = _Batch(messages)
        self._submit(batch)
        deadline = time.monotonic() + timeout_s
        while not batch.confirmed.wait(min(CONFIRM_TIMEOUT_S, timeout_s)):
            self._raise_failure()
            what = self._connection.blocked or f"{self._settings} has not confirmed {len(messages)} messages"
            if self._stop.is_set():
                raise BrokerError(f"{what}, before the stop")
            if time.monotonic() >= deadline:
                raise BrokerError(f"{what}, in {timeout_s:g} s")
        self._raise_failure()
        if batch.problem is not None:
            raise MessageError(batch.problem)

    def publish_without_confirm(self, message: Message) -> None:
        """Publish a message that may be lost with the connection, and return at once."""
        self._submit(_Batch(self._sign([message]), connection=self._connection.number))

    def publish_or_drop(self, message: Message) -> None:
        """Publish a message that may be lost, or drop it while the last one of its kind is not confirmed."""
        last, number = self._droppable.get(message.kind), self._connection.number
        if self.is_connected() and (last is None or last.confirmed.is_set() or last.connection != number):
            self._droppable[message.kind] = batch = _Batch(self._sign([message]), connection=number)
            self._submit(batch)

    def waits_for_confirm(self) -> bool:
        """Return whether the outcome of a delivery is not confirmed yet."""
        return not self._are_outcomes_confirmed()

    def connections(self) -> int:
        """Return how many times the session has connected."""
        return self._connection.established_count

    def is_connected(self) -> bool:
        """Return whether everything is declared and the channels are open."""
        channel = self._channel
        return channel is not None and channel.is_open and self._publisher is not None

    def blocked(self) -> str | None:
        """Return why the broker accepts no messages (a memory or disk alarm), where it has reported that.

        It reports an alarm only to a connection that publishes, so each call publishes an empty message to no queue.
        """
        self._connection.call(self._publish_to_no_queue)
        return self._connection.blocked

    def queues_without_consumer(self) -> Sequence[str]:
        """Return the names of the services' queues without a consumer; none where the broker does not answer."""
        states = self._queue_states([one.name for one in topology.QUEUES])
        return [name for name, state in states.items() if not state.consumer_count]

    def queue_depths(self, queues: Sequence[Queue] | None = None) -> Mapping[str, int]:
        """Return the number of waiting messages by queue: of ``queues`` and their dead-letter queues.

        By default of the session's. May be called from any thread. A queue for which the broker does not answer is
        left out.
        """
        queues = self._queues if queues is None else queues
        dead = [topology.dead_letter_queue(one.name) for one in queues if one.has_dead_letter_queue]
        states = self._queue_states([one.name for one in (*queues, *dead) if not one.exclusive])
        return {name: state.message_count for name, state in states.items()}

    def close(self) -> None:
        """Wait until what was published is confirmed, unless an alarm prevents that, then end the connection."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with self._changed:
            while (
                self._unfinished
                and self._connection.failure is None
                and self._connection.blocked is None
                and time.monotonic() < deadline
            ):
                self._changed.wait(deadline - time.monotonic())
        self._connection.stop()

    def _sign(self, messages: Sequence[Message]) -> list[OutgoingMessage]:
        return [OutgoingMessage.of(message, self._signer) for message in messages]

    def _submit(self, batch: _Batch) -> None:
        with self._changed:
            self._unfinished[batch] = None
            self._outbox.append(batch)
        self._connection.call(self._publish_outbox)

    def _wait_for_confirms(self, deadline: float) -> bool:
        """Wait until no delivery waits for its acknowledgement; False after the deadline."""
        with self._changed:
            return self._changed.wait_for(self._are_outcomes_confirmed, deadline - time.monotonic())

    def _are_outcomes_confirmed(self) -> bool:
        with self._changed:
            return all(batch.delivery is None for batch in self._unfinished)

    def _is_current(self, token: _Token) -> bool:
        return token[0] == self._connection.number

    def _raise_failure(self) -> None:
        if self._connection.failure is not None:
            raise self._connection.failure

    def _queue_states(self, names: Sequence[str]) -> dict[str, pika.spec.Queue.DeclareOk]:
        """The states of queues, as far as the broker reports them in time."""
        request = StatesRequest.of(names)
        if self.is_connected():
            self._connection.call(partial(self._request_states, request))
            request.done.wait(ANSWER_TIMEOUT_S)
        return dict(request.found)

    # --- called in the connection's thread ------------------------------------

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        # An exclusive queue gets a new name with each connection: the broker may not have deleted the last one yet.
        suffix = secrets.token_hex(4)
        self._names = {one.name: f"{one.name}.{suffix}" for one in self._queues if one.exclusive}
        channel.basic_qos(prefetch_count=self._prefetch)
        if self._alone_as is not None:
            # Not exclusive consumers, which quorum queues do not have. The broker refuses the queue of another
            # connection with 405, and closes the channel before anything is consumed.
            lock = topology.lock_of(self._alone_as)
            channel.queue_declare(lock.name, exclusive=True, arguments=arguments(lock))
        declare(channel, self._queues, self._names, lambda: self._on_declared(channel))

    def _on_declared(self, channel: pika.channel.Channel) -> None:
        self._channel = channel
        self._connection.open_channel(self._on_publisher_channel, self._on_publisher_closed)

    def _on_publisher_channel(self, channel: pika.channel.Channel) -> None:
        """Publish on a new channel what is not confirmed; the first time, consume before that."""
        is_first = self._states is None
        if is_first:
            self._states = QueueStates(self._connection, self._consume)
            self._start_publisher(channel)
        else:
            declare(channel, self._queues, self._names, lambda: self._start_publisher(channel))

    def _start_publisher(self, channel: pika.channel.Channel) -> None:
        self._publisher = Publisher(
            channel, self._bounded, lambda: declare(channel, self._queues, self._names, lambda: None)
        )
        with self._changed:
            self._outbox = deque(self._unfinished)
        self._publish_outbox()

    def _consume(self) -> None:
        """Consume the queues, and note that the connection is established once the broker has accepted all."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        # In random order, so that the redelivered message that kills its consumers is not always the first to come;
        # notices of dead letters last, because the plan of their run should be handled before them.
        in_random_order = random.sample(self._queues, len(self._queues))
        left = {one.name for one in self._queues}

        def accepted(name: str) -> None:
            left.discard(name)
            if not left:
                self._connection.established()

        for one in sorted(in_random_order, key=lambda one: one.name == topology.DEAD_NOTICES.name):
            channel.basic_consume(
                self._names.get(one.name, one.name),
                self._receiver(one.name),
                callback=lambda _, name=one.name: accepted(name),
            )
        if not left:
            self._connection.established()

    def _on_publisher_closed(self, channel: pika.channel.Channel, error: Exception) -> None:
        """Report the message that the broker refused, and open another channel, which publishes all others again."""
        publisher, self._publisher = self._publisher, None
        if not isinstance(error, pika.exceptions.ChannelClosedByBroker):
            return  # the connection is closed
        size = refused_size(error)
        if size is not None and publisher is not None and publisher.report_refused(size, error.reply_text):
            pass
        elif error.reply_code == 404:
            log.warning("%s: %s; declaring it again", self._settings, error.reply_text)
        else:
            self._connection.close_after(error)
            return
        self._connection.open_channel(self._on_publisher_channel, self._on_publisher_closed)

    def _on_lost(self) -> None:
        """Forget the deliveries of the lost connection, which are redelivered, and keep batches without a delivery."""
        self._channel = self._publisher = self._states = None
        with suppress(queue.Empty):  # the service's thread may take the last one first
            while True:
                self._inbox.get_nowait()
        with self._changed:
            kept = [batch for batch in self._unfinished if batch.connection is None]
            self._unfinished = dict.fromkeys(kept)
            self._outbox = deque(kept)
            if self._connection.failure is not None:
                for batch in kept:
                    batch.confirmed.set()
            self._changed.notify_all()
        self._inbox.put(None)

    def _receiver(self, name: str) -> Callable[..., None]:
        number = self._connection.number

        def receive(
            _: pika.channel.Channel,
            method: pika.spec.Basic.Deliver,
            properties: pika.spec.BasicProperties,
            body: bytes,
        ) -> None:
            token = (number, method.delivery_tag)
            headers = properties.headers or {}
            self._inbox.put(Delivery(name, properties.type or "", body, headers, bool(method.redelivered), token))

        return receive

    def _publish_outbox(self) -> None:
        if self._channel is None or not self._channel.is_open or self._publisher is None:
            return
        while self._outbox:
            batch = self._outbox.popleft()
            if batch.connection not in (None, self._connection.number):
                self._finish(batch)
                continue
            for index, message in tuple(batch.unconfirmed.items()):
                self._publisher.send(
                    message, partial(self._on_confirmed, batch, index), partial(self._on_refused, batch)
                )
            if not batch.unconfirmed:
                self._acknowledge(batch)

    def _on_confirmed(self, batch: _Batch, index: int) -> None:
        del batch.unconfirmed[index]
        if not batch.unconfirmed:
            self._acknowledge(batch)

    def _acknowledge(self, batch: _Batch) -> None:
        if batch.delivery is not None and self._channel is not None:
            self._channel.basic_ack(batch.delivery.token[1])
        self._finish(batch)

    def _on_refused(self, batch: _Batch, problem: str) -> None:
        """End a batch with a message that the broker refuses."""
        batch.problem = problem
        delivery = batch.delivery
        if batch.is_dead_letter and delivery is not None and self._channel is not None:
            log.error("%s; the broker moves it to its dead-letter queue, without the reason", problem)
            self._channel.basic_reject(delivery.token[1], requeue=False)
        elif delivery is not None and delivery.refused_outcome is None:
            self._inbox.put(replace(delivery, refused_outcome=problem))
        elif delivery is not None:  # what was published instead is refused, too
            self._inbox.put(replace(delivery, rejection_reason=problem))
        elif batch.connection is not None:
            log.warning("a message is not published: %s", problem)
        self._finish(batch)

    def _finish(self, batch: _Batch) -> None:
        batch.confirmed.set()
        with self._changed:
            self._unfinished.pop(batch, None)
            self._changed.notify_all()

    def _request_states(self, request: StatesRequest) -> None:
        if self._states is not None:
            self._states.request(request)

    def _publish_to_no_queue(self) -> None:
        if self._states is not None:
            self._states.publish_to_no_queue()
