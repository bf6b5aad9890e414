"""The demo, chunk by chunk: results of pipelines that lose a chunk, add it twice, or lack a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import awkward as ak
import numpy as np

from common.messages import Chunk, FileIdentity, Software, Span
from common.settings import RunSettings
from physics import ANALYSES
from workers.analysis.histograms import fill
from workers.analysis.result import result_of
from workers.analysis.store import PartialSums, Run, Store
from workers.data_loader.reading import chunk_bounds, read
from workers.data_loader.reading import select as select_in_loader
from workers.data_processor.service import select as select_in_processor

ANALYSIS = ANALYSES["demo"]


class DemoChunks:
    """What the services make of each chunk of a small demo; ``changed`` are its settings."""

    def __init__(self, folder: Path, **changed: Any) -> None:
        given = {"release": "demo", "demo_events": 8_000, "chunk_entries": 150, "plots": False, **changed}
        self.settings = ANALYSES.resolve(RunSettings(**given))
        self.partials: dict[str, list[PartialSums]] = {}
        for sample in ANALYSIS.in_order(self.settings.samples):
            path = ANALYSIS.make_file(ANALYSIS, sample, self.settings.demo_events, folder)
            chunks = pairwise(chunk_bounds(path, ANALYSIS, sample, self.settings))
            self.partials[sample.name] = [self._partial(path, sample.name, *chunk) for chunk in chunks]

    def _partial(self, path: Path, name: str, start: int, stop: int) -> PartialSums:
        sample = ANALYSIS.sample(name)
        arrays = read(path, ANALYSIS, sample, start, stop)
        events, before = select_in_loader(arrays, ANALYSIS, sample, self.settings)
        selected, after = select_in_processor(events, ANALYSIS, self.settings)
        weights = np.empty(0, np.float32) if sample.is_data else ak.to_numpy(selected.weight)
        return PartialSums({**before, **after}, fill(selected, ANALYSIS, sample.category), weights)

    def result(self, times: Callable[[str, int], int] = lambda sample, chunk: 1) -> dict[str, Any]:
        """Return the result, without a fit, in which a chunk of a sample is added so many times."""
        chunks = {
            name: [one for index, one in enumerate(partials) for _ in range(times(name, index))]
            for name, partials in self.partials.items()
        }
        run = Run("run", 1000.0, 1000.0, self.settings)
        return result_of(run, cast(Store, _Chunks(chunks)), 1010.0, final=True)


class _Chunks:
    """What ``result_of`` asks the store."""

    def __init__(self, chunks: dict[str, list[PartialSums]]) -> None:
        self._chunks = chunks

    def partials(self, run_id: str, sample: str) -> Sequence[PartialSums]:
        return self._chunks[sample]

    def problems(self, run_id: str) -> list[str]:
        return []

    def files(self, run_id: str) -> dict[str, FileIdentity]:
        return {}

    def software(self, run_id: str) -> list[tuple[str, Software]]:
        return []

    def spans(self, run_id: str) -> list[tuple[Chunk, tuple[Span, ...]]]:
        return []
