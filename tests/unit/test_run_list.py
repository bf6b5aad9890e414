"""The analysis service lists its runs: the newest first, with their states and results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest

from common.messages import (
    CancelRequest,
    ChunkFailed,
    Message,
    RunFailed,
    RunList,
    RunListRequest,
    RunPlan,
    RunRequest,
    RunSummary,
)
from common.settings import read
from tests.support import toy_run, worker_functions
from tests.unit.test_analysis_service import DIGEST, PLANS, RUN_PLAN, ZEE, dead_letter, fitting
from workers.analysis.service import AnalysisService
from workers.analysis.store import Store
from workers.command.runs import runs_table


@pytest.fixture
def analysis() -> Iterator[AnalysisService]:
    with closing(AnalysisService(read({}), Store(None))) as service:
        yield service


def handle_all(analysis: AnalysisService, messages: Sequence[Message]) -> None:
    for message in messages:
        analysis.handle(message)


def listed(analysis: AnalysisService) -> tuple[RunSummary, ...]:
    (answer,) = analysis.handle(RunListRequest("1a2b"))
    assert isinstance(answer, RunList)
    assert answer.request_id == "1a2b"
    return answer.runs


def plan(run_id: str) -> RunPlan:
    return replace(RUN_PLAN, run_id=run_id)


def states(analysis: AnalysisService) -> dict[str, str]:
    return {run.run_id: run.state for run in listed(analysis)}


def test_the_newest_run_is_listed_first_with_its_settings(analysis: AnalysisService) -> None:
    assert listed(analysis) == ()
    handle_all(analysis, [plan("b"), plan("a")])
    newest, oldest = listed(analysis)
    assert (newest.run_id, oldest.run_id) == ("a", "b")
    assert (newest.analysis, newest.release, newest.samples) == ("hzz4l", "2020e-13tev", 3)
    assert (newest.state, newest.submitted, newest.digest) == ("running", 1000.0, DIGEST)
    assert newest.seconds is not None


def test_a_complete_run_is_listed_with_its_signal_strength() -> None:
    loop = fitting(Store(None), worker_functions.find_fit)
    with closing(loop.analysis):
        handle_all(loop.analysis, toy_run.messages("toy"))
        assert states(loop.analysis) == {"toy": "fitting"}
        (final,) = loop.finals()
        (run,) = listed(loop.analysis)
    assert run.state == "complete"
    assert (run.signal_strength, run.signal_strength_error) == (1.5, 0.5)
    assert run.seconds == final.result["timing"]["seconds"]
    (strength,) = (column for column in runs_table([run]).columns if column.header == "μ")
    assert [str(cell) for cell in strength.cells] == ["1.5 ± 0.5"]


def test_a_run_is_listed_as_waiting_cancelled_incomplete_or_failed(analysis: AnalysisService) -> None:
    lost = [replace(one, run_id="incomplete", bounds=(0,), problem="no such file") for one in PLANS]
    handle_all(analysis, [plan("incomplete"), *lost, plan("cancelled"), CancelRequest("cancelled", DIGEST)])
    handle_all(analysis, [ChunkFailed(replace(ZEE, run_id="waiting"), "it cannot be read", DIGEST)])
    notice = dead_letter("runs", RunRequest("failed", 1.0, RUN_PLAN.settings), "no such analysis")
    handle_all(analysis, [analysis.decode(notice)])
    assert states(analysis) == {
        "failed": "failed",
        "waiting": "waiting",
        "cancelled": "cancelled",
        "incomplete": "incomplete",
    }
    by_id = {run.run_id: run for run in listed(analysis)}
    assert "no such analysis" in str(by_id["failed"].problem)
    assert by_id["incomplete"].problem == "ZH125_ZZ4lep: no such file"
    assert (by_id["cancelled"].release, by_id["cancelled"].samples) == ("2020e-13tev", 3)


def test_the_id_of_a_run_is_kept_when_its_result_is_deleted() -> None:
    """Also a cancelled run stays cancelled."""
    with closing(AnalysisService(read({"RESULTS_KEEP": "1"}), Store(None))) as analysis:
        analysis.publish = lambda messages: None
        for number in range(3):
            lost = [replace(one, run_id=f"run-{number}", bounds=(0,), problem="no such file") for one in PLANS]
            handle_all(analysis, [plan(f"run-{number}"), *lost])
            handle_all(analysis, [plan(f"cancelled-{number}"), CancelRequest(f"cancelled-{number}", DIGEST)])
        analysis.poll()
        assert states(analysis) == {
            "cancelled-2": "cancelled",
            "run-2": "incomplete",
            "cancelled-1": "cancelled",
            "run-1": "deleted",
            "cancelled-0": "cancelled",
            "run-0": "deleted",
        }
        other = replace(plan("run-0"), settings=replace(RUN_PLAN.settings, fraction=0.5))
        (refused,) = analysis.handle(other)
        assert isinstance(refused, RunFailed)
        assert "requested before with other settings" in refused.problem
