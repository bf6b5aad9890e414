"""A comparison as a table for the terminal, as a Markdown page and as a JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from monitoring.comparison.comparability import events_of, header_part
from monitoring.comparison.compare import TOTAL, Comparison
from monitoring.comparison.costs import Cost
from monitoring.sources.base import HOST, PLATFORM, REST

_COST_COLUMNS = ("service", "", "idle cores", "CPU s / run", "CPU s / 10⁶ ev.", "CPU s / start")
_COLUMNS = ("service", "", "CPU s", "CPU s / 10⁶ ev.", "mean cores", "peak cores", "memory", "ratio")


def table(comparison: Comparison) -> Table:
    """Return the comparison as a table for the terminal."""
    result = _table(_COLUMNS, _cells(comparison), caption(comparison))
    result.caption, result.caption_justify = in_total(comparison), "left"
    return result


def cost_table(costs: Sequence[Cost]) -> Table:
    """Return the costs of a campaign as a table for the terminal."""
    return _table(_COST_COLUMNS, _cost_cells(costs), "idle services, and what runs cost above that")


def in_total(comparison: Comparison) -> str:
    """Return what the row TOTAL is the sum of."""
    return f"{TOTAL}: {' + '.join(comparison.in_total)}"


def document(comparison: Comparison, costs: Sequence[Cost], made: Mapping[str, Any]) -> dict[str, Any]:
    """Return the comparison as JSON: estimates are {mean, error}, the error is null for a single recording."""
    return {
        "caption": caption(comparison),
        "made": dict(made),
        "platforms": {label: [one.name for one in members] for label, members in comparison.groups.items()},
        "total": list(comparison.in_total),
        "rows": [asdict(row) for row in comparison.rows],
        "costs": [asdict(cost) for cost in costs],
        "unseen": _unseen(comparison),
        "warnings": list(comparison.warnings),
    }


def caption(comparison: Comparison) -> str:
    """Return one line on what was compared."""
    groups = ", ".join(f"{len(members)} × {label}" for label, members in comparison.groups.items())
    events = {events_of(recording) for members in comparison.groups.values() for recording in members}
    run = f"{events.pop():,} events" if len(events) == 1 and None not in events else "different runs"
    return f"{groups}; {run}; mean ± standard error; peaks over {comparison.window_s:.0f} s"


def markdown(comparison: Comparison, costs: Sequence[Cost] = (), made: Mapping[str, Any] | None = None) -> str:
    """Return the comparison as a Markdown page, with the costs of a campaign and how it was made."""
    first, *others = comparison.groups
    lines = [
        "# CPU by service",
        "",
        f"{caption(comparison)}. The ratio is of CPU seconds per event, {' or '.join(others)} over {first}.",
        "",
        *_markdown_table(_COLUMNS, _cells(comparison)),
        "",
        f"- `{in_total(comparison)}`",
        f"- `{PLATFORM}`: the processes of the container platform: engine, runtime, shims; on Kubernetes also kubelet, "
        "API server, etcd, scheduler, controllers, kube-proxy and DNS",
        f"- `{REST}`: all other processes of the machine, the monitor and the submission included",
        f"- `{HOST}`: the machine's own counter of busy time; services, `{PLATFORM}` and `{REST}` add up to it",
        *(f"- not seen: {part}" for part in _unseen(comparison)),
    ]
    if costs:
        lines += [
            "",
            "## Idle services, and the cost of a run above that",
            "",
            *_markdown_table(_COST_COLUMNS, _cost_cells(costs)),
            "",
            "With the cores c of the idle services, a recording of T seconds and C CPU seconds has C − c·T = a + b·N "
            "for N events. Two sizes of a run give a (CPU s / run: opening files, plots, the fit) and b "
            "(CPU s / 10⁶ ev.). A start is what starting the services and a short first run cost above a run.",
        ]
    if made:
        lines += ["", "## How it was made", "", *(f"- {name}: {value}" for name, value in made.items())]
    lines += ["", "## Recordings", ""]
    for label, members in comparison.groups.items():
        for recording in members:
            versions = ", ".join(f"{name} {text}" for name, text in header_part(recording, "versions").items() if text)
            run = header_part(recording, "run").get("run_id", "unknown run")
            lines.append(f"- {recording.name} ({label}): {run}; {recording.header.get('source', '')}; {versions}")
    lines += ["", "## Not comparable", ""] if comparison.warnings else []
    lines += [f"- {warning}" for warning in comparison.warnings]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[tuple[str, ...]], title: str) -> Table:
    result = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for index, name in enumerate(columns):
        result.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for index, row in enumerate(rows):
        if row[0] and index:
            result.add_section()
        result.add_row(*row)
    return result


def _markdown_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    alignment = "| :-- | :-- |" + " --: |" * (len(columns) - 2)
    return [f"| {' | '.join(columns)} |", alignment, *(f"| {' | '.join(row)} |" for row in rows)]


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
