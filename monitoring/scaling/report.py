"""A scan as a document and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monitoring import usage
from monitoring.comparison.plot import MACHINE_COLOURS, SERVICE_COLOURS, STYLE
from monitoring.documents import Document, TextTable
from monitoring.scaling.scan import ScanPlan
from monitoring.scaling.speedup import STAGES, Amdahl, Point, ScanRun
from monitoring.sources.base import HOST, REST

_SECONDS = "s: from the plan of a run to its last event, without the fit and the plots."
#: The part of a machine that other programs may use before that is noted; the monitor is one of them.
_OTHERS = 0.25
_IDEAL, _LAW = "#8f8f98", "#bd1f01"


def caption(plan: ScanPlan) -> str:
    """Return one line on what was recorded."""
    numbers = ", ".join(map(str, plan.replicas))
    return f"{plan.platform}, {plan.repeat} × {plan.events:,} events with {numbers} × {plan.service}"


def document(plan: ScanPlan, measured: Sequence[Point], made: Mapping[str, Any]) -> Document:
    """Return the tables of a scan, Amdahl's law and what the limit was. Estimates are {mean, error} in JSON."""
    law = Amdahl.fit(measured)
    queues = [queue for queue, _ in STAGES.values()]
    speed, flow, cores = [], [], []
    services = _services(measured)
    for point in measured:
        number, seconds, mean = str(point.replicas), point.seconds, point.mean
        rate = f"{plan.events / seconds.mean / 1e6:.2f}"
        speed.append((number, seconds.text(2), rate, point.speed_up.text(2), point.efficiency.text(2)))
        waiting = [f"{mean.waiting[queue]:.1f}" for queue in queues]
        flow.append((number, *waiting, *(f"{mean.working[stage]:.0%}" for stage in STAGES)))
        cores.append((number, *(f"{mean.cores.get(name, 0.0):.2f}" for name in services)))
    return Document(
        title=f"Scaling of {plan.service}",
        caption=f"{caption(plan)}; mean ± standard error",
        tables=[
            TextTable(("replicas", "s", "10⁶ events/s", "speed-up", "efficiency"), speed, 1, "Speed-up", _SECONDS),
            TextTable(
                ("replicas", *queues, *STAGES), flow, 1, "Messages waiting, and the time in which replicas worked"
            ),
            TextTable(("replicas", *services), cores, 1, "Cores in use"),
        ],
        notes=[
            *(f"with {point.replicas} × {plan.service}, the limit is {point.limit}" for point in measured),
            _in_words(law, measured),
            *_checks([run for point in measured for run in point.runs]),
        ],
        made=made,
        recordings=[],
        numbers={
            "scan": asdict(plan),
            "points": [asdict(point) for point in measured],
            "amdahl": asdict(law),
        },
    )


def _checks(runs: Sequence[ScanRun]) -> list[str]:
    equal = "are identical to the last bit" if len({run.digest for run in runs}) == 1 else "differ, which is an error"
    found = [f"the histograms of all {len(runs)} runs {equal}"]
    others, cores = max(run.cores.get(REST, 0.0) for run in runs), runs[0].machine_cores
    if cores and others > _OTHERS * cores:
        found.append(f"other programs used up to {others:.2f} of {cores:g} cores; scan again while the machine is idle")
    return found


def _in_words(law: Amdahl, measured: Sequence[Point]) -> str:
    sigma = law.serial_fraction
    meaning = ""
    if sigma.mean > (sigma.error or 0.0):
        meaning = f", so at most {1 / sigma.mean:.1f} times as fast"
    elif sigma.mean < -(sigma.error or 0.0):
        meaning = " (below 0: something else than the replicas changed between the runs)"
    deviation = max(abs(point.seconds.mean / law.seconds(point.replicas) - 1) for point in measured)
    return (
        f"Amdahl's law T(n) = T(1)·(σ + (1−σ)/n): σ = {sigma.text(2)} of the time is not shortened by "
        f"replicas{meaning}; the law describes the mean times within {deviation:.0%}"
    )


def _services(measured: Sequence[Point]) -> list[str]:
    return usage.sort_services({name for point in measured for name in point.mean.cores})


def draw(plan: ScanPlan, measured: Sequence[Point], path: Path) -> None:
    """Write ``path``.png and .pdf: speed-up, efficiency, waiting messages and cores in use by number of replicas."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 9.0), layout="constrained")
        figure.suptitle(caption(plan), x=0.01, ha="left", size=11, color="#55555c")
        (speed_up, efficiency), (queues, cores) = figure.subplots(2, 2)
        _speed(speed_up, efficiency, measured, Amdahl.fit(measured))
        _waiting(queues, measured)
        _cores(cores, measured)
        for axes in (speed_up, efficiency):
            axes.set_xticks([point.replicas for point in measured])
        for axes in (queues, cores):
            axes.set_xticks(range(len(measured)), [str(point.replicas) for point in measured])
        for axes in (speed_up, efficiency, queues, cores):
            axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
            axes.set_xlabel(f"replicas of {plan.service}")
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def _speed(speed_up: Axes, efficiency: Axes, measured: Sequence[Point], law: Amdahl) -> None:
    """Draw means with standard errors, single runs as points, proportional scaling and the fitted law."""
    first = measured[0]
    n = np.linspace(first.replicas, measured[-1].replicas, 200)
    for axes, power in ((speed_up, 0), (efficiency, 1)):
        axes.plot(n, (n / first.replicas) ** (1 - power), "--", color=_IDEAL, label="proportional")
        curve = first.seconds.mean / np.array([law.seconds(value) for value in n])
        label = f"Amdahl's law, σ = {law.serial_fraction.text(2)}"
        axes.plot(n, curve * (first.replicas / n) ** power, color=_LAW, label=label)
        for point in measured:
            mean = point.efficiency if power else point.speed_up
            axes.errorbar(point.replicas, mean.mean, mean.error, fmt="o", color="#1a1a1a", capsize=4, zorder=3)
            scale = first.seconds.mean * (first.replicas / point.replicas) ** power
            values = [scale / run.seconds for run in point.runs]
            axes.plot([point.replicas] * len(values), values, "o", ms=4, mfc="white", mec="#1a1a1a", zorder=4)
    speed_up.set_ylabel("speed-up")
    efficiency.set_ylabel("efficiency")
    speed_up.legend(frameon=False, loc="upper left")


def _waiting(axes: Axes, measured: Sequence[Point]) -> None:
    """Draw the mean number of messages in each queue as bars."""
    width = 0.8 / len(STAGES)
    for index, (stage, (queue, _)) in enumerate(STAGES.items()):
        heights = [point.mean.waiting[queue] for point in measured]
        positions = np.arange(len(measured)) + (index - 1) * width
        bars = axes.bar(positions, heights, width * 0.92, color=SERVICE_COLOURS[index], label=f"{queue}, for {stage}")
        axes.bar_label(bars, [f"{height:.1f}" for height in heights], size=8.5, padding=2)
    axes.set_ylabel("messages waiting, mean")
    axes.margins(y=0.4)
    axes.legend(frameon=False, loc="upper right", fontsize=10)


def _cores(axes: Axes, measured: Sequence[Point]) -> None:
    """Draw the cores in use by service, stacked, and those that the machine has."""
    names = [name for name in _services(measured) if name != HOST]
    colours = dict(zip(names, SERVICE_COLOURS * 9, strict=False)) | MACHINE_COLOURS
    base = np.zeros(len(measured))
    for name in names:
        heights = np.array([point.mean.cores.get(name, 0.0) for point in measured])
        axes.bar(range(len(measured)), heights, 0.6, base, color=colours[name], label=name)
        base += heights
    if machine := measured[0].mean.machine_cores:
        axes.axhline(machine, color="#1a1a1a", ls="--", lw=1, label="cores of the machine")
    axes.set_ylabel("cores in use, mean")
    axes.set_xlim(-0.5, 1.6 * len(measured))
    axes.legend(frameon=False, loc="center right", fontsize=9, reverse=True)
