"""A comparison as a table for the terminal and as a Markdown page."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from monitoring.comparison.comparability import events_of, header_part
from monitoring.comparison.compare import TOTAL, Comparison
from monitoring.sources.base import PIPELINE_SERVICES

_COLUMNS = ("service", "", "CPU s", "CPU s / 10⁶ ev.", "mean cores", "peak cores", "memory", "ratio")


def table(comparison: Comparison) -> Table:
    """Return the comparison as a table for the terminal."""
    result = Table(box=SIMPLE_HEAD, title=caption(comparison), title_justify="left", pad_edge=False)
    for index, name in enumerate(_COLUMNS):
        result.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for index, row in enumerate(_cells(comparison)):
        if row[0] and index:
            result.add_section()
        result.add_row(*row)
    return result


def caption(comparison: Comparison) -> str:
    """Return one line on what was compared."""
    groups = ", ".join(f"{len(members)} × {label}" for label, members in comparison.groups.items())
    events = {events_of(recording) for members in comparison.groups.values() for recording in members}
    run = f"{events.pop():,} events" if len(events) == 1 and None not in events else "different runs"
    return f"{groups}; {run}; mean ± standard error; peaks over {comparison.window_s:.0f} s"


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown page."""
    first, *others = comparison.groups
    lines = [
        "# CPU by service",
        "",
        f"{caption(comparison)}. The ratio is of CPU seconds per event, {' or '.join(others)} over {first}.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "| :-- | :-- |" + " --: |" * (len(_COLUMNS) - 2),
        *("| " + " | ".join(row) + " |" for row in _cells(comparison)),
        "",
        "## Recordings",
        "",
    ]
    for label, members in comparison.groups.items():
        for recording in members:
            versions = ", ".join(f"{name} {text}" for name, text in header_part(recording, "versions").items() if text)
            run = header_part(recording, "run").get("run_id", "unknown run")
            lines.append(f"- {recording.name} ({label}): {run}; {recording.header.get('source', '')}; {versions}")
    lines += ["", "## Not comparable", ""] if comparison.warnings else []
    lines += [f"- {warning}" for warning in comparison.warnings]
    if PIPELINE_SERVICES[0] in comparison.services:
        lines += ["", f"`{TOTAL}` is the sum of {', '.join(name for name in comparison.services if name != TOTAL)}."]
    return "\n".join(lines) + "\n"


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
