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
import pika.spec

from common import topology
from common.errors import BrokerError
from common.settings import BrokerSettings
from common.transport.amqp import Refusal, brief, causes, no_answer, parameters, refusal

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
#: The pause before another attempt where the same service has another connection.
OTHER_PAUSE_S = 1.0
#: How long ``stop`` waits for the thread.
STOP_TIMEOUT_S = 8.0
#: The same during an alarm, in which the broker does not read the request to close.
STOP_TIMEOUT_IN_ALARM_S = 1.0


class Connection:
    """A connection with several channels.

    The thread answers heartbeats while a service handles a message for minutes. After a lost connection it connects
    again, with back-off, for as long as it takes; it ends where the broker's refusal is final, and ``failure`` says
    why.

    Parameters
    ----------
    settings
        The broker.
    on_channel
        Called with the first channel of each connection, to declare and consume; it calls ``established`` when that
        is done.
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
        #: Why the broker accepts no messages (a memory or disk alarm), in its words; None while it does.
        self.blocked: str | None = None
        #: Why the last attempt to connect failed.
        self.problem = no_answer(settings, None)
        self._settings = settings
        self._on_channel = on_channel
        self._on_lost = on_lost
        self._alone_as = alone_as
        self._waits_for_other = False
        self._is_established = False
        self._ready = threading.Event()
        self._stopping = False
        self._logged: str | None = None
        self._lock = threading.Lock()
        self._connection: pika.SelectConnection | None = None
        self._thread = threading.Thread(target=self._run, name="rabbitmq", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the first connection is established or finally refused; False after the timeout."""
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
        self._thread.join(STOP_TIMEOUT_S if self.blocked is None else STOP_TIMEOUT_IN_ALARM_S)

    # The methods below are called in the connection's thread.

    def established(self) -> None:
        """Note that the channels are ready for use."""
        self.established_count += 1
        self._is_established = True
        self._logged, self._waits_for_other = None, False
        log.info("connected to %s", self._settings)
        self._ready.set()

    def open_channel(
        self,
        on_open: Callable[[pika.channel.Channel], None],
        on_closed: Callable[[pika.channel.Channel, Exception], None],
    ) -> None:
        """Open another channel; ``on_closed`` is called when it is closed, also with the connection."""

        def opened(channel: pika.channel.Channel) -> None:
            channel.add_on_close_callback(on_closed)
            on_open(channel)

        if self._connection is not None and self._connection.is_open:
            self._connection.channel(on_open_callback=opened)

    def close(self) -> None:
        """Close the connection; unless ``stop`` was called, another one is made."""
        connection = self._connection
        if connection is None:
            return
        if connection.is_open:
            connection.close()
        elif not connection.is_closing:
            connection.ioloop.stop()

    def close_after(self, error: Exception) -> None:
        """Close the connection after the broker closed one of its channels; ``failure`` is set if that is final."""
        found = refusal(self._settings, error)
        if found is not None and (not self._is_established or found.is_final):
            self._note(found)
        elif not self._stopping:
            log.warning("%s has closed a channel: %s; connecting again", self._settings, brief(error))
        self.close()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping and self.failure is None:
            before = self.established_count
            try:
                self._connection = pika.SelectConnection(
                    parameters(self._settings),
                    on_open_callback=self._on_connection_open,
                    on_open_error_callback=self._on_connection_closed,
                    on_close_callback=self._on_connection_closed,
                )
                self._connection.ioloop.start()
            except Exception as error:  # a broken connection raises all sorts of errors in pika
                found = refusal(self._settings, error)
                if found is not None:
                    self._note(found)
                else:
                    log.warning("the connection to %s broke: %s: %s", self._settings, type(error).__name__, error)
            with self._lock:
                lost, self._connection = self._connection, None
            if lost is not None:
                lost.ioloop.close()
            self.number += 1
            self._is_established, self.blocked = False, None
            self._on_lost()
            if self._stopping or self.failure is not None:
                break
            if self._waits_for_other:
                time.sleep(OTHER_PAUSE_S)
                continue
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if self.established_count == before else FIRST_PAUSE_S
            time.sleep(pause_s * random.uniform(0.5, 1.0))
        self._ready.set()

    def _on_connection_open(self, connection: pika.SelectConnection) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self.open_channel(self._on_channel_open, self._on_channel_closed)

    def _on_channel_open(self, channel: pika.channel.Channel) -> None:
        channel.add_on_cancel_callback(self._on_consumer_cancelled)
        self._on_channel(channel)

    def _on_connection_closed(self, connection: pika.SelectConnection, error: BaseException) -> None:
        if not isinstance(error, pika.exceptions.ConnectionClosedByClient):  # else the reason is noted already
            found = refusal(self._settings, error)
            if found is not None:
                self._note(found)
            else:
                self.problem = no_answer(self._settings, error)
                if self._logged is None and not self._stopping:
                    cause = list(causes(error))[-1]
                    log.warning("no connection to RabbitMQ at %s (%s); connecting again", self._settings, brief(cause))
                self._logged = self.problem
        connection.ioloop.stop()

    def _on_channel_closed(self, channel: pika.channel.Channel, error: Exception) -> None:
        lock = None if self._alone_as is None else topology.lock_of(self._alone_as).name
        if not isinstance(error, pika.exceptions.ChannelClosedByBroker):
            return  # the connection is closed
        if error.reply_code == 405 and lock is not None and f"'{lock}'" in error.reply_text:
            if not self._waits_for_other:
                log.warning(
                    "another %s service is running on %s; waiting until it ends", self._alone_as, self._settings
                )
            self._waits_for_other = True
            self.problem = f"stopped while another {self._alone_as} service was running"
            self.close()
        else:
            self.close_after(error)

    def _note(self, found: Refusal) -> None:
        """Set ``failure`` where a refusal is final; log any other once."""
        self.problem = found.text
        if found.is_final:
            self.failure = BrokerError(found.text)
        elif found.text != self._logged and not self._stopping:
            log.warning("%s; connecting again until it is accepted", found.text)
            self._logged = found.text

    def _on_blocked(
        self, connection: pika.connection.Connection, frame: pika.frame.Method[pika.spec.Connection.Blocked]
    ) -> None:
        self.blocked = f"{self._settings} accepts no messages: it reports an alarm ({frame.method.reason})"
        log.warning("%s; waiting until the alarm ends", self.blocked)

    def _on_unblocked(
        self, connection: pika.connection.Connection, frame: pika.frame.Method[pika.spec.Connection.Unblocked]
    ) -> None:
        self.blocked = None
        log.warning("%s accepts messages again", self._settings)

    def _on_consumer_cancelled(self, frame: pika.frame.Method[Any]) -> None:
        """Connect again: the queue was deleted or, from RabbitMQ 4.3 on, consumer_timeout was exceeded."""
        if not self._stopping:
            log.warning("the broker has cancelled a consumer; connecting again")
            self.close()
