"""The loop that all four services run in: receive a message, handle it, publish the outcome, acknowledge.

A service implements ``handle``, which returns the messages that answer a message. The loop
deals with errors, dead letters, retries and the stop.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, ClassVar

from common import messages, replica, topology
from common.analyses import Analyses
from common.delivery import Delivery, Receipt
from common.errors import BrokerError, DatabaseError, MessageError, SettingsError, Unavailable
from common.health import ServiceMetrics
from common.messages import Message, Software, Span, Step
from common.replica import Replica
from common.status import StatusReporter
from common.topology import Queue
from common.transport import Session

log = logging.getLogger(__name__)

#: How long the loop waits for a message before it checks ``stop`` again.
_RECEIVE_TIMEOUT_S = 0.5
#: The pause before another attempt where something outside is unavailable.
RETRY_PAUSE_S = 1.0
#: The most characters of a reason that a dead letter carries.
_MAX_PROBLEM = 1000


class Service(ABC):
    """One of the four services: its name, and what it does with a message."""

    name: ClassVar[str]
    #: True where only one process may run the service on a broker: a second one waits.
    is_single: ClassVar[bool] = False
    #: True for the service that publishes the states of the queues.
    reports_queues: ClassVar[bool] = False
    #: The analyses that messages are checked against; each service has its own.
    analyses: Analyses = Analyses()

    #: Publishes a message at once, while another one is handled; set by the loop.
    publish_without_confirm: Callable[[Message], None] = staticmethod(lambda message: None)

    #: Publishes messages and returns once they are confirmed; for use in ``poll``, set by the loop.
    publish: Callable[[Sequence[Message]], None] = staticmethod(lambda messages: None)

    #: Ends the loop's wait for a message, so that it polls at once; may be called from any thread, set by the loop.
    wake: Callable[[], None] = staticmethod(lambda: None)

    #: Waits for work in another thread, and returns its outcome. Meanwhile, messages of the queues that a replica has
    #: of its own are passed to ``handle``: they show or change what replicas do now. Set by the loop.
    outcome_of: Callable[[Future[Any]], Any] = staticmethod(lambda work: work.result())

    #: Is set when the service is to stop, for work that takes longer than a second; set by the loop.
    stop: threading.Event = threading.Event()

    #: Notes that the handling of a message makes progress, so that the service counts as alive; set by the loop.
    heartbeat: Callable[[], None] = staticmethod(lambda: None)

    #: When the message that is being handled was published and received; set by the loop.
    receipt: Receipt = Receipt()

    @cached_property
    def replica(self) -> Replica:
        """The replica that this service is: its name, host and process."""
        return replica.this_process()

    @cached_property
    def software(self) -> Software:
        """The version of this service and of its packages."""
        return replica.software()

    @property
    def consumes(self) -> Sequence[Queue]:
        """The queues that the service consumes, as the routing table says."""
        return topology.consumed_by(self.name)

    @abstractmethod
    def handle(self, message: Message) -> Sequence[Message]:
        """Handle a message, and return the messages to publish.

        Raises MessageError for a message that cannot be handled, and SettingsError for an analysis that
        the service does not have (both are dead-lettered), and Unavailable where something outside is unavailable
        for now (the message is tried again).
        """

    def decode(self, delivery: Delivery) -> Message:
        """Decode a delivery; raises MessageError where its body is not valid."""
        return messages.decode(delivery.kind, delivery.body, self.analyses)

    def outcome_refused(self, message: Message, problem: str) -> Sequence[Message]:
        """Return what to publish instead of the outcome of a message, which the broker refuses (as too large).

        By default nothing: the message is dead-lettered.
        """
        return []

    def spans(self, step: Step, before: Sequence[Span] = ()) -> tuple[Span, ...]:
        """Return what happened to the chunk of the message that is being handled.

        That is what happened ``before``, as the message says, then its publishing, its wait in the queue, and ``step``
        of this service until now. If the last one before is of this replica, ``step`` follows it.
        """
        me, receipt = (self.name, self.replica.name), self.receipt
        if before and (before[-1].service, before[-1].replica) == me:
            return (*before, Span(step, *me, before[-1].end, receipt.now(), receipt.redeliveries))
        found = [*before]
        if receipt.published is not None:
            if before:
                last = before[-1]
                found.append(Span("published", last.service, last.replica, last.end, receipt.published))
            found.append(Span("waited", *me, receipt.published, receipt.received, receipt.redeliveries))
        return (*found, Span(step, *me, receipt.received, receipt.now(), receipt.redeliveries))

    def poll(self) -> None:  # noqa: B027  optional
        """Do work that no message causes. Called between messages, at least twice a second, and after ``wake``.

        Raises Unavailable where something outside is unavailable for now; it is called again in any case.
        """

    def close(self) -> None:  # noqa: B027  optional
        """Release what the service holds."""


def serve(
    service: Service,
    session: Session,
    stop: threading.Event,
    metrics: ServiceMetrics | None = None,
    *,
    interrupt: threading.Event | None = None,
) -> None:
    """Handle messages until ``stop`` is set.

    Raises BrokerError where the broker refuses, and DatabaseError where the service's database cannot be used.
    ``interrupt`` is the event that also ends the handling of a long message, by default ``stop``.
    """
    service.publish_without_confirm = session.publish_without_confirm
    service.publish = session.publish
    service.wake = session.wake
    metrics = metrics or ServiceMetrics(service.name)
    service.stop, service.heartbeat = interrupt or stop, metrics.heartbeat
    metrics.connected, metrics.queue_depths = session.is_connected, session.queue_depths
    status = StatusReporter(service.name, service.replica, session, metrics, stop, queues=service.reports_queues)
    postponed: deque[Delivery] = deque()
    service.outcome_of = lambda work: _outcome_of(work, service, session, postponed, metrics)
    try:
        with status:
            while not stop.is_set():
                metrics.heartbeat()
                _poll(service, stop)
                delivery = postponed.popleft() if postponed else session.receive(_RECEIVE_TIMEOUT_S)
                if delivery is not None:
                    with metrics.handling(delivery):
                        _handle(service, session, delivery, stop, metrics)
    finally:
        session.close()
        service.close()


def _outcome_of(
    work: Future[Any], service: Service, session: Session, postponed: deque[Delivery], metrics: ServiceMetrics
) -> Any:
    """Wait for work, and handle the messages of the replica's own queues until the service is to stop.

    All others are postponed. They arrive after a reconnection, for example the message that caused the work.
    """
    work.add_done_callback(lambda _: session.wake())
    while not (work.done() or service.stop.is_set()):
        delivery = session.receive(_RECEIVE_TIMEOUT_S)
        if delivery is None:
            continue
        if not any(queue.name == delivery.queue for queue in topology.REPLICA_QUEUES):
            postponed.append(delivery)
        elif delivery.rejection_reason is not None:
            _dead_letter(service, session, delivery, delivery.rejection_reason, metrics)
        else:
            try:
                session.publish_and_acknowledge(delivery, service.handle(service.decode(delivery)))
            except MessageError as error:
                _dead_letter(service, session, delivery, str(error), metrics)
    return work.result()


def _poll(service: Service, stop: threading.Event) -> None:
    try:
        service.poll()
    except Unavailable as error:
        log.warning("%s waits: %s", service.name, error)
        stop.wait(RETRY_PAUSE_S)


def _handle(
    service: Service, session: Session, delivery: Delivery, stop: threading.Event, metrics: ServiceMetrics
) -> None:
    if delivery.rejection_reason is not None:
        return _dead_letter(service, session, delivery, delivery.rejection_reason, metrics)
    refused = delivery.refused_outcome
    service.receipt = Receipt(delivery.published, delivery.redeliveries)
    while True:
        metrics.is_publishing = False
        try:
            metrics.message = message = service.decode(delivery)
            outcome = service.handle(message) if refused is None else service.outcome_refused(message, refused)
            if refused is not None and not outcome:
                return _dead_letter(service, session, delivery, refused, metrics)
            metrics.is_publishing = True
            session.publish_and_acknowledge(delivery, outcome)
        except Unavailable as error:
            log.warning("%s waits: %s", service.name, error)
            if stop.wait(RETRY_PAUSE_S):
                return None
        except (MessageError, SettingsError) as error:
            return _dead_letter(service, session, delivery, str(error), metrics)
        except (BrokerError, DatabaseError):
            raise  # the message is not the cause, and is redelivered
        except Exception as error:
            log.exception("%s failed on a %s message", service.name, delivery.kind)
            problem = f"{service.name} failed: {type(error).__name__}: {error}"
            return _dead_letter(service, session, delivery, problem, metrics)
        else:
            return metrics.handled(delivery.queue, outcome)


def _dead_letter(service: Service, session: Session, delivery: Delivery, problem: str, metrics: ServiceMetrics) -> None:
    log.error("%s cannot handle a message from %s: %s", service.name, delivery.queue, problem)
    metrics.failed(delivery.queue)
    if delivery.queue == topology.DEAD_NOTICES.name:
        session.publish_and_acknowledge(delivery)  # the dead letter itself is in its dead-letter queue
    else:
        session.dead_letter(delivery, problem[:_MAX_PROBLEM])
