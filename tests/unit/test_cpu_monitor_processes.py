"""The CPU monitor on this machine's processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from monitoring import usage
from monitoring.sources.base import REST
from monitoring.sources.machine import CpuAccounts, Process
from monitoring.sources.process_source import ProcessSource, belongs_to, service_of
from tests.support.cpu_recordings import SCRIPT, recording
from tests.support.paths import ROOT
from tests.support.waiting import wait_until


def test_a_service_is_recognised_by_its_command_line() -> None:
    assert service_of(["/usr/bin/python3", "-m", "workers.data_loader"]) == "data-loader"
    assert service_of(["python", "-u", "-m", "workers.visualisation", "x"]) == "visualisation"
    assert service_of(["/usr/lib/erlang/erts/bin/beam.smp", "-s", "rabbit", "boot"]) == "rabbitmq"
    assert service_of(["vi", "workers/data_loader/service.py"]) is None
    assert service_of(["python", "-m", "workers.tasks"]) is None
    assert service_of(["grep", "-m", "workers.data_loader"]) is None
    assert service_of([]) is None


def test_a_service_belongs_to_the_project_that_it_runs_in(tmp_path: Path) -> None:
    python = Path(sys.executable)
    assert belongs_to(tmp_path, tmp_path, python)
    assert not belongs_to(tmp_path, tmp_path / "other", python)
    installed = tmp_path / "site-packages"
    assert belongs_to(installed, tmp_path, python)
    assert not belongs_to(installed, tmp_path, Path("/usr/bin/other-python"))
    (tmp_path / "workers").mkdir()
    assert not belongs_to(installed, tmp_path, python)


#: A service with a child process that it waits for and one that keeps running. It prints the CPU seconds of all three.
SERVICE = """
import os, resource, subprocess, sys
def used():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime
def use(seconds):
    while used() < seconds:
        sum(range(10000))
if len(sys.argv) > 1:
    use(float(sys.argv[1])); print(used(), flush=True); sys.stdin.read() if sys.argv[2] == "stay" else None
    os._exit(0)
one = subprocess.Popen([sys.executable, __file__, "0.4", "exit"], stdout=subprocess.PIPE)
waited_for = float(one.communicate()[0])
two = subprocess.Popen([sys.executable, __file__, "0.3", "stay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
running = float(two.stdout.readline())
use(0.5)
print(used(), waited_for, running, flush=True)
sys.stdin.read()
"""


def start_service(project: Path) -> subprocess.Popen[str]:
    package = project / "workers"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "analysis.py").write_text(SERVICE)
    command = [sys.executable, "-m", "workers.analysis"]
    return subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_only_services_of_the_project_are_counted_with_their_child_processes(tmp_path: Path) -> None:
    source = ProcessSource(tmp_path / "ours")
    services = [start_service(tmp_path / name) for name in ("ours", "theirs")]
    lines = [service.stdout.readline() for service in services if service.stdout is not None]
    samples = list(source.read())
    source.close()
    for service in services:
        service.communicate()
    ours, theirs = (sum(map(float, line.split())) for line in lines)
    used = usage.usage_by_service(recording(samples))
    # The difference: processes that have started but not yet reported, and clock ticks of 10 ms.
    assert used["analysis"].cpu_seconds == pytest.approx(ours, rel=0.02, abs=0.05)
    assert used["analysis"].replicas == 1
    (rest,) = [sample for sample in samples if sample.container == REST]
    assert rest.cpu_seconds > theirs


def accounts(scans: Sequence[dict[int, Process]]) -> list[dict[str, float]]:
    """The CPU seconds of each group after each scan; the group of a process is its name."""
    remaining = iter(scans)
    made = CpuAccounts(lambda pid, process, group: process.name, read=lambda: next(remaining))
    found = []
    for _ in scans:
        made.scan()
        found.append(dict(made.cpu_seconds))
    return found


def process(name: str, parent: int, own: float, children: float = 0.0) -> Process:
    return Process(0.0, parent, name, own, children, 0)


def test_cpu_time_that_passes_to_the_parent_stays_in_the_group_of_the_child() -> None:
    before = {1: process("init", 0, 1.0), 7: process("shim", 1, 2.0), 8: process("service", 7, 5.0)}
    after = {1: process("init", 0, 1.0), 7: process("shim", 1, 2.25, children=5.5)}
    # What the child used after the last scan is known of its parent only.
    assert accounts([before, after])[-1] == {"init": 1.0, "shim": 2.75, "service": 5.0}


def test_cpu_time_of_orphans_and_of_a_parent_read_too_early_or_late_is_counted_once() -> None:
    init, child = process("init", 0, 1.0), process("service", 7, 5.0)
    orphaned = [{1: init, 7: process("shim", 1, 2.0), 8: child}, {1: process("init", 0, 1.0, children=7.0)}]
    assert accounts(orphaned)[-1] == {"init": 1.0, "shim": 2.0, "service": 5.0}
    shim = process("shim", 1, 2.0)
    waited = process("shim", 1, 2.0, children=5.0)
    for late_or_early in (
        [{1: init, 7: shim, 8: child}, {1: init, 7: shim}, {1: init, 7: waited}],
        [{1: init, 7: shim, 8: child}, {1: init, 7: waited, 8: child}, {1: init, 7: waited}],
    ):
        assert accounts(late_or_early)[-1] == {"init": 1.0, "shim": 2.0, "service": 5.0}


@pytest.mark.alone
def test_ctrl_c_leaves_a_complete_file_and_names_the_missing_service(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    flags = ["record", "--source", "process", "--services", "no-such-service", "--wait", "60", "--output", str(output)]
    monitor = subprocess.Popen([*SCRIPT, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: output.exists() and output.read_text(), "the recording began", 180)
    monitor.send_signal(signal.SIGINT)
    _, errors = monitor.communicate(timeout=240)
    assert monitor.returncode == 1
    assert errors == (
        "cpu_monitor.py: --services no-such-service: no such service appeared among this machine's processes\n"
    )
    assert '# platform: "process"' in output.read_text()
