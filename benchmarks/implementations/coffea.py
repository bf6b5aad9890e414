"""The analysis with coffea: a processor with the notebook's cuts, run by the executor of local processes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from coffea import processor
from coffea.nanoevents import BaseSchema

import physics
from benchmarks.implementations import Found, branches, files, main
from benchmarks.implementations.notebook import RECIPES
from common.settings import RunSettings


class FourLeptons(processor.ProcessorABC):  # type: ignore[misc]  # coffea has no type hints
    """Selects a chunk's events and fills m4l, by sample."""

    def __init__(self, run: RunSettings) -> None:
        self.run = run

    def process(self, events: Any) -> dict[str, Any]:
        """Process one chunk."""
        analysis = physics.ANALYSES[self.run.release]
        sample = analysis.sample(events.metadata["dataset"])
        columns = ak.zip({name: events[name] for name in branches(analysis, sample)}, depth_limit=1)
        m4l, weight = RECIPES[analysis.tree](columns, sample, self.run)
        values = np.histogram(m4l, bins=analysis.observable("m4l").axis.edges, weights=weight)[0]
        total = float(np.sum(weight, dtype=np.float64))
        return {sample.name: {"events": len(m4l), "total": total, "values": values}}

    def postprocess(self, accumulator: Any) -> Any:
        """Return the sum of the chunks unchanged."""
        return accumulator


def analyse(run: RunSettings, cache: Path) -> Mapping[str, Found]:
    """Process all chunks on all cores."""
    warnings.simplefilter("ignore")
    tree = physics.ANALYSES[run.release].tree
    fileset = {name: {"files": {str(path): tree}} for name, (path, _) in files(run, cache).items()}
    runner = processor.Runner(
        executor=processor.FuturesExecutor(workers=os.cpu_count(), status=False),
        schema=BaseSchema,
        chunksize=100_000,
    )
    summed = runner(fileset, processor_instance=FourLeptons(run))
    return {name: Found(one["events"], one["total"], one["values"].tolist()) for name, one in summed.items()}


if __name__ == "__main__":
    sys.exit(main(analyse))
