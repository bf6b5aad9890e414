"""A connection to RabbitMQ in a thread of its own, which reconnects whenever it is lost."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pika
import pika.channel
import pika.exceptions

from common.errors import BrokerError
from common.settings import BrokerSettings
from common.transport.amqp import brief, causes, parameters, refusal

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
#: The pause before another attempt where the same service has another connection.
OTHER_PAUSE_S = 1.0
#: How long ``stop`` waits for the thread.
STOP_TIMEOUT_S = 8.0


class Connection:
    """A connection with one channel.

    The thread answers heartbeats while a service handles a message for minutes. After a lost connection it connects
    again, with back-off, for as long as it takes; it ends where the broker refuses, and ``failure`` says why.

    Parameters
    ----------
    settings
        The broker.
    on_channel
        Called with each new channel, to declare and consume; it calls ``established`` when that is done.
    on_lost
        Called after each lost connection, and at the end.
    alone_as
        The name of the service whose lock (a queue) ``on_channel`` declares; None for one that has none.

    Both functions are called in the connection's thread.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        on_channel: Callable[[pika.channel.Channel], None],
        on_lost: Callable[[], None],
        alone_as: str | None = None,
    ) -> None:
        self.failure: BrokerError | None = None
        #: The number of the connection, from 1; it increases when a connection is lost.
        self.number = 1
        #: How many connections were established so far.
        self.established_count = 0
        self._settings = settings
        self._on_channel = on_channel
        self._on_lost = on_lost
        #: Whether another connection has the lock of this service.
        self.waits_for_other = False
        self._alone_as = alone_as
        self._ready = threading.Event()
        self._stopping = False
        self._reported_lost = False
        self._lock = threading.Lock()
        self._connection: pika.SelectConnection | None = None
        self._thread = threading.Thread(target=self._run, name="rabbitmq", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the first connection is established or refused; False after the timeout."""
        return self._ready.wait(timeout_s)

    def call(self, function: Callable[[], Any]) -> None:
        """Have the connection's thread call a function; dropped where there is no connection. Safe in any thread."""
        with self._lock:
            if self._connection is not None:
                self._connection.ioloop.add_callback_threadsafe(function)

    def stop(self) -> None:
        """Close the connection and end the thread."""
        self._stopping = True
        self.call(self.close)
        self._thread.join(STOP_TIMEOUT_S)

    # The methods below are called in the connection's thread.

    def established(self) -> None:
        """Note that the channel is ready for use."""
        self.established_count += 1
        self._reported_lost = self.waits_for_other = False
        log.info("connected to %s", self._settings)
        self._ready.set()

    def close(self) -> None:
        """Close the connection; unless ``stop`` was called, another one is made."""
        connection = self._connection
        if connection is None:
            return
        if connection.is_open:
            connection.close()
        elif not connection.is_closing:
            connection.ioloop.stop()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping and self.failure is None:
            before = self.established_count
            try:
                self._connection = pika.SelectConnection(
                    parameters(self._settings),
                    on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel_open),
                    on_open_error_callback=self._on_connection_closed,
                    on_close_callback=self._on_connection_closed,
                )
                self._connection.ioloop.start()
            except Exception as error:  # a broken connection raises all sorts of errors in pika
                log.warning("the connection to %s broke: %s: %s", self._settings, type(error).__name__, error)
            with self._lock:
                lost, self._connection = self._connection, None
            if lost is not None:
                lost.ioloop.close()
            self.number += 1
            self._on_lost()
            if self._stopping or self.failure is not None:
                break
            if self.waits_for_other:
                time.sleep(OTHER_PAUSE_S)
                continue
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if self.established_count == before else FIRST_PAUSE_S
            time.sleep(pause_s * random.uniform(0.5, 1.0))
        self._ready.set()

    def _on_channel_open(self, channel: pika.channel.Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(self._on_consumer_cancelled)
        self._on_channel(channel)

    def _on_connection_closed(self, connection: pika.SelectConnection, error: BaseException) -> None:
        problem = refusal(self._settings, error)
        if problem is not None:
            self.failure = BrokerError(problem)
        elif not self._stopping and not self._reported_lost:
            cause = list(causes(error))[-1]
            log.warning("no connection to RabbitMQ at %s (%s); connecting again", self._settings, brief(cause))
        self._reported_lost = True
        connection.ioloop.stop()

    def _on_channel_closed(self, channel: pika.channel.Channel, error: Exception) -> None:
        code = error.reply_code if isinstance(error, pika.exceptions.ChannelClosedByBroker) else None
        if code == 405 and self._alone_as is not None:
            if not self.waits_for_other:
                log.warning(
                    "another %s service is running on %s; waiting until it ends", self._alone_as, self._settings
                )
            self.waits_for_other = True
        elif code == 406 and not self._ready.is_set():
            self.failure = BrokerError(
                f"{self._settings} has queues with other arguments: {brief(error)}; delete the queue, or use another "
                "virtual host (RABBITMQ_VHOST)"
            )
        elif not self._stopping:
            log.warning("the channel was closed: %s", brief(error))
        self.close()

    def _on_consumer_cancelled(self, frame: pika.frame.Method[Any]) -> None:
        """Connect again: the queue was deleted or, from RabbitMQ 4.3 on, consumer_timeout was exceeded."""
        if not self._stopping:
            log.warning("the broker has cancelled a consumer; connecting again")
            self.close()
