"""The pipeline without a broker: the embedded services and their worker processes.

Measured from the submission to the final result with its fit. As for the other implementations imports are not
included: the worker processes are started, and a small run is done, before the measured run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks.implementations import Found
from benchmarks.resource_usage import cpu_seconds
from benchmarks.stack import WARM_UP, final_result, wait_for_result_files
from common import settings, topology
from common.settings import RunSettings
from common.submission import new_run_id, submit
from common.transport import Session
from physics import ANALYSES
from workers.embedded import EmbeddedServices


def main() -> int:
    """Measure an embedded run as ``implementations.main`` does the others; returns the exit code."""
    run, cache = ANALYSES.resolve(RunSettings.from_json(json.loads(sys.argv[1]))), Path(sys.argv[2])
    process = psutil.Process()
    with EmbeddedServices(settings.read({"CACHE": str(cache)})) as services:
        services.prepare()
        with submitted(services, WARM_UP) as (session, run_id):
            final_result(session, run_id)
            wait_for_result_files(session)
        before, started = cpu_seconds(process), time.perf_counter()
        with submitted(services, run) as (session, run_id):
            result = final_result(session, run_id)
            answer = {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds(process) - before}
    found = {
        name: asdict(Found(sample["events_selected"], sample["sum_of_weights"]))
        for name, sample in result["samples"].items()
    }
    print(json.dumps({**answer, "samples": found}))
    return 0


@contextmanager
def submitted(services: EmbeddedServices, run: RunSettings) -> Iterator[tuple[Session, str]]:
    """Submit a run; yields a session that receives its results, and its run id."""
    run_id = new_run_id(run.release)
    session = services.transport.open([topology.follower(run_id)])
    submit(session, run_id, run)
    yield session, run_id
    session.close()


if __name__ == "__main__":
    sys.exit(main())
