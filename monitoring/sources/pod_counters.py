"""The counters of a pod and its containers, and the CPU time that a container's own counter misses at a restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitoring.sources.base import CounterSample
from monitoring.sources.kubernetes_api import Pod


class CounterSeries:
    """A counter over time: linear between its samples, constant before and after."""

    def __init__(self, time_s: float, value: float) -> None:
        self.times = [time_s]
        self.values = [value]

    def add(self, time_s: float, value: float) -> None:
        """Add a sample, unless it is not later than the last."""
        if time_s > self.times[-1]:
            self.times.append(time_s)
            self.values.append(value)

    def increase(self, start: float, end: float) -> float:
        """Return the increase of the counter between two times."""
        before, after = np.interp((start, end), self.times, self.values)
        return float(after - before)


class PodCounters:
    """The counter of a pod and those of its containers' lifetimes."""

    def __init__(self, pod: Pod, is_new: bool) -> None:
        self.pod = pod
        #: The pod's own counter, which continues when a container restarts.
        self.total = CounterSeries(pod.started, 0.0) if is_new and pod.started is not None else None
        self.lifetimes: dict[tuple[str, float], CounterSeries] = {}
        self.latest: dict[str, CounterSample] = {}
        #: Lifetimes whose end was not sampled: the last sample, and when the next lifetime started.
        self.missed: list[tuple[CounterSample, float]] = []

    def recover(self, last: CounterSample, next_start: float) -> CounterSample | None:
        """Return the final sample of a lifetime that ended in a restart at or before ``next_start``.

        None until the counters of pod and container have been read after it.
        The final counter is that of ``last``, plus the increase of the pod's
        counter since then that no counter of a container accounts for.
        """
        if self.total is None:
            return None
        newest = self.lifetimes[self.latest[last.container].lifetime]
        common = [time_s for time_s in self.total.times if next_start < time_s <= newest.times[-1]]
        if not common:
            return None
        now = common[-1]
        accounted = sum(series.increase(last.time, now) for series in self.lifetimes.values())
        missed = max(0.0, self.total.increase(last.time, now) - accounted)
        finished = self.pod.finished.get(last.container.rpartition("/")[2], next_start)
        ended = min(max(finished, last.time), next_start)
        return replace(last, time=ended, cpu_seconds=last.cpu_seconds + missed, state="final")
