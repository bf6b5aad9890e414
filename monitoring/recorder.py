"""Watch a source: for a while, until a run is done, or around a command; and record what it says."""

from __future__ import annotations

import contextlib
import math
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monitoring import run_results as runs
from monitoring.recording import Recording, RecordingFile, Sample, Sampler
from monitoring.sources.base import HOST, PIPELINE, MonitorError, Reading, Source

#: How often a counter is looked for that has to be fresh, and a run that has to be done.
_LOOK_S = 0.05
_RUN_S = 1.0
#: How long a source may fail before the recording ends.
_FAILING_S = 15.0


@dataclass(frozen=True)
class Plan:
    """How long to watch, what, and where to write it."""

    interval_s: float = 1.0
    duration_s: float = math.inf
    tail_s: float = 0.0
    wait_s: float = math.inf
    until_run: str | None = None
    command: Sequence[str] = ()
    services: Sequence[str] = ()
    outputs: Sequence[Path] = ()
    label: str | None = None
    folders: Sequence[Path] = ()


class View(Protocol):
    """Who is told of samples as they come."""

    def show(self, samples: Sequence[Sample]) -> None:
        """These have come."""
        ...


class Watch:
    """One watching of a source. ``stop`` ends it; it is set by Ctrl-C, by the command's end, or from outside."""

    def __init__(self, source: Source, plan: Plan, view: View) -> None:
        self.source = source
        self.plan = plan
        self.view = view
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self._interrupted = False
        self.exit_code = 0
        self._sampler = Sampler()
        self._samples: list[Sample] = []
        self._problems: list[str] = []
        self._failing_since: float | None = None
        self._run: Mapping[str, Any] | None = None
        self._begin = time.time()
        #: A counter read before this is no beginning of a sum.
        self._opened = self._begin if plan.outputs or plan.command else 0.0
        self._files: list[RecordingFile] = []

    def run(self) -> Recording:
        """Watch until the plan is done; returns what was recorded. Raises MonitorError where the source fails."""
        self._files = [RecordingFile(path, self._header(None)) for path in self.plan.outputs]
        failure = None
        with self._signals():
            try:
                self._until_fresh(time.time())
                self._begin = time.time()
                with self._command():
                    self._ticks()
                end = time.time()
                self._until_fresh(end)
                if self._run is None:
                    self._look_for_run()
            except MonitorError as error:
                failure, end = error, time.time()
        recording = Recording("this recording", self._header(end), self._samples)
        for file in self._files:
            file.finish(recording.header)
        if failure is not None:
            raise failure
        return recording

    def missing(self) -> list[str]:
        """The services that were expected and never appeared."""
        seen = {sample.reading.service for sample in self._samples}
        expected = self.plan.services or (PIPELINE if seen & set(PIPELINE) else ())
        return [service for service in expected if service not in seen]

    def _ticks(self) -> None:
        """Take samples at the interval, until it is time to stop."""
        first = time.monotonic()
        tick = 0
        looked = 0.0
        ending: float | None = None
        while not self.hurry.is_set():
            now = time.monotonic()
            if ending is None and (self.stop.is_set() or self._run_is_done(now - looked)):
                ending = now + self.plan.tail_s
            if self.plan.until_run and now - looked >= _RUN_S:
                looked = now
            remaining = min(ending if ending is not None else math.inf, first + self.plan.duration_s) - now
            if remaining <= 0 or (now - first > self.plan.wait_s and not self._samples):
                return
            tick = max(tick + 1, math.ceil((now - first) / self.plan.interval_s))
            pause = min(remaining, first + tick * self.plan.interval_s - now)
            (self.hurry if ending is not None else self.stop).wait(max(0.0, pause))
            self._take()

    def _run_is_done(self, since_last_look_s: float) -> bool:
        if self.plan.until_run and self._run is None and since_last_look_s >= _RUN_S:
            self._look_for_run()
        return self.plan.until_run is not None and self._run is not None

    def _look_for_run(self) -> None:
        """Find the run's result: in the folders where a command puts it, or with the services."""
        if not self.plan.outputs and not self.plan.command and not self.plan.until_run:
            return
        since = self._begin
        result = runs.find_result(self.plan.folders, self.plan.until_run, since)
        if result is None:
            with contextlib.suppress(MonitorError):
                result = self.source.result(self.plan.until_run, since)
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            self._run = runs.summary(result) if result is not None else None

    def _until_fresh(self, since: float) -> None:
        """Take samples until every counter has been read since then, or the source's own refresh has gone by.

        The sums begin and end on such counters. A table for the eye begins on
        the first it gets, and needs none in the end.
        """
        if not self.plan.outputs and not self.plan.command:
            if self._samples:
                return self._take()
            since = 0.0
        deadline = time.monotonic() + self.source.refresh_s
        while True:
            self._take()
            if self._failing_since is None and self.source.fresh(since):
                return self._take()
            if time.monotonic() > deadline:
                self._problems.append(f"not every counter was read again within {self.source.refresh_s:g} s")
                return None
            if self.hurry.wait(_LOOK_S) or (self._interrupted and not self._samples):
                return None

    def _take(self) -> None:
        try:
            readings = [reading for reading in self.source.read() if self._wanted(reading)]
            self._failing_since = None
        except MonitorError as error:
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if str(error) not in self._problems:
                self._problems.append(str(error))
            if now - self._failing_since > _FAILING_S:
                raise
            return
        samples = [self._sampler.sample(reading) for reading in readings]
        samples = [s for s in samples if s.reading.time >= self._opened or s.reading.state == "started"]
        self._samples += samples
        for file in self._files:
            file.add(samples)
        self.view.show(samples)

    def _wanted(self, reading: Reading) -> bool:
        return not self.plan.services or reading.service in (*self.plan.services, HOST)

    def _header(self, end: float | None) -> dict[str, Any]:
        about = dict(self.source.about())
        problems = [*about.pop("problems", ()), *self._problems]
        about["versions"] = {"monitor": 1, "python": platform.python_version(), **about.get("versions", {})}
        return {
            "label": self.plan.label or about["platform"],
            **about,
            "interval_s": self.plan.interval_s,
            "begin": round(self._begin, 6),
            "end": None if end is None else round(end, 6),
            "command": list(self.plan.command),
            "run": self._run,
            "problems": problems,
        }

    @contextlib.contextmanager
    def _command(self) -> Iterator[None]:
        """Run the plan's command meanwhile; its exit code is kept."""
        if not self.plan.command or self.stop.is_set():
            yield
            return
        try:
            process = subprocess.Popen(self.plan.command)  # noqa: S603  it is what the caller asks for
        except OSError as error:
            raise MonitorError(f"{self.plan.command[0]}: {error.strerror}") from None

        def wait() -> None:
            process.wait()
            self.stop.set()

        threading.Thread(target=wait, name="command", daemon=True).start()
        try:
            yield
        finally:
            for number in (None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if number is not None:
                    process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(3)
                    break
            self.exit_code = process.returncode

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C ends the recording, and a second one does not wait for fresh counters."""

        def interrupted(*_: object) -> None:
            if self.stop.is_set():
                self.hurry.set()
            self._interrupted = True
            self.stop.set()

        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
