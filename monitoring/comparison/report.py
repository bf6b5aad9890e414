"""A comparison as a document: tables of the services and of the costs, what they are, and which recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from monitoring.comparison.comparability import events_of
from monitoring.comparison.compare import TOTAL, Comparison
from monitoring.comparison.costs import Cost
from monitoring.documents import Document, TextTable
from monitoring.sources.base import HOST, PLATFORM, REST

_COST_COLUMNS = ("service", "platform", "idle cores", "CPU s / run", "CPU s / 10⁶ ev.", "CPU s / start")
_COLUMNS = ("service", "platform", "CPU s", "CPU s / 10⁶ ev.", "mean cores", "peak cores", "memory", "ratio")
_COST_NOTE = (
    "With the cores c of the idle services, a recording of T seconds and C CPU seconds has C − c·T = a + b·N for N "
    "events. Two sizes of a run give a (CPU s / run: opening files, plots, the fit) and b (CPU s / 10⁶ ev.). A start "
    "is what starting the services and a short first run cost above a run."
)
_MEANINGS = {
    PLATFORM: f"{PLATFORM}: the processes of the container platform: engine, runtime, shims; on Kubernetes also "
    "kubelet, API server, etcd, scheduler, controllers, kube-proxy and DNS",
    REST: f"{REST}: all other processes of the machine, the monitor and the submission included",
    HOST: f"{HOST}: the machine's own counter of busy time; services, {PLATFORM} and {REST} add up to it",
}


def document(comparison: Comparison, costs: Sequence[Cost] = (), made: Mapping[str, Any] | None = None) -> Document:
    """Return a comparison, with the costs of a campaign and how it was made.

    Estimates are {mean, error} in JSON, the error is null for a single recording.
    """
    first, *others = comparison.groups
    ratio = f"The ratio is of CPU seconds per event, {' or '.join(others)} over {first}."
    tables = [TextTable(_COLUMNS, _cells(comparison), 2, "Services", ratio)]
    if costs:
        title = "Idle services, and the cost of a run above that"
        tables.append(TextTable(_COST_COLUMNS, _cost_cells(costs), 2, title, _COST_NOTE))
    unseen = _unseen(comparison)
    return Document(
        title="CPU by service",
        caption=caption(comparison),
        tables=tables,
        notes=[
            f"{TOTAL}: {' + '.join(comparison.in_total)}",
            *(text for name, text in _MEANINGS.items() if name in comparison.services),
            *(f"not seen: {part}" for part in unseen),
            *(f"not comparable: {warning}" for warning in comparison.warnings),
        ],
        made=made or {},
        recordings=_recordings(comparison),
        numbers={
            "platforms": {label: [one.name for one in members] for label, members in comparison.groups.items()},
            "total": list(comparison.in_total),
            "rows": [asdict(row) for row in comparison.rows],
            "costs": [asdict(cost) for cost in costs],
            "unseen": unseen,
            "warnings": list(comparison.warnings),
        },
    )


def caption(comparison: Comparison) -> str:
    """Return one line on what was compared."""
    groups = ", ".join(f"{len(members)} × {label}" for label, members in comparison.groups.items())
    events = {events_of(recording) for members in comparison.groups.values() for recording in members}
    run = f"{events.pop():,} events" if len(events) == 1 and None not in events else "different runs"
    return f"{groups}; {run}; mean ± standard error; peaks over {comparison.window_s:.0f} s"


def _recordings(comparison: Comparison) -> list[str]:
    lines = []
    for label, members in comparison.groups.items():
        for recording in members:
            versions = ", ".join(f"{name} {text}" for name, text in recording.part("versions").items() if text)
            run = recording.part("run").get("run_id", "unknown run")
            lines.append(f"{recording.name} ({label}): {run}; {recording.header.get('source', '')}; {versions}")
    return lines


def _unseen(comparison: Comparison) -> list[str]:
    return [
        f"{label}: {part}"
        for label, members in comparison.groups.items()
        for part in sorted({part for recording in members for part in recording.header.get("unseen") or ()})
    ]


def _cost_cells(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    previous = None
    for cost in costs:
        start = cost.start_cpu_seconds.text(1) if cost.start_cpu_seconds else "–"
        name = cost.service if cost.service != previous else ""
        fixed, slope = cost.fixed_cpu_seconds.text(2), cost.per_million_events.text(2)
        rows.append((name, cost.label, cost.idle_cores.text(3), fixed, slope, start))
        previous = cost.service
    return rows


def _cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the rows as text; only the first row of a service has its name."""
    rows: list[tuple[str, ...]] = []
    previous = None
    for row in comparison.rows:
        rows.append(
            (
                row.service if row.service != previous else "",
                row.label,
                row.cpu_seconds.text(2),
                row.per_million_events.text(2) if row.per_million_events else "–",
                row.mean_cores.text(3),
                row.peak_cores.text(2),
                f"{row.peak_memory_bytes.mean / 1e6:.0f} MB",
                row.ratio.text(3) if row.ratio else "",
            )
        )
        previous = row.service
    return rows
