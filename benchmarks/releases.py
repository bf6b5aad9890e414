"""The toy releases that are measured with, each made once and kept."""

from __future__ import annotations

from pathlib import Path

from physics import RELEASES
from workers.data_loader.demo import demo_file

DEMO = RELEASES["demo"]
#: The simulated events of the 2020 release's 4lep files, by the catalogue.
FULL_SIZE = sum(sample.entries for sample in DEMO.samples if not sample.is_data)


def toy_release(events: int, cache: Path, *, all_branches: bool = False) -> Path:
    """The directory of the demo release of so many simulated events, where a loader with this CACHE looks for it."""
    for sample in DEMO.samples:
        path = demo_file(sample, DEMO, events, cache / DEMO.name, all_branches=all_branches)
    return path.parents[1]
