"""The runs that were cancelled, as a service knows them."""

from __future__ import annotations

from common.messages import Message, RunCancelled, run_of

#: How many cancelled runs a service remembers.
MAX_RUNS = 1_000


class CancelledRuns:
    """The latest runs that were cancelled. A service that forgot one, or did not run, does work that is dropped later.

    Not safe to use from several threads.
    """

    def __init__(self) -> None:
        self._runs: dict[str, None] = {}

    def concern(self, message: Message) -> bool:
        """Whether there is nothing to do for a message: it tells of a cancelled run, or belongs to one."""
        run_id = run_of(message)
        if isinstance(message, RunCancelled):
            self._runs[message.run_id] = None
            if len(self._runs) > MAX_RUNS:
                del self._runs[next(iter(self._runs))]
        return run_id in self._runs
