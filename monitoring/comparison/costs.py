"""What a stack costs while it is idle, what a run costs in any case, and what it costs for each event.

Each repetition of a campaign has a recording of the idle stack and one of a run
of either size. With the idle stack's cores c and the CPU time C and duration T
of a recording, C − c·T is the cost of the run above that of the idle stack. It is
taken as a + b·N for N events: two sizes give the fixed cost a of a run (opening
files, plots, the fit) and the cost b of an event. The cost of the start is what a
recording of start and first run has above its run. Estimates are means over
repetitions with their standard errors, as in ``compare``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monitoring import usage
from monitoring.comparison.comparability import events_of
from monitoring.comparison.compare import TOTAL, Estimate
from monitoring.recording import Recording
from monitoring.sources.base import MACHINE


@dataclass(frozen=True)
class Repetition:
    """The recordings of one repetition on one platform; ``start`` is missing if the stack ran already."""

    idle: Recording
    small: Recording
    large: Recording
    start: Recording | None = None


@dataclass(frozen=True)
class Cost:
    """The costs of one service on one platform: cores, CPU seconds a run, a start and 10⁶ events."""

    service: str
    label: str
    idle_cores: Estimate
    fixed_cpu_seconds: Estimate
    per_million_events: Estimate
    start_cpu_seconds: Estimate | None


def costs(repetitions: Mapping[str, Sequence[Repetition]]) -> list[Cost]:
    """Return the costs of every service, of TOTAL and of the rows of MACHINE, by the label of the platform."""
    found = []
    for label, members in repetitions.items():
        names = set.intersection(*({*usage.usage_by_service(one.large)} for one in members)) if members else set()
        in_total = usage.services_in_total(names)
        for service in [*in_total, TOTAL, *(name for name in MACHINE if name in names)]:
            parts = np.array([_parts(one, in_total if service == TOTAL else [service]) for one in members])
            starts = parts[~np.isnan(parts[:, 3]), 3]
            idle, fixed, slope = (Estimate.of(list(parts[:, column])) for column in range(3))
            start = Estimate.of(list(starts)) if len(starts) else None
            found.append(Cost(service, label, idle, fixed, slope, start))
    order = usage.sort_services({cost.service for cost in found if cost.service != TOTAL})
    order.insert(sum(name not in MACHINE for name in order), TOTAL)
    return sorted(found, key=lambda cost: order.index(cost.service))


def _parts(one: Repetition, services: Sequence[str]) -> tuple[float, float, float, float]:
    """Return idle cores, CPU seconds a run and 10⁶ events, and CPU seconds of the start or nan."""
    used, duration = _used(one.idle, services)
    idle = used / duration

    def above_idle(recording: Recording) -> float:
        cpu_seconds, seconds = _used(recording, services)
        return cpu_seconds - idle * seconds

    small, large = (events_of(recording) or 0 for recording in (one.small, one.large))
    slope = (above_idle(one.large) - above_idle(one.small)) / (large - small)
    fixed = above_idle(one.small) - slope * small
    start = np.nan
    if one.start is not None:
        start = above_idle(one.start) - fixed - slope * (events_of(one.start) or 0)
    return idle, fixed, slope * 1e6, start


def _used(recording: Recording, services: Sequence[str]) -> tuple[float, float]:
    """Return the CPU seconds of services together, and the seconds between their first and last sample."""
    found = usage.usage_by_service(recording)
    present = {name: found[name] for name in services if name in found}
    if not present:
        return 0.0, 1.0
    return sum(one.cpu_seconds for one in present.values()), usage.duration_s(present)
