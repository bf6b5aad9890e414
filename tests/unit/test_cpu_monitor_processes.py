"""The CPU monitor on this machine's processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring import usage
from monitoring.recording import read_recording
from monitoring.sources.process_source import service_of
from tests.support.cpu_recordings import SCRIPT
from tests.support.paths import ROOT
from tests.support.waiting import wait_until


def test_a_service_is_recognised_by_its_command_line() -> None:
    assert service_of(["/usr/bin/python3", "-m", "workers.data_loader"]) == "data-loader"
    assert service_of(["python", "-u", "-m", "workers.visualisation", "x"]) == "visualisation"
    assert service_of(["/usr/lib/erlang/erts/bin/beam.smp", "-s", "rabbit", "boot"]) == "rabbitmq"
    assert service_of(["vi", "workers/data_loader/service.py"]) is None
    assert service_of(["grep", "-m", "workers.data_loader"]) is None
    assert service_of([]) is None


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
one = subprocess.Popen([sys.executable, __file__, "0.8", "exit"], stdout=subprocess.PIPE)
waited_for = float(one.communicate()[0])
two = subprocess.Popen([sys.executable, __file__, "0.7", "stay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
running = float(two.stdout.readline())
use(1.0)
print(used(), waited_for, running, flush=True)
sys.stdin.read()
"""


def record_processes(output: Path, *flags: str) -> subprocess.Popen[str]:
    """Record this machine's processes until a signal."""
    command = [*SCRIPT, "record", "--source", "process", *flags, "--output", str(output)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_services_cpu_time_includes_its_child_processes(tmp_path: Path) -> None:
    package = tmp_path / "workers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "monitored.py").write_text(SERVICE)
    output = tmp_path / "p.csv"
    recording = record_processes(output, "--services", "monitored", "--wait", "60", "--interval", "0.2")
    wait_until(output.exists, "the recording began", 180)
    service = subprocess.Popen(
        [sys.executable, "-m", "workers.monitored"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    expected = sum(map(float, service.stdout.readline().split()))
    recording.send_signal(signal.SIGINT)
    _, errors = recording.communicate(timeout=240)
    service.communicate()
    assert recording.returncode == 0, errors
    used = usage.usage_by_service(read_recording(output))["monitored"]
    # The difference: processes that have started but not yet reported, and clock ticks of 10 ms.
    assert used.cpu_seconds == pytest.approx(expected, rel=0.02, abs=0.05)
    assert used.replicas == 1


@pytest.mark.alone
def test_ctrl_c_leaves_a_complete_file_and_names_the_missing_service(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    recording = record_processes(output, "--services", "no-such-service", "--wait", "60")
    wait_until(lambda: output.exists() and output.read_text(), "the recording began", 180)
    recording.send_signal(signal.SIGINT)
    _, errors = recording.communicate(timeout=240)
    assert recording.returncode == 1
    assert errors == "cpu_monitor.py: no service appeared among this machine's processes\n"
    assert '# platform: "processes"' in output.read_text()
