"""The queues and exchanges of the pipeline: their names, who is behind them, how much they hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: Fanout exchanges: whoever listens gets a copy.
RESULTS = "results"
RESULT_FILES = "result-files"
EXCHANGES = (RESULTS, RESULT_FILES)

_FOLLOW = "follow."

#: What could not be handled goes to this exchange, under its queue's name.
DEAD_LETTER_EXCHANGE = "dead"


@dataclass(frozen=True)
class Queue:
    """A queue.

    ``limit`` is the number of messages from which publishers wait; ``keep``
    the number that a listener's queue holds before the oldest make way;
    ``exchanges`` are the fanout exchanges it listens to; ``expires_s`` deletes
    a queue that nobody uses for so long; ``exclusive`` means that each session
    has its own, which ends with the session's connection; ``replicated``, that
    each broker of a cluster has a copy (a quorum queue). What cannot be handled
    moves to the queue's dead-letter queue, if it has one (``has_dead_letter_queue``).
    """

    name: str
    limit: int | None = None
    keep: int | None = None
    exchanges: tuple[str, ...] = ()
    expires_s: int | None = None
    exclusive: bool = False
    replicated: bool = True
    has_dead_letter_queue: bool = True


RUNS = Queue("runs")
CHUNKS = Queue("chunks")
# The two queues with arrays: 16 messages of at most 8 MiB.
EVENTS = Queue("events", limit=16)
SELECTED = Queue("selected", limit=16)
PLANS = Queue("plans")
#: A copy of every dead letter, for the analysis service to note what is lost.
DEAD_NOTICES = Queue("dead-notices", has_dead_letter_queue=False)
VISUALISATION = Queue("results.visualisation", keep=10_000, exchanges=(RESULTS,))

#: Queues that always exist, whoever connects first.
QUEUES = (RUNS, CHUNKS, EVENTS, SELECTED, PLANS, DEAD_NOTICES, VISUALISATION)


def follower(run_id: str) -> Queue:
    """The queue of a command that follows one run.

    It is as fleeting as its connection: a durable one would keep every worker waiting for its confirms, should
    the broker lose it. Who has lost a connection asks anew how the run stands.
    """
    return Queue(
        f"{_FOLLOW}{run_id}",
        keep=10_000,
        exchanges=(RESULTS, RESULT_FILES),
        exclusive=True,
        replicated=False,
        has_dead_letter_queue=False,
    )


def dead_letter_queue(queue: str) -> Queue:
    """A queue's dead-letter queue."""
    return Queue(f"{queue}.dead", has_dead_letter_queue=False)


def deaths(queue: str, kind: str, body: bytes) -> Queue:
    """The queue with a mark for each worker that died while it handled this message; a day without one deletes it.

    It is not replicated: RabbitMQ 4.0 brings a quorum queue that was made in the moment before its only node was
    killed back without a leader, and whoever publishes to that waits for a minute, again and again.
    """
    digest = hashlib.sha256(f"{queue} {kind} ".encode() + body).hexdigest()
    return Queue(f"deaths.{digest[:32]}", expires_s=86_400, replicated=False, has_dead_letter_queue=False)


def routes_to(queue: str) -> tuple[str, ...]:
    """Where the messages of a queue were sent: to itself, or to an exchange it listens to."""
    listening = {known.name: known.exchanges for known in QUEUES}
    return (queue, *listening.get(queue, EXCHANGES if queue.startswith(_FOLLOW) else ()))
