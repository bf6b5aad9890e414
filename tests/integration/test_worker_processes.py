"""The process pool, and the worker processes of an embedded run."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from common import settings, topology
from common.errors import MessageError, WorkerProcessError
from common.messages import Chunk, ChunkTask, Message
from common.replica import software
from common.settings import RunSettings
from common.submission import Outcome, follow, submit
from common.worker_pool import WorkerPool
from physics import ANALYSES
from tests.support import worker_functions
from tests.support.paths import ROOT
from tests.support.processes import running_children
from tests.support.runs import QuietDisplay, before_deadline, numbers, run_embedded
from tests.support.waiting import wait_until
from workers import chunk_worker, embedded
from workers.data_processor.service import DataProcessor
from workers.embedded import EmbeddedServices

#: 12 files in about 200 chunks.
DEMO = RunSettings(release="demo", demo_events=20_000, chunk_entries=100, plots=False)


# --- the process pool ---------------------------------------------------------


#: Child processes that were there before a test: those of pools that the tests of a session share.
OTHERS: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def other_processes() -> None:
    OTHERS.clear()
    OTHERS.update(running_children())


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(2, attempts=3, prepare=worker_functions.nothing)
    yield pool
    pool.close()
    wait_for_exits()


def worker_processes() -> list[psutil.Process]:
    children = running_children()
    return [child for child in children.keys() - OTHERS if "--multiprocessing-fork" in children[child]]


def wait_for_exits() -> None:
    """Wait until no worker process is left: those that a pool replaced have been killed, but may still be exiting."""
    wait_until(lambda: worker_processes() == [], "all worker processes have exited", timeout_s=5)


def test_a_call_returns_and_raises_what_its_function_does(pool: WorkerPool) -> None:
    pool.start()
    pool.wait_until_ready()
    assert len(worker_processes()) == 2
    assert pool.call(worker_functions.double, 21) == 42
    with pytest.raises(MessageError, match="not a chunk"):
        pool.call(worker_functions.refuse, "not a chunk")


def test_processes_that_were_not_started_ahead_start_with_the_calls_that_need_them(pool: WorkerPool) -> None:
    pool.start(1)
    pool.wait_until_ready()
    assert len(worker_processes()) == 1
    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            threads.submit(pool.call, worker_functions.never_end)
        wait_until(lambda: len(worker_processes()) == 2, "the other process was started")
        pool.close()


def test_calls_are_made_in_processes_that_could_not_be_prepared(capfd: pytest.CaptureFixture[str]) -> None:
    unprepared = WorkerPool(2, attempts=1, prepare=worker_functions.fail_to_prepare)
    unprepared.start()
    unprepared.wait_until_ready()
    assert unprepared.call(worker_functions.double, 21) == 42
    with pytest.raises(ImportError, match="no module of this name"):
        unprepared.call(worker_functions.fail_to_prepare)
    unprepared.close()
    assert capfd.readouterr().err == ""


def test_a_call_is_made_again_if_its_process_is_killed(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.call(worker_functions.die_once, tmp_path / "mark") == "done"


def test_a_call_that_ends_its_process_each_time_fails_and_others_do_not(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(4) as threads:
        good = [threads.submit(pool.call, worker_functions.double, number) for number in range(20)]
        bad = threads.submit(pool.call, worker_functions.exit_at_once)
        good += [threads.submit(pool.call, worker_functions.double, number) for number in range(20)]
        with pytest.raises(WorkerProcessError, match="its worker process exited 3 times"):
            bad.result(60)
        assert [one.result(60) for one in good] == [2 * number for number in range(20)] * 2


def test_a_call_that_takes_too_long_fails_and_its_process_ends() -> None:
    pool = WorkerPool(1, attempts=2, prepare=worker_functions.nothing, timeout_s=0.2)
    pool.start()
    pool.wait_until_ready()
    slow = worker_processes()
    with pytest.raises(WorkerProcessError, match=r"it was not done after 0\.2 s"):
        pool.call(worker_functions.never_end)
    _, alive = psutil.wait_procs(slow, timeout=60)
    assert alive == []
    pool.close()


def test_closing_a_pool_ends_a_call_that_never_returns(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(1) as thread:
        pool.start()
        pool.wait_until_ready()
        endless = thread.submit(pool.call, worker_functions.never_end)
        pool.close()
        with pytest.raises(WorkerProcessError, match="were ended"):
            endless.result(60)


def test_closing_a_pool_ends_processes_that_send_outcomes_larger_than_a_pipe_holds() -> None:
    for _ in range(5):
        pool = WorkerPool(2, attempts=1, prepare=worker_functions.nothing)
        with ThreadPoolExecutor(2) as threads:
            sent = [threads.submit(pool.call, bytes, 30_000_000) for _ in range(20)]
            assert len(sent[0].result(60)) == 30_000_000
            pool.close()
        assert worker_processes() == []
        unsent = [error for call in sent if (error := call.exception()) is not None]
        assert {str(error) for error in unsent} == {"the worker processes were ended"}


def test_closing_a_pool_ends_threads_that_make_one_short_call_after_another() -> None:
    def call_without_end(pool: WorkerPool) -> None:
        while True:
            pool.call(bytes, 300_000)

    for _ in range(10):
        pool = WorkerPool(2, attempts=1, prepare=worker_functions.nothing)
        with ThreadPoolExecutor(4) as threads:
            pool.start()
            pool.wait_until_ready()
            calls = [threads.submit(call_without_end, pool) for _ in range(4)]
            pool.call(worker_functions.double, 21)
            pool.close()
        assert {str(call.exception()) for call in calls} == {"the worker processes were ended"}


_HOLD_A_POOL = """
import sys, threading
from common.worker_pool import WorkerPool
from physics import ANALYSES
from tests.support import worker_functions
if __name__ == "__main__":
    pool = WorkerPool(2, attempts=1, prepare=worker_functions.nothing)
    pool.start()
    pool.wait_until_ready()
    print("ready", flush=True)
    sys.stdin.read(1)
    print(pool.call(worker_functions.double, 21), flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A script that holds a pool of two worker processes."""
    script = tmp_path / "hold.py"
    script.write_text(_HOLD_A_POOL)
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        yield holder
        holder.kill()


def test_worker_processes_end_when_the_process_that_has_them_is_killed(holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    children = psutil.Process(holder.pid).children()
    assert len(children) >= 2
    holder.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


def test_an_interrupt_from_the_keyboard_does_not_reach_worker_processes(holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "ready\n"
    for child in psutil.Process(holder.pid).children():
        child.send_signal(signal.SIGINT)
    holder.stdin.write("x")
    holder.stdin.flush()
    assert holder.stdout.readline() == "42\n"
    holder.kill()
    assert holder.stderr is not None
    assert "KeyboardInterrupt" not in holder.stderr.read()


# --- an embedded run ----------------------------------------------------------


@pytest.fixture(scope="module")
def reference(cache: Path) -> str:
    """The numbers of a run without worker processes."""
    return numbers(run_embedded(DEMO, cache))


def run_in_processes(
    run: RunSettings,
    cache: Path,
    on_progress: Callable[[Mapping[str, int]], None] = lambda events: None,
    processes: int = 2,
) -> Outcome:
    """A run whose chunks are processed by worker processes from the first one on."""
    with EmbeddedServices(settings.read({"CACHE": str(cache)}), processes=processes) as services:
        services.prepare()
        session = services.transport.open([topology.follower("run")])
        submit(session, "run", run)
        is_in_time = before_deadline()
        outcome = follow(
            session, "run", ANALYSES, QuietDisplay(on_progress), lambda: is_in_time() and services.is_alive()
        )
    wait_for_exits()
    return outcome


@pytest.mark.slow
def test_killed_worker_processes_change_no_bit(cache: Path, reference: str, caplog: pytest.LogCaptureFixture) -> None:
    killed: list[int] = []

    def kill_all(events: Mapping[str, int]) -> None:
        if not killed and events.get("analysis", 0) > 2_000:
            for process in worker_processes():
                killed.append(process.pid)
                process.kill()

    with caplog.at_level(logging.WARNING):
        assert numbers(run_in_processes(DEMO, cache, kill_all)) == reference
    assert len(killed) >= 2
    assert "the worker processes are replaced" in caplog.text


@pytest.mark.slow
def test_a_longer_run_starts_worker_processes_by_itself(
    cache: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MEASURED_CPU_S", 0.1)
    monkeypatch.setattr(embedded, "PROCESSES_FROM_CPU_S", 0.1)
    with EmbeddedServices(settings.read({"CACHE": str(cache)}), processes=1) as services:
        session = services.transport.open([topology.follower("run")])
        without = len(worker_processes())
        submit(session, "run", DEMO)
        wait_until(lambda: len(worker_processes()) > without, "a worker process was started")
        is_in_time = before_deadline()
        outcome = follow(session, "run", ANALYSES, QuietDisplay(), lambda: is_in_time() and services.is_alive())
    assert numbers(outcome) == reference


def test_an_unreadable_file_has_the_same_reason_in_a_worker_process(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "MC").mkdir()
    (tmp_path / "MC" / "mc_361106.Zee.4lep.root").write_bytes(b"<html>not found</html>" * 100)
    run = RunSettings(data=str(tmp_path), samples=("Zee", "Zmumu"), plots=False)
    in_processes, in_threads = run_in_processes(run, cache, processes=1), run_embedded(run, cache)
    assert in_processes.result is not None
    assert in_threads.result is not None
    assert in_processes.result["problems"] == in_threads.result["problems"]
    assert "an HTML page, not a ROOT file" in " ".join(in_processes.result["problems"])


def test_a_chunk_that_ends_its_worker_process_is_named_and_the_others_are_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_worker, "process_chunk", worker_functions.exit_on_entry_300)

    outcome = run_in_processes(replace(DEMO, samples=("Zee", "llll")), cache, processes=1)

    assert outcome.result is not None
    (problem,) = outcome.result["problems"]
    assert problem.startswith("llll[")
    assert "the chunk could not be processed: its worker process exited 3 times" in problem
    assert outcome.result["complete"] is False
    assert outcome.result["samples"]["Zee"]["events_read"] > 0


def test_events_that_cannot_be_processed_are_left_to_the_data_processor(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(service: DataProcessor, message: Message) -> Sequence[Message]:
        raise ValueError("made to fail by a test")

    read = settings.read({"CACHE": str(cache)})
    task = ChunkTask(Chunk("run", "llll", 0, 100), ANALYSES.resolve(DEMO))
    outcome = [message.kind for message in chunk_worker.process_chunk(read, task.encode(), software=software())]
    monkeypatch.setattr(DataProcessor, "handle", fail)
    left = [message.kind for message in chunk_worker.process_chunk(read, task.encode(), software=software())]

    assert outcome == ["selected", "progress", "progress"]
    assert left == ["events", "progress"]
