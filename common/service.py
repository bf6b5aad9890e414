"""The one loop that all four services run in: consume, handle, publish, acknowledge.

A service is plain Python with a ``handle`` from a message to messages. What
can go wrong around it is dealt with here, once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import ClassVar

from common import messages, settings, topology
from common.errors import BrokerError, MessageError, SettingsError, Unavailable
from common.health import ServiceMetrics, listen
from common.memory import keep_freed_memory
from common.messages import Message
from common.releases import Releases
from common.settings import Settings
from common.topology import Queue
from common.transport import Delivery, Session
from common.transport.rabbitmq import RabbitMQTransport

log = logging.getLogger(__name__)

#: How soon a stopping service notices, and how long it waits for what is away.
_TICK_S = 0.5
_PAUSE_S = 1.0
#: A message that was in hand when so many workers died is dead-lettered. Of the first of
#: them nothing is known but that its message came again; of the others, that they died handling it.
CRASH_LIMIT = 3


class Service(ABC):
    """One of the four services: its name, the queues it consumes, and what it does with a message."""

    name: ClassVar[str]
    consumes: ClassVar[Sequence[Queue]]
    prefetch: ClassVar[int] = 2
    #: What messages are checked against; a service that reads events declares its own.
    releases: ClassVar[Releases] = Releases()

    #: Publishes news at once, in the middle of a message; set by the loop.
    publish_without_confirm: Callable[[Message], None] = staticmethod(lambda message: None)

    #: Publishes what comes of no delivery, and returns once that is confirmed; for ``poll``, set by the loop.
    publish: Callable[[Sequence[Message]], None] = staticmethod(lambda messages: None)

    #: Has the loop turn at once, from whichever thread; set by the loop.
    wake: Callable[[], None] = staticmethod(lambda: None)

    @abstractmethod
    def handle(self, message: Message) -> Sequence[Message]:
        """Do what the message asks, and return what is to be published.

        Raises MessageError for a message that cannot be handled (it is
        dead-lettered) and Unavailable where only time can help (it is tried again).
        """

    def decode(self, delivery: Delivery) -> Message:
        """Read a delivery; raises MessageError where it is not what it says."""
        return messages.decode(delivery.kind, delivery.body, self.releases)

    def poll(self) -> None:  # noqa: B027  not every service has something to do unasked
        """Do what is due though no message asks for it: called between deliveries, twice a second, and on ``wake``.

        Raises Unavailable where only time can help: it is called again in any case.
        """

    def close(self) -> None:  # noqa: B027  not every service holds something
        """Give back what the service holds."""


def serve(service: Service, session: Session, stop: threading.Event, monitor: ServiceMetrics | None = None) -> None:
    """Handle deliveries until ``stop`` is set; raises BrokerError where the broker refuses."""
    service.publish_without_confirm = session.publish_without_confirm
    service.publish = session.publish
    service.wake = session.wake
    monitor = monitor or ServiceMetrics(service.name)
    monitor.connected, monitor.queue_depths = session.is_connected, session.queue_depths
    try:
        while not stop.is_set():
            monitor.heartbeat()
            _poll(service, stop)
            delivery = session.receive(_TICK_S)
            if delivery is not None:
                with monitor.handling(delivery.queue, delivery.kind):
                    _handle(service, session, delivery, stop, monitor)
    finally:
        session.close()
        service.close()


def _poll(service: Service, stop: threading.Event) -> None:
    try:
        service.poll()
    except Unavailable as error:
        log.warning("%s waits: %s", service.name, error)
        stop.wait(_PAUSE_S)


def _handle(
    service: Service, session: Session, delivery: Delivery, stop: threading.Event, monitor: ServiceMetrics
) -> None:
    if delivery.rejection_reason is not None:
        return _give_up(service, session, delivery, delivery.rejection_reason, monitor)
    if delivery.redelivered and 1 + session.take_in_hand(delivery) >= CRASH_LIMIT:
        problem = f"{service.name} died {CRASH_LIMIT} times with this message in hand"
        return _give_up(service, session, delivery, problem, monitor)
    while True:
        try:
            outcome = service.handle(service.decode(delivery))
            session.publish_and_acknowledge(delivery, outcome)
        except Unavailable as error:
            log.warning("%s waits: %s", service.name, error)
            if stop.wait(_PAUSE_S):
                return None
        except MessageError as error:
            return _give_up(service, session, delivery, str(error), monitor)
        except BrokerError:
            raise  # nothing is wrong with the message: it comes again
        except Exception as error:
            log.exception("%s failed on a %s message", service.name, delivery.kind)
            problem = f"{service.name} failed: {type(error).__name__}: {error}"
            return _give_up(service, session, delivery, problem, monitor)
        else:
            return monitor.handled(delivery.queue, outcome)


def _give_up(service: Service, session: Session, delivery: Delivery, problem: str, monitor: ServiceMetrics) -> None:
    log.error("%s cannot handle a message from %s: %s", service.name, delivery.queue, problem)
    monitor.failed(delivery.queue)
    if delivery.queue == topology.DEAD_NOTICES.name:
        session.publish_and_acknowledge(delivery)  # the dead letter itself is kept
    else:
        session.dead_letter(delivery, problem[:1000])


def main(make: Callable[[Settings], Service]) -> int:
    """Run one service as a process, on RabbitMQ, until SIGTERM or SIGINT; returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        read = settings.read(os.environ)
        configure_logging(read.log_level)
        keep_freed_memory()
        service = make(read)
        log.info("%s starts", service.name)
        monitor = ServiceMetrics(service.name)
        with listen(monitor, read.metrics_port) if read.metrics_port else nullcontext():
            session = RabbitMQTransport(read.broker, stop=stop).open(service.consumes, service.prefetch)
            serve(service, session, stop, monitor)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (BrokerError, OSError) as error:
        print(error, file=sys.stderr)
        return 0 if stop.is_set() else 1
    log.info("%s has stopped", service.name)
    return 0


def configure_logging(level: str) -> None:
    """Log to standard error, one line a record; pika's own chatter only where something is wrong."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("pika").setLevel(logging.CRITICAL if level != "DEBUG" else logging.INFO)
