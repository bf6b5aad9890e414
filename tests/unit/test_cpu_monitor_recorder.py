"""When a recording of the CPU monitor ends, and what it reports."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitoring import sources
from monitoring.__main__ import main
from monitoring.recorder import Recorder, RecordingOptions
from monitoring.recording import read_recording
from monitoring.sources.base import CounterSample, MonitorError
from tests.support.cpu_recordings import T0, sample

RESULT = {
    "run_id": "20260101-run",
    "release": "demo",
    "samples": {"Zee": {"events_read": 5, "events_selected": 1}},
    "timing": {"submitted": T0, "finished": T0 + 9},
}


class CountingSource:
    """One container and the host, whose counters increase by 1 s with every reading."""

    refresh_s = 5.0

    def __init__(self) -> None:
        self.readings = itertools.count()
        self.result: Mapping[str, Any] | None = None

    def now(self) -> float:
        return T0

    def read(self) -> Sequence[CounterSample]:
        number = float(next(self.readings))
        if number > 5:
            self.result = RESULT
        return [sample(number, number), sample(number, number, "host")]

    def is_current(self, since: float) -> bool:
        return True

    def describe(self) -> Mapping[str, Any]:
        return {"platform": "stub", "problems": ["a problem of the source"]}

    def find_result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        return self.result

    def close(self) -> None: ...


def recorder(**options: Any) -> Recorder:
    return Recorder(CountingSource(), RecordingOptions(interval_s=0.01, **options), lambda _: None)


def test_a_recording_ends_with_its_command_and_keeps_the_exit_code(tmp_path: Path) -> None:
    running = recorder(command=["sh", "-c", "exit 3"], outputs=[tmp_path / "a.csv"])
    recording = running.run()
    assert running.exit_code == 3
    assert recording.header["command"] == ["sh", "-c", "exit 3"]
    assert recording.header["problems"] == ["a problem of the source"]
    assert len(read_recording(tmp_path / "a.csv").samples) == len(recording.samples) > 1


class ClosingSource(CountingSource):
    """A source that closes the reading end of a pipe when it is read."""

    def __init__(self, reading_end: int) -> None:
        super().__init__()
        self.to_close: list[int] = [reading_end]

    def read(self) -> Sequence[CounterSample]:
        while self.to_close:
            os.close(self.to_close.pop())
        return super().read()


def test_a_recorded_command_finishes_if_the_recording_cannot_be_written(tmp_path: Path) -> None:
    pipe, kept, done = tmp_path / "pipe", tmp_path / "kept.csv", tmp_path / "done"
    os.mkfifo(pipe)
    source = ClosingSource(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
    options = RecordingOptions(interval_s=0.01, command=["sh", "-c", f"touch {done}; exit 3"], outputs=[pipe, kept])
    running = Recorder(source, options, lambda _: None)
    recording = running.run()
    assert done.exists()
    assert running.exit_code == 3
    assert running.not_written == [f"--output {pipe}: Broken pipe"]
    assert running.written == [kept]
    assert read_recording(kept).samples == recording.samples


def test_a_command_that_outlasts_the_recording_is_ended() -> None:
    running = recorder(command=["sleep", "600"], duration_s=0.1)
    running.run()
    assert running.exit_code == -2


def test_a_recording_ends_when_the_named_run_has_finished() -> None:
    recording = recorder(until_run="20260101-run", tail_s=0.05).run()
    assert recording.header["run"]["run_id"] == "20260101-run"
    assert recording.header["run"]["events"] == 5


class SourceOfABusyCore(CountingSource):
    """A container that uses one core of a real clock; its counter increases at every 10 ms."""

    def now(self) -> float:
        return time.time()

    def read(self) -> Sequence[CounterSample]:
        now = self.now()
        return [replace(sample(0.0, math.floor(now * 100) / 100), time=now)]


@pytest.mark.parametrize("options", [{"duration_s": 0.2}, {"command": ["sleep", "0.3"]}])
def test_cores_are_never_those_of_a_few_milliseconds(options: dict[str, Any]) -> None:
    recording = Recorder(SourceOfABusyCore(), RecordingOptions(interval_s=0.2, **options), lambda _: None).run()
    cores = [one.cores for one in recording.samples if one.cores is not None]
    # The counter is wrong by 10 ms at most, over half an interval at least.
    assert cores == [pytest.approx(1.0, abs=0.11)] * len(cores)
    assert cores


class SourceOfASlowHost(CountingSource):
    """A source that reads the host at every fifth reading of its container only."""

    def read(self) -> Sequence[CounterSample]:
        service, host = super().read()
        return [service] if host.cpu_seconds % 5 else [service, host]


def test_current_values_are_shown_when_every_counter_was_read_twice() -> None:
    options = RecordingOptions(interval_s=0.01, duration_s=0.01)
    recording = Recorder(SourceOfASlowHost(), options, lambda _: None).run()
    assert [one.cores for one in recording.samples if one.service == "host"] == [None, 1.0]


class SourceOfALateService(CountingSource):
    """A source whose only service starts after the third reading of the host, and is seen later."""

    def __init__(self, seen_at: float) -> None:
        super().__init__()
        self.seen_at = seen_at

    def read(self) -> Sequence[CounterSample]:
        service, host = super().read()
        if host.cpu_seconds < self.seen_at:
            return [host]
        started = replace(service, time=T0 + 2.5, cpu_seconds=0.0, state="started")
        return [started, service, host] if host.cpu_seconds == self.seen_at else [service, host]


@pytest.mark.parametrize("seen_at", [3, 5])
def test_the_host_is_recorded_from_before_the_first_service_started(seen_at: float) -> None:
    options = RecordingOptions(interval_s=0.01, duration_s=0.2)
    recording = Recorder(SourceOfALateService(seen_at), options, lambda _: None).run()
    host = [one.cpu_seconds for one in recording.samples if one.service == "host"]
    assert host[:4] == [2.0, 3.0, 4.0, 5.0]


class SourceOfTwoMachines(CountingSource):
    """A source whose two hosts are read in turn; the service starts after the fifth reading, and is seen later."""

    def read(self) -> Sequence[CounterSample]:
        number = float(next(self.readings))
        host = replace(sample(number, number, "host"), container=f"host {number % 2:g}")
        return [host] if number < 6 else [replace(sample(4.5, 0.0), state="started"), sample(number, number), host]


def test_each_host_is_recorded_from_before_the_first_service_started() -> None:
    options = RecordingOptions(interval_s=0.01, duration_s=0.2)
    recording = Recorder(SourceOfTwoMachines(), options, lambda _: None).run()
    begins = [next(one.time - T0 for one in recording.samples if one.container == f"host {host}") for host in (0, 1)]
    assert begins == [4.0, 3.0]


class SourceWithOtherClock(CountingSource):
    """The same source on a machine whose clock differs from this one's."""

    def __init__(self, ahead_s: float) -> None:
        super().__init__()
        self.ahead_s = ahead_s
        self.latest: list[CounterSample] = []

    def now(self) -> float:
        return time.time() + self.ahead_s

    def read(self) -> Sequence[CounterSample]:
        self.latest = [replace(sample(0.0, float(next(self.readings))), time=self.now())]
        return self.latest

    def is_current(self, since: float) -> bool:
        return all(one.time >= since for one in self.latest)


@pytest.mark.parametrize("ahead_s", [-30.0, 30.0])
def test_the_clock_of_a_source_need_not_be_that_of_the_monitor(ahead_s: float) -> None:
    source = SourceWithOtherClock(ahead_s)
    options = RecordingOptions(interval_s=0.01, command=["sleep", "0.1"])

    recording = Recorder(source, options, lambda _: None).run()

    assert [one.cpu_seconds for one in recording.samples] == [float(n) for n in range(len(recording.samples))]
    assert recording.samples[0].time <= recording.header["begin"] <= recording.header["end"]
    assert recording.samples[-1].time >= recording.header["end"]
    assert recording.header["problems"] == ["a problem of the source"]


def test_a_service_without_samples_is_missing() -> None:
    running = recorder(services=["analysis", "visualisation"], duration_s=0.05)
    running.run()
    assert running.missing_services() == ["visualisation"]


def test_the_host_is_not_recorded_without_a_service() -> None:
    assert recorder(services=["visualisation"], duration_s=0.05).run().samples == []


class SourceOf(CountingSource):
    """The same source with another service."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def read(self) -> Sequence[CounterSample]:
        service, host = super().read()
        return [replace(service, service=self.service, memory_bytes=123_456_000_000), host]


def test_an_unknown_service_is_refused_with_the_choices() -> None:
    options = RecordingOptions(interval_s=0.01, duration_s=0.05, services=["worker", "data_loader"])
    with pytest.raises(MonitorError) as refused:
        Recorder(SourceOf("worker"), options, lambda _: None).run()
    assert str(refused.value) == (
        "--services data_loader: there is no such service; "
        "choose one of data-loader, data-processor, analysis, visualisation, rabbitmq, worker"
    )


def test_a_service_of_any_name_may_start_while_a_command_runs() -> None:
    running = recorder(services=["worker"], command=["true"])
    assert running.run().samples == []
    assert running.missing_services() == ["worker"]


def test_the_table_of_a_recording_is_not_cut_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "open_source", lambda *_: SourceOf("data-processor"))
    main(["record", "--interval", "0.01", "--duration", "0.05", "--output", str(tmp_path / "a.csv")])
    table = capsys.readouterr().out
    assert "data-processor" in table
    assert "123456 MB" in table
    assert "…" not in table


def test_a_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(MonitorError, match="no-such-command: No such file"):
        recorder(command=["no-such-command"]).run()
