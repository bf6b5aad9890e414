"""The invariants that must hold after every run, whatever fault was injected."""

from __future__ import annotations

import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import uproot

from common import topology
from common.names import is_name
from common.result_folder import TEMPORARY
from common.submission import Outcome
from tests.chaos.environment import Environment, FollowedRun
from tests.support.runs import numbers, numbers_of

#: How long the number of messages in the queues may stay the same before they count as left over.
DRAIN_TIMEOUT_S = 60.0
#: So many times in a row the queues must be empty; the broker's counts are at most half a second old.
EMPTY_SAMPLES = 40

#: Whether a file of each format is complete.
_IS_COMPLETE: Mapping[str, Callable[[bytes], bool]] = {
    ".png": lambda content: content.endswith(b"IEND\xaeB`\x82"),
    ".pdf": lambda content: content.rstrip().endswith(b"%%EOF"),
    ".json": lambda content: bool(json.loads(content)),
    ".root": lambda content: bool(uproot.open(io.BytesIO(content)).keys()),
}


def violations(environment: Environment, run: FollowedRun, reference: str) -> list[str]:
    """Describe each invariant that does not hold."""
    outcome = run.outcome.result()
    found = list(_result(outcome, reference))
    found += _queues(environment)
    found += _services(environment)
    if not found:
        found += _folder(environment.output, run.request.run_id, outcome, reference)
    return found


def _result(outcome: Outcome, reference: str) -> Iterator[str]:
    if outcome.problem is not None:
        yield f"the run has no result: {outcome.problem}"
    elif outcome.result is None or not outcome.result["complete"]:
        yield f"the run is not complete: {outcome.result and outcome.result['problems']}"
    elif outcome.result["fit_problem"] is not None:
        yield f"the run has no fit: {outcome.result['fit_problem']}"
    elif numbers(outcome) != reference:
        yield "the numbers are not those of the reference run"


def _queues(environment: Environment) -> Iterator[str]:
    """Every queue of the pipeline becomes empty, with nothing unacknowledged, and stays so."""
    names = {queue.name for queue in topology.QUEUES} | {
        topology.dead_letter_queue(q.name).name for q in topology.QUEUES
    }
    fewest, deadline, empty_samples = sys.maxsize, time.monotonic() + DRAIN_TIMEOUT_S, 0
    while empty_samples < EMPTY_SAMPLES:
        left = {q["name"]: q["messages"] for q in environment.queues() if q["name"] in names and q.get("messages")}
        empty_samples = 0 if left else empty_samples + 1
        if sum(left.values()) < fewest:
            fewest, deadline = sum(left.values()), time.monotonic() + DRAIN_TIMEOUT_S
        if left and time.monotonic() > deadline:
            yield f"messages are left: {left}"
            return
        time.sleep(0.05)


def _services(environment: Environment) -> Iterator[str]:
    for service, number in environment.workers.ended().items():
        if number:
            yield f"{number} of {service} ended by themselves"


def _folder(output: Path, run_id: str, outcome: Outcome, reference: str) -> Iterator[str]:
    """The run's folder is complete; beside it are only folders of runs and temporary folders of killed services."""
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
            complete = _IS_COMPLETE[Path(name).suffix](content)
        except ValueError:
            complete = False
        if not complete:
            yield f"{name} is not complete"
    if numbers_of(json.loads(files["result.json"])) != reference:
        yield "the folder's numbers are not those of the reference run"
    yield from _timeline(json.loads(files["timeline.json"]), json.loads(files["result.json"]))


def _timeline(trace: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    """Each chunk was read, selected and added once, and the chunks are all entries of each sample."""
    entries: Counter[tuple[str, str]] = Counter()
    chunks: Counter[tuple[str, str, str]] = Counter()
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["name"] in ("read", "selected", "added"):
            sample, chunk = event["args"]["sample"], event["args"]["chunk"]
            chunks[event["name"], sample, chunk] += 1
            start, stop = map(int, chunk.split(":"))
            entries[event["name"], sample] += stop - start
    if repeated := [name for name, number in chunks.items() if number > 1]:
        yield f"the timeline has chunks more than once: {repeated}"
    for name in ("read", "selected", "added"):
        for sample, document in result["samples"].items():
            if entries[name, sample] != document["events_read"]:
                yield f"{name}: the timeline has {entries[name, sample]} entries of {sample}"
