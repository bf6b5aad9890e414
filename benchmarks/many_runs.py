"""Measure memory, database and page during thousands of tiny runs: ``python -m benchmarks.many_runs --runs 2000``.

The analysis and the visualisation run in this process and get the messages that a data-loader and a data-processor
would send: runs of one chunk, of which no event is selected, without plots.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import urllib.request
from pathlib import Path

import awkward as ak
import numpy as np
import psutil

from common import settings
from common.messages import Chunk, Message, Result, RunPlan, SamplePlan, Selected
from common.settings import RunSettings
from physics import ANALYSES
from workers.analysis.service import AnalysisService
from workers.visualisation.service import Visualisation

SAMPLE = next(sample.name for sample in ANALYSES["demo"].samples if sample.is_data)
RUN = ANALYSES.resolve(RunSettings(release="demo", samples=(SAMPLE,), plots=False))
ENTRIES = 10


def messages(run_id: str) -> list[Message]:
    """Return the messages of a run."""
    analysis = ANALYSES[RUN.release]
    events = ak.Array({name: np.empty(column.shape(0), column.dtype) for name, column in analysis.selected.items()})
    cutflow = dict.fromkeys(analysis.steps, 0) | {"read": ENTRIES}
    return [
        RunPlan(run_id, time.time(), RUN),
        SamplePlan(run_id, SAMPLE, ENTRIES, (0, ENTRIES), digest=RUN.digest),
        Selected(Chunk(run_id, SAMPLE, 0, ENTRIES), RUN, cutflow, events),
    ]


def main() -> None:
    """Run them, and print what they cost after each tenth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--keep", default="100", help="RESULTS_KEEP")
    parser.add_argument("--port", default="18080", help="PAGE_PORT")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "analysis.sqlite")
        variables = {"OUTPUT": f"{folder}/results", "DATABASE": str(database)}
        read = settings.read(variables | {"RESULTS_KEEP": given.keep, "PAGE_PORT": given.port})
        analysis, visualisation = AnalysisService(read), Visualisation(read)
        visualisation.poll()
        print("| runs | s per run | memory [MB] | database [MB] | page [ms] |\n| --: | --: | --: | --: | --: |")
        start = time.monotonic()
        for number in range(1, given.runs + 1):
            for message in messages(f"run-{number}"):
                for answer in analysis.handle(message):
                    visualisation.handle(answer)
                    assert not isinstance(answer, Result) or answer.result["complete"] or not answer.final
            analysis.poll()
            if number % max(1, given.runs // 10) == 0:
                mean_s = (time.monotonic() - start) / max(1, given.runs // 10)
                memory_mb = psutil.Process().memory_info().rss / 1e6
                database_mb = sum(file.stat().st_size for file in Path(folder).glob("analysis.sqlite*")) / 1e6
                asked = time.monotonic()
                urllib.request.urlopen(f"http://127.0.0.1:{given.port}/").read()
                page_ms = 1e3 * (time.monotonic() - asked)
                print(f"| {number} | {mean_s:.3f} | {memory_mb:.0f} | {database_mb:.2f} | {page_ms:.0f} |", flush=True)
                start = time.monotonic()
        visualisation.close()
        analysis.close()


if __name__ == "__main__":
    main()
