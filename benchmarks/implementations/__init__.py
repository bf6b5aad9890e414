"""Implementations of the same analysis, each a program that prints its results and the time they took.

``python -m benchmarks.implementations.NAME RUN CACHE [PICTURE]`` does the run whose settings are the JSON text RUN. It
prints seconds and CPU seconds (child processes included) from opening the first file to the last result, without
imports, and for each sample the number of events selected and their sum of weights. With the path of a PICTURE it draws
m4l, as the notebooks do at their end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.resource_usage import cpu_seconds
from common.analyses import Analysis, Sample
from common.settings import RunSettings
from physics import ANALYSES
from workers.data_loader.remote.fetch import Fetcher
from workers.data_loader.sources import locate

#: The position of the picture among the arguments.
PICTURE = 3


@dataclass(frozen=True)
class Found:
    """The result of a sample."""

    events_selected: int
    sum_of_weights: float
    #: The m4l histogram.
    values: Sequence[float] = ()


def files(run: RunSettings, cache: Path) -> dict[str, tuple[Path, Sample]]:
    """Return the files and samples of the run by the samples' names."""
    analysis = ANALYSES.of(run)
    samples = analysis.in_order(run.samples)
    fetcher = Fetcher(cache)
    return {sample.name: (locate(sample, analysis, run, fetcher).path, sample) for sample in samples}


def branches(analysis: Analysis, sample: Sample) -> list[str]:
    """Return the branches that the analysis reads."""
    return [name for name, one in analysis.branches.items() if not (sample.is_data and one.simulation_only)]


def main(analyse: Callable[[RunSettings, Path], Mapping[str, Found]]) -> int:
    """Measure an implementation and print its results; returns the exit code."""
    run, cache = ANALYSES.resolve(RunSettings.from_json(json.loads(sys.argv[1]))), Path(sys.argv[2])
    process = psutil.Process()
    before, started = cpu_seconds(process), time.perf_counter()
    found = analyse(run, cache)
    seconds = time.perf_counter() - started
    answer = {"seconds": seconds, "cpu_seconds": cpu_seconds(process) - before}
    if len(sys.argv) > PICTURE:
        draw(ANALYSES.of(run), found, Path(sys.argv[PICTURE]))
    print(json.dumps({**answer, "samples": {name: asdict(one) for name, one in found.items()}}))
    return 0


def draw(analysis: Analysis, found: Mapping[str, Found], picture: Path) -> None:
    """Draw m4l as the notebooks of the ATLAS outreach group do: data with errors, and stacked simulation."""
    import matplotlib.pyplot as plt

    edges = analysis.observable("m4l").axis.edges
    centres = (edges[:-1] + edges[1:]) / 2
    figure, axes = plt.subplots(figsize=(8, 6))
    bottom = np.zeros(len(centres))
    for category in analysis.categories:
        members = [name for name in found if analysis.sample(name).category == category.name]
        values = np.sum([found[name].values for name in members], axis=0)
        if category.role == "data":
            axes.errorbar(centres, values, np.sqrt(values), fmt="ko", label=category.label)
        else:
            axes.bar(centres, values, np.diff(edges), bottom, color=category.colour, label=category.label)
            bottom += values
    axes.set(xlabel=analysis.observable("m4l").axis_label, ylabel="Events", xlim=edges[[0, -1]])
    axes.legend()
    figure.savefig(picture, dpi=150)
