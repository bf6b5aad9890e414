"""The CPU monitor on a Docker engine: containers report their own CPU time, and the monitor must agree."""

from __future__ import annotations

import csv
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from monitoring import usage
from monitoring.recording import Recording, read_recording
from monitoring.sources.cgroup import cgroup_of
from tests.support.cpu_load import CPU_LOAD, IMAGE
from tests.support.cpu_recordings import SCRIPT, parts_and_host
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

#: Prints the CPU seconds that it used, stays idle for its second argument in seconds, and exits at once.
PROGRAM = f"""{CPU_LOAD}
print(used(), flush=True)
time.sleep(float(sys.argv[2]))
os._exit(0)
"""


#: Runs the monitor with a clock that is its first argument in seconds ahead of this machine's.
WITH_OTHER_CLOCK = """
import sys, time
ahead_s, here = float(sys.argv.pop(1)), time.time
time.time = lambda: here() + ahead_s
from monitoring.__main__ import main
sys.exit(main())
"""


def docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


def has_image() -> bool:
    try:
        docker("image", "inspect", IMAGE)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not has_image(), reason=f"no Docker engine answers here, or it has no image {IMAGE}"),
]


def run_monitor(flags: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SCRIPT, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


class Project:
    """Containers with the labels of a Compose project of this test."""

    def __init__(self, folder: Path) -> None:
        self.name = f"cpu-monitor-{secrets.token_hex(4)}"
        self.output = folder / "recording.csv"

    def create(self, service: str, cpu_seconds: float, stay_s: float = 0.0, number: int = 1) -> str:
        """Create a container without starting it; returns its id."""
        labels = {"project": self.name, "service": service, "container-number": str(number)}
        flags = [f"--label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return docker("create", *flags, IMAGE, "python", "-c", PROGRAM, str(cpu_seconds), str(stay_s))

    def flags(self, interval: str) -> list[str]:
        source = ["--source", "docker", "--project", self.name, "--interval", interval]
        return ["record", *source, "--output", str(self.output)]

    def record(self, interval: str, command: str) -> Recording:
        """Record while a shell command runs."""
        finished = run_monitor([*self.flags(interval), "--", "sh", "-c", command])
        assert finished.returncode == 0, finished.stderr
        return read_recording(self.output)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    containers = docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={made.name}").split()
    if containers:
        docker("rm", "--force", *containers)


def reported(container: str) -> float:
    """The CPU seconds that a container's process printed, summed over restarts."""
    return sum(float(line) for line in docker("logs", container).split())


def used(recording: Recording, service: str = "worker") -> usage.ServiceUsage:
    return usage.usage_by_service(recording)[service]


@pytest.mark.parametrize("interval", ["0.2", "5"])
def test_a_containers_cpu_time_is_recorded_within_one_percent(project: Project, interval: str) -> None:
    container = project.create("worker", 3.0)
    recording = project.record(interval, f"docker start -a {container}")
    assert used(recording).cpu_seconds == pytest.approx(reported(container), rel=0.01)


@pytest.mark.parametrize("ahead_s", ["-30", "30"])
def test_the_clock_of_the_engine_need_not_be_that_of_the_monitor(project: Project, ahead_s: str) -> None:
    before = project.create("worker", 0.5, stay_s=600)
    docker("start", before)
    wait_until(lambda: docker("logs", before), "the first container has used its CPU time", 180)
    container = project.create("worker", 3.0, number=2)
    command = [*project.flags("1"), "--", "docker", "start", "-a", container]
    finished = subprocess.run(
        [sys.executable, "-c", WITH_OTHER_CLOCK, ahead_s, *command],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    recording = read_recording(project.output)
    assert used(recording).cpu_seconds == pytest.approx(reported(container), rel=0.02, abs=0.05)
    assert recording.header["problems"] == []


def test_the_monitor_ends_while_containers_start_and_end(project: Project) -> None:
    stays, restarted = project.create("worker", 0.0, stay_s=600), project.create("worker", 0.0, number=2)
    docker("start", stays)
    restarts = subprocess.Popen(["sh", "-c", f"while docker start -a {restarted} >/dev/null; do :; done"])
    try:
        for _ in range(3):
            project.record("0.2", "true")
    finally:
        restarts.kill()
        restarts.wait()


def test_a_container_shorter_than_the_interval_is_recorded(project: Project) -> None:
    container = project.create("worker", 1.5)
    recording = project.record("60", f"docker start -a {container}")
    assert used(recording).cpu_seconds == pytest.approx(reported(container), rel=0.01, abs=0.02)
    states = [sample.state for sample in recording.samples if sample.service == "worker"]
    assert (states[0], states[-1]) == ("started", "final")


@pytest.mark.parametrize("interval", ["0.2", "5"])
def test_a_restart_loses_no_cpu_time_and_is_counted(project: Project, interval: str) -> None:
    container = project.create("worker", 1.5)
    recording = project.record(interval, f"docker start -a {container}; docker start -a {container}")
    assert reported(container) > 3.0
    # Each start uses CPU time in the container before its program runs.
    assert used(recording).cpu_seconds == pytest.approx(reported(container), rel=0.01, abs=0.06)
    assert (used(recording).replicas, used(recording).restarts) == (1, 1)


@pytest.mark.parametrize("interval", ["0.2", "5"])
def test_the_replicas_of_a_service_are_recorded_separately(project: Project, interval: str) -> None:
    both = [project.create("worker", seconds, number=n) for n, seconds in ((1, 1.5), (2, 2.5))]
    recording = project.record(interval, f"docker start {' '.join(both)}; docker wait {' '.join(both)}")
    assert used(recording).cpu_seconds == pytest.approx(sum(map(reported, both)), rel=0.01, abs=0.02)
    by_replica = {lifetime.samples[0].replica: lifetime.used[-1] for lifetime in used(recording).lifetimes}
    for number, container in enumerate(both, 1):
        assert by_replica[str(number)] == pytest.approx(reported(container), rel=0.01, abs=0.02)


def test_the_recorded_cpu_time_agrees_with_the_cgroup_file(project: Project) -> None:
    container = project.create("worker", 2.0, stay_s=600)
    recording = project.record(
        "1", f"docker start {container}; until docker logs {container} | grep -q .; do sleep 0.2; done"
    )
    pid = int(docker("inspect", "--format", "{{.State.Pid}}", container))
    cgroup = cgroup_of(pid, container)
    if cgroup is None:
        pytest.skip("the engine's containers have no cgroup on this machine")
    counter = cgroup.cpu_seconds()
    cgroup.close()
    assert used(recording).cpu_seconds == pytest.approx(counter, rel=0.01)
    assert reported(container) == pytest.approx(counter, rel=0.01)
    last = [sample for sample in recording.samples if sample.service == "worker"][-1]
    assert last.time >= recording.header["end"]


def test_services_platform_and_rest_add_up_to_the_host(project: Project) -> None:
    containers = [project.create("worker", 8.0, stay_s=600, number=n) for n in (1, 2)]
    used_up = " && ".join(f"until docker logs {one} | grep -q .; do sleep 0.2; done" for one in containers)
    # A container of no project ends with the recording. Its last two seconds at most are known of its shim only.
    of_others = f"docker run --rm {IMAGE} python -c '{CPU_LOAD}' 5"
    recording = project.record(
        "1", f"docker start {' '.join(containers)} && {used_up} && docker exec {containers[0]} true && {of_others}"
    )
    parts = usage.usage_by_service(recording)
    assert parts["rest"].cpu_seconds > 2.5
    assert parts["platform"].cpu_seconds > 0.02
    components = {sample.replica for sample in recording.samples if sample.service == "platform"}
    assert {"containerd-shim", "dockerd"} <= components
    together, host = parts_and_host(recording)
    assert together == pytest.approx(host, rel=0.01)


def test_cpu_time_used_before_the_recording_is_not_counted(project: Project) -> None:
    container = project.create("worker", 2.0, stay_s=600)
    docker("start", container)
    wait_until(lambda: docker("logs", container), "the container has used its CPU time", 180)
    recording = project.record("0.2", "true")
    assert used(recording).cpu_seconds < 0.05
    last = [sample for sample in recording.samples if sample.service == "worker"][-1]
    assert last.cpu_seconds == pytest.approx(reported(container), rel=0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_leaves_a_complete_file(project: Project, number: signal.Signals) -> None:
    container = project.create("worker", 1.0, stay_s=600)
    docker("start", container)
    command = [*SCRIPT, *project.flags("0.2")]
    recording = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(
        lambda: project.output.exists() and project.output.read_text().count("worker") > 5, "samples arrived", 180
    )
    recording.send_signal(number)
    assert recording.wait(180) == 0
    recording.communicate()
    lines = [line for line in project.output.read_text().splitlines() if not line.startswith("#")]
    assert all(None not in row and None not in row.values() for row in csv.DictReader(lines))
    header = read_recording(project.output).header
    assert header["end"] > header["begin"]
    assert {"platform", "versions", "cores", "limits", "source", "run"} <= header.keys()


def test_once_with_json_prints_the_services(project: Project) -> None:
    containers = [project.create("worker", 0.5, stay_s=600, number=n) for n in (1, 2)]
    docker("start", *containers)
    wait_until(lambda: all(docker("logs", one) for one in containers), "both have used their CPU time", 180)
    finished = run_monitor(["--source", "docker", "--project", project.name, "--once", "--json"])
    assert finished.returncode == 0, finished.stderr
    services = {one["service"]: one for one in json.loads(finished.stdout)["services"]}
    assert services["host"]["cores"] > 0
    worker = services["worker"]
    assert worker["replicas"] == 2
    assert worker["counter_seconds"] == pytest.approx(sum(map(reported, containers)), rel=0.05)
    assert worker["memory_bytes"] > 1_000_000


def test_the_result_in_a_visualisation_container_is_found(project: Project) -> None:
    """Only the container has the folder of results."""
    result = {
        "run_id": "20260101-run",
        "release": "demo",
        "samples": {"Zee": {"events_read": 5, "events_selected": 1}},
        "timing": {"submitted": 1.0, "finished": 4e9},
    }
    program = """
import os, sys, time
os.makedirs("/r/20260101-run")
open("/r/20260101-run/result.json", "w").write(sys.argv[1])
print("ready", flush=True)
time.sleep(600)
"""
    labels = [f"--label=com.docker.compose.{key}" for key in (f"project={project.name}", "service=visualisation")]
    container = docker("run", "-d", *labels, "-e", "OUTPUT=/r", IMAGE, "python", "-c", program, json.dumps(result))
    wait_until(lambda: docker("logs", container), "the result was written", 180)
    finished = run_monitor([*project.flags("1"), "--services", "visualisation", "--", "true"])
    assert finished.returncode == 0, finished.stderr
    assert read_recording(project.output).header["run"]["run_id"] == "20260101-run"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "no containers run in the Compose project 'no-such-project'"),
        (
            ["record", "--output", "/dev/stdout", "--", "true"],
            "no service appeared in the Compose project 'no-such-project'",
        ),
    ],
)
def test_a_missing_project_is_reported_in_one_line(flags: list[str], line: str) -> None:
    source = ["--source", "docker", "--project", "no-such-project"]
    finished = run_monitor([*flags[:1], *source, *flags[1:]])
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"cpu_monitor.py: {line}")
    assert len(finished.stderr.splitlines()) == 1


def test_a_missing_service_is_named_and_the_others_are_recorded(project: Project) -> None:
    container = project.create("analysis", 0.5)
    services = ["--services", "analysis,visualisation"]
    finished = run_monitor([*project.flags("1"), *services, "--", "docker", "start", "-a", container])
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == "cpu_monitor.py: the service visualisation did not appear"
    assert used(read_recording(project.output), "analysis").cpu_seconds == pytest.approx(reported(container), abs=0.05)
