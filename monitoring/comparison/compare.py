"""Comparison of what each service used in groups of recordings, with standard errors.

Recordings with the same label (by default, the platform) are repetitions. The
estimate for a group is the mean of its n recordings. Its uncertainty is the
standard error s/√n, where s is the sample standard deviation (with n-1). It
covers what varies between recordings, such as scheduling, caches and other work
on the machine. It does not cover what a group's recordings have in common, such
as the health probes of a platform. The errors of the counters are far smaller.

The ratio R = B/A of two independent means has to first order the uncertainty

    σ_R = R · √((σ_A/A)² + (σ_B/B)²)

(Particle Data Group, Review of Particle Physics, "Statistics": propagation of
errors). A single recording has no known spread and is shown without an
uncertainty. With three recordings, s itself is uncertain by about 50 %, and
±1 σ covers 58 % instead of 68 % (Student's t with two degrees of freedom).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from monitoring import usage
from monitoring.comparison.comparability import events_of, warnings
from monitoring.recording import Recording
from monitoring.sources.base import MACHINE, MonitorError
from monitoring.usage import ServiceUsage

TOTAL = "all"


@dataclass(frozen=True)
class Estimate:
    """A mean over repeated recordings and its standard error, which is None for a single recording."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the mean of the values and s/√n."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error)

    def over(self, other: Estimate) -> Estimate | None:
        """Return the ratio to another estimate with the propagated error; None if the other is zero."""
        if not other.mean:
            return None
        ratio = self.mean / other.mean
        if self.error is None or other.error is None:
            return Estimate(ratio, None)
        return Estimate(ratio, math.hypot(self.error, ratio * other.error) / other.mean)

    def times(self, factor: float) -> Estimate:
        """Return the estimate in a unit that is ``factor`` times smaller."""
        return Estimate(self.mean * factor, None if self.error is None else self.error * factor)

    def text(self, decimals: int) -> str:
        """Format as mean ± error."""
        mean = f"{self.mean:.{decimals}f}"
        return mean if self.error is None else f"{mean} ± {self.error:.{decimals}f}"


@dataclass(frozen=True)
class ComparisonRow:
    """One service in one group.

    ``ratio`` is the ratio to the first group that has the service, of CPU
    seconds per event if the numbers of events are known, else of CPU seconds.
    """

    service: str
    label: str
    cpu_seconds: Estimate
    values: Sequence[float]
    per_million_events: Estimate | None
    mean_cores: Estimate
    peak_cores: Estimate
    peak_memory_bytes: Estimate
    ratio: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """The recordings by label, the rows by service and label, and the reasons why they are not comparable."""

    groups: Mapping[str, Sequence[Recording]]
    services: Sequence[str]
    rows: Sequence[ComparisonRow]
    window_s: float
    warnings: Sequence[str]

    @property
    def in_total(self) -> Sequence[str]:
        """The services that the row TOTAL is the sum of."""
        return self.services[: self.services.index(TOTAL)]

    def row(self, service: str, label: str) -> ComparisonRow | None:
        """Return the row of a service in a group, or None."""
        return next((row for row in self.rows if (row.service, row.label) == (service, label)), None)


def compare(recordings: Sequence[Recording]) -> Comparison:
    """Compare recordings; raises MonitorError if none holds a service."""
    groups = _group(recordings)
    # Peaks are comparable for equal windows only: use the longest sampling period.
    window_s = max(usage.sampling_period_s(recording) for recording in recordings)
    used = {id(recording): usage.usage_by_service(recording) for recording in recordings}
    found = {service for one in used.values() for service in one}
    services = [*usage.services_in_total(found), TOTAL, *(name for name in MACHINE if name in found)]
    rows: list[ComparisonRow] = []
    for service in services:
        first: ComparisonRow | None = None
        for label, members in groups.items():
            row = _row(service=service, label=label, members=members, used=used, window_s=window_s, first=first)
            if row is not None:
                first = first or row
                rows.append(row)
    if not rows:
        raise MonitorError("the recordings hold no service")
    return Comparison(groups, services, rows, window_s, warnings(recordings))


def _group(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    labels = [str(recording.header.get("label") or recording.header.get("platform") or "") for recording in recordings]
    if len(set(labels)) == 1:  # with one label for all, each file is a group
        labels = [recording.name for recording in recordings]
    groups: dict[str, list[Recording]] = {}
    for label, recording in zip(labels, recordings, strict=True):
        groups.setdefault(label or recording.name, []).append(recording)
    return groups


def _row(
    *,
    service: str,
    label: str,
    members: Sequence[Recording],
    used: Mapping[int, Mapping[str, ServiceUsage]],
    window_s: float,
    first: ComparisonRow | None,
) -> ComparisonRow | None:
    def of(recording: Recording) -> ServiceUsage | None:
        services = used[id(recording)]
        return usage.total_usage(services) if service == TOTAL else services.get(service)

    found = [(recording, one) for recording in members if (one := of(recording)) is not None and one.lifetimes]
    if not found:
        return None

    def estimate(value: Callable[[Recording, ServiceUsage], float]) -> Estimate:
        return Estimate.of([value(recording, one) for recording, one in found])

    cpu_seconds = estimate(lambda _, one: one.cpu_seconds)
    per_million = None
    if all(events_of(recording) for recording, _ in found):
        per_million = estimate(lambda recording, one: one.cpu_seconds / (events_of(recording) or 1) * 1e6)
    ratio = None
    if first is not None:
        ratio = cpu_seconds.over(first.cpu_seconds)
        if per_million is not None and first.per_million_events is not None:
            ratio = per_million.over(first.per_million_events)
    return ComparisonRow(
        service=service,
        label=label,
        cpu_seconds=cpu_seconds,
        values=[one.cpu_seconds for _, one in found],
        per_million_events=per_million,
        mean_cores=estimate(lambda recording, one: one.cpu_seconds / usage.duration_s(used[id(recording)])),
        peak_cores=estimate(lambda _, one: one.peak_cores(window_s)),
        peak_memory_bytes=estimate(lambda _, one: one.peak_memory_bytes),
        ratio=ratio,
    )
