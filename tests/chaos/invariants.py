"""What must hold after a run, whatever was done to it."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import uproot

from common import topology
from common.names import is_name
from common.result_folder import TEMPORARY
from common.submission import Outcome
from tests.chaos.stage import Run, Stage
from tests.support.runs import numbers, numbers_of

#: How long no fewer messages may be left, before what is left will stay.
SETTLE_S = 60.0
#: For so long the broker's counts, which are half a second old at most, must say that all queues are empty.
QUIET_SAMPLES = 40

#: How a file that was written to its end ends.
_ENDS: Mapping[str, Callable[[bytes], bool]] = {
    ".png": lambda content: content.endswith(b"IEND\xaeB`\x82"),
    ".pdf": lambda content: content.rstrip().endswith(b"%%EOF"),
    ".json": lambda content: bool(json.loads(content)),
    ".root": lambda content: bool(uproot.open(io.BytesIO(content)).keys()),
}


def violations(stage: Stage, run: Run, undisturbed: str) -> list[str]:
    """Each invariant that does not hold, in words."""
    outcome = run.outcome.result()
    found = list(_of_the_result(outcome, undisturbed))
    found += _of_the_queues(stage)
    found += _of_the_services(stage)
    if not found:
        found += _of_the_folder(stage.output, run.request.run_id, outcome, undisturbed)
    return found


def _of_the_result(outcome: Outcome, undisturbed: str) -> Iterator[str]:
    if outcome.problem is not None:
        yield f"the run has no result: {outcome.problem}"
    elif outcome.result is None or not outcome.result["complete"]:
        yield f"the run is not complete: {outcome.result and outcome.result['problems']}"
    elif outcome.result["fit_problem"] is not None:
        yield f"the run has no fit: {outcome.result['fit_problem']}"
    elif numbers(outcome) != undisturbed:
        yield "the numbers are not those of the undisturbed run"


def _of_the_queues(stage: Stage) -> Iterator[str]:
    """Every queue of the pipeline becomes empty, with nothing unacknowledged, and stays so."""
    names = {queue.name for queue in topology.QUEUES} | {
        topology.dead_letter_queue(q.name).name for q in topology.QUEUES
    }
    fewest, deadline, empty_samples = sys.maxsize, time.monotonic() + SETTLE_S, 0
    while empty_samples < QUIET_SAMPLES:
        full = {q["name"]: q["messages"] for q in stage.queues() if q["name"] in names and q.get("messages")}
        empty_samples = 0 if full else empty_samples + 1
        if sum(full.values()) < fewest:
            fewest, deadline = sum(full.values()), time.monotonic() + SETTLE_S
        if full and time.monotonic() > deadline:
            yield f"messages are left: {full}"
            return
        time.sleep(0.05)


def _of_the_services(stage: Stage) -> Iterator[str]:
    for service, number in stage.workers.ended().items():
        if number:
            yield f"{number} of {service} ended unasked"


def _of_the_folder(output: Path, run_id: str, outcome: Outcome, undisturbed: str) -> Iterator[str]:
    """The run's folder is whole; beside it are only folders of runs and temporary folders of killed services."""
    for path in output.iterdir():
        if not (path.is_dir() and (is_name(path.name) or path.name.startswith(TEMPORARY))):
            yield f"{path.name} was left in the output folder"
    folder = output / run_id
    if not folder.is_dir():
        yield "the run has no folder"
        return
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    if files.keys() != outcome.files.keys():
        yield f"the folder holds {sorted(files)}, its follower got {sorted(outcome.files)}"
    for name, content in files.items():
        try:
            whole = _ENDS[Path(name).suffix](content)
        except ValueError:
            whole = False
        if not whole:
            yield f"{name} is half-written"
    if numbers_of(json.loads(files["result.json"])) != undisturbed:
        yield "the folder's numbers are not those of the undisturbed run"
