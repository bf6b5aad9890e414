"""Measure what an own analysis costs: the CPU time an event, relative to the shipped analysis.

    python -m benchmarks.own_analysis [--rounds 15] [--events 200000] [--cache DIR]

The same chunks of the demo are read, selected, measured and filled by the shipped analysis, by a copy of it that is
loaded from a file, and by examples/zz4l.py. The analyses take turns chunk by chunk, so that a change of the
machine's speed concerns all of them. The exit code is 1 if the copy costs more than 1.1 times the shipped analysis.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from common import messages, settings
from common.messages import Chunk, ChunkTask, Selected
from common.replica import software
from common.settings import RunSettings, Settings
from physics import ANALYSES
from tests.support.paths import ROOT
from workers.analysis.histograms import fill
from workers.chunk_worker import process_chunk
from workers.data_loader import reading

LIMIT = 1.1
COPY = 'from physics import ANALYSES as SHIPPED\n\nANALYSIS = SHIPPED["demo"]\n'


def chunks_of(run: RunSettings, cache: Path) -> list[Chunk]:
    """Return all chunks of a run, whose demo files are made if they do not exist."""
    analysis = ANALYSES.of(run)
    assert analysis.make_file is not None
    found = []
    for sample in analysis.samples:
        path = analysis.make_file(analysis, sample, run.demo_events, cache / analysis.release)
        bounds = reading.chunk_bounds(path, analysis, sample, run)
        found += [Chunk("run", sample.name, start, stop) for start, stop in pairwise(bounds)]
    return found


def cpu_seconds(read: Settings, run: RunSettings, chunk: Chunk) -> float:
    """Return the CPU time of a chunk, from its task to its histograms."""
    task = ChunkTask(chunk, run).encode()
    analysis = ANALYSES.of(run)
    started = time.process_time()
    for outcome in process_chunk(read, task, software=software()):
        if outcome.kind == Selected.kind:
            selected = messages.decode(Selected.kind, outcome.encode(), ANALYSES)
            assert isinstance(selected, Selected)
            fill(selected.events, analysis, analysis.sample(chunk.sample).category)
    return time.process_time() - started


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=15, help="how often each chunk is measured (default: 15)")
    parser.add_argument("--events", type=int, default=200_000, help="simulated events of the demo (default: 200000)")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/atlas-open-data").expanduser())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "copy.py").write_text(COPY)
        (Path(folder) / "zz4l.py").write_bytes((ROOT / "examples" / "zz4l.py").read_bytes())
        read = replace(settings.read({}), cache=arguments.cache, analyses=Path(folder))
        analyses = ANALYSES.in_folder(Path(folder))
        demo = RunSettings(release="demo", demo_events=arguments.events)
        runs = {name: analyses.resolve(replace(demo, analysis=name)) for name in (ANALYSES.name, "copy", "zz4l")}
        chunks = chunks_of(runs[ANALYSES.name], arguments.cache)
        rounds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(arguments.rounds + 1):
            seconds = dict.fromkeys(runs, 0.0)
            for chunk in chunks:
                for name, run in runs.items():
                    seconds[name] += cpu_seconds(read, run, chunk)
            if number:  # the first round opens files and imports modules
                for name, spent in seconds.items():
                    rounds[name].append(spent)
    events = sum(chunk.stop - chunk.start for chunk in chunks)
    ratios = {}
    for name, found in rounds.items():
        ratios[name] = median(own / of for own, of in zip(found, rounds[ANALYSES.name], strict=True))
        print(f"{name}: {median(found) / events * 1e6:.2f} µs of CPU an event, {ratios[name]:.3f} × {ANALYSES.name}")
    return 0 if ratios["copy"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
