"""From a recording's counters to what each service used: pure functions, no source in sight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from monitoring.recording import Recording
from monitoring.sources.base import HOST, PIPELINE, Reading

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Life:
    """One container between one start and one end: its counter at some times, both rising.

    ``used`` is what it used since the recording began: since its birth, where
    that was recorded (a ``started`` row), else since its first reading.
    """

    readings: Sequence[Reading]

    @cached_property
    def times(self) -> Floats:
        """When the counter was read, in seconds since 1970."""
        return np.array([reading.time for reading in self.readings])

    @cached_property
    def used(self) -> Floats:
        """CPU seconds used until then; a counter never falls within a life, and is held where it seems to."""
        counter = np.array([reading.cpu_seconds for reading in self.readings])
        return np.maximum.accumulate(counter - counter[0])

    def at(self, times: Floats) -> Floats:
        """CPU seconds used until each of ``times``: straight lines between readings, flat before and after."""
        used: Floats = np.interp(times, self.times, self.used)
        return used


@dataclass(frozen=True)
class Usage:
    """What one service used, over all its replicas and their lives."""

    service: str
    lives: Sequence[Life]

    @property
    def cpu_seconds(self) -> float:
        """All CPU seconds: the sum of each life's last counter minus its first."""
        return float(sum(life.used[-1] for life in self.lives))

    @property
    def replicas(self) -> int:
        """How many containers there were, restarted ones once."""
        return len({life.readings[0].container for life in self.lives})

    @property
    def restarts(self) -> int:
        """How many lives began in a container that had lived before."""
        return len(self.lives) - self.replicas

    def at(self, times: Floats) -> Floats:
        """CPU seconds that all together have used until each of ``times``."""
        used: Floats = np.sum([life.at(times) for life in self.lives], axis=0)
        return used

    def peak_cores(self, window_s: float) -> float:
        """The most cores used over any stretch of ``window_s`` seconds.

        What was used is a straight line between readings, so that the steepest
        stretch begins or ends at a reading. A recording shorter than the
        stretch gives its mean. Peaks compare only at the same stretch: the
        kubelet's ten seconds hide what an engine's one second shows.
        """
        knots = np.concatenate([life.times for life in self.lives])
        window_s = min(window_s, float(np.ptp(knots)))
        if window_s <= 0:
            return 0.0
        starts = np.concatenate([knots, knots - window_s])
        return float(np.max(self.at(starts + window_s) - self.at(starts)) / window_s)

    @property
    def peak_memory_bytes(self) -> int:
        """The most working set of all replicas together, each counted from its first reading to its last."""
        changes = []
        for life in self.lives:
            living = [reading for reading in life.readings if reading.state != "final"]
            known = [(reading.time, reading.memory_bytes) for reading in living if reading.memory_bytes]
            before = 0
            for time_s, memory in known:
                changes.append((time_s, memory - before))
                before = memory
            if known and life.readings[-1].state == "final":
                changes.append((life.readings[-1].time, -before))
        changes.sort(key=lambda change: (change[0], -change[1]))
        return int(max(np.cumsum([change for _, change in changes]), default=0))


def usages(recording: Recording) -> dict[str, Usage]:
    """Each service's usage: the pipeline's in its order, then others, the host last."""
    lives: dict[tuple[str, float], list[Reading]] = {}
    for sample in recording.samples:
        lives.setdefault(sample.reading.life, []).append(sample.reading)
    by_service: dict[str, list[Life]] = {}
    for readings in lives.values():
        ordered = sorted(readings, key=lambda reading: reading.time)
        by_service.setdefault(ordered[0].service, []).append(Life(ordered))
    return {service: Usage(service, by_service[service]) for service in in_order(by_service)}


def in_order(services: Iterable[str]) -> list[str]:
    """The pipeline's services in its order, then others by name, the host last."""
    return sorted(services, key=lambda name: (name == HOST, _place(name), name))


def _place(service: str) -> int:
    return PIPELINE.index(service) if service in PIPELINE else len(PIPELINE)


def counted(services: Iterable[str]) -> list[str]:
    """The services that a total adds up: the pipeline's, or all but the host where there are none of those."""
    known = [service for service in in_order(services) if service != HOST]
    return [service for service in known if service in PIPELINE] or known


def together(used: Mapping[str, Usage]) -> Usage:
    """The services of ``counted`` as one."""
    return Usage("all", [life for service in counted(used) for life in used[service].lives])


def seconds_recorded(used: Mapping[str, Usage]) -> float:
    """From the first reading to the last, over all services."""
    times = np.concatenate([life.times for usage in used.values() for life in usage.lives])
    return float(np.ptp(times))


def resolution_s(recording: Recording) -> float:
    """Seconds between a container's readings, as a rule: the median, not below the interval asked for."""
    steps = [np.diff(life.times) for name, usage in usages(recording).items() if name != HOST for life in usage.lives]
    gaps = np.concatenate(steps) if steps else np.array([])
    interval_s = float(recording.header.get("interval_s") or 0.0)
    return max(interval_s, float(np.median(gaps)) if gaps.size else 0.0)
