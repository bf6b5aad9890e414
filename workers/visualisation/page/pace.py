"""How far a stage is, and how fast: a chunk that is reported twice counts once."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque

from common.messages import Chunk

#: The rate is that of the last seconds.
WINDOW_S = 15.0
LEAST_S = 0.5

#: What is done of each sample: ranges of entries ``start, stop`` that do not touch, and the chunks in each.
Done = dict[str, list[tuple[int, int, int]]]


class Pace:
    """What a stage has done of a run. ``done`` is filled in place: whoever keeps it, keeps the progress."""

    def __init__(self, done: Done) -> None:
        self._done = done
        ranges = [one for of_sample in done.values() for one in of_sample]
        self.events = sum(stop - start for start, stop, _ in ranges)
        self.chunks = sum(chunks for *_, chunks in ranges)
        self._points: deque[tuple[float, int]] = deque(maxlen=100)

    def add(self, chunk: Chunk) -> bool:
        """Count a chunk; False where it is empty, or counted already."""
        ranges = self._done.setdefault(chunk.sample, [])
        start, stop, chunks = chunk.start, chunk.stop, 1
        place = bisect_right(ranges, start, key=lambda one: one[0])
        before = ranges[place - 1] if place else None
        after = ranges[place] if place < len(ranges) else None
        if start == stop or (before and before[1] > start) or (after and after[0] < stop):
            return False
        first, last = place, place
        if before and before[1] == start:
            first, start, chunks = place - 1, before[0], chunks + before[2]
        if after and after[0] == stop:
            last, stop, chunks = place + 1, after[1], chunks + after[2]
        ranges[first:last] = [(start, stop, chunks)]
        now = time.monotonic()
        if not self._points or now - self._points[-1][0] > WINDOW_S / 50:
            self._points.append((now, self.events))
        self.events += chunk.stop - chunk.start
        self.chunks += 1
        return True

    def rate(self) -> float | None:
        """Events per second over the last seconds; None where too little is known."""
        now = time.monotonic()
        while len(self._points) > 1 and now - self._points[0][0] > WINDOW_S:
            self._points.popleft()
        if not self._points or now - self._points[0][0] < LEAST_S:
            return None
        since, events = self._points[0]
        return (self.events - events) / (now - since)
