"""Recording of a source for a duration, until a run has finished, or while a command runs."""

from __future__ import annotations

import contextlib
import math
import platform
import signal
import subprocess
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from monitoring import run_results
from monitoring.recording import RateCalculator, Recording, RecordingFile
from monitoring.sources.base import MACHINE, PIPELINE_SERVICES, CounterSample, MonitorError, Source

#: Seconds between two reads while waiting for counters to be current.
_POLL_INTERVAL_S = 0.05
#: Seconds between two searches for the result of a run.
_RESULT_INTERVAL_S = 1.0
#: Seconds for which a source may fail before the recording ends.
_FAILURE_LIMIT_S = 15.0
#: Readings of each part of the machine that are kept until a service is seen, which may be some after its start.
_READINGS_BEFORE = 16


@dataclass(frozen=True)
class RecordingOptions:
    """What to record, for how long, and where to write it."""

    interval_s: float = 1.0
    duration_s: float = math.inf
    #: Seconds to continue after the command or the run has ended.
    tail_s: float = 0.0
    #: Seconds to wait for the first sample.
    wait_s: float = math.inf
    until_run: str | None = None
    command: Sequence[str] = ()
    #: A function to record in place of a command; returns an exit code.
    work: Callable[[], int] | None = None
    services: Sequence[str] = ()
    outputs: Sequence[Path] = ()
    label: str | None = None
    result_folders: Sequence[Path] = ()

    @property
    def is_recorded(self) -> bool:
        """Whether sums matter: they are written, or the cost of a command is requested."""
        return bool(self.outputs or self.command or self.work)


class Recorder:
    """Records one source once.

    ``stop`` ends the recording; it is set by SIGINT, SIGTERM, and the end of
    the command. ``abort`` ends it without waiting for current counters; it is
    set by a second signal.
    """

    def __init__(
        self, source: Source, options: RecordingOptions, show: Callable[[Sequence[CounterSample]], None]
    ) -> None:
        self.source = source
        self.options = options
        self.stop = threading.Event()
        self.abort = threading.Event()
        self.exit_code = 0
        #: The files that were written, and why others could not be.
        self.written: list[Path] = []
        self.not_written: list[str] = []
        self._show = show
        self._rates = RateCalculator(min_s=options.interval_s / 2)
        self._samples: list[CounterSample] = []
        #: The services that the source has, also those that are not recorded.
        self._seen: set[str] = set()
        self._machine_before: defaultdict[str, deque[CounterSample]] = defaultdict(
            partial(deque, maxlen=_READINGS_BEFORE)
        )
        self._files: list[RecordingFile] = []
        self._problems: list[str] = []
        self._failing_since: float | None = None
        self.interrupted = False
        self._run: Mapping[str, Any] | None = None
        #: Times are by the clock of the source's samples, except for that of the files on this machine.
        self._begin = source.now()
        self._began_here = time.time()
        #: A recording's sums must not begin with a counter that was read before it.
        self._not_before = self._begin if options.is_recorded else 0.0

    def run(self) -> Recording:
        """Record until the options say to stop, and write the files; ``not_written`` names those that fail.

        Raises MonitorError if a file cannot be opened, or if the source fails, after writing the files.
        """
        failure = None
        with self._signals():
            self._files = [RecordingFile(path, self._header(None)) for path in self.options.outputs]
            try:
                self._read_until_current(self.source.now() if self.options.is_recorded else 0.0)
                self._check_services()
                self._begin, self._began_here = self.source.now(), time.time()
                with self._command():
                    self._read_at_intervals()
                end = self.source.now()
                if self.options.is_recorded:
                    self._read_until_current(end)
                else:
                    self._read_until_rates_are_known()
                if self._run is None:
                    self._find_run()
            except MonitorError as error:
                failure, end = error, self.source.now()
        recording = Recording("this recording", self._header(end), self._samples)
        for file in self._files:
            try:
                file.finish(recording.header)
            except MonitorError as error:
                self.not_written.append(str(error))
            else:
                self.written.append(file.path)
        if failure is not None:
            raise MonitorError("; ".join([str(failure), *self.not_written]))
        return recording

    def missing_services(self) -> list[str]:
        """Return the expected services that have no sample."""
        seen = {sample.service for sample in self._samples}
        expected = self.options.services or (PIPELINE_SERVICES if seen & set(PIPELINE_SERVICES) else ())
        return [service for service in expected if service not in seen]

    def _check_services(self) -> None:
        """Raise MonitorError for a name of no service, neither of the pipeline nor running, if none may start later."""
        options = self.options
        if options.command or options.work or math.isfinite(options.wait_s):
            return
        known = [*PIPELINE_SERVICES, *sorted(self._seen.difference(PIPELINE_SERVICES, MACHINE))]
        for name in options.services:
            if name not in known:
                raise MonitorError(f"--services {name}: there is no such service; choose one of {', '.join(known)}")

    def _read_at_intervals(self) -> None:
        begin = time.monotonic()
        end = begin + self.options.duration_s
        next_search = begin
        interval = 0
        ending = False
        while not self.abort.is_set():
            now = time.monotonic()
            if self.options.until_run and self._run is None and now >= next_search:
                next_search = now + _RESULT_INTERVAL_S
                self._find_run()
            if not ending and (self.stop.is_set() or (self.options.until_run and self._run is not None)):
                ending = True
                end = min(end, now + self.options.tail_s)
            if now >= end or (now - begin > self.options.wait_s and not self._samples):
                return
            interval = max(interval + 1, math.ceil((now - begin) / self.options.interval_s))
            pause = min(end, begin + interval * self.options.interval_s) - now
            (self.abort if ending else self.stop).wait(max(0.0, pause))
            self._read()

    def _find_run(self) -> None:
        """Find the run's result in the folders of the command, or where the services keep it."""
        options = self.options
        if not options.is_recorded and not options.until_run:
            return
        result = run_results.find_in_folders(options.result_folders, options.until_run, self._began_here)
        if result is None:
            with contextlib.suppress(MonitorError):
                result = self.source.find_result(options.until_run, self._begin)
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            self._run = run_results.run_summary(result) if result is not None else None

    def _read_until_current(self, since: float) -> None:
        """Read until every counter was read at or after ``since``, at most for the source's refresh time.

        The sums of a recording begin and end with such counters. A table begins with any counter.
        """
        deadline = time.monotonic() + self.source.refresh_s
        while True:
            self._read()
            if self._failing_since is None and self.source.is_current(since):
                return self._read()
            if time.monotonic() > deadline:
                self._problems.append(f"not every counter was read again within {self.source.refresh_s:g} s")
                return None
            if self.abort.wait(_POLL_INTERVAL_S) or (self.interrupted and not self._samples):
                return None

    def _read_until_rates_are_known(self) -> None:
        """Read until every container has ``cores``, at most for the source's refresh time and until an interrupt.

        Counters that are read less often than once per interval have been read only once at the end of the first.
        """
        deadline = time.monotonic() + self.source.refresh_s
        while time.monotonic() < deadline:
            latest = {sample.lifetime: sample for sample in self._samples}
            if all(one.cores is not None or one.state != "running" for one in latest.values()):
                return
            if self.stop.wait(_POLL_INTERVAL_S):
                return
            self._read()

    def _read(self) -> None:
        try:
            samples = self.source.read()
            self._failing_since = None
        except MonitorError as error:
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if str(error) not in self._problems:
                self._problems.append(str(error))
            if now - self._failing_since > _FAILURE_LIMIT_S:
                raise
            return
        self._seen.update(sample.service for sample in samples)
        wanted = (*self.options.services, *MACHINE)
        samples = [
            self._rates.add_cores(sample)
            for sample in samples
            if (not self.options.services or sample.service in wanted)
            and (sample.time >= self._not_before or sample.state == "started")
        ]
        if not self._samples:
            first = min((sample.time for sample in samples if sample.service not in MACHINE), default=None)
            if first is None:  # none of the wanted services runs, as far as the source knows
                for sample in samples:
                    self._machine_before[sample.container].append(sample)
                return
            samples = [*self._machine_from(first), *samples]
        self._samples += samples
        for file in self._files:
            file.add(samples)
        self._show(samples)

    def _machine_from(self, time_s: float) -> list[CounterSample]:
        """Return the readings of the machine so far, of each part from the last one before ``time_s`` on."""
        kept: list[CounterSample] = []
        for readings in self._machine_before.values():
            while len(readings) > 1 and readings[1].time <= time_s:
                readings.popleft()
            kept += readings
        return kept

    def _header(self, end: float | None) -> dict[str, Any]:
        platform_facts = dict(self.source.describe())
        problems = [*platform_facts.pop("problems", ()), *self._problems]
        versions = {"monitor": 1, "python": platform.python_version(), **platform_facts.get("versions", {})}
        return {
            "label": self.options.label or platform_facts["platform"],
            **platform_facts,
            "versions": versions,
            "interval_s": self.options.interval_s,
            "begin": round(self._begin, 6),
            "end": None if end is None else round(end, 6),
            "command": list(self.options.command),
            "run": self._run,
            "problems": problems,
        }

    @contextlib.contextmanager
    def _command(self) -> Iterator[None]:
        """Run the command in the background and keep its exit code; terminate it if the recording ends first."""
        command, work = self.options.command, self.options.work
        if work is not None:

            def run() -> None:
                self.exit_code = 1
                try:
                    self.exit_code = work()
                except MonitorError as error:
                    self._problems.append(str(error))
                finally:
                    self.stop.set()

            thread = threading.Thread(target=run, name="work", daemon=True)
            thread.start()
            yield
            thread.join()
            return
        if not command or self.stop.is_set():
            yield
            return
        try:
            process = subprocess.Popen(command)  # noqa: S603  the user's own command
        except OSError as error:
            raise MonitorError(f"{command[0]}: {error.strerror}") from None

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
        """Stop on the first SIGINT or SIGTERM and abort on the second; signals need the main thread."""

        def interrupted(*_: object) -> None:
            if self.stop.is_set():
                self.abort.set()
            self.interrupted = True
            self.stop.set()

        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
