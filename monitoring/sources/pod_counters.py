"""A pod's counter beside those of its containers: what a restart hides in these, that one still holds."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from monitoring.sources.base import Reading
from monitoring.sources.kubernetes_api import Pod


class Curve:
    """A counter over time: straight lines between its readings, flat before and after."""

    def __init__(self, time_s: float, value: float) -> None:
        self.times = [time_s]
        self.values = [value]

    def add(self, time_s: float, value: float) -> None:
        """A later reading."""
        if time_s > self.times[-1]:
            self.times.append(time_s)
            self.values.append(value)

    def at(self, time_s: float) -> float:
        """The counter at a time."""
        after = bisect_right(self.times, time_s)
        if after == 0:
            return self.values[0]
        if after == len(self.times):
            return self.values[-1]
        (t0, t1), (v0, v1) = self.times[after - 1 : after + 1], self.values[after - 1 : after + 1]
        return v0 + (v1 - v0) * (time_s - t0) / (t1 - t0)


class PodCounters:
    """A pod's own counter and those of its containers' lives, to find what a restart has hidden."""

    def __init__(self, pod: Pod, born: bool) -> None:
        self.pod = pod
        self.whole = Curve(pod.started, 0.0) if born and pod.started is not None else None
        self.lives: dict[tuple[str, float], Curve] = {}
        self.latest: dict[str, Reading] = {}
        self.hidden: list[tuple[Reading, float]] = []

    def tail(self, last: Reading, next_start: float) -> Reading | None:
        """The final reading of a life that a restart has ended; None until the counters reach past the restart.

        final = last + (the pod's counter - all its containers' counters, each
        over the time from the last reading until now), at least ``last``.
        """
        if self.whole is None or self.whole.times[-1] <= next_start:
            return None
        now = self.whole.times[-1]
        newest = self.lives[self.latest[last.container].life]
        if newest.times[-1] < now:
            now = next((t for t in reversed(self.whole.times) if next_start < t <= newest.times[-1]), 0.0)
            if not now:
                return None
        since = last.time
        used = self.whole.at(now) - self.whole.at(since)
        seen = sum(curve.at(now) - curve.at(since) for curve in self.lives.values())
        ended = min(max(self.pod.finished.get(last.container.rpartition("/")[2], next_start), since), next_start)
        return replace(last, time=ended, cpu_seconds=last.cpu_seconds + max(0.0, used - seen), state="final")
