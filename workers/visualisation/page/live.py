"""The runs under way, and those that failed: all that the messages of the results exchange tell of them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from common.messages import Fetching, Message, Name, Progress, Result, RunFailed, Stage

log = logging.getLogger(__name__)

#: The stages that every event goes through, the last one first: what one has done, those after it in this tuple have.
STAGES: tuple[Stage, ...] = ("analysis", "data-processor", "data-loader")
MAX_RUNS = 100
MAX_REMEMBERED = 10_000
MAX_CHUNKS = 200_000
PACE_WINDOW_S = 15.0
SILENT_S = 60.0


class Kept(msgspec.Struct):
    """What the journal keeps of a run, so that a restart of the service does not forget it."""

    run_id: Name
    began: float
    plan: dict[str, int] = {}
    failed: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class StageState:
    """A stage's part of a run: events and chunks done, and events per second of late."""

    name: Stage
    events: int
    chunks: int
    rate: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class LiveRun:
    """A run as it stands now; times in seconds since 1970. ``problem`` says why it failed, or what holds it up."""

    run_id: str
    version: int
    began: float
    quiet_s: float
    failed: float | None
    problem: str | None
    is_drawing: bool
    plan: Mapping[str, int]
    fetching: tuple[Fetching, ...]
    stages: tuple[StageState, ...]
    result: Mapping[str, Any] | None
    result_version: int

    @property
    def total(self) -> int:
        """Events that will be read, as far as the plan goes."""
        return sum(self.plan.values())

    @property
    def state(self) -> str:
        """The state in a word."""
        if self.failed is not None:
            return "failed"
        if self.is_drawing:
            return "drawing"
        if self.quiet_s > SILENT_S:
            return "silent"
        samples = (self.result or {}).get("samples")
        is_planned = isinstance(samples, dict) and len(self.plan) == len(samples)
        return "fitting" if is_planned and self.stages[-1].events == self.total else "running"


class LiveRuns:
    """Hears messages in the service's loop, and is asked from the page's threads.

    At most MAX_RUNS are known; those of which nothing was heard for longest make way.
    """

    def __init__(self, journal: Path, is_finished: Callable[[str], bool]) -> None:
        self.version = 0
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._done: OrderedDict[str, None] = OrderedDict()
        self._is_finished = is_finished
        self._journal = journal
        for kept in _read_journal(journal)[-MAX_RUNS:]:
            if kept.failed is not None or not is_finished(kept.run_id):
                self._runs[kept.run_id] = _Run(kept)

    def hear(self, message: Message) -> None:
        """Note what a message says of its run; late news of a finished run says nothing."""
        run_id = message.chunk.run_id if isinstance(message, Progress) else getattr(message, "run_id", "")
        with self._lock:
            run = self._run(run_id)
            if run is None:
                return
            before = (run.kept.failed, len(run.kept.plan))
            run.hear(message)
            self._changed(run)
            if before != (run.kept.failed, len(run.kept.plan)):
                self._write_journal()

    def hold_up(self, run_id: str, problem: str) -> None:
        """Note what keeps a run's result from being written."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is not None:
                run.kept.problem = problem
                self._changed(run)

    def finish(self, run_id: str) -> None:
        """A run's folder is there: nothing more is kept of it here."""
        with self._lock:
            self._done[run_id] = None
            self._done.move_to_end(run_id)
            while len(self._done) > MAX_REMEMBERED:
                self._done.popitem(last=False)
            self.version += 1
            if self._runs.pop(run_id, None) is not None:
                self._write_journal()

    def get(self, run_id: str) -> LiveRun | None:
        """The run as it stands; None where it is finished or was never heard of."""
        with self._lock:
            run = self._runs.get(run_id)
            return None if run is None else run.snapshot()

    def all(self) -> list[LiveRun]:
        """Every run, the newest first."""
        with self._lock:
            runs = [run.snapshot() for run in self._runs.values()]
        return sorted(runs, key=lambda run: run.began, reverse=True)

    def _run(self, run_id: str) -> _Run | None:
        known = self._runs.get(run_id)
        if known is None:
            if run_id in self._done or self._is_finished(run_id):
                return None
            known = self._runs[run_id] = _Run(Kept(run_id, time.time()))
            while len(self._runs) > MAX_RUNS:
                self._runs.popitem(last=False)
        return known

    def _changed(self, run: _Run) -> None:
        self.version += 1
        run.version = self.version
        run.heard = time.monotonic()
        self._runs.move_to_end(run.kept.run_id)

    def _write_journal(self) -> None:
        """Write what is to be kept, in one step: a plan grew, or a run's fate is known."""
        new = self._journal.with_suffix(".new")
        try:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(msgspec.json.encode([run.kept for run in self._runs.values()]))
            os.replace(new, self._journal)
        except OSError as error:
            log.warning("the runs under way cannot be noted in %s: %s", self._journal, error)


def _read_journal(path: Path) -> list[Kept]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Kept])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("the runs that were under way cannot be read from %s: %s", path, error)
        return []


@dataclass
class _Pace:
    """What a stage has done, and when: a chunk that is reported twice counts once."""

    events: int = 0
    chunks: set[tuple[str, int]] = field(default_factory=set)
    points: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=100))

    def add(self, progress: Progress) -> None:
        chunk = progress.chunk
        if (chunk.sample, chunk.start) in self.chunks:
            return
        if len(self.chunks) < MAX_CHUNKS:
            self.chunks.add((chunk.sample, chunk.start))
        now = time.monotonic()
        if not self.points or now - self.points[-1][0] > PACE_WINDOW_S / 50:
            self.points.append((now, self.events))
        self.events += chunk.stop - chunk.start

    def rate(self) -> float | None:
        """Events per second over the last seconds; None where too little is known."""
        now = time.monotonic()
        while len(self.points) > 1 and now - self.points[0][0] > PACE_WINDOW_S:
            self.points.popleft()
        if not self.points or now - self.points[0][0] < 0.5:
            return None
        since, events = self.points[0]
        return (self.events - events) / (now - since)


class _Run:
    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.version = 0
        self.heard = time.monotonic()
        self.fetching: dict[str, Fetching] = {}
        self.paces = {stage: _Pace() for stage in STAGES}
        self.result: Mapping[str, Any] | None = None
        self.result_version = 0
        self.is_drawing = False

    def hear(self, message: Message) -> None:
        match message:
            case Progress(stage="plan", chunk=chunk):
                self.kept.plan[chunk.sample] = chunk.stop
                self.fetching.pop(chunk.sample, None)
            case Progress(stage=stage):
                self.paces[stage].add(message)
            case Fetching(sample=sample) if sample in self.fetching or len(self.fetching) < 20:
                if sample not in self.kept.plan:
                    self.fetching[sample] = message
            case Result(final=final, result=result):
                self.result, self.is_drawing = result, final
                self.result_version += 1
                self.kept.failed, self.kept.problem = None, None
            case RunFailed(problem=problem):
                self.kept.failed, self.kept.problem = time.time(), problem

    def snapshot(self) -> LiveRun:
        total = sum(self.kept.plan.values())
        done = _events_read(self.result)
        stages = []
        for stage in STAGES:
            pace = self.paces[stage]
            done = max(done, pace.events)
            rate = pace.rate()
            left = (total - done) / rate if rate and total > done else None
            stages.append(StageState(stage, min(done, total) if total else done, len(pace.chunks), rate, left))
        return LiveRun(
            run_id=self.kept.run_id,
            version=self.version,
            began=self.kept.began,
            quiet_s=time.monotonic() - self.heard,
            failed=self.kept.failed,
            problem=self.kept.problem,
            is_drawing=self.is_drawing,
            plan=dict(self.kept.plan),
            fetching=tuple(self.fetching.values()),
            stages=tuple(reversed(stages)),
            result=self.result,
            result_version=self.result_version,
        )


def _events_read(result: Mapping[str, Any] | None) -> int:
    """Events in a partial result: after a restart all that is known of what was done before."""
    samples = (result or {}).get("samples")
    if not isinstance(samples, dict):
        return 0
    counts = (sample.get("events_read") for sample in samples.values() if isinstance(sample, dict))
    return sum(count for count in counts if isinstance(count, int))
