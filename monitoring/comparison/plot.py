"""A comparison as a figure: bars of CPU time by service, idle cores, and below them the cores in use over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monitoring import usage
from monitoring.comparison.compare import TOTAL, Comparison, Estimate
from monitoring.comparison.costs import Cost
from monitoring.comparison.report import caption
from monitoring.recording import Recording
from monitoring.sources.base import HOST, MACHINE, PLATFORM, REST

#: Petroff, "Accessible color sequences for data visualization", arXiv:2107.02270 (ten colours).
SERVICE_COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd")
MACHINE_COLOURS = {PLATFORM: "#4a4a52", REST: "#d4d4da"}
_GROUP_COLOURS = ("#3a4a6b", "#5aa9a3", "#d08a4e", "#8f8f98", "#7d5a8c")
#: Bars over time in one panel, at most.
_TIME_BARS = 90
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e4e8",
    "axes.axisbelow": True,
}

#: An estimate, and the values of single recordings, of a service in a group; None if there is none.
_Value = Callable[[str, str], tuple[Estimate, Sequence[float]] | None]


def draw(comparison: Comparison, path: Path, costs: Sequence[Cost] = ()) -> None:
    """Write ``path``.png and ``path``.pdf; raises OSError if they cannot be written."""
    with mpl.rc_context(STYLE):
        labels = list(comparison.groups)
        heights = (1.15, *([0.75] if costs else []), 1.1)
        figure = Figure(figsize=(max(12.0, 3.6 * len(labels) + 1.5), 3.9 * sum(heights)), layout="constrained")
        figure.suptitle(caption(comparison), x=0.01, ha="left", size=11, color="#55555c")
        panels: Any = figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.04)
        per_event = all(row.per_million_events is not None for row in comparison.rows)

        def cpu_time(service: str, label: str) -> tuple[Estimate, Sequence[float]] | None:
            row = comparison.row(service, label)
            if row is None:
                return None
            estimate = row.per_million_events if per_event and row.per_million_events else row.cpu_seconds
            scale = estimate.mean / row.cpu_seconds.mean if row.cpu_seconds.mean else 1.0
            return estimate, [value * scale for value in row.values]

        def idle(service: str, label: str) -> tuple[Estimate, Sequence[float]] | None:
            found = [one.idle_cores for one in costs if (one.service, one.label) == (service, label)]
            return (found[0].times(1000), ()) if found else None

        _bar_row(panels[0], comparison, cpu_time, "CPU seconds per 10⁶ events" if per_event else "CPU seconds")
        panels[0].legend(frameon=False, loc="outside upper left", ncols=len(labels), fontsize=13)
        if costs:
            _bar_row(panels[1], comparison, idle, "idle: 10⁻³ cores")
        _over_time(panels[-1], comparison)
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def _bar_row(panel: Any, comparison: Comparison, value: _Value, title: str) -> None:
    """Draw bars of the services and the platform, and with an axis of its own, of their total and the machine."""
    single = [*comparison.in_total, *(name for name in (PLATFORM,) if name in comparison.services)]
    sums = [TOTAL, *(name for name in (HOST,) if name in comparison.services)]
    each, total = panel.subplots(1, 2, width_ratios=(len(single), 1.35 * len(sums)))
    for axes, names in ((each, single), (total, sums)):
        _bars(axes, comparison, names, value)
    each.set_ylabel(title)


def _bars(axes: Axes, comparison: Comparison, services: Sequence[str], value: _Value) -> None:
    """Draw means with standard errors as bars, and single recordings as points."""
    labels = list(comparison.groups)
    width = 0.82 / len(labels)
    highest = 0.0
    for index, label in enumerate(labels):
        for position, service in enumerate(services):
            found = value(service, label)
            if found is None:
                continue
            estimate, points = found
            x = position + (index - (len(labels) - 1) / 2) * width
            name = f"{label} ({len(comparison.groups[label])})" if service == comparison.services[0] else None
            axes.bar(x, estimate.mean, width * 0.92, color=_GROUP_COLOURS[index % len(_GROUP_COLOURS)], label=name)
            top = max([estimate.mean + (estimate.error or 0.0), *points])
            if estimate.error is not None:
                axes.errorbar(x, estimate.mean, estimate.error, color="#1a1a1a", capsize=4, elinewidth=1.6)
                axes.plot([x + 0.25 * width] * len(points), points, "o", ms=4, mfc="white", mec="#1a1a1a", mew=0.9)
            digits = f"{estimate.mean:.3g}" if estimate.mean < 1000 else f"{estimate.mean:,.0f}"
            axes.annotate(digits, (x, top), (0, 3), textcoords="offset points", ha="center", size=8.5)
            highest = max(highest, top)
    axes.set_xticks(range(len(services)), services)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(services) - 0.45)
    axes.set_ylim(0, highest * 1.25 or 1.0)


def _over_time(panel: Any, comparison: Comparison) -> None:
    """Draw cores in use over time: services, platform and rest stacked, the mean of each group's recordings."""
    groups = comparison.groups
    panels = panel.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    services = [*comparison.in_total, *(name for name in MACHINE if name in comparison.services and name != HOST)]
    colours = dict(zip(services, SERVICE_COLOURS * 9, strict=False)) | MACHINE_COLOURS
    spans = [_span(recording) for members in groups.values() for recording in members]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    for index, (axes, (label, members)) in enumerate(zip(panels, groups.items(), strict=True)):
        step = max((last - first) / _TIME_BARS, *map(usage.sampling_period_s, members))
        edges = np.arange(np.floor(first / step) * step, last + step, step)
        base = np.zeros(len(edges) - 1)
        for service in services:
            cores = np.mean([_cores(recording, service, edges) for recording in members], axis=0)
            name = service if index == 0 else None
            axes.stairs(base + cores, edges, baseline=base, fill=True, color=colours[service], label=name, lw=0)
            base += cores
        axes.stairs(base, edges, color="#1a1a1a", lw=0.8)
        available = members[0].header.get("cores")
        colour = _GROUP_COLOURS[index % len(_GROUP_COLOURS)]
        axes.set_title(f"{label}{f', {available} cores' if available else ''}", loc="left", color=colour, weight="bold")
        axes.set_title(f"means of {step:.2g} s", loc="right", size=9, color="#55555c")
        submitted = members[0].part("run").get("submitted")
        axes.set_xlabel("seconds since the run was submitted" if submitted else "seconds since the beginning")
        axes.set_xlim(first, last)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("cores in use")
    panel.legend(frameon=False, loc="outside lower center", ncols=len(services))


def _zero_time(recording: Recording) -> float:
    """Return the zero of the time axis: the submission of the run, else the beginning of the recording."""
    submitted = recording.part("run").get("submitted")
    return float(submitted or recording.header.get("begin") or recording.samples[0].time)


def _span(recording: Recording) -> tuple[float, float]:
    times = [sample.time for sample in recording.samples if sample.service not in MACHINE]
    return min(times) - _zero_time(recording), max(times) - _zero_time(recording)


def _cores(recording: Recording, service: str, edges: usage.Floats) -> usage.Floats:
    used = usage.usage_by_service(recording).get(service)
    if used is None:
        return np.zeros(len(edges) - 1)
    return np.diff(used.used_at(edges + _zero_time(recording))) / np.diff(edges)
