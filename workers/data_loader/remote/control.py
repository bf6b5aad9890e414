"""How a fetch reports its progress to the caller, and how the caller stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import Unavailable

#: Called with the number of bytes received so far and the size of the file, None if the server does not say it.
ProgressCallback = Callable[[int, int | None], None]

#: How long a fetch waits at a time before it checks ``stop`` again.
POLL_S = 0.25


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class FetchControl:
    """What a fetch calls and checks while it runs.

    ``progress`` is called whenever bytes were received, ``heartbeat`` then and while the fetch waits for
    a download by another process. A fetch ends with ``Unavailable`` within a second after ``stop`` is set.
    """

    progress: ProgressCallback = _ignore
    heartbeat: Callable[[], None] = _ignore
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise Unavailable if the fetch is to stop."""
        if self.stop.is_set():
            raise Unavailable(
                "the fetch of a file was stopped; what was downloaded is kept and the rest is fetched later"
            )

    def wait(self, seconds: float) -> None:
        """Wait for so long; raises Unavailable at once if the fetch is to stop."""
        self.stop.wait(seconds)
        self.check()

    def received(self, done_bytes: int, total_bytes: int | None) -> None:
        """Report the number of bytes received."""
        self.heartbeat()
        self.progress(done_bytes, total_bytes)


@dataclass
class Deadline:
    """A time limit: ``remaining_s`` is what is left of it."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    @property
    def remaining_s(self) -> float:
        """Return the seconds that are left, 0 if the time is over."""
        return max(0.0, self.seconds - (time.monotonic() - self._began))
