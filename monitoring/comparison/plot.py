"""A comparison as a figure: bars of CPU time per service, and below them the cores in use over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monitoring import usage
from monitoring.comparison.compare import TOTAL, Comparison
from monitoring.comparison.report import caption
from monitoring.recording import Recording
from monitoring.sources.base import HOST

#: Petroff, "Accessible color sequences for data visualization", arXiv:2107.02270 (six colours).
_SERVICE_COLOURS = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#7a21dd")
_GROUP_COLOURS = ("#3a4a6b", "#5aa9a3", "#b0764f", "#8f8f98", "#7d5a8c")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e4e8",
    "axes.axisbelow": True,
}


def draw(comparison: Comparison, path: Path) -> None:
    """Write ``path``.png and ``path``.pdf; raises OSError if they cannot be written."""
    with mpl.rc_context(_STYLE):
        labels = list(comparison.groups)
        figure = Figure(figsize=(max(10.4, 3.4 * len(labels) + 1.5), 8.0), layout="constrained")
        figure.suptitle(caption(comparison), x=0.01, ha="left", size=10, color="#55555c")
        subfigures: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1.0), hspace=0.04)
        upper, lower = subfigures
        services = [service for service in comparison.services if service != TOTAL]
        # The total has its own axis: on a common one, the bars of the services would be too short to read.
        each, total = upper.subplots(1, 2, width_ratios=(len(services), 1.25))
        _bars(each, comparison, services)
        _bars(total, comparison, [TOTAL])
        each.legend(frameon=False, ncols=len(labels), loc="upper left")
        _over_time(lower, comparison)
        figure.savefig(path.with_suffix(".png"), dpi=160)
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def _bars(axes: Axes, comparison: Comparison, services: Sequence[str]) -> None:
    """Draw CPU seconds, per million events if known: bars are means with standard errors, points are recordings."""
    per_event = all(row.per_million_events is not None for row in comparison.rows)
    labels = list(comparison.groups)
    width = 0.8 / len(labels)
    heights = dict.fromkeys(services, 0.0)
    for index, label in enumerate(labels):
        for position, service in enumerate(services):
            row = comparison.row(service, label)
            if row is None:
                continue
            estimate = row.per_million_events if per_event and row.per_million_events else row.cpu_seconds
            x = position + (index - (len(labels) - 1) / 2) * width
            name = f"{label} ({len(comparison.groups[label])})" if position == 0 else None
            axes.bar(x, estimate.mean, width * 0.92, color=_GROUP_COLOURS[index % len(_GROUP_COLOURS)], label=name)
            scale = estimate.mean / row.cpu_seconds.mean if row.cpu_seconds.mean else 1.0
            values = [value * scale for value in row.values]
            if estimate.error is not None:
                axes.errorbar(
                    x - 0.16 * width,
                    estimate.mean,
                    estimate.error,
                    color="#1a1a1a",
                    capsize=3.5,
                    elinewidth=1.4,
                    capthick=1.4,
                )
                axes.plot([x + 0.18 * width] * len(values), values, "o", ms=4.2, mfc="white", mec="#1a1a1a", mew=0.9)
            heights[service] = max(heights[service], estimate.mean + (estimate.error or 0.0), *values)
    highest = max(heights.values()) or 1.0
    for position, service in enumerate(services):
        row = comparison.row(service, labels[-1]) if len(labels) == 2 else None
        if row is not None and row.ratio is not None:
            height = heights[service] + 0.025 * highest
            axes.text(position, height, f"× {row.ratio.text(2)}", ha="center", va="bottom", size=10)
    axes.set_xticks(range(len(services)), services)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(services) - 0.45)
    axes.set_ylim(0, highest * 1.22)
    if TOTAL not in services:
        axes.set_ylabel("CPU seconds per 10⁶ events" if per_event else "CPU seconds")


def _over_time(lower: Any, comparison: Comparison) -> None:
    """Draw cores in use over time: services stacked, the mean of each group's recordings, time since submission."""
    panels = lower.subplots(1, len(comparison.groups), sharex=True, sharey=True, squeeze=False)[0]
    step = comparison.window_s
    services = [service for service in comparison.services if service != TOTAL]
    spans = [_span(recording) for members in comparison.groups.values() for recording in members]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    edges = np.arange(np.floor(first / step) * step, last + step, step)
    highest = 0.0
    for index, (axes, (label, members)) in enumerate(zip(panels, comparison.groups.items(), strict=True)):
        base = np.zeros(len(edges) - 1)
        for colour, service in zip(_SERVICE_COLOURS * 9, services, strict=False):
            cores = np.mean([_cores(recording, service, edges) for recording in members], axis=0)
            axes.stairs(base + cores, edges, baseline=base, fill=True, color=colour, label=service, lw=0)
            base += cores
        axes.stairs(base, edges, color="#1a1a1a", lw=1.0)
        highest = max(highest, float(base.max()))
        available = members[0].header.get("cores")
        title = f"{label}: cores in use" + (f", of {available}" if available else "")
        axes.set_title(title, loc="left", size=11, color=_GROUP_COLOURS[index % len(_GROUP_COLOURS)], weight="bold")
        submitted = (members[0].header.get("run") or {}).get("submitted")
        axes.set_xlabel("seconds since the run was submitted" if submitted else "seconds since the beginning")
        axes.set_xlim(edges[0], edges[-1])
    panels[0].set_ylim(0, highest * 1.08 or 1.0)
    panels[0].set_ylabel(f"cores (means of {step:.3g} s)")
    handles, names = panels[0].get_legend_handles_labels()
    lower.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names))


def _zero_time(recording: Recording) -> float:
    """Return the zero of the time axis: the submission of the run, else the beginning of the recording."""
    submitted = (recording.header.get("run") or {}).get("submitted")
    return float(submitted or recording.header.get("begin") or recording.samples[0].time)


def _span(recording: Recording) -> tuple[float, float]:
    times = [sample.time for sample in recording.samples if sample.service != HOST]
    return min(times) - _zero_time(recording), max(times) - _zero_time(recording)


def _cores(recording: Recording, service: str, edges: usage.Floats) -> usage.Floats:
    used = usage.usage_by_service(recording).get(service)
    if used is None:
        return np.zeros(len(edges) - 1)
    return np.diff(used.used_at(edges + _zero_time(recording))) / np.diff(edges)
