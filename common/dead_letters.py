"""What is known of a message that could not be handled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter, as its headers describe it; what they do not say is None.

    Parameters
    ----------
    queue
        The name of the queue it was in.
    kind
        What kind of message it is.
    run_id, sample, start, stop
        The run, the sample and the entries that it is about.
    size
        The size of its body in bytes.
    problem
        Why it could not be handled.
    died
        When it was dead-lettered (UTC, ISO 8601).
    """

    queue: str
    kind: str
    run_id: str | None
    sample: str | None
    start: int | None
    stop: int | None
    size: int
    problem: str
    died: str | None
