"""The runs under way, and those that failed: all that the messages of the results exchange tell of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.messages import FetchProgress, Message, Progress, Result, RunFailed, RunStarted, Stage
from common.settings import RunSettings
from workers.visualisation.page.journal import Journal, Kept
from workers.visualisation.page.pace import Pace

log = logging.getLogger(__name__)

#: The stages that every event goes through, the last one first: what one has done, those after it in this tuple have.
STAGES: tuple[Stage, ...] = ("analysis", "data-processor", "data-loader")
MAX_RUNS = 100
MAX_REMEMBERED = 10_000
SILENT_S = 60.0


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
    """A run as it stands now; times in seconds since 1970. ``problem`` says why it failed, or what holds it up.

    ``settings`` is None until its start was heard of, ``result`` until something is analysed.
    """

    run_id: str
    version: int
    began: float
    quiet_s: float
    failed: float | None
    problem: str | None
    is_drawing: bool
    settings: RunSettings | None
    plan: Mapping[str, int]
    fetching: tuple[FetchProgress, ...]
    stages: tuple[StageState, ...]
    result: Mapping[str, Any] | None
    result_version: int

    @property
    def total(self) -> int:
        """Events that will be read, as far as the plan goes."""
        return sum(self.plan.values())

    @property
    def samples(self) -> int:
        """How many samples make the run whole; 0 where that is not known yet."""
        if self.settings is not None:
            return len(self.settings.samples)
        samples = (self.result or {}).get("samples")
        return len(samples) if isinstance(samples, dict) else 0

    @property
    def state(self) -> str:
        """The state in a word."""
        if self.failed is not None:
            return "failed"
        if self.is_drawing:
            return "drawing"
        if self.quiet_s > SILENT_S:
            return "silent"
        is_planned = 0 < self.samples == len(self.plan)
        return "fitting" if is_planned and self.stages[-1].events == self.total else "running"


class LiveRuns:
    """Hears messages in the service's loop, and is asked from the page's threads.

    At most MAX_RUNS are known; those of which nothing was heard for longest make way.
    """

    def __init__(self, journal: Journal, is_finished: Callable[[str], bool]) -> None:
        self.version = 0
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._done: OrderedDict[str, None] = OrderedDict()
        self._is_finished = is_finished
        self._journal = journal
        for kept in journal.read()[-MAX_RUNS:]:
            if kept.failed is not None or not is_finished(kept.run_id):
                self._runs[kept.run_id] = _Run(kept)
        if self._runs:
            self._write()

    def hear(self, message: Message) -> None:
        """Note what a message says of its run; late news of a finished run says nothing."""
        run_id = message.chunk.run_id if isinstance(message, Progress) else getattr(message, "run_id", "")
        with self._lock:
            is_new = run_id not in self._runs
            run = self._run(run_id)
            if run is None:
                return
            is_to_be_kept = run.hear(message)
            self._changed(run)
            # Before the message is acknowledged: what is kept is all that was heard, whatever happens.
            if is_to_be_kept and isinstance(message, Progress) and message.stage != "plan" and not is_new:
                self._journal.note(message)
            elif is_to_be_kept or is_new:
                self._write()

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
                self._write()

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

    def _write(self) -> None:
        self._journal.write(run.kept for run in self._runs.values())

    def _changed(self, run: _Run) -> None:
        self.version += 1
        run.version = self.version
        run.heard = time.monotonic()
        self._runs.move_to_end(run.kept.run_id)


class _Run:
    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.version = 0
        self.heard = time.monotonic()
        self.fetching: dict[str, FetchProgress] = {}
        self.paces = {stage: Pace(kept.done.setdefault(stage, {})) for stage in STAGES}
        self.result: Mapping[str, Any] | None = None
        self.result_version = 0
        self.is_drawing = False

    def hear(self, message: Message) -> bool:
        """Note what a message says; True where a restart must not forget it."""
        match message:
            case RunStarted(settings=settings):
                self.kept.settings = settings
            case Progress(stage="plan", chunk=chunk):
                self.kept.plan[chunk.sample] = chunk.stop
                self.fetching.pop(chunk.sample, None)
            case Progress(stage=stage, chunk=chunk):
                return self.paces[stage].add(chunk)
            case FetchProgress(sample=sample) if sample in self.fetching or len(self.fetching) < 20:
                if sample not in self.kept.plan:
                    self.fetching[sample] = message
                return False
            case Result(final=final, result=result):
                self.result, self.is_drawing = result, final
                self.result_version += 1
                had_failed = self.kept.failed is not None
                self.kept.failed, self.kept.problem = None, None
                return had_failed
            case RunFailed(problem=problem):
                self.kept.failed, self.kept.problem = time.time(), problem
        return True

    def snapshot(self) -> LiveRun:
        total = sum(self.kept.plan.values())
        done = _events_read(self.result)
        stages = []
        for stage in STAGES:
            pace = self.paces[stage]
            done = max(done, pace.events)
            rate = pace.rate()
            left = (total - done) / rate if rate and total > done else None
            stages.append(StageState(stage, min(done, total) if total else done, pace.chunks, rate, left))
        return LiveRun(
            run_id=self.kept.run_id,
            version=self.version,
            began=self.kept.began,
            quiet_s=time.monotonic() - self.heard,
            failed=self.kept.failed,
            problem=self.kept.problem,
            is_drawing=self.is_drawing,
            settings=self.kept.settings,
            plan=dict(self.kept.plan),
            fetching=tuple(self.fetching.values()),
            stages=tuple(reversed(stages)),
            result=self.result,
            result_version=self.result_version,
        )


def _events_read(result: Mapping[str, Any] | None) -> int:
    """Events in a partial result: what a stage has done at least, should news of it have been lost."""
    samples = (result or {}).get("samples")
    if not isinstance(samples, dict):
        return 0
    counts = (sample.get("events_read") for sample in samples.values() if isinstance(sample, dict))
    return sum(count for count in counts if isinstance(count, int))
