"""Compare recordings: what each service used here and there, and how sure that is.

Recordings of the same label (by default the platform) are repetitions of one
another. A group's figure is the mean over its n recordings; its uncertainty is
the standard error of that mean, s/√n, with s the sample standard deviation
(n-1 in the denominator), so that it holds whatever varies from one recording
to the next: scheduling, caches, other work on the machine. It does not hold
what is common to all of them, such as the difference in probes between the
platforms. The counters' own error is far below.

A ratio R = B/A of two such means has, to first order and with A and B taken
as independent, the uncertainty

    σ_R = R · √((σ_A/A)² + (σ_B/B)²)

(Particle Data Group, Review of Particle Physics, "Statistics": propagation of
errors). One recording says nothing about its own spread: there is then no
uncertainty, and none is shown. With three recordings s itself is known to
about 50 %, so that ±1 σ covers some 58 % rather than 68 % (Student's t with
two degrees of freedom).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from monitoring import usage
from monitoring.comparison.comparability import events_of, known, warnings
from monitoring.recording import Recording
from monitoring.sources.base import PIPELINE, MonitorError
from monitoring.usage import Usage

TOTAL = "all"


@dataclass(frozen=True)
class Figure:
    """A mean over repeated recordings and its standard error, None where there is but one."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The mean of the values and s/√n."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error)

    def over(self, other: Figure) -> Figure | None:
        """The ratio to another figure, errors propagated as this module says; None over zero."""
        if not other.mean:
            return None
        ratio = self.mean / other.mean
        if self.error is None or other.error is None:
            return Figure(ratio, None)
        if not self.mean:
            return Figure(0.0, self.error / other.mean)
        return Figure(ratio, abs(ratio) * math.hypot(self.error / self.mean, other.error / other.mean))

    def text(self, decimals: int) -> str:
        """Mean ± error."""
        mean = f"{self.mean:.{decimals}f}"
        return mean if self.error is None else f"{mean} ± {self.error:.{decimals}f}"


@dataclass(frozen=True)
class Row:
    """One service in one group. ``ratio`` is of CPU seconds (per event where known) to the first group's."""

    service: str
    label: str
    cpu_seconds: Figure
    values: Sequence[float]
    per_million_events: Figure | None
    mean_cores: Figure
    peak_cores: Figure
    peak_memory_bytes: Figure
    ratio: Figure | None


@dataclass(frozen=True)
class Comparison:
    """What was compared, the rows by service and group, and where the two are not comparable."""

    groups: Mapping[str, Sequence[Recording]]
    services: Sequence[str]
    rows: Sequence[Row]
    window_s: float
    warnings: Sequence[str]

    def row(self, service: str, label: str) -> Row | None:
        """The row of a service in a group."""
        return next((row for row in self.rows if (row.service, row.label) == (service, label)), None)


def compare(recordings: Sequence[Recording]) -> Comparison:
    """Compare at least two recordings; raises MonitorError for fewer, or where none holds a service."""
    if len(recordings) < 2:
        raise MonitorError("a comparison needs two recordings or more; give for example compose.csv kubernetes.csv")
    groups = _grouped(recordings)
    # Peaks compare only over the same stretch of time: the coarsest of all.
    window_s = max(usage.resolution_s(recording) for recording in recordings)
    used = {id(recording): usage.usages(recording) for recording in recordings}
    counted = usage.counted({service for services in used.values() for service in services})
    services = [*counted, TOTAL]
    rows: list[Row] = []
    first: dict[str, Row] = {}
    for service in services:
        for label, members in groups.items():
            row = _row(
                service=service,
                label=label,
                members=members,
                used=used,
                window_s=window_s,
                first=first.get(service),
            )
            if row is not None:
                first.setdefault(service, row)
                rows.append(row)
    if not rows:
        raise MonitorError("the recordings hold no service")
    return Comparison(groups, services, rows, window_s, warnings(recordings))


def _grouped(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    labels = [str(recording.header.get("label") or recording.header.get("platform") or "") for recording in recordings]
    if len(set(labels)) == 1:  # all alike: then each file stands for itself
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
    used: Mapping[int, Mapping[str, Usage]],
    window_s: float,
    first: Row | None,
) -> Row | None:
    def of(recording: Recording) -> Usage | None:
        services = used[id(recording)]
        return usage.together(services) if service == TOTAL else services.get(service)

    having = [(recording, one) for recording in members if (one := of(recording)) is not None and one.lives]
    if not having:
        return None

    def figure(value: Callable[[Recording, Usage], float]) -> Figure:
        return Figure.of([value(recording, one) for recording, one in having])

    cpu_seconds = figure(lambda _, one: one.cpu_seconds)
    per_million = None
    if all(events_of(recording) for recording, _ in having):
        per_million = figure(lambda recording, one: one.cpu_seconds / (events_of(recording) or 1) * 1e6)
    ratio = None
    if first is not None:
        ratio = cpu_seconds.over(first.cpu_seconds)
        if per_million is not None and first.per_million_events is not None:
            ratio = per_million.over(first.per_million_events)
    return Row(
        service=service,
        label=label,
        cpu_seconds=cpu_seconds,
        values=[one.cpu_seconds for _, one in having],
        per_million_events=per_million,
        mean_cores=figure(lambda recording, one: one.cpu_seconds / usage.seconds_recorded(used[id(recording)])),
        peak_cores=figure(lambda _, one: one.peak_cores(window_s)),
        peak_memory_bytes=figure(lambda _, one: one.peak_memory_bytes),
        ratio=ratio,
    )


_HEAD = ("service", "", "CPU s", "CPU s / 10⁶ ev.", "mean cores", "peak cores", "memory", "ratio")


def cells(compared: Comparison) -> list[tuple[str, ...]]:
    """The table's rows as text."""
    rows: list[tuple[str, ...]] = []
    shown = None
    for row in compared.rows:
        rows.append(
            (
                row.service if row.service != shown else "",
                row.label,
                row.cpu_seconds.text(2),
                row.per_million_events.text(2) if row.per_million_events else "–",
                row.mean_cores.text(3),
                row.peak_cores.text(2),
                f"{row.peak_memory_bytes.mean / 1e6:.0f} MB",
                row.ratio.text(3) if row.ratio else "",
            )
        )
        shown = row.service
    return rows


def table(compared: Comparison) -> Table:
    """The comparison for the terminal."""
    result = Table(box=SIMPLE_HEAD, title=caption(compared), title_justify="left", pad_edge=False)
    for place, name in enumerate(_HEAD):
        result.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    shown = ""
    for row in cells(compared):
        if row[0] and shown:
            result.add_section()
        shown = row[0] or shown
        result.add_row(*row)
    return result


def caption(compared: Comparison) -> str:
    """What was compared, in one line."""
    groups = ", ".join(f"{len(members)} × {label}" for label, members in compared.groups.items())
    events = {events_of(recording) for members in compared.groups.values() for recording in members}
    run = f"{events.pop():,} events" if len(events) == 1 and None not in events else "runs that differ"
    return f"{groups}; {run}; mean ± standard error; peaks over {compared.window_s:.0f} s"


def markdown(compared: Comparison) -> str:
    """The comparison as comparison.md."""
    first, *others = compared.groups
    lines = [
        "# CPU by service",
        "",
        f"{caption(compared)}. The ratio is of CPU seconds per event, {' or '.join(others)} over {first}.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "| :-- | :-- |" + " --: |" * (len(_HEAD) - 2),
        *("| " + " | ".join(row) + " |" for row in cells(compared)),
        "",
        "## Recordings",
        "",
    ]
    for label, members in compared.groups.items():
        for recording in members:
            versions = ", ".join(f"{name} {value}" for name, value in known(recording, "versions").items() if value)
            run = known(recording, "run").get("run_id", "no run known")
            lines.append(f"- {recording.name} ({label}): {run}; {recording.header.get('source', '')}; {versions}")
    lines += ["", "## Not comparable", ""] if compared.warnings else []
    lines += [f"- {warning}" for warning in compared.warnings]
    if PIPELINE[0] in compared.services:
        lines += ["", f"`{TOTAL}` adds up {', '.join(name for name in compared.services if name != TOTAL)}."]
    return "\n".join(lines) + "\n"
