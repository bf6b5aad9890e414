"""What a service does with the messages of cancelled runs."""

from __future__ import annotations

from common.messages import Message, RunCancelled, run_of

#: Why a cancelled run has failed, in RunFailed.
CANCELLED = "the run was cancelled"

#: How many cancelled runs a service remembers.
MAX_RUNS = 1_000


class CancelledRuns:
    """The latest runs that were cancelled. The work for a run that is not among them is dropped by the analysis.

    Not safe to use from several threads.
    """

    def __init__(self) -> None:
        self._runs: dict[str, None] = {}

    def drops(self, message: Message) -> bool:
        """Whether a message needs no handling: it says that a run was cancelled, which is noted, or belongs to one."""
        run_id = run_of(message)
        if isinstance(message, RunCancelled):
            self._runs[message.run_id] = None
            if len(self._runs) > MAX_RUNS:
                del self._runs[next(iter(self._runs))]
        return run_id in self._runs
