"""The CPU monitor without an engine or a cluster: recordings, sums, comparisons, processes, a stub of a kubelet."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitoring import run_results as runs
from monitoring import tables as table
from monitoring import usage
from monitoring.comparison import comparability
from monitoring.comparison import compare as comparison
from monitoring.comparison import plot as comparison_plot
from monitoring.recording import Recording, RecordingFile, Sample, Sampler, read_recording
from monitoring.sources.base import PIPELINE, MonitorError, Reading
from monitoring.sources.process_source import service_of
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

T0 = 1_800_000_000.0


def reading(at: float, cpu: float, service: str = "analysis", replica: str = "1", **more: Any) -> Reading:
    """A reading ``at`` seconds after T0 of a container that started at T0, if not said otherwise."""
    started = T0 + more.pop("started", 0.0)
    return Reading(T0 + at, service, replica, f"{service}-{replica}", started, cpu, **more)


def recorded(readings: Sequence[Reading], name: str = "a", **header: Any) -> Recording:
    sampler = Sampler()
    return Recording(name, header, [sampler.sample(one) for one in readings])


def monitor(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "common/cpu_monitor.py", *flags],
        cwd=ROOT,
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere.sock", "KUBECONFIG": "/nowhere", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# --- sums ---------------------------------------------------------------------------------------------------------


def test_a_container_that_ran_before_counts_from_its_first_reading_and_a_born_one_from_zero() -> None:
    before = [reading(10, 100.0), reading(20, 104.0)]
    born = [
        reading(12, 0.0, replica="2", started=12, state="started"),
        reading(13, 0.7, replica="2", started=12),
        reading(14, 1.1, replica="2", started=12, state="final"),
    ]
    used = usage.usages(recorded(before + born))["analysis"]
    assert used.cpu_seconds == pytest.approx(5.1)
    assert (used.replicas, used.restarts) == (2, 0)


def test_a_restarted_counter_loses_nothing_even_when_it_soon_passes_the_old_one() -> None:
    first = [reading(0, 0.0, state="started"), reading(1, 0.5), reading(2, 1.25, state="final")]
    second = [reading(3, 0.0, started=3, state="started"), reading(5, 1.9, started=3)]
    used = usage.usages(recorded(first + second))["analysis"]
    assert used.cpu_seconds == pytest.approx(3.15)
    assert (used.replicas, used.restarts) == (1, 1)


def test_a_file_with_the_first_columns_only_tells_lives_apart_where_a_counter_falls(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    rows = [(0, 5.0), (1, 6.0), (2, 0.5), (3, 2.0)]
    path.write_text(
        "time,service,replica,container,cpu_seconds\n"
        + "".join(f"{T0 + at},analysis,1,analysis-1,{cpu}\n" for at, cpu in rows)
    )
    used = usage.usages(read_recording(path))["analysis"]
    assert used.cpu_seconds == pytest.approx(3.0)
    assert used.restarts == 1


def test_cores_since_the_last_sample_are_the_counters_slope() -> None:
    samples = recorded([reading(0, 1.0), reading(2, 4.0), reading(2.5, 4.0)]).samples
    assert [sample.cores for sample in samples] == [None, 1.5, 0.0]


def test_a_peak_is_the_steepest_stretch_of_its_length_and_replicas_peak_together() -> None:
    one = [reading(t, cpu) for t, cpu in ((0, 0.0), (1, 0.2), (2, 1.2), (3, 1.3))]
    two = [reading(t + 0.5, cpu, replica="2") for t, cpu in ((0, 0.0), (1, 0.0), (2, 0.8), (3, 0.8))]
    used = usage.usages(recorded(one + two))["analysis"]
    # Over 1 s: either starts half way into the other. (1.5 .. 2.5): 0.5 + 0.05 + 0.8
    assert used.peak_cores(1.0) == pytest.approx(1.4)
    assert used.peak_cores(100.0) == pytest.approx(used.cpu_seconds / 3.5)


def test_peak_memory_adds_replicas_that_live_at_the_same_time_only() -> None:
    first = [
        reading(0, 0.0, memory_bytes=100),
        reading(0.6, 0.0, memory_bytes=300),
        reading(1, 0.1, memory_bytes=300, state="final"),
    ]
    after = [reading(2, 0.0, replica="2", memory_bytes=250), reading(3, 0.1, replica="2", memory_bytes=200)]
    assert usage.usages(recorded(first + after))["analysis"].peak_memory_bytes == 300
    beside = [reading(0.5, 0.0, replica="2", memory_bytes=250), reading(3, 0.1, replica="2", memory_bytes=200)]
    assert usage.usages(recorded(first + beside))["analysis"].peak_memory_bytes == 550


def test_the_total_is_the_pipelines_without_the_host_and_what_submits() -> None:
    services = [*PIPELINE, "submit", "host"]
    both = [one for name in services for one in (reading(0, 0.0, name), reading(10, 2.0, name))]
    numbers = table.summary(recorded(both, run={"run_id": "r", "events": 500_000}))
    assert numbers["total"]["cpu_seconds"] == pytest.approx(10.0)
    assert numbers["total"]["cpu_seconds_per_million_events"] == pytest.approx(20.0)
    assert numbers["total"]["mean_cores"] == pytest.approx(1.0)
    assert [row["service"] for row in numbers["services"]] == services


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_recording_reads_back_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"one{suffix}"
    file = RecordingFile(path, {"platform": "compose"})
    sampler = Sampler()
    written = [
        sampler.sample(one)
        for one in (
            reading(0, 0.0, state="started"),
            reading(1.5, 0.75, memory_bytes=10, network_rx_bytes=3, throttled_seconds=0.25, restarts=2),
        )
    ]
    file.add(written)
    file.finish({"platform": "compose", "cores": 2, "limits": {"analysis": {"cores": None}}})
    read = read_recording(path)
    assert read.samples == written
    assert read.header == {"platform": "compose", "cores": 2, "limits": {"analysis": {"cores": None}}}
    assert path.read_text().startswith('# platform: "compose"\n# cores: 2\n')
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_columns_are_the_promised_ones(tmp_path: Path) -> None:
    file = RecordingFile(tmp_path / "a.csv", {})
    file.finish({})
    head = (tmp_path / "a.csv").read_text()
    assert head.startswith("time,service,replica,container,cpu_seconds,cores,memory_bytes,")


def test_rows_are_in_the_file_before_the_recording_ends(tmp_path: Path) -> None:
    file = RecordingFile(tmp_path / "a.csv", {"platform": "compose"})
    file.add([Sample(reading(0, 1.0), None), Sample(reading(1, 2.0), 1.0)])
    assert usage.usages(read_recording(tmp_path / "a.csv"))["analysis"].cpu_seconds == 1.0
    file.finish({})


def test_a_recording_to_something_that_is_no_file_leaves_it_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    file = RecordingFile(tmp_path / "pipe", {})
    file.finish({})
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no samples"),
        ("# platform: 1\n", "holds no samples"),
        ("time,service\n1,2\n", "lacks the column 'replica'"),
        ("time,service,replica,container,cpu_seconds\n1,a,1,a,x\n", "line 2: cpu_seconds='x' is not a number"),
        ("time,service,replica,container,cpu_seconds\n1,a,1,a,nan\n", "line 2: cpu_seconds='nan' is not finite"),
        ("# a: 1\n{\n", "line 2: not JSON"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_by_line(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(MonitorError, match=complaint):
        read_recording(tmp_path / "x.csv")
    told = monitor("compare", str(tmp_path / "x.csv"), str(tmp_path / "x.csv"))
    assert told.returncode == 1
    assert complaint in told.stderr
    assert len(told.stderr.splitlines()) == 1


# --- comparison ---------------------------------------------------------------------------------------------------


def run_of(events: int = 1_000_000, **more: Any) -> dict[str, Any]:
    kept = {
        "run_id": "r",
        "release": "demo",
        "complete": True,
        "settings": {"lumi": 10, "fraction": 1.0, "pt_cuts": [20, 15, 10]},
        "samples": {"Zee": [events, 10]},
        "events": events,
        "submitted": T0 + 1,
        "digest": "d",
    }
    return {**kept, **more}


def one_of(label: str, number: int, seconds: float, step: float = 1.0, **header: Any) -> Recording:
    """A recording of 40 s in which each service uses ``seconds``, between 5 s and 25 s."""
    times = np.arange(0.0, 40.0 + step, step)
    used = seconds * np.clip((times - 5.0) / 20.0, 0.0, 1.0)
    readings = [
        reading(float(t), 100.0 + float(u) * (1 + place / 4), service, memory_bytes=50_000_000 * (place + 1))
        for place, service in enumerate(PIPELINE)
        for t, u in zip(times, used, strict=True)
    ]
    limits = {service: {"cores": None, "memory_bytes": 2**30} for service in PIPELINE}
    images = {service: {"name": f"{service}:latest", "id": f"sha256:{service}"} for service in PIPELINE}
    facts = {"label": label, "cores": 2, "limits": limits, "images": images, "run": run_of(), "interval_s": step}
    return recorded(readings, f"{label}-{number}", **{**facts, **header})


def test_a_ratio_has_the_propagated_standard_errors_of_repeated_recordings() -> None:
    compose = [one_of("compose", n, s) for n, s in enumerate((9.0, 10.0, 11.0))]
    cluster = [one_of("kubernetes", n, s, 10.0) for n, s in enumerate((11.0, 12.0, 13.0))]
    compared = comparison.compare([*compose, *cluster])
    row = compared.row("data-loader", "kubernetes")
    assert row is not None
    assert row.ratio is not None
    assert row.cpu_seconds.mean == pytest.approx(12.0)
    assert row.cpu_seconds.error == pytest.approx(1 / math.sqrt(3))
    assert row.ratio.mean == pytest.approx(1.2)
    assert row.ratio.error == pytest.approx(1.2 * math.hypot(1 / math.sqrt(3) / 12, 1 / math.sqrt(3) / 10))
    assert compared.window_s == 10.0
    assert compared.warnings == []


def test_ratios_are_per_event_and_one_recording_each_has_no_uncertainty() -> None:
    half = run_of(500_000)
    compared = comparison.compare([one_of("compose", 0, 10.0), one_of("kubernetes", 0, 10.0, run=half)])
    row = compared.row("all", "kubernetes")
    assert row is not None
    assert row.ratio is not None
    assert row.ratio.mean == pytest.approx(2.0)
    assert row.ratio.error is None
    assert any("1000000 in compose-0; 500000 in kubernetes-0" in warning for warning in compared.warnings)


def test_files_of_one_label_stand_for_themselves() -> None:
    compared = comparison.compare([one_of("compose", 0, 10.0), one_of("compose", 1, 12.0)])
    assert list(compared.groups) == ["compose-0", "compose-1"]


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"run": run_of(release="2020e-13tev")}, "data (release): demo in compose-0; 2020e-13tev in kubernetes-0"),
        ({"run": run_of(samples={"Zmumu": [1_000_000, 10]})}, "data (samples)"),
        ({"run": run_of(settings={"lumi": 10, "fraction": 1.0, "pt_cuts": []})}, "cuts (pt_cuts, GeV): [20, 15, 10]"),
        ({"run": run_of(samples={"Zee": [1_000_000, 11]})}, "events selected: 10 in compose-0; 11 in kubernetes-0"),
        ({"run": run_of(events=2)}, "events read"),
        ({"run": run_of(digest="e")}, "other histograms"),
        ({"run": run_of(complete=False)}, "its run is not complete"),
        ({"run": None}, "no run is known"),
        ({"cores": 4}, "cores: 2 in compose-0; 4 in kubernetes-0"),
        ({"images": {"analysis": {"name": "analysis:v2"}}}, "analysis: other image: analysis:latest in"),
        ({"images": {"analysis": {"name": "analysis", "id": "sha256:0"}}}, "analysis: same tag, other image"),
        ({"limits": {"analysis": {"cores": 1.0, "memory_bytes": 2**30}}}, "analysis: other CPU limit (cores): 2.0 in"),
        ({"limits": {"analysis": {"cores": 2.0, "memory_bytes": 2**29}}}, "analysis: other memory limit (MB): 1074"),
        ({"source": "metrics.k8s.io: averages"}, "averages of metrics.k8s.io"),
        ({"problems": ["a container ended unseen"]}, "kubernetes-0: a container ended unseen"),
    ],
)
def test_what_is_not_comparable_is_said(other: Mapping[str, Any], complaint: str) -> None:
    pair = [one_of("compose", 0, 10.0), one_of("kubernetes", 0, 10.0, **other)]
    assert complaint in "\n".join(comparability.warnings(pair))


def test_a_limit_of_all_cores_is_no_limit() -> None:
    limits = {service: {"cores": 2.0, "memory_bytes": 2**30} for service in PIPELINE}
    assert comparability.warnings([one_of("compose", 0, 9.0), one_of("kubernetes", 0, 9.0, limits=limits)]) == []


def test_compare_prints_a_table_and_writes_the_picture_and_the_page(tmp_path: Path) -> None:
    files = []
    for label, step, seconds in (("compose", 1.0, (9.0, 10.0)), ("kubernetes", 10.0, (11.0, 12.0))):
        for number, value in enumerate(seconds):
            one = one_of(label, number, value, step)
            files.append(tmp_path / f"{one.name}.csv")
            file = RecordingFile(files[-1], one.header)
            file.add(one.samples)
            file.finish(one.header)
    told = monitor("compare", *map(str, files), "--output", str(tmp_path), COLUMNS="140")
    assert told.returncode == 0, told.stderr
    assert "1.211 ± 0.083" in told.stdout
    assert "| data-loader | compose | 9.50 ± 0.50 | 9.50 ± 0.50 |" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "comparison.pdf").read_bytes().startswith(b"%PDF")


def test_a_comparison_of_one_recording_is_refused() -> None:
    with pytest.raises(MonitorError, match="two recordings or more"):
        comparison.compare([one_of("compose", 0, 10.0)])


def test_the_picture_draws_services_that_only_one_side_has(tmp_path: Path) -> None:
    lacking = one_of("kubernetes", 0, 10.0)
    samples = [sample for sample in lacking.samples if sample.reading.service != "rabbitmq"]
    compared = comparison.compare([one_of("compose", 0, 10.0), Recording("k", lacking.header, samples)])
    comparison_plot.draw(compared, tmp_path / "comparison")
    assert compared.row("rabbitmq", "kubernetes") is None


# --- runs ---------------------------------------------------------------------------------------------------------


def test_the_recorded_run_is_the_newest_that_finished_meanwhile_and_keeps_what_decides_its_numbers(
    tmp_path: Path,
) -> None:
    for name, finished in (("20260101-old", 10.0), ("20260102-new", T0), ("20260103-late", T0 + 1)):
        result = {
            "run_id": name,
            "release": "demo",
            "samples": {
                "Zee": {"events_read": 70, "events_selected": 7},
                "llll": {"events_read": 30, "events_selected": 3},
            },
            "settings": {"pt_cuts": [20]},
            "timing": {"submitted": finished - 5, "finished": finished},
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    found = runs.find_result([tmp_path], None, 0.0)
    assert found is not None
    kept = runs.summary(found)
    assert (kept["run_id"], kept["events"]) == ("20260103-late", 100)
    assert kept["samples"] == {"Zee": [70, 7], "llll": [30, 3]}
    assert runs.find_result([tmp_path], None, T0 + 2) is None
    asked = runs.find_result([tmp_path], "20260101-old", T0)
    assert asked is not None
    assert asked["run_id"] == "20260101-old"


def test_the_results_are_looked_for_where_the_command_puts_them() -> None:
    assert runs.result_folders(["./docker-run.sh", "--output", "here"], "results") == [Path("here")]
    assert runs.result_folders(["./docker-run.sh", "--output=here"], "results") == [Path("here")]
    assert runs.result_folders(["./docker-run.sh"], "results") == [Path("results")]


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [["common/cpu_monitor.py"], ["-m", "common.cpu_monitor"]])
def test_it_runs_as_a_script_and_as_a_module_and_the_folder_kubernetes_hides_no_package(start: list[str]) -> None:
    flags = ["--source", "kubernetes", "--once"]
    told = subprocess.run(
        [sys.executable, *start, *flags],
        cwd=ROOT,
        env={**os.environ, "KUBECONFIG": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert told.stderr.startswith("cpu_monitor.py: no Kubernetes cluster: ")
    assert "missing" not in told.stderr


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--source", "docker"], "no Docker engine answers"),
        (["--source", "kubernetes"], "no Kubernetes cluster"),
        (["record", "--source", "docker", "--", "true"], "no Docker engine answers"),
        (["--", "true"], "a command is recorded with: cpu_monitor.py record -- COMMAND"),
        (["compare", "one.csv"], "one.csv: cannot be read: No such file or directory"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_code_1(flags: list[str], line: str) -> None:
    told = monitor(*flags)
    assert told.returncode == 1
    assert told.stderr.startswith(f"cpu_monitor.py: {line}")
    assert len(told.stderr.splitlines()) == 1


def test_an_interval_that_is_none_is_wrong_usage() -> None:
    told = monitor("--interval", "0")
    assert told.returncode == 2
    assert "'0' is not a positive number of seconds" in told.stderr


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_process_is_known_by_its_module() -> None:
    assert service_of(["/usr/bin/python3", "-m", "workers.data_loader"]) == "data-loader"
    assert service_of(["python", "-u", "-m", "workers.visualisation", "x"]) == "visualisation"
    assert service_of(["/usr/lib/erlang/erts/bin/beam.smp", "-s", "rabbit", "boot"]) == "rabbitmq"
    assert service_of(["vi", "workers/data_loader/service.py"]) is None
    assert service_of(["grep", "-m", "workers.data_loader"]) is None
    assert service_of([]) is None


#: A worker with a child that it waits for and one that it does not: they use CPU time, and say how much.
BURN = """
import os, resource, subprocess, sys, time
def used():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime
def burn(seconds):
    while used() < seconds:
        sum(range(10000))
if len(sys.argv) > 1:
    burn(float(sys.argv[1])); print(used(), flush=True); sys.stdin.read() if sys.argv[2] == "stay" else None
    os._exit(0)
one = subprocess.Popen([sys.executable, __file__, "0.8", "go"], stdout=subprocess.PIPE)
waited = float(one.communicate()[0])
two = subprocess.Popen([sys.executable, __file__, "0.7", "stay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
staying = float(two.stdout.readline())
burn(1.0)
print(used(), waited, staying, flush=True)
sys.stdin.read()
"""


def record_processes(output: Path, *flags: str) -> subprocess.Popen[str]:
    """A recording of this machine's processes, until it is interrupted."""
    command = [
        sys.executable,
        "common/cpu_monitor.py",
        "record",
        "--source",
        "process",
        *flags,
        "--output",
        str(output),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_count_with_their_children_whether_waited_for_or_alive(tmp_path: Path) -> None:
    package = tmp_path / "workers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "analysis.py").write_text(BURN)
    output = tmp_path / "p.csv"
    recording = record_processes(output, "--services", "analysis", "--wait", "60", "--interval", "0.2")
    wait_until(output.exists, "the recording began", 180)
    worker = subprocess.Popen(
        [sys.executable, "-m", "workers.analysis"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    burned = sum(map(float, worker.stdout.readline().split()))
    recording.send_signal(signal.SIGINT)
    _, said = recording.communicate(timeout=240)
    worker.communicate()
    assert recording.returncode == 0, said
    (used,) = [one for name, one in usage.usages(read_recording(output)).items() if name == "analysis"]
    # Two processes that only start and wait, and ticks of 10 ms.
    assert used.cpu_seconds == pytest.approx(burned, rel=0.02, abs=0.05)
    assert used.replicas == 1


def test_ctrl_c_leaves_a_whole_file_and_a_service_that_never_appears_is_named(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    recording = record_processes(output, "--services", "no-such-service", "--wait", "60")
    wait_until(lambda: output.exists() and output.read_text(), "the recording began", 180)
    recording.send_signal(signal.SIGINT)
    _, said = recording.communicate(timeout=240)
    assert recording.returncode == 1
    assert len(said.splitlines()) == 1
    assert said == "cpu_monitor.py: no service ever appeared among this machine's processes\n"
    assert '# platform: "processes"' in output.read_text()


# --- a kubelet that is a stub -------------------------------------------------------------------------------------


class Cluster:
    """Serves what an API server would; ``answers`` maps paths to (status, document)."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "/version": (200, {"gitVersion": "v1.30.0"}),
            "/api/v1/namespaces/atlas": (200, {}),
        }
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, document = cluster.answers.get(self.path, (404, {"message": "not found"}))
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.kubeconfig = folder / "kubeconfig"
        address = f"http://127.0.0.1:{self.server.server_port}"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": address}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "c",
                }
            )
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path)
    yield running
    running.server.shutdown()
    running.server.server_close()


def pod(name: str, service: str, label: str = "app") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": name, "labels": {label: service}},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "image": f"{service}:latest", "resources": {"limits": {"cpu": "500m"}}}],
        },
        "status": {
            "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": [
                {"name": "c", "restartCount": 0, "imageID": "docker://sha256:1", "state": {"running": {}}}
            ],
        },
    }


FORBIDDEN = (403, {"message": 'nodes "n1" is forbidden: User "reader" cannot get resource "nodes/proxy"'})


def test_metrics_k8s_io_stands_in_where_the_kubelet_is_refused_and_says_that_it_averages(cluster: Cluster) -> None:
    cluster.answers["/api/v1/namespaces/atlas/pods"] = (200, {"items": [pod("p1", "analysis")]})
    cluster.answers["/api/v1/nodes/n1/proxy/stats/summary"] = FORBIDDEN
    cluster.answers["/apis/metrics.k8s.io/v1beta1/namespaces/atlas/pods"] = (
        200,
        {
            "items": [
                {
                    "metadata": {"name": "p1"},
                    "timestamp": datetime.now(UTC).isoformat(),
                    "window": "15s",
                    "containers": [{"name": "c", "usage": {"cpu": "250000000n", "memory": "64Mi"}}],
                }
            ]
        },
    )
    told = monitor(
        "--source", "kubernetes", "--once", "--json", "--services", "analysis", KUBECONFIG=str(cluster.kubeconfig)
    )
    assert told.returncode == 0, told.stderr
    (service,) = json.loads(told.stdout)["services"]
    assert (service["service"], service["cores"], service["memory_bytes"]) == ("analysis", 0.25, 64 * 2**20)
    assert 'averages only: the kubelet\'s summary is refused: nodes "n1" is forbidden' in told.stderr


def test_the_right_that_is_missing_is_named(cluster: Cluster) -> None:
    cluster.answers["/api/v1/namespaces/atlas/pods"] = (200, {"items": [pod("p1", "analysis")]})
    cluster.answers["/api/v1/nodes/n1/proxy/stats/summary"] = FORBIDDEN
    told = monitor("--source", "kubernetes", "--once", KUBECONFIG=str(cluster.kubeconfig))
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1
    assert 'User "reader" cannot get resource "nodes/proxy"' in told.stderr
    assert "kubernetes/cpu-monitor-role.yaml" in told.stderr


def test_a_namespace_that_is_not_there_and_pods_that_may_not_be_listed_are_one_line_each(cluster: Cluster) -> None:
    told = monitor("--source", "kubernetes", "--namespace", "nosuch", KUBECONFIG=str(cluster.kubeconfig))
    assert told.returncode == 1
    assert told.stderr.splitlines() == [
        "cpu_monitor.py: there is no namespace 'nosuch' in the cluster; name one with --namespace"
    ]
    cluster.answers["/api/v1/namespaces/atlas/pods"] = (403, {"message": 'User "x" cannot list resource "pods"'})
    told = monitor("--source", "kubernetes", KUBECONFIG=str(cluster.kubeconfig))
    assert told.returncode == 1
    assert told.stderr.splitlines() == [
        'cpu_monitor.py: the right to list pods is missing: User "x" cannot list resource "pods"'
    ]


MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


def counters(
    at: float, cpu: float, start: float, pod_cpu: float, pod_at: float, zero: datetime = MIDNIGHT
) -> tuple[int, Any]:
    """A kubelet's summary of one pod with one container, times in seconds after ``zero``."""

    def clock(seconds: float) -> str:
        return (zero + timedelta(seconds=seconds)).isoformat()

    return 200, {
        "node": {"startTime": clock(0), "cpu": {"time": clock(at), "usageCoreNanoSeconds": int(9e9)}},
        "pods": [
            {
                "podRef": {"name": "p1", "namespace": "atlas", "uid": "p1"},
                "cpu": {"time": clock(pod_at), "usageCoreNanoSeconds": round(pod_cpu * 1e9)},
                "containers": [
                    {
                        "name": "c",
                        "startTime": clock(start),
                        "cpu": {"time": clock(at), "usageCoreNanoSeconds": round(cpu * 1e9)},
                        "memory": {"workingSetBytes": 5},
                    }
                ],
            }
        ],
    }


@pytest.mark.parametrize("label", ["app", "app.kubernetes.io/name"])
def test_what_a_restart_hides_from_the_kubelet_is_found_in_the_pods_own_counter(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    from monitoring.sources import kubelet_source as kubelet
    from monitoring.sources.kubernetes_api import Cluster as Server

    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(cluster.kubeconfig))
    monkeypatch.setattr(kubelet, "_ASK_S", 0.0)
    cluster.answers["/api/v1/namespaces/atlas/pods"] = (200, {"items": [pod("p1", "analysis", label)]})
    source = kubelet.KubeletSource(Server("atlas"))
    readings: list[Reading] = []
    # 4 s used before the recording, 6 s until 00:20, 3 s more that are never seen, then 2 s in a new life.
    for summary in (
        counters(at=10, cpu=4.0, start=0, pod_cpu=4.0, pod_at=10),
        counters(at=20, cpu=10.0, start=0, pod_cpu=10.0, pod_at=20),
        counters(at=20, cpu=10.0, start=0, pod_cpu=10.0, pod_at=20),
        counters(at=35, cpu=1.0, start=25, pod_cpu=14.0, pod_at=35),
        counters(at=45, cpu=2.0, start=25, pod_cpu=15.0, pod_at=45),
    ):
        cluster.answers["/api/v1/nodes/n1/proxy/stats/summary"] = summary
        readings += [one for one in source.read() if one.service == "analysis"]
    sampler = Sampler()
    recording = Recording("k", {}, [sampler.sample(one) for one in readings])
    used = usage.usages(recording)["analysis"]
    assert [one.cpu_seconds for one in readings if one.state == "final"] == [pytest.approx(13.0)]
    assert used.restarts == 1
    assert used.cpu_seconds == pytest.approx(15.0 - 4.0)


def test_a_recording_of_a_cluster_begins_and_ends_on_counters_that_are_fresh(cluster: Cluster, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    cluster.answers["/api/v1/namespaces/atlas/pods"] = (200, {"items": [pod("p1", "analysis")]})
    cluster.answers["/api/v1/nodes/n1/proxy/stats/summary"] = counters(-5, 4.0, -99, 4.0, -5, now)
    output = tmp_path / "k.csv"
    recording = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "common.cpu_monitor",
            "--source",
            "kubernetes",
            "--services",
            "analysis",
            "--output",
            str(output),
            "--interval",
            "0.2",
            "--duration",
            "0.5",
        ],
        cwd=ROOT,
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def rows() -> list[tuple[str, str, float]]:
        lines = [line for line in output.read_text().splitlines() if not line.startswith("#")]
        every = csv.DictReader(lines)
        return [(r["replica"], r["container"], float(r["cpu_seconds"])) for r in every if r["service"] == "analysis"]

    wait_until(output.exists, "the recording began", 180)
    cluster.answers["/api/v1/nodes/n1/proxy/stats/summary"] = counters(600, 6.0, -99, 6.0, 600, now)
    wait_until(rows, "the first fresh counter came", 180)
    cluster.answers["/api/v1/nodes/n1/proxy/stats/summary"] = counters(610, 9.5, -99, 9.5, 610, now)
    _, said = recording.communicate(timeout=240)
    assert recording.returncode == 0, said
    assert rows()[0] == ("p1", "p1/c", 6.0)
    assert {cpu for _, _, cpu in rows()} <= {6.0, 9.5}
