"""The CPU monitor on a real Docker engine: what a container burns, measured inside it, is what is reported."""

from __future__ import annotations

import csv
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monitoring import usage
from monitoring.recording import Recording, read_recording
from monitoring.sources.cgroup import cgroup_of
from tests.support.burning import BURN, IMAGE
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

#: Says how much it has used; then it stays, or ends at once with nothing left to do.
PROGRAM = f"""{BURN}
print(used(), flush=True)
time.sleep(float(sys.argv[2]))
os._exit(0)
"""


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def engine_answers() -> bool:
    try:
        docker("image", "inspect", IMAGE)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not engine_answers(), reason=f"no Docker engine answers here, or it has no image {IMAGE}"),
]


class Project:
    """A Compose project of this test's own, as far as labels make one."""

    def __init__(self, folder: Path) -> None:
        self.name = f"cpu-monitor-{secrets.token_hex(4)}"
        self.output = folder / "recording.csv"

    def make(self, service: str, cpu_seconds: float, stay_s: float = 0.0, number: int = 1) -> str:
        """A container that waits to be started; returns its id."""
        labels = {"project": self.name, "service": service, "container-number": str(number)}
        flags = [f"--label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return docker("create", *flags, IMAGE, "python", "-c", PROGRAM, str(cpu_seconds), str(stay_s))

    def flags(self, interval: str) -> list[str]:
        place = ["--source", "docker", "--project", self.name, "--interval", interval]
        return [sys.executable, "common/cpu_monitor.py", "record", *place, "--output", str(self.output)]

    def record(self, interval: str, command: str) -> Recording:
        """Record around a shell command."""
        told = subprocess.run(
            [*self.flags(interval), "--", "sh", "-c", command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert told.returncode == 0, told.stderr
        return read_recording(self.output)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    containers = docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={made.name}").split()
    if containers:
        docker("rm", "--force", *containers)


def burned(container: str) -> float:
    """What a container's process says of itself, over all its lives."""
    return sum(float(line) for line in docker("logs", container).split())


def used(recording: Recording, service: str = "burner") -> usage.Usage:
    return usage.usages(recording)[service]


@pytest.mark.parametrize("interval", ["0.2", "1", "5"])
def test_what_a_container_burns_is_reported_within_one_percent(project: Project, interval: str) -> None:
    container = project.make("burner", 3.0)
    recording = project.record(interval, f"docker start -a {container}")
    assert used(recording).cpu_seconds == pytest.approx(burned(container), rel=0.01)


def test_a_container_that_lives_for_less_than_an_interval_is_reported_within_one_percent(project: Project) -> None:
    container = project.make("burner", 1.5)
    recording = project.record("60", f"docker start -a {container}")
    assert used(recording).cpu_seconds == pytest.approx(burned(container), rel=0.01, abs=0.02)
    states = [s.reading.state for s in recording.samples if s.reading.service == "burner"]
    assert (states[0], states[-1]) == ("started", "final")


@pytest.mark.parametrize("interval", ["0.2", "1", "5"])
def test_a_restart_loses_nothing_and_is_counted(project: Project, interval: str) -> None:
    container = project.make("burner", 1.5)
    recording = project.record(interval, f"docker start -a {container}; docker start -a {container}")
    assert burned(container) > 3.0
    assert used(recording).cpu_seconds == pytest.approx(burned(container), rel=0.01, abs=0.02)
    assert (used(recording).replicas, used(recording).restarts) == (1, 1)


@pytest.mark.parametrize("interval", ["0.2", "1", "5"])
def test_two_replicas_are_kept_apart_and_add_up(project: Project, interval: str) -> None:
    both = [project.make("burner", seconds, number=n) for n, seconds in ((1, 1.5), (2, 2.5))]
    recording = project.record(interval, f"docker start {' '.join(both)}; docker wait {' '.join(both)}")
    assert used(recording).cpu_seconds == pytest.approx(sum(map(burned, both)), rel=0.01, abs=0.02)
    by_replica = {life.readings[0].replica: life.used[-1] for life in used(recording).lives}
    for number, container in enumerate(both, 1):
        assert by_replica[str(number)] == pytest.approx(burned(container), rel=0.01, abs=0.02)


def test_the_counter_agrees_with_the_hosts_cgroup_file(project: Project) -> None:
    container = project.make("burner", 2.0, stay_s=600)
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
    assert burned(container) == pytest.approx(counter, rel=0.01)
    last = [s.reading for s in recording.samples if s.reading.service == "burner"][-1]
    assert last.time >= recording.header["end"]


def test_a_recording_that_begins_late_holds_only_what_is_used_from_then_on(project: Project) -> None:
    container = project.make("burner", 2.0, stay_s=600)
    docker("start", container)
    wait_until(lambda: docker("logs", container), "the container has burned", 180)
    recording = project.record("0.2", "true")
    assert used(recording).cpu_seconds < 0.05
    last = [s.reading for s in recording.samples if s.reading.service == "burner"][-1]
    assert last.cpu_seconds == pytest.approx(burned(container), rel=0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_whole_file(project: Project, number: signal.Signals) -> None:
    container = project.make("burner", 1.0, stay_s=600)
    docker("start", container)
    recording = subprocess.Popen(project.flags("0.2"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: project.output.exists() and project.output.read_text().count("burner") > 5, "samples came", 180)
    recording.send_signal(number)
    assert recording.wait(180) == 0
    recording.communicate()
    lines = project.output.read_text().splitlines()
    body = [line for line in lines if not line.startswith("#")]
    rows = list(csv.DictReader(body))
    assert all(None not in row and None not in row.values() for row in rows)
    header = read_recording(project.output).header
    assert header["end"] > header["begin"]
    for key in ("platform", "versions", "cores", "limits", "source", "run"):
        assert key in header


def test_one_look_as_json_gives_the_services(project: Project) -> None:
    containers = [project.make("burner", 0.5, stay_s=600, number=n) for n in (1, 2)]
    docker("start", *containers)
    wait_until(lambda: all(docker("logs", one) for one in containers), "both have burned", 180)
    flags = ["--source", "docker", "--project", project.name, "--once", "--json"]
    told = subprocess.run(
        [sys.executable, "-m", "common.cpu_monitor", *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (burner,) = [one for one in json.loads(told.stdout)["services"] if one["service"] == "burner"]
    assert burner["replicas"] == 2
    assert burner["counter_seconds"] == pytest.approx(sum(map(burned, containers)), rel=0.05)
    assert burner["memory_bytes"] > 1_000_000


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--project", "no-such-project"], "no containers run in a Compose project 'no-such-project'"),
        (
            ["record", "--project", "no-such-project", "--output", "/dev/stdout", "--", "true"],
            "no service ever appeared in the Compose project 'no-such-project'",
        ),
    ],
)
def test_a_project_that_is_not_there_is_one_line(flags: list[str], line: str) -> None:
    told = subprocess.run(
        [sys.executable, "common/cpu_monitor.py", flags[0], "--source", "docker", *flags[1:]]
        if flags[0] == "record"
        else [sys.executable, "common/cpu_monitor.py", "--source", "docker", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert told.stderr.startswith(f"cpu_monitor.py: {line}")
    assert len(told.stderr.splitlines()) == 1


def test_a_service_that_never_appears_is_named_and_the_others_are_recorded(project: Project) -> None:
    container = project.make("analysis", 0.5)
    told = subprocess.run(
        [*project.flags("1"), "--services", "analysis,visualisation", "--", "docker", "start", "-a", container],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1] == "cpu_monitor.py: the service visualisation never appeared"
    recorded: Callable[[str], usage.Usage] = usage.usages(read_recording(project.output)).__getitem__
    assert recorded("analysis").cpu_seconds >= 0.5
