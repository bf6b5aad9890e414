"""The CPU monitor's recordings: the files, and the run that they belong to."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitoring import run_results, usage
from monitoring.recording import COLUMNS, RecordingFile, read_recording
from monitoring.sources.base import MonitorError
from tests.support.cpu_recordings import T0, recording, run_monitor, sample


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_recording_reads_back_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"one{suffix}"
    file = RecordingFile(path, {"platform": "compose"})
    written = recording(
        [
            sample(0, 0.0, state="started"),
            sample(1.5, 0.75, memory_bytes=10, network_rx_bytes=3, throttled_seconds=0.25, restarts=2),
        ]
    ).samples
    file.add(written)
    header = {"platform": "compose", "cores": 2, "limits": {"analysis": {"cores": None}}}
    file.finish(header)
    read = read_recording(path)
    assert read.samples == written
    assert read.header == header
    assert path.read_text().startswith('# platform: "compose"\n# cores: 2\n')
    assert list(tmp_path.iterdir()) == [path]


def test_the_columns_keep_their_names_and_order(tmp_path: Path) -> None:
    RecordingFile(tmp_path / "a.csv", {}).finish({})
    assert (tmp_path / "a.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert COLUMNS == (
        "time",
        "service",
        "replica",
        "container",
        "cpu_seconds",
        "cores",
        "memory_bytes",
        "network_rx_bytes",
        "network_tx_bytes",
        "disk_read_bytes",
        "disk_write_bytes",
        "throttled_seconds",
        "started",
        "restarts",
        "state",
    )


def test_samples_are_in_the_file_before_the_recording_ends(tmp_path: Path) -> None:
    file = RecordingFile(tmp_path / "a.csv", {"platform": "compose"})
    file.add([sample(0, 1.0), sample(1, 2.0)])
    assert usage.usage_by_service(read_recording(tmp_path / "a.csv"))["analysis"].cpu_seconds == 1.0
    file.finish({})


def test_a_recording_can_be_written_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    RecordingFile(tmp_path / "pipe", {}).finish({})
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Let this process write no file beyond ``limit`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_samples_that_found_no_room_are_written_when_there_is_room(tmp_path: Path) -> None:
    samples = [sample(0, 1.0), sample(1, 2.0)]
    file = RecordingFile(tmp_path / "a.csv", {})
    with largest_file((tmp_path / "a.csv").stat().st_size):
        file.add(samples[:1])
        file.add(samples[1:])
    file.finish({})
    assert read_recording(tmp_path / "a.csv").samples == samples


def test_a_recording_that_finds_no_room_keeps_what_was_written_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    file = RecordingFile(path, {})
    file.add([sample(0, 1.0)])
    before = path.read_text()
    with largest_file(path.stat().st_size):
        file.add([sample(1, 2.0)])
        with pytest.raises(MonitorError, match=r"--output .*/a\.csv: File too large"):
            file.finish({})
        with pytest.raises(MonitorError, match=r"--output .*/b\.csv: File too large"):
            RecordingFile(tmp_path / "b.csv", {"label": "x" * len(before)})
    assert path.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b.csv"}


def test_without_start_times_a_decreasing_counter_is_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    rows = [(0, 5.0), (1, 6.0), (2, 0.5), (3, 2.0)]
    path.write_text(
        "time,service,replica,container,cpu_seconds\n"
        + "".join(f"{T0 + at},analysis,1,analysis-1,{cpu}\n" for at, cpu in rows)
    )
    used = usage.usage_by_service(read_recording(path))["analysis"]
    assert used.cpu_seconds == pytest.approx(3.0)
    assert used.restarts == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no samples"),
        ("# platform: 1\n", "holds no samples"),
        ("time,service\n1,2\n", "lacks the column 'replica'"),
        ("time,service,replica,container,cpu_seconds\n1,a,1,a,x\n", "line 2: cpu_seconds='x' is not a number"),
        ("time,service,replica,container,cpu_seconds\n1,a,1,a,nan\n", "line 2: cpu_seconds='nan' is not finite"),
        ("# a: 1\n{\n", "line 2: not JSON"),
    ],
)
def test_an_invalid_file_is_refused_with_the_line_and_the_problem(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(MonitorError, match=problem):
        read_recording(tmp_path / "x.csv")


def test_compare_reports_an_invalid_file_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("")
    finished = run_monitor("compare", str(tmp_path / "x.csv"), str(tmp_path / "x.csv"))
    assert finished.returncode == 1
    assert finished.stderr == f"cpu_monitor.py: {tmp_path / 'x.csv'}: holds no samples\n"


def write_result(folder: Path, run_id: str, finished: float) -> None:
    result = {
        "run_id": run_id,
        "release": "demo",
        "samples": {
            "Zee": {"events_read": 70, "events_selected": 7},
            "llll": {"events_read": 30, "events_selected": 3},
        },
        "settings": {"pt_cuts": [20]},
        "timing": {"submitted": finished - 5, "finished": finished},
    }
    (folder / run_id).mkdir()
    (folder / run_id / "result.json").write_text(json.dumps(result))


def test_the_recorded_run_is_the_newest_or_the_one_that_is_named(tmp_path: Path) -> None:
    for run_id, finished in (("20260101-old", 10.0), ("20260102-new", T0), ("20260103-late", T0 + 1)):
        write_result(tmp_path, run_id, finished)
    newest = run_results.find_in_folders([tmp_path], None, 0.0)
    named = run_results.find_in_folders([tmp_path], "20260101-old", T0)
    assert newest is not None
    assert named is not None
    assert (newest["run_id"], named["run_id"]) == ("20260103-late", "20260101-old")
    assert run_results.find_in_folders([tmp_path], None, T0 + 2) is None


def test_a_recording_keeps_the_runs_events_and_settings(tmp_path: Path) -> None:
    write_result(tmp_path, "20260101-run", T0)
    result = run_results.find_in_folders([tmp_path], "20260101-run", 0.0)
    assert result is not None
    summary = run_results.run_summary(result)
    assert summary["events"] == 100
    assert summary["samples"] == {"Zee": [70, 7], "llll": [30, 3]}
    assert summary["settings"] == {"pt_cuts": [20]}
    assert (summary["submitted"], summary["finished"]) == (T0 - 5, T0)


def test_a_result_in_a_container_is_read_by_commands_in_it(tmp_path: Path) -> None:
    for run_id, finished in (("20260101-old", T0), ("20260102-new", T0 + 1)):
        write_result(tmp_path, run_id, finished)
    write_result(tmp_path, ".20260103-unfinished", T0)
    (tmp_path / ".20260103-unfinished" / "result.json").unlink()

    def execute(command: list[str]) -> str:
        if command[0] == "ls":
            return "\n".join(path.name for path in Path(command[1]).iterdir())
        path = Path(command[1])
        return path.read_text() if path.exists() else ""

    newest = run_results.find_in_container(execute, str(tmp_path), None, T0)
    assert newest is not None
    assert newest["run_id"] == "20260102-new"
    assert run_results.find_in_container(execute, str(tmp_path), None, T0 + 2) is None
    assert run_results.find_in_container(execute, str(tmp_path), "no-such-run", T0) is None


def test_results_are_searched_where_the_command_writes_them() -> None:
    assert run_results.result_folders(["./docker-run.sh", "--output", "here"], "results") == [Path("here")]
    assert run_results.result_folders(["./docker-run.sh", "--output=here"], "results") == [Path("here")]
    assert run_results.result_folders(["./docker-run.sh"], "results") == [Path("results")]
