"""The processes that take an embedded run's chunks through data-loader and data-processor."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest

from common import settings, topology
from common.errors import MessageError, WorkerLost
from common.messages import Chunk, Message, Progress
from common.settings import RunSettings
from common.submission import Outcome, follow, submit
from physics import RELEASES
from tests.integration.test_crashes import events
from tests.support.runs import Quiet, in_time, numbers, run_embedded
from tests.support.waiting import wait_until
from workers import embedded
from workers.embedded import EmbeddedServices
from workers.lane import Lane, _Worker

#: 13 files in about 200 chunks.
DEMO = RunSettings(release="demo", demo_events=40_000, chunk_entries=200)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(cache: Path) -> str:
    """The numbers of a run without lanes."""
    return numbers(run_embedded(DEMO, cache, lanes=0))


def lanes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "workers.lane" in child.cmdline()]


def run_in_lanes(
    run: RunSettings, cache: Path, on_progress: Callable[[Mapping[str, int]], None] = lambda events: None
) -> Outcome:
    """A run whose chunks go through two lanes from the first one on."""
    with EmbeddedServices(settings.read({"CACHE": str(cache)}), lanes=2) as services:
        services.prepare()
        assert len(lanes()) == 2
        session = services.transport.open([topology.follower("run")])
        submit(session, "run", run)
        is_in_time = in_time()
        outcome = follow(session, "run", RELEASES, Quiet(on_progress), lambda: is_in_time() and services.is_alive())
    assert lanes() == []
    return outcome


def test_lanes_give_the_bits_of_the_threads(cache: Path, undisturbed: str) -> None:
    assert numbers(run_in_lanes(DEMO, cache)) == undisturbed


def test_lanes_that_are_killed_change_no_bit(cache: Path, undisturbed: str, caplog: pytest.LogCaptureFixture) -> None:
    killed: list[int] = []

    def strike(events: Mapping[str, int]) -> None:
        if not killed and events.get("analysis", 0) > 2_000:
            for lane in lanes():
                killed.append(lane.pid)
                lane.kill()

    with caplog.at_level(logging.WARNING):
        assert numbers(run_in_lanes(DEMO, cache, strike)) == undisturbed
    assert caplog.text.count("a process that reads and selects ended with code -9") == len(killed) == 2


def test_a_run_that_takes_longer_gets_its_lanes_by_itself(
    cache: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LANES_AFTER_S", 0.1)
    with EmbeddedServices(settings.read({"CACHE": str(cache)}), lanes=1) as services:
        session = services.transport.open([topology.follower("run")])
        assert lanes() == []
        submit(session, "run", DEMO)
        wait_until(lanes, "a lane was started")
        is_in_time = in_time()
        outcome = follow(session, "run", RELEASES, Quiet(), lambda: is_in_time() and services.is_alive())
    assert numbers(outcome) == undisturbed


def test_a_file_that_cannot_be_read_has_the_same_reason_in_a_lane(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "MC").mkdir()
    (tmp_path / "MC" / "mc_361106.Zee.4lep.root").write_bytes(b"<html>not found</html>" * 100)
    run = RunSettings(data=str(tmp_path), samples=("Zee", "Zmumu"))
    in_lanes, in_threads = run_in_lanes(run, cache), run_embedded(run, cache, lanes=0)
    assert in_lanes.result is not None
    assert in_threads.result is not None
    assert in_lanes.result["problems"] == in_threads.result["problems"]
    assert "cannot be read as a ROOT file" in " ".join(in_lanes.result["problems"])


@pytest.fixture
def lane(cache: Path) -> Lane:
    return Lane(settings.read({"CACHE": str(cache)}))


def test_a_message_for_nobody_is_refused_and_the_lane_goes_on(lane: Lane) -> None:
    lane.wait_until_ready(threading.Event())
    for _ in range(2):
        with pytest.raises(MessageError, match="a data-loader has no use for a progress message"):
            lane.handle(Progress("plan", Chunk("run", "Zee", 0, 1)))
    lane.close()


def test_a_lane_that_has_died_says_so_whenever_it_did(lane: Lane) -> None:
    (process,) = lanes()
    process.kill()
    with pytest.raises(WorkerLost, match="ended with code -9"):
        lane.wait_until_ready(threading.Event())
    with pytest.raises(WorkerLost, match="ended with code -9"):
        lane.handle(Progress("plan", Chunk("run", "Zee", 0, 1)))
    lane.close()


def test_a_lane_ends_with_the_process_that_has_it(lane: Lane) -> None:
    lane.wait_until_ready(threading.Event())
    (process,) = lanes()
    lane._line.close()
    assert wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "the lane ended")
    lane.close()


def test_events_that_cannot_be_processed_are_left_to_the_data_processor(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Pipe()
    worker = _Worker(theirs, settings.read({"CACHE": str(cache)}))

    def fail(message: Message) -> Sequence[Message]:
        raise ValueError("made to fail by a test")

    monkeypatch.setattr(worker._processor, "handle", fail)
    refused = events("Zee", 0)
    worker._process(refused)
    what, route, kind, _ = json.loads(ours.recv_bytes())
    assert (what, route, kind, ours.recv_bytes()) == ("outcome", "events", "events", refused.encode())
