"""The same analysis in several ways, each a program that says what it found and what it took.

``python -m benchmarks.implementations.NAME RUN CACHE`` does the run whose settings are the JSON text RUN, and prints
seconds and CPU seconds (children included) from the first file to the last number, imports left out, and of every
sample the events selected, the sum of weights and the m4l histogram.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.resource_usage import cpu_seconds
from common.releases import Release, Sample
from common.settings import RunSettings
from physics import RELEASES
from workers.data_loader.remote.fetch import Fetcher
from workers.data_loader.sources import locate

#: The bins of m4l, in GeV.
EDGES = np.linspace(80.0, 250.0, 35)


@dataclass(frozen=True)
class Found:
    """What came out of one sample."""

    events_selected: int
    sum_of_weights: float


def files(run: RunSettings, cache: Path) -> dict[str, tuple[Path, Sample]]:
    """The run's files and samples, by the samples' names."""
    samples = RELEASES[run.release].in_order(run.samples)
    fetcher = Fetcher(cache)
    return {sample.name: (locate(sample, run, fetcher), sample) for sample in samples}


def branches(release: Release, sample: Sample) -> list[str]:
    """The branches that the analysis reads."""
    return [*release.branches.leptons.values(), *(() if sample.is_data else release.branches.weights)]


def main(analyse: Callable[[RunSettings, Path], Mapping[str, Found]]) -> int:
    """Measure one way; returns the exit code."""
    run, cache = RunSettings.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
    myself = psutil.Process()
    before, started = cpu_seconds(myself), time.perf_counter()
    found = analyse(run, cache)
    seconds = time.perf_counter() - started
    answer = {"seconds": seconds, "cpu_seconds": cpu_seconds(myself) - before}
    print(json.dumps({**answer, "samples": {name: asdict(one) for name, one in found.items()}}))
    return 0
