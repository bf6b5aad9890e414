"""A cancelled run ends at once, whatever was received of it before, and what arrives later is dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from common.cancellations import MAX_RUNS, CancelledRuns
from common.messages import (
    CancelRequest,
    Chunk,
    ChunkTask,
    Events,
    FileTask,
    Message,
    Result,
    RunCancelled,
    RunFailed,
    RunRequest,
    StatusRequest,
)
from common.settings import read
from tests.unit.test_analysis_service import DIGEST, PLANS, RUN, RUN_PLAN
from tests.unit.test_messages import events_message
from workers.analysis.service import AnalysisService
from workers.analysis.store import Store
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor

CANCEL = CancelRequest("run", DIGEST)
CANCELLED = [RunCancelled("run"), RunFailed("run", "the run was cancelled")]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "analysis.sqlite"


def service(database: Path) -> AnalysisService:
    return AnalysisService(read({}), Store(database))


@pytest.fixture
def analysis(database: Path) -> Iterator[AnalysisService]:
    with closing(service(database)) as running:
        yield running


def handle_all(analysis: AnalysisService, messages: Sequence[Message]) -> list[Message]:
    return [answer for message in messages for answer in analysis.handle(message)]


@pytest.mark.parametrize("received", range(len(RUN)))
def test_a_cancelled_run_never_has_a_result(analysis: AnalysisService, received: int) -> None:
    handle_all(analysis, RUN[:received])
    assert analysis.handle(CANCEL) == CANCELLED
    later = handle_all(analysis, [*RUN[received:], *RUN])
    assert not [message for message in later if isinstance(message, Result)]
    assert analysis.handle(StatusRequest("run")) == CANCELLED
    assert analysis.handle(CANCEL) == CANCELLED


def test_a_cancelled_run_stays_cancelled_after_a_restart(analysis: AnalysisService, database: Path) -> None:
    handle_all(analysis, RUN[:3])
    analysis.handle(CANCEL)
    analysis.close()
    with closing(service(database)) as restarted:
        restarted.poll()
        assert restarted.handle(StatusRequest(None)) == CANCELLED[1:]  # for the page
        assert restarted.handle(RUN_PLAN) == CANCELLED


def test_a_late_message_tells_the_replicas_again_that_its_run_was_cancelled(analysis: AnalysisService) -> None:
    analysis.handle(CANCEL)
    assert analysis.handle(PLANS[0]) == [RunCancelled("run")]


def test_a_run_that_has_ended_keeps_its_result(analysis: AnalysisService) -> None:
    final = handle_all(analysis, RUN)[-1]
    assert isinstance(final, Result)
    assert analysis.handle(CANCEL) == [final]
    assert analysis.handle(StatusRequest("run")) == [final]


def test_a_request_with_the_settings_of_another_run_cancels_nothing(analysis: AnalysisService) -> None:
    analysis.handle(RUN_PLAN)
    (refused,) = analysis.handle(CancelRequest("run", "0" * 16))
    assert isinstance(refused, RunFailed)
    assert refused.digest == "0" * 16
    assert analysis.handle(StatusRequest("run")) == []


def test_the_loader_and_the_processor_drop_what_belongs_to_a_cancelled_run(tmp_path: Path) -> None:
    settings = read({"CACHE": str(tmp_path)})
    loader, processor = DataLoader(settings), DataProcessor(settings)
    events: Events = events_message(3)
    run_id = events.chunk.run_id
    assert processor.handle(events)
    for one in (loader, processor):
        assert one.handle(RunCancelled(run_id)) == []
    assert processor.handle(events) == []
    chunk = Chunk(run_id, "Zee", 0, 10)
    tasks = [
        RunRequest(run_id, 1.0, RUN_PLAN.settings),
        FileTask(run_id, "Zee", RUN_PLAN.settings),
        ChunkTask(chunk, RUN_PLAN.settings),
    ]
    assert [loader.handle(task) for task in tasks] == [[], [], []]
    assert loader.handle(RunRequest("another", 1.0, RUN_PLAN.settings))
    assert list(tmp_path.iterdir()) == []


def test_a_service_remembers_the_latest_cancelled_runs_in_bounded_memory() -> None:
    cancelled = CancelledRuns()
    for number in range(MAX_RUNS + 1):
        assert cancelled.drops(RunCancelled(f"run-{number}"))
    assert not cancelled.drops(StatusRequest("run-0"))
    assert cancelled.drops(StatusRequest("run-1"))
    assert not cancelled.drops(StatusRequest(None))
