"""The progress of a run: the events, chunks and samples that each stage has finished, and its throughput."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque

from common.messages import Chunk, Progress, Stage

#: The stages that every event passes, in order.
STAGES: tuple[Stage, ...] = ("data-loader", "data-processor", "analysis")
#: The throughput is that of the last so many seconds, and known after the first MIN_WINDOW_S.
WINDOW_S = 15.0
MIN_WINDOW_S = 0.5


class StageProgress:
    """What one stage has finished of a run; a chunk that is reported twice counts once.

    Adjacent chunks are kept as one range of entries, so that the memory does not
    grow with the number of chunks.
    """

    def __init__(self) -> None:
        self.events = 0
        self.chunks = 0
        #: Ranges of entries ``(start, stop)`` by sample, sorted and not adjacent.
        self._ranges: dict[str, list[tuple[int, int]]] = {}
        #: When (monotonic clock, seconds) how many events were finished.
        self._history: deque[tuple[float, int]] = deque(maxlen=100)

    @property
    def samples(self) -> int:
        """Number of samples with at least one finished chunk."""
        return len(self._ranges)

    def add(self, chunk: Chunk) -> bool:
        """Count a chunk; returns False if it is empty or was counted before."""
        if chunk.start == chunk.stop:
            return False
        ranges = self._ranges.setdefault(chunk.sample, [])
        start, stop = chunk.start, chunk.stop
        index = bisect_right(ranges, start, key=lambda one: one[0])
        before = ranges[index - 1] if index else None
        after = ranges[index] if index < len(ranges) else None
        if (before and before[1] > start) or (after and after[0] < stop):
            return False
        first, last = index, index
        if before and before[1] == start:
            first, start = index - 1, before[0]
        if after and after[0] == stop:
            last, stop = index + 1, after[1]
        ranges[first:last] = [(start, stop)]
        now = time.monotonic()
        if not self._history or now - self._history[-1][0] > WINDOW_S / 50:
            self._history.append((now, self.events))
        self.events += chunk.stop - chunk.start
        self.chunks += 1
        return True

    def throughput(self) -> float | None:
        """Return the events per second of the last WINDOW_S seconds; None if it is not known yet."""
        now = time.monotonic()
        while len(self._history) > 1 and now - self._history[0][0] > WINDOW_S:
            self._history.popleft()
        if not self._history or now - self._history[0][0] < MIN_WINDOW_S:
            return None
        since, events = self._history[0]
        return (self.events - events) / (now - since)


class RunProgress:
    """The progress of a run by stage; not safe to use from several threads."""

    def __init__(self) -> None:
        #: Events that will be read of each sample whose file has been opened.
        self.planned: dict[str, int] = {}
        self.stages = {stage: StageProgress() for stage in STAGES}

    @property
    def total_events(self) -> int:
        """Events that will be read of all samples whose files have been opened."""
        return sum(self.planned.values())

    def update(self, message: Progress) -> None:
        """Count what a message reports.

        A chunk that has passed a stage has passed those before it, too, also if
        their messages were lost.
        """
        if message.stage == "plan":
            self.planned[message.chunk.sample] = message.chunk.stop
            return
        for stage in STAGES[: STAGES.index(message.stage) + 1]:
            self.stages[stage].add(message.chunk)
