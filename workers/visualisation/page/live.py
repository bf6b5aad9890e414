"""The state of runs under way and of failed runs, from the messages of the results exchange."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.cancellations import CANCELLED
from common.messages import (
    FetchProgress,
    Message,
    Progress,
    QueueStatus,
    Result,
    RunFailed,
    RunStarted,
    ServiceStatus,
    Stage,
    run_of,
)
from common.progress import RunProgress
from common.settings import RunSettings
from workers.visualisation.page.pipeline import Pipeline
from workers.visualisation.page.timeline import Timeline, TimelineParts
from workers.visualisation.page.usage import Sample

MAX_RUNS = 100
#: Number of ids of finished runs that are kept, to ignore messages that arrive after the end of a run.
MAX_FINISHED = 10_000
MAX_FETCHES = 20
SILENT_S = 60.0


@dataclass(frozen=True)
class StageState:
    """The numbers of events and chunks that a stage has finished; ``throughput`` is in events per second."""

    name: Stage
    events: int
    chunks: int
    throughput: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class LiveRun:
    """The state of a run that has no result folder.

    ``settings`` is None until the run's first message, ``result`` until the first
    partial result. ``problem`` is why the run failed, or why its folder cannot be
    written. ``silent_s`` is the time since the last message, in seconds.
    """

    run_id: str
    version: int
    silent_s: float
    has_failed: bool
    problem: str | None
    is_drawing: bool
    settings: RunSettings | None
    planned: Mapping[str, int]
    fetching: tuple[FetchProgress, ...]
    stages: tuple[StageState, ...]
    result: Mapping[str, Any] | None
    result_version: int

    @property
    def total_events(self) -> int:
        """Number of events to be read from the files opened so far."""
        return sum(self.planned.values())

    @property
    def percent(self) -> int | None:
        """The percentage of the events that are analysed; None while it is not known, because files are not open."""
        if not self.total_events or len(self.planned) < self.samples:
            return None
        return 100 * self.stages[-1].events // self.total_events

    @property
    def samples(self) -> int:
        """Number of samples of the run; 0 if it is not known yet."""
        if self.settings is not None:
            return len(self.settings.samples)
        samples = (self.result or {}).get("samples")
        return len(samples) if isinstance(samples, dict) else 0

    @property
    def state(self) -> str:
        """One of failed, cancelled, drawing, silent, fitting and running."""
        if self.has_failed:
            return "cancelled" if self.problem == CANCELLED else "failed"
        if self.is_drawing:
            return "drawing"
        if self.silent_s > SILENT_S:
            return "silent"
        is_planned = 0 < self.samples == len(self.planned)
        return "fitting" if is_planned and self.stages[-1].events == self.total_events else "running"


class LiveRuns:
    """Keeps the state of up to MAX_RUNS runs; the run whose last message is the oldest is dropped first.

    The service's loop updates it, and the page's threads read it.
    """

    def __init__(self, is_finished: Callable[[str], bool]) -> None:
        self.version = 0
        self.pipeline = Pipeline()
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._is_finished = is_finished

    def update(self, message: Message) -> None:
        """Apply a message to its run; messages of finished runs are ignored."""
        if isinstance(message, ServiceStatus | QueueStatus | Progress):
            self.pipeline.update(message)
        run_id = run_of(message)
        with self._lock:
            if run_id is None or run_id in self._finished:
                return
            if run_id not in self._runs:
                if self._is_finished(run_id):
                    return
                self._runs[run_id] = _Run(run_id)
            self._runs[run_id].update(message)
            self._mark_changed(run_id)
            while len(self._runs) > MAX_RUNS:
                self._runs.popitem(last=False)

    def report_problem(self, run_id: str, problem: str) -> None:
        """Record why a run's folder cannot be written."""
        with self._lock:
            if run_id in self._runs:
                self._runs[run_id].problem = problem
                self._mark_changed(run_id)

    def finish(self, run_id: str) -> None:
        """Remove a run whose folder has been written."""
        with self._lock:
            self._finished[run_id] = None
            self._finished.move_to_end(run_id)
            while len(self._finished) > MAX_FINISHED:
                self._finished.popitem(last=False)
            self._runs.pop(run_id, None)
            self.version += 1

    def get(self, run_id: str) -> LiveRun | None:
        """Return the state of a run; None if it is finished or unknown."""
        with self._lock:
            run = self._runs.get(run_id)
            return None if run is None else run.snapshot()

    def timeline(self, run_id: str) -> TimelineParts | None:
        """Return what the page shows of a run's timeline so far; None if it is unknown or has no chunk yet."""
        with self._lock:
            run = self._runs.get(run_id)
            return None if run is None else run.timeline.parts()

    def samples(self, run_id: str) -> Mapping[str, Sequence[Sample]]:
        """Return the CPU and memory of the services during a run; empty if it is unknown or has no chunk yet."""
        timeline = self.timeline(run_id)
        return {} if timeline is None else self.pipeline.samples(*timeline.limits)

    def all(self) -> list[LiveRun]:
        """Return the state of every run, the newest first."""
        with self._lock:
            runs = sorted(self._runs.values(), key=lambda run: run.first_message_s, reverse=True)
            return [run.snapshot() for run in runs]

    def _mark_changed(self, run_id: str) -> None:
        self.version += 1
        self._runs[run_id].version = self.version
        self._runs[run_id].last_message_s = time.monotonic()
        self._runs.move_to_end(run_id)


class _Run:
    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.version = 0
        self.first_message_s = self.last_message_s = time.monotonic()
        self.settings: RunSettings | None = None
        self.progress = RunProgress()
        self.timeline = Timeline()
        self.fetching: dict[str, FetchProgress] = {}
        self.has_failed, self.is_drawing = False, False
        self.problem: str | None = None
        self.result: Mapping[str, Any] | None = None
        self.result_version = 0

    def update(self, message: Message) -> None:
        match message:
            case RunStarted(settings=settings):
                self.settings = self.settings or settings
            case Progress(chunk=chunk, spans=spans):
                self.progress.update(message)
                self.timeline.add(spans)
                self.fetching.pop(chunk.sample, None)
            case FetchProgress(sample=sample) if sample in self.fetching or len(self.fetching) < MAX_FETCHES:
                if sample not in self.progress.planned:
                    self.fetching[sample] = message
            case Result(final=final, result=result):
                self.result, self.is_drawing = result, final
                self.result_version += 1
                self.has_failed, self.problem = False, None
            case RunFailed(problem=problem, digest=digest) if not digest or self.settings_are(digest):
                self.has_failed, self.problem = True, problem

    def settings_are(self, digest: str) -> bool:
        """Whether the settings of the run have this digest."""
        return self.settings is not None and self.settings.digest == digest

    def snapshot(self) -> LiveRun:
        total, read = self.progress.total_events, _events_read(self.result)
        stages = []
        for name, stage in self.progress.stages.items():
            events = max(stage.events, read)
            throughput = stage.throughput()
            left = (total - events) / throughput if throughput and total > events else None
            events = min(events, total) if total else events
            stages.append(StageState(name, events, stage.chunks, throughput, left))
        return LiveRun(
            run_id=self.run_id,
            version=self.version,
            silent_s=time.monotonic() - self.last_message_s,
            has_failed=self.has_failed,
            problem=self.problem,
            is_drawing=self.is_drawing,
            settings=self.settings,
            planned=dict(self.progress.planned),
            fetching=tuple(self.fetching.values()),
            stages=tuple(stages),
            result=self.result,
            result_version=self.result_version,
        )


def _events_read(result: Mapping[str, Any] | None) -> int:
    """Return the events of a partial result, which all stages have finished even if progress messages were lost."""
    samples = (result or {}).get("samples")
    if not isinstance(samples, dict):
        return 0
    counts = (sample.get("events_read") for sample in samples.values() if isinstance(sample, dict))
    return sum(count for count in counts if isinstance(count, int))
