"""The routing table: every exchange and queue, the kinds of message it carries, and the service that consumes it.

A new queue is one entry in ``QUEUES``. Where a message is published to, which
queues a service consumes, and which signature a queue accepts follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: The exchange that dead letters are published to, with the name of their queue as routing key.
DEAD_LETTER_EXCHANGE = "dead"

_FOLLOW = "follow."


@dataclass(frozen=True)
class Exchange:
    """A fanout exchange: every queue that is bound to it gets a copy of each message of these ``kinds``."""

    name: str
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Queue:
    """A queue.

    Parameters
    ----------
    name
        Its name in the broker.
    consumer
        The name of the service that consumes it.
    kinds
        The kinds of message that are published to it directly.
    exchanges
        The names of the fanout exchanges that it is bound to.
    limit
        The number of messages from which on publishers wait; None: unlimited.
    keep
        The number of messages that it holds before the oldest are dropped; None: unlimited.
    exclusive
        True where each session has a queue of its own, which is deleted with the session's connection. All
        others are durable, and replicated in a cluster.
    has_dead_letter_queue
        True where messages that cannot be handled move to a dead-letter queue.
    """

    name: str
    consumer: str | None = None
    kinds: tuple[str, ...] = ()
    exchanges: tuple[str, ...] = ()
    limit: int | None = None
    keep: int | None = None
    exclusive: bool = False
    has_dead_letter_queue: bool = True


RESULTS = Exchange("results", ("run-started", "progress", "fetch-progress", "result", "run-failed"))
#: Tells every data-loader and data-processor which runs were cancelled.
CANCELLATIONS = Exchange("cancellations", ("run-cancelled",))
RESULT_FILES = Exchange("result-files", ("result-files", "first-files"))
#: The answers to requests for the list of runs.
RUN_LISTS = Exchange("run-lists", ("run-list",))
#: What services and queues do at the moment. Not ``results``, whose queue at the visualisation holds all that it is
#: sent: a visualisation that is down for hours would fill it, and publishers would wait.
STATUS = Exchange("status", ("service-status", "queue-status"))

RUNS = Queue("runs", "data-loader", ("run-request",))
CHUNKS = Queue("chunks", "data-loader", ("file-task", "chunk-task"))
# The two queues with arrays: 16 messages of at most 8 MiB each.
EVENTS = Queue("events", "data-processor", ("events",), limit=16)
SELECTED = Queue("selected", "analysis", ("selected",), limit=16)
PLANS = Queue(
    "plans",
    "analysis",
    ("run-plan", "sample-plan", "chunk-failed", "status-request", "cancel-request", "run-list-request"),
)
#: A copy of every dead letter, which lets the analysis service record what is missing from a run. A notice that a
#: dead letter is requeued takes the same queue, so that it never overtakes the dead letter.
DEAD_NOTICES = Queue("dead-notices", "analysis", ("dead-letter", "requeued"), has_dead_letter_queue=False)
VISUALISATION = Queue("results.visualisation", "visualisation", exchanges=(RESULTS.name,), limit=10_000)

EXCHANGES = (RESULTS, RESULT_FILES, RUN_LISTS, CANCELLATIONS, STATUS)
#: The queues that every session declares.
QUEUES = (RUNS, CHUNKS, EVENTS, SELECTED, PLANS, DEAD_NOTICES, VISUALISATION)
#: The queues of which each replica of a service has its own, which holds the latest messages.
REPLICA_QUEUES = tuple(
    Queue(
        f"{exchange.name}.{service}",
        service,
        exchanges=(exchange.name,),
        keep=1_000,
        exclusive=True,
        has_dead_letter_queue=False,
    )
    for exchange, service in (
        (CANCELLATIONS, "data-loader"),
        (CANCELLATIONS, "data-processor"),
        (STATUS, "visualisation"),
    )
)

#: The queue of a command that lists the runs.
LISTER = Queue("lister", exchanges=(RUN_LISTS.name,), keep=100, exclusive=True, has_dead_letter_queue=False)

#: The exchange or queue that each kind of message is published to.
ROUTES: Mapping[str, str] = {kind: target.name for target in (*EXCHANGES, *QUEUES) for kind in target.kinds}


def lock_of(service: str) -> Queue:
    """The queue without messages that only one connection at a time can have: that of the one running service."""
    return Queue(f"{service}.lock", exclusive=True, has_dead_letter_queue=False)


def is_exchange(route: str) -> bool:
    """Whether a route is an exchange, and not a queue."""
    return any(exchange.name == route for exchange in EXCHANGES)


def consumed_by(service: str) -> tuple[Queue, ...]:
    """The queues that a service consumes."""
    return tuple(queue for queue in (*QUEUES, *REPLICA_QUEUES) if queue.consumer == service)


def consumers_of(queues: Iterable[str]) -> list[str]:
    """The services that consume the queues of these names, in alphabetical order."""
    names = set(queues)
    return sorted({queue.consumer for queue in QUEUES if queue.name in names and queue.consumer is not None})


def follower(run_id: str) -> Queue:
    """The queue of a command that follows one run.

    It is exclusive, because a durable queue that the broker loses would block the confirms of every publisher. A
    follower that lost its connection requests the status of its run.
    """
    return Queue(
        f"{_FOLLOW}{run_id}",
        exchanges=(RESULTS.name, RESULT_FILES.name),
        keep=10_000,
        exclusive=True,
        has_dead_letter_queue=False,
    )


def dead_letter_queue(queue: str) -> Queue:
    """The dead-letter queue of the queue of this name."""
    return Queue(f"{queue}.dead", has_dead_letter_queue=False)


def routes_to(queue: str) -> tuple[str, ...]:
    """The routes by which a message can have come into a queue: its own name, and the exchanges it is bound to."""
    follower_queue = follower(queue.removeprefix(_FOLLOW))
    bound = {one.name: one.exchanges for one in (*QUEUES, *REPLICA_QUEUES, LISTER, follower_queue)}
    return (queue, *bound.get(queue, ()))
