"""A real Compose stack: ``pytest -m compose``, with a Docker engine."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.settings import RunSettings
from tests.support.broker import docker_answers
from tests.support.paths import ROOT
from tests.support.real_data import real_data
from tests.support.runs import numbers, numbers_of, run_embedded
from tests.support.waiting import free_port, wait_until

#: The first run builds the images.
pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

WORKERS = ("data-loader", "data-processor", "analysis", "visualisation")
#: Long enough for faults during the run: 205 chunks.
DEMO = RunSettings(release="demo", demo_events=100_000, chunk_entries=500, plots=False)
FLAGS = ("--release", "demo", "--demo-events", str(DEMO.demo_events), "--chunk-entries", str(DEMO.chunk_entries))


class Stack:
    """A Compose project for these tests alone, started with docker-run.sh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: For Compose alone: it has the rest from the file in which docker-run.sh keeps it.
        self.environment = os.environ | {
            "COMPOSE_PROJECT_NAME": f"test-{secrets.token_hex(4)}",
            "COMPOSE_ENV_FILES": str(folder / "variables"),
        }
        self.ports = {"MANAGEMENT_PORT": str(free_port()), "PAGE_PORT": str(free_port())}

    def docker_run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "docker-run.sh", *flags],
            env=self.environment | self.ports | {"OUTPUT": str(self.folder / secrets.token_hex(4))},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def run(self, *flags: str) -> tuple[str, Path]:
        """Submit a run and follow it. Returns its numbers and its folder on the host."""
        done = self.docker_run(*flags)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = re.findall(r"^results in (\S+)/$", done.stdout, re.MULTILINE)
        return numbers_of(json.loads((Path(line) / "result.json").read_text())), Path(line)

    def compose(self, *arguments: str) -> str:
        done = subprocess.run(
            ["docker", "compose", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", service).split()

    def analysed(self) -> float:
        """The number of events that the analysis service has handled since it started."""
        script = "exec 3<>/dev/tcp/127.0.0.1/9100; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
        metrics = self.compose("exec", "-T", "analysis", "bash", "-c", script)
        (events,) = re.findall(r"^atlas_events_total (\S+)", metrics, re.MULTILINE)
        return float(events)

    @staticmethod
    @contextmanager
    def paused(containers: Sequence[str]) -> Iterator[None]:
        """Pause containers, so that no run ends meanwhile."""
        subprocess.run(["docker", "pause", *containers], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["docker", "unpause", *containers], check=True, capture_output=True)

    def wait_for_progress(self) -> None:
        """Wait until a tenth of a run's events are analysed."""
        before = self.analysed()
        wait_until(lambda: self.analysed() > before + 20_000, "a tenth of the events are analysed", 180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if not docker_answers():
        pytest.skip("needs a Docker engine")
    made = Stack(tmp_path_factory.mktemp("stack"))
    try:
        made.run("--release", "demo", "--demo-events", "1000", "--no-plots")  # starts the services
        yield made
    finally:
        made.compose("--profile", "submit", "down", "--volumes", "--remove-orphans", "--timeout", "10")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The numbers of the demo run, embedded in one process."""
    return numbers(run_embedded(DEMO, tmp_path_factory.mktemp("cache")))


def test_the_demo_equals_the_embedded_run_and_its_folder_is_the_users(stack: Stack, reference: str) -> None:
    bits, folder = stack.run(*FLAGS)
    assert bits == reference
    assert (folder / "m4l.png").read_bytes().startswith(b"\x89PNG")
    assert pwd.getpwuid(folder.stat().st_uid).pw_uid == os.getuid()


def test_real_events_in_a_host_directory_give_the_published_numbers(stack: Stack, tmp_path: Path) -> None:
    reference = json.loads((real_data() / "reference.json").read_text())["samples"]
    data = tmp_path / "it's $my:data"
    shutil.copytree(real_data() / "4lep", data)
    flags = (
        "--data",
        str(data),
        "--samples",
        ",".join(reference),
        "--pt-cuts",
        "",
        "--lumi",
        "10",
        "--no-plots",
    )
    bits, _ = stack.run(*flags)
    alone = RunSettings(data=str(data), samples=tuple(reference), pt_cuts_gev=(), lumi_ifb=10.0, plots=False)
    assert bits == numbers(run_embedded(alone, tmp_path))
    samples = json.loads(bits)["samples"]
    for name, published in reference.items():
        assert samples[name]["events_selected"] == published["events_selected"]
        assert samples[name]["yield"] == pytest.approx(published["yield"], rel=1e-6)


def test_an_own_analysis_equals_the_embedded_run(stack: Stack, tmp_path: Path) -> None:
    flags = ("--analysis", "examples/zz4l.py", "--release", "demo", "--demo-events", "20000", "--no-plots")
    bits, _ = stack.run(*flags)
    done = subprocess.run([sys.executable, "analysis.py", *flags, "--output", tmp_path], cwd=ROOT, check=False)
    assert done.returncode == 0
    (result,) = tmp_path.glob("*/result.json")
    assert bits == numbers_of(json.loads(result.read_text()))


def test_added_replicas_change_no_bit_and_are_kept_and_nothing_is_restarted(stack: Stack, reference: str) -> None:
    before = {service: stack.containers(service) for service in WORKERS}
    stack.compose("up", "--detach", "--wait", "--scale", "data-processor=4", "--scale", "data-loader=2")
    assert stack.run(*FLAGS, "--no-plots")[0] == reference
    after = {service: stack.containers(service) for service in WORKERS}
    assert (len(after["data-processor"]), len(after["data-loader"])) == (4, 2)
    assert all(set(before[service]) <= set(after[service]) for service in WORKERS)
    assert stack.docker_run("--scale", "data-processor=1", "--scale", "data-loader=1").returncode == 0


def test_restarting_every_worker_during_a_run_changes_no_bit(stack: Stack, reference: str) -> None:
    containers = {service: stack.containers(service) for service in WORKERS}
    with ThreadPoolExecutor() as pool:
        running = pool.submit(stack.run, *FLAGS)
        stack.wait_for_progress()
        took: Mapping[str, float] = {}
        for service, (container,) in containers.items():
            another = "analysis" if service == "data-processor" else "data-processor"
            with stack.paused(containers[another]):
                before = time.monotonic()
                subprocess.run(["docker", "stop", "--time", "10", container], check=True, capture_output=True)
                took = {**took, service: time.monotonic() - before}
                state = ["docker", "inspect", "--format", "{{.State.ExitCode}}", container]
                assert subprocess.run(state, check=True, capture_output=True, text=True).stdout.strip() == "0", service
                subprocess.run(["docker", "start", container], check=True, capture_output=True)
                assert not running.done()
        assert running.result()[0] == reference
    assert max(took.values()) < 10, took


def test_killing_and_restarting_the_broker_during_a_run_changes_no_bit(stack: Stack, reference: str) -> None:
    (broker,), processors = stack.containers("rabbitmq"), stack.containers("data-processor")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(stack.run, *FLAGS, "--no-plots")
        stack.wait_for_progress()
        with stack.paused(processors):
            subprocess.run(["docker", "kill", broker], check=True, capture_output=True)
            assert not running.done()
            subprocess.run(["docker", "start", broker], check=True, capture_output=True)
        assert running.result()[0] == reference


def test_a_detached_run_goes_on_and_follow_writes_its_folder(stack: Stack, reference: str) -> None:
    processors = stack.containers("data-processor")
    other = stack.folder / "data"
    other.mkdir()
    other.chmod(0o755)
    command = [ROOT / "docker-run.sh", *FLAGS, "--no-plots"]
    environment = stack.environment | stack.ports | {"OUTPUT": str(stack.folder)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().removeprefix("run ").strip()
        with stack.paused(processors):
            refused = stack.docker_run("--data", str(other))
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
            _, messages = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"{ROOT}/docker-run.sh follow {run_id}" in messages
    assert refused.returncode == 1
    assert f"run {run_id} is under way, and other data, ports or images would restart data-loader" in refused.stderr
    bits, folder = stack.run("follow", run_id)
    assert bits == reference
    assert folder.stat().st_uid == os.getuid()


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_runs_without_unneeded_privileges(stack: Stack, service: str) -> None:
    (container,) = stack.containers(service)
    (inspected,) = json.loads(
        subprocess.run(["docker", "inspect", container], check=True, capture_output=True, text=True).stdout
    )
    host = inspected["HostConfig"]
    assert inspected["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["LogConfig"]["Config"]["max-size"] == "10m"


def test_ports_are_bound_to_localhost_only(stack: Stack) -> None:
    bindings = []
    for service in ("rabbitmq", *WORKERS):
        (container,) = stack.containers(service)
        command = ["docker", "inspect", "--format", "{{json .HostConfig.PortBindings}}", container]
        ports = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) or {}
        bindings += [binding["HostIp"] for published in ports.values() for binding in published]
    assert bindings
    assert set(bindings) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--lumi", "-1"], "--lumi -1: "),
        (["--data", "nowhere"], "no such directory"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_the_reason(stack: Stack, flags: list[str], expected: str) -> None:
    done = stack.docker_run(*flags)
    assert done.returncode == 2
    assert expected in done.stderr + done.stdout


@pytest.mark.parametrize("what", ["link", "file"])
def test_data_that_the_containers_cannot_read_are_refused_before_the_run(
    stack: Stack, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "data"
    (folder / "Data").mkdir(parents=True)
    file = folder / "Data" / "data_A.4lep.root"
    if what == "link":
        (tmp_path / "elsewhere.root").touch()
        file.symlink_to(tmp_path / "elsewhere.root")
    else:
        file.touch(mode=0o600)
    done = stack.docker_run("--data", str(folder))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"docker-run.sh: {file}")


def test_a_missing_engine_is_reported_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "docker-run.sh", "--release", "demo"],
        env=os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "engine does not answer" in done.stderr
