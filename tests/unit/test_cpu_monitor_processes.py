"""The CPU monitor on this machine's processes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Sequence, Set
from pathlib import Path

import pytest

from monitoring import usage
from monitoring.sources import machine
from monitoring.sources.base import REST
from monitoring.sources.machine import CpuAccounts, Process, read_processes
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


def test_cpu_time_of_orphans_and_of_a_parent_read_too_early_is_counted_once() -> None:
    init, child = process("init", 0, 1.0), process("service", 7, 5.0)
    orphaned = [{1: init, 7: process("shim", 1, 2.0), 8: child}, {1: process("init", 0, 1.0, children=7.0)}]
    assert accounts(orphaned)[-1] == {"init": 1.0, "shim": 2.0, "service": 5.0}
    shim = process("shim", 1, 2.0)
    waited = process("shim", 1, 2.0, children=5.0)
    early = [{1: init, 7: shim, 8: child}, {1: init, 7: shim}, {1: init, 7: waited}]
    assert accounts(early)[-1] == {"init": 1.0, "shim": 2.0, "service": 5.0}


class SimulatedMachine:
    """Processes that use CPU time, start and end while they are read one after the other, in an order of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.processes = {1: process("init", 0, 1.0)}
        self.used = 1.0
        self.is_quiet = False
        self.started = 0

    def pids(self) -> list[int]:
        pids = list(self.processes)
        self.random.shuffle(pids)
        return pids

    def read(self, pid: int) -> Process:
        if not self.is_quiet and self.random.random() < 0.5:
            self.change()
        if pid not in self.processes:
            raise ProcessLookupError(pid)
        return self.processes[pid]

    def change(self) -> None:
        """A random process uses CPU time, starts a child, or ends without children and is waited for by its parent."""
        pid = self.random.choice(list(self.processes))
        one = self.processes[pid]
        parents = {other.parent for other in self.processes.values()}
        action = self.random.choice(("use", "start", "end"))
        if action == "use":
            seconds = float(self.random.randrange(1, 50))
            self.used += seconds
            self.processes[pid] = one._replace(own=one.own + seconds)
        elif action == "start" and len(self.processes) < 9:
            self.started += 1
            self.processes[1 + self.started] = Process(float(self.started), pid, one.name, 0.0, 0.0, 0)
        elif action == "end" and pid not in (1, *parents):
            del self.processes[pid]
            parent = self.processes[one.parent]
            self.processes[one.parent] = parent._replace(children=parent.children + one.own + one.children)


@pytest.mark.parametrize("seed", range(50))
def test_processes_that_end_while_they_are_read_are_counted_once(seed: int) -> None:
    machine = SimulatedMachine(seed)
    made = CpuAccounts(lambda *_: REST, read=lambda: read_processes(machine.pids, machine.read))
    before = 0.0
    for _ in range(100):
        for _ in range(machine.random.randrange(5)):
            machine.change()
        made.scan()
        assert before <= made.cpu_seconds[REST] <= machine.used
        before = made.cpu_seconds[REST]
    machine.is_quiet = True
    made.scan()
    assert made.cpu_seconds[REST] == machine.used


def test_a_child_that_ends_before_its_parent_is_read_makes_no_peak() -> None:
    """The child has used 48 s. It is read, ends, and its parent is read, which has waited for it."""
    running = {1: process("init", 0, 1.0), 8: process("service", 7, 48.0), 7: process("service", 1, 1.0)}
    waited = {1: process("init", 0, 1.0), 7: process("service", 1, 1.0, children=48.0)}
    lists = iter([list(running), list(running), list(running), list(waited), list(waited), list(waited)])
    reads = iter([*running.values(), running[1], running[8], waited[7], *waited.values()])
    made = CpuAccounts(
        lambda pid, process, group: process.name,
        read=lambda: read_processes(lambda: next(lists), lambda pid: next(reads)),
    )
    for _ in range(3):
        made.scan()
        assert made.cpu_seconds == {"init": 1.0, "service": 49.0}


class EndedCounter:
    """A container's counter, which is gone after these values."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def cpu_seconds(self) -> float:
        for value in self.values:
            return value
        raise FileNotFoundError

    def close(self) -> None: ...


@pytest.mark.parametrize("shim_ends", [False, True])
def test_what_a_container_used_at_its_end_is_not_counted_again_with_its_parent(
    monkeypatch: pytest.MonkeyPatch, shim_ends: bool
) -> None:
    """The container's process is last seen with 0.5 s. It ends after 2 s, when all others have been read."""
    monkeypatch.setattr(machine, "cgroup_of", lambda pid, container: EndedCounter(0.5, 2.0))
    init, shim = process("init", 0, 1.0), process("shim", 1, 3.0)
    contained = process(f"/docker/{64 * 'a'}", 7, 0.5)
    ended = {1: init, 7: process("shim", 1, 3.0, children=2.0)}
    if shim_ends:
        ended = {1: process("init", 0, 1.0, children=5.0)}
    scans = [{1: init, 7: shim}, {1: init, 7: shim, 8: contained}, {1: init, 7: shim}, ended]
    assert accounts(scans)[-1] == {"init": 1.0, "shim": 3.0, REST: 2.0}


def test_containers_of_others_are_in_the_rest_when_they_use_cpu_time_and_ours_never() -> None:
    init, ours, theirs = process("init", 0, 1.0), process("/pod/ours", 1, 5.0), process("/pod/theirs", 1, 3.0)
    asked = list[set[str]]()

    def counted(cgroups: Set[str]) -> set[str]:
        asked.append(set(cgroups))
        return {cgroup for cgroup in cgroups if "ours" in cgroup}

    later = theirs._replace(own=4.5)
    scans = iter([{1: init}, {1: init, 7: ours, 8: theirs}, {1: init, 7: ours, 8: later}])
    made = CpuAccounts(lambda pid, process, group: process.name, counted, lambda: next(scans))
    rest = []
    for _ in range(3):
        made.scan()
        rest.append(made.cpu_seconds.get(REST, 0.0))
    assert rest == [0.0, 3.0, 4.5]
    assert made.cpu_seconds == {"init": 1.0, REST: 4.5}
    # A request to the engine or the API server for each scan would be costly.
    assert asked == [{"/pod/ours", "/pod/theirs"}]


def test_an_engine_that_does_not_answer_is_asked_again_about_a_container() -> None:
    init, ours, theirs = process("init", 0, 1.0), process("/pod/ours", 1, 5.0), process("/pod/theirs", 1, 3.0)
    answers = iter([None, {"/pod/ours"}])
    found = {1: init, 7: ours, 8: theirs}
    made = CpuAccounts(lambda pid, process, group: process.name, lambda cgroups: next(answers), lambda: found)
    rest = []
    for _ in range(3):
        made.scan()
        rest.append(made.cpu_seconds.get(REST, 0.0))
    assert rest == [0.0, 3.0, 3.0]


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
