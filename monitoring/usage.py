"""CPU time and memory per service, calculated from a recording's counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from monitoring.recording import Recording
from monitoring.sources.base import MACHINE, PIPELINE_SERVICES, CounterSample

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ContainerLifetime:
    """The samples of a container between one start and its end, ordered by time.

    CPU time counts from the first sample. If the recording saw the container
    start, that is a sample of state ``started`` with a counter of 0.
    """

    samples: Sequence[CounterSample]

    @cached_property
    def times(self) -> Floats:
        """Times of the samples in seconds since 1970."""
        return np.array([sample.time for sample in self.samples])

    @cached_property
    def used(self) -> Floats:
        """CPU seconds used until each sample; a decrease within a lifetime is a measurement error and is ignored."""
        counter = np.array([sample.cpu_seconds for sample in self.samples])
        return np.maximum.accumulate(counter - counter[0])

    def used_at(self, times: Floats) -> Floats:
        """Return CPU seconds used until each of ``times``: linear between samples, constant before and after."""
        used: Floats = np.interp(times, self.times, self.used)
        return used


@dataclass(frozen=True)
class ServiceUsage:
    """What one service used, summed over its replicas and their lifetimes."""

    service: str
    lifetimes: Sequence[ContainerLifetime]

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds: the sum over lifetimes of the last counter minus the first."""
        return float(sum(lifetime.used[-1] for lifetime in self.lifetimes))

    @property
    def replicas(self) -> int:
        """Number of containers; a restarted container counts once."""
        return len({lifetime.samples[0].container for lifetime in self.lifetimes})

    @property
    def restarts(self) -> int:
        """Number of lifetimes after the first, summed over containers."""
        return len(self.lifetimes) - self.replicas

    def used_at(self, times: Floats) -> Floats:
        """Return the CPU seconds that all lifetimes together used until each of ``times``."""
        used: Floats = np.sum([lifetime.used_at(times) for lifetime in self.lifetimes], axis=0)
        return used

    def peak_cores(self, window_s: float) -> float:
        """Return the largest mean of cores used over any ``window_s`` seconds.

        Usage is linear between samples, so the maximum begins or ends at a
        sample. A recording shorter than ``window_s`` gives its mean. Peaks are
        comparable for equal windows only: the kubelet samples about every ten
        seconds, a Docker engine every second.
        """
        times = np.concatenate([lifetime.times for lifetime in self.lifetimes])
        window_s = min(window_s, float(np.ptp(times)))
        if window_s <= 0:
            return 0.0
        starts = np.concatenate([times, times - window_s])
        return float(np.max(self.used_at(starts + window_s) - self.used_at(starts)) / window_s)

    @property
    def peak_memory_bytes(self) -> int:
        """The largest sum of the working sets of containers that ran at the same time."""
        changes = []
        for lifetime in self.lifetimes:
            running = [sample for sample in lifetime.samples if sample.state != "final"]
            known = [(sample.time, sample.memory_bytes) for sample in running if sample.memory_bytes]
            before = 0
            for time_s, memory in known:
                changes.append((time_s, memory - before))
                before = memory
            if known and lifetime.samples[-1].state == "final":
                changes.append((lifetime.samples[-1].time, -before))
        changes.sort(key=lambda change: (change[0], -change[1]))
        return int(max(np.cumsum([change for _, change in changes]), default=0))


def usage_by_service(recording: Recording) -> dict[str, ServiceUsage]:
    """Return the usage of each service, ordered as ``sort_services`` does."""
    by_lifetime: dict[tuple[str, float], list[CounterSample]] = {}
    for sample in recording.samples:
        by_lifetime.setdefault(sample.lifetime, []).append(sample)
    by_service: dict[str, list[ContainerLifetime]] = {}
    for samples in by_lifetime.values():
        lifetime = ContainerLifetime(sorted(samples, key=lambda sample: sample.time))
        by_service.setdefault(samples[0].service, []).append(lifetime)
    return {service: ServiceUsage(service, by_service[service]) for service in sort_services(by_service)}


def sort_services(services: Iterable[str]) -> list[str]:
    """Sort service names: those of the pipeline in its order, then others by name, then those of MACHINE."""
    order = [*PIPELINE_SERVICES, None, *MACHINE]
    return sorted(services, key=lambda name: (order.index(name if name in order else None), name))


def services_in_total(services: Iterable[str]) -> list[str]:
    """Return the services that a total includes: the pipeline's, or if there are none, all except MACHINE."""
    others = [service for service in sort_services(services) if service not in MACHINE]
    return [service for service in others if service in PIPELINE_SERVICES] or others


def total_usage(usage: Mapping[str, ServiceUsage]) -> ServiceUsage:
    """Return the usage of all services that a total includes."""
    return ServiceUsage("all", [lifetime for name in services_in_total(usage) for lifetime in usage[name].lifetimes])


def duration_s(usage: Mapping[str, ServiceUsage]) -> float:
    """Return the seconds between the first and the last sample of any service."""
    times = np.concatenate([lifetime.times for one in usage.values() for lifetime in one.lifetimes])
    return float(np.ptp(times))


def sampling_period_s(recording: Recording) -> float:
    """Return the median of the seconds between a container's samples, at least the requested interval."""
    usage = usage_by_service(recording)
    steps = [np.diff(lifetime.times) for name in usage if name not in MACHINE for lifetime in usage[name].lifetimes]
    gaps = np.concatenate(steps) if steps else np.array([])
    interval_s = float(recording.header.get("interval_s") or 0.0)
    return max(interval_s, float(np.median(gaps)) if gaps.size else 0.0)
