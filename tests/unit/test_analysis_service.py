"""The analysis service makes one final result of a run's messages, whatever their order."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from common import topology
from common.delivery import Delivery
from common.errors import BrokerError, DatabaseError, MessageError
from common.messages import (
    Chunk,
    ChunkFailed,
    ChunkTask,
    DeadLetterNotice,
    FetchProgress,
    FileTask,
    Message,
    Progress,
    RequeueNotice,
    Result,
    RunFailed,
    RunPlan,
    RunRequest,
    RunStarted,
    SamplePlan,
    Selected,
    StatusRequest,
)
from common.settings import RunSettings, read
from physics import ANALYSES
from tests.support import toy_run, worker_functions
from tests.support.real_data import random_selected, selected
from tests.support.waiting import wait_until
from workers.analysis import service as service_module
from workers.analysis.database import Database
from workers.analysis.service import PARTIAL_EVERY_S, AnalysisService
from workers.analysis.statistics.fit_pool import FitAnswer, FitPool, fit_document
from workers.analysis.store import Store

BOUNDS = {"data_A": (0, 30), "Zee": (0, 40, 80), "ZH125_ZZ4lep": (0, 25, 50)}
RUN_PLAN = RunPlan("run", 1000.0, ANALYSES.resolve(RunSettings(samples=tuple(BOUNDS))))
DIGEST = RUN_PLAN.digest
PLANS = [SamplePlan("run", sample, bounds[-1], bounds, digest=DIGEST) for sample, bounds in BOUNDS.items()]
CHUNKS = [chunk for plan in PLANS for chunk in plan.chunks]
ZEE = Chunk("run", "Zee", 40, 80)


def of_chunk(chunk: Chunk, settings: RunSettings = RUN_PLAN.settings) -> Selected:
    return selected(chunk, random_selected(np.random.default_rng([chunk.start, *chunk.sample.encode()]), 20), settings)


RUN: list[Message] = [RUN_PLAN, *PLANS, *map(of_chunk, CHUNKS)]


@dataclass
class Clock:
    """Two clocks: ``ahead`` is by how many seconds the system's clock was set forward."""

    now: float = 2000.0
    ahead: float = 0.0

    def time(self) -> float:
        return self.now + self.ahead

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(service_module, "time", SimpleNamespace(time=clock.time, monotonic=clock.monotonic))
    return clock


@pytest.fixture(autouse=True)
def closed_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every database that a test has opened."""
    opened: list[Database] = []

    def recorded(path: Path | None, lock_timeout_s: float) -> Database:
        opened.append(Database(path, lock_timeout_s))
        return opened[-1]

    monkeypatch.setattr("workers.analysis.store.Database", recorded)
    yield
    for database in opened:
        database.close()


@pytest.fixture
def store() -> Store:
    return Store(None)


class NoFits(FitPool):
    """A pool without a worker process, for runs that have no fit."""

    def start(self) -> None: ...


@pytest.fixture
def analysis(clock: Clock, store: Store) -> Iterator[AnalysisService]:
    analysis = AnalysisService(read({}), store, NoFits())
    yield analysis
    analysis.close()


def results(messages: Sequence[Message]) -> list[Result]:
    return [message for message in messages if isinstance(message, Result)]


def without_waits(result: dict[str, Any]) -> dict[str, Any]:
    """A result without the times that are measured."""
    return {**result, "timing": {**result["timing"], "waits": None}}


def handle_all(analysis: AnalysisService, messages: Sequence[Message]) -> list[Message]:
    return [answer for message in messages for answer in analysis.handle(message)]


def final_of(analysis: AnalysisService, messages: Sequence[Message]) -> dict[str, Any]:
    """The one final result that these messages give."""
    (found,) = (result for result in results(handle_all(analysis, messages)) if result.final)
    return found.result


def without(*left_out: Message) -> list[Message]:
    return [message for message in RUN if not any(message is one for one in left_out)]


def dead_letter(queue: str, message: Message, problem: str = "it is not a pickle") -> Delivery:
    """Return a notice as the service loop publishes it."""
    headers = {**message.headers, "problem": problem, "queue": queue}
    return Delivery(topology.DEAD_NOTICES.name, message.kind, b"cannot be read", headers, False, token=None)


def dead_letter_of_the_broker(queue: str, headers: Mapping[str, Any], kind: str, reason: str) -> Delivery:
    """Return a notice as RabbitMQ publishes it, for example at the delivery limit."""
    made = {
        **headers,
        "x-delivery-count": 11,
        "x-first-death-queue": queue,
        "x-first-death-reason": reason,
        "x-first-death-exchange": "",
        "x-last-death-queue": queue,
        "x-death": [{"queue": queue, "reason": reason, "count": 1, "exchange": "", "routing-keys": [queue]}],
    }
    return Delivery(topology.DEAD_NOTICES.name, kind, b"\x80", made, False, token=None)


def notify(analysis: AnalysisService, delivery: Delivery) -> Sequence[Message]:
    return analysis.handle(analysis.decode(delivery))


# --- a run ------------------------------------------------------------------


def test_the_last_message_in_any_order_gives_the_final_result(clock: Clock) -> None:
    found = set()
    for seed in range(6):
        messages = list(RUN)
        random.Random(seed).shuffle(messages)
        analysis = AnalysisService(read({}), Store(None))
        assert results(handle_all(analysis, messages[:-1])) == []
        result = final_of(analysis, messages[-1:])
        assert (result["complete"], result["problems"]) == (True, [])
        assert result["timing"].pop("waits").keys() == {"added"}
        found.add(json.dumps(result, allow_nan=False))
        analysis.close()
    assert len(found) == 1


def test_every_chunk_is_reported_as_done(analysis: AnalysisService) -> None:
    answers = handle_all(analysis, RUN)

    reported = [message for message in answers if isinstance(message, Progress)]
    assert [(message.stage, message.chunk) for message in reported] == [("analysis", chunk) for chunk in CHUNKS]
    assert [[span.step for span in message.spans] for message in reported] == [["added"]] * len(CHUNKS)


def test_messages_repeated_third_publish_the_result_once(analysis: AnalysisService, clock: Clock) -> None:
    final = final_of(analysis, RUN)
    clock.now += 3600
    published: list[Result] = []
    analysis.publish = published.extend
    other_bounds = of_chunk(Chunk("run", "Zee", 10, 70))
    other_plan = SamplePlan("run", "Zee", 80, (0, 10, 70, 80), digest=DIGEST)

    late: list[Message] = [ChunkFailed(ZEE, "late", DIGEST), ChunkFailed(other_bounds.chunk, "late", DIGEST)]
    for message in [*RUN[1:], other_bounds, other_plan, *late]:
        assert results(analysis.handle(message)) == [], message
        assert [(one.final, one.result) for one in published] == [(True, final)], message
    for _ in range(2):  # a repeated plan is answered each time
        assert results(analysis.handle(RUN_PLAN)) == published


def test_an_unpublished_result_is_published_with_the_next_message(analysis: AnalysisService) -> None:
    final = final_of(analysis, RUN)
    published: list[Result] = []

    def refuse(messages: Sequence[Message]) -> None:
        raise BrokerError("it has not confirmed")

    analysis.publish = refuse
    with pytest.raises(BrokerError):
        analysis.handle(RUN[-1])
    analysis.publish = published.extend
    analysis.handle(RUN[-1])
    assert [(one.final, one.result) for one in published] == [(True, final)]


def test_a_restarted_service_continues_where_it_was_killed(tmp_path: Path, clock: Clock) -> None:
    settings = replace(read({}), database=tmp_path / "analysis.sqlite")
    uninterrupted = AnalysisService(settings, Store(None))
    expected = final_of(uninterrupted, RUN)
    killed = AnalysisService(settings)
    handle_all(killed, RUN[:6])
    killed.close()

    successor = AnalysisService(settings)

    assert without_waits(final_of(successor, RUN[5:])) == without_waits(expected)
    for analysis in (uninterrupted, successor):
        analysis.close()


def test_several_runs_at_once_are_kept_apart(analysis: AnalysisService) -> None:
    other = Chunk("other", "Zee", 0, 10)
    settings = ANALYSES.resolve(RunSettings(samples=("Zee",)))
    handle_all(analysis, [RunPlan("other", 1000.0, settings), of_chunk(other, settings)])

    assert final_of(analysis, RUN)["samples"]["Zee"]["events_read"] == 80
    result = final_of(analysis, [SamplePlan("other", "Zee", 10, (0, 10), digest=settings.digest)])
    assert (result["run_id"], result["samples"]["Zee"]["events_read"]) == ("other", 10)


# --- requests with other settings --------------------------------------------

OTHER = replace(RUN_PLAN.settings, pt_cuts_gev=(30.0, 20.0))


def test_a_request_with_other_settings_for_a_run_is_refused_and_the_run_goes_on(
    analysis: AnalysisService, caplog: pytest.LogCaptureFixture
) -> None:
    handle_all(analysis, RUN[:-1])

    (refused,) = analysis.handle(RunPlan("run", 1500.0, OTHER))

    assert isinstance(refused, RunFailed)
    assert (refused.run_id, refused.digest) == ("run", OTHER.digest)
    assert "was requested before with other settings" in refused.problem
    assert "request is refused" in caplog.text
    assert final_of(analysis, RUN[-1:])["complete"] is True


@pytest.mark.parametrize(
    "message",
    [
        SamplePlan("run", "Zee", 80, (0, 80), digest=OTHER.digest),
        ChunkFailed(ZEE, "no such file", OTHER.digest),
        of_chunk(ZEE, OTHER),
    ],
    ids=lambda message: message.kind,
)
@pytest.mark.parametrize("received", [1, len(RUN) - 1], ids=["after the plan", "before the last chunk"])
def test_a_message_of_a_request_with_other_settings_is_rejected(
    analysis: AnalysisService, message: Message, received: int
) -> None:
    handle_all(analysis, RUN[:received])

    with pytest.raises(MessageError, match="with other settings"):
        analysis.handle(message)
    assert notify(analysis, dead_letter(message.route, message, "with other settings")) == []

    assert final_of(analysis, RUN[received:])["complete"] is True


def test_chunks_that_arrive_before_the_plan_decide_which_settings_the_run_has(analysis: AnalysisService) -> None:
    analysis.handle(of_chunk(ZEE))

    with pytest.raises(MessageError, match="with other settings"):
        analysis.handle(of_chunk(CHUNKS[0], OTHER))
    (refused,) = analysis.handle(RunPlan("run", 1500.0, OTHER))

    assert isinstance(refused, RunFailed)
    assert final_of(analysis, RUN)["settings"]["pt_cuts"] == [20.0, 15.0, 10.0]


def test_the_same_request_again_is_the_same_run(analysis: AnalysisService) -> None:
    handle_all(analysis, RUN[:4])

    assert not any(isinstance(answer, RunFailed) for answer in handle_all(analysis, RUN[:4]))
    assert final_of(analysis, RUN[4:])["complete"] is True


# --- copies of the service ---------------------------------------------------


def test_two_services_on_one_store_end_a_run_once_and_with_every_chunk(store: Store, clock: Clock) -> None:
    first, second = (AnalysisService(read({}), store) for _ in range(2))
    handle_all(first, RUN[:-1])
    final = final_of(first, RUN[-1:])
    clock.now += 60

    assert results(handle_all(second, RUN[1:])) == []
    published: list[Message] = []
    second.publish = published.extend
    handle_all(second, [RUN[-1]])

    assert store.result("run") == final
    assert (final["complete"], final["samples"]["Zee"]["events_read"]) == (True, 80)
    for analysis in (first, second):
        analysis.close()


# --- the fit ----------------------------------------------------------------


class Loop:
    """Calls ``poll`` as the service loop does, and keeps what is published."""

    def __init__(self, analysis: AnalysisService) -> None:
        self.analysis = analysis
        self.published: list[Message] = []
        analysis.publish = self.published.extend

    def finals(self, timeout_s: float = 300.0) -> list[Result]:
        """Poll until a final result is published."""

        def polled() -> list[Result]:
            self.analysis.poll()
            return [result for result in results(self.published) if result.final]

        return wait_until(polled, "a final result was published", timeout_s)


def fitting(
    store: Store, function: Callable[[Mapping[str, Any]], FitAnswer] = fit_document, timeout_s: float = 60.0
) -> Loop:
    """Return a service that calls this function instead of the fit."""
    return Loop(AnalysisService(read({}), store, FitPool(function, timeout_s)))


def test_a_complete_run_is_final_only_with_its_fit() -> None:
    loop = fitting(Store(None))
    *_, last = handle_all(loop.analysis, toy_run.messages())
    assert isinstance(last, Result)
    assert (last.final, last.result["complete"], last.result["fit_problem"]) == (False, False, "the fit is under way")

    (final,) = loop.finals()

    assert (final.result["complete"], final.result["problems"], final.result["fit_problem"]) == (True, [], None)
    assert 0 < final.result["fit"]["signal_strength"] < 3
    assert json.loads(json.dumps(final.result, allow_nan=False)) == final.result
    again = results(handle_all(loop.analysis, toy_run.messages()))
    assert {result.final for result in again} == {True}
    assert all(result.result == final.result for result in again)
    loop.analysis.close()


def test_other_runs_continue_during_an_endless_fit_which_ends_with_the_service() -> None:
    loop = fitting(Store(None), worker_functions.fit_without_end)
    handle_all(loop.analysis, toy_run.messages("slow"))
    assert results(handle_all(loop.analysis, toy_run.messages("slow"))) == []

    assert final_of(loop.analysis, RUN)["complete"] is True
    loop.analysis.poll()
    assert results(loop.published) == []
    loop.analysis.close()


def test_a_service_killed_during_a_fit_fits_again_after_its_restart(tmp_path: Path) -> None:
    path = tmp_path / "analysis.sqlite"
    killed = fitting(Store(path), worker_functions.fit_without_end)
    handle_all(killed.analysis, toy_run.messages())
    killed.analysis.poll()
    assert results(killed.published) == []
    killed.analysis.close()

    successor = fitting(Store(path), worker_functions.find_fit)
    (final,) = successor.finals()
    assert final.result["fit"] == worker_functions.FIT
    successor.analysis.close()

    third = fitting(Store(path), worker_functions.fit_without_end)
    third.analysis.poll()
    assert third.published == []
    third.analysis.close()


def test_an_interrupted_publication_is_made_by_the_restarted_service(tmp_path: Path) -> None:
    path = tmp_path / "analysis.sqlite"
    interrupted = fitting(Store(path), worker_functions.find_fit)
    handle_all(interrupted.analysis, toy_run.messages())

    def refuse(messages: Sequence[Message]) -> None:
        if any(isinstance(message, Result) and message.final for message in messages):
            raise BrokerError("the connection broke")

    interrupted.analysis.publish = refuse
    with pytest.raises(BrokerError):
        interrupted.finals()
    interrupted.analysis.close()

    successor = fitting(Store(path), worker_functions.find_fit)
    assert len(successor.finals()) == 1
    successor.analysis.close()


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (worker_functions.exit_in_fit, "the fit failed: its worker process exited 2 times"),
        (worker_functions.fail_to_fit, "the fit failed: a matrix is singular"),
        (worker_functions.find_no_minimum, "the fit does not converge: x"),
    ],
)
def test_a_fit_that_fails_leaves_a_complete_run_without_one_and_says_why(
    function: Callable[[Mapping[str, Any]], FitAnswer], why: str
) -> None:
    loop = fitting(Store(None), function)
    handle_all(loop.analysis, toy_run.messages())

    (final,) = loop.finals()

    assert (final.result["complete"], final.result["problems"], final.result["fit"]) == (True, [], None)
    assert final.result["fit_problem"] == why
    loop.analysis.close()


def test_a_fit_whose_process_is_killed_is_done_again(tmp_path: Path) -> None:
    loop = fitting(Store(None), worker_functions.DieOnce(tmp_path / "killed"))
    handle_all(loop.analysis, toy_run.messages())

    (final,) = loop.finals()

    assert (tmp_path / "killed").exists()
    assert final.result["fit"] == worker_functions.FIT
    loop.analysis.close()


def test_a_fit_is_ended_after_the_timeout() -> None:
    loop = fitting(Store(None), worker_functions.fit_without_end, timeout_s=0.2)
    handle_all(loop.analysis, toy_run.messages())

    (final,) = loop.finals()

    assert final.result["fit_problem"] == "the fit failed: it was not done after 0.2 s"
    loop.analysis.close()


def test_an_incomplete_run_has_no_fit_and_says_why_until_it_is_complete() -> None:
    loop = fitting(Store(None), worker_functions.find_fit)
    messages = toy_run.messages()
    (late,) = (message for message in messages if isinstance(message, Selected) and message.chunk.sample == "llll")
    others = [message for message in messages if message is not late]

    incomplete = final_of(loop.analysis, [*others, ChunkFailed(late.chunk, "cannot be read", late.digest)])
    assert (incomplete["fit"], incomplete["fit_problem"]) == (None, "the run is not complete")

    handle_all(loop.analysis, [late])
    (final,) = loop.finals()
    assert (final.result["complete"], final.result["fit"]) == (
        True,
        worker_functions.FIT,
    )
    loop.analysis.close()


# --- partial results --------------------------------------------------------


def test_partial_results_are_published_at_most_twice_a_second(analysis: AnalysisService, clock: Clock) -> None:
    handle_all(analysis, [RUN_PLAN, SamplePlan("run", "data_A", 1000, tuple(range(0, 1001, 10)), digest=DIGEST)])
    seen = []
    for start in range(0, 990, 10):
        clock.now += 0.1
        seen += [(clock.now, r) for r in results(analysis.handle(of_chunk(Chunk("run", "data_A", start, start + 10))))]

    times = [at for at, _ in seen]
    assert 9.9 / PARTIAL_EVERY_S * 0.8 <= len(seen) <= 9.9 / PARTIAL_EVERY_S
    assert min(np.diff(times)) >= PARTIAL_EVERY_S
    assert not any(result.final or result.result["complete"] for _, result in seen)
    read_so_far = [result.result["samples"]["data_A"]["events_read"] for _, result in seen]
    assert read_so_far == [round((at - 2000) / 0.1) * 10 for at in times]


# --- failures -------------------------------------------------------------


def test_a_run_with_a_failed_chunk_is_incomplete_until_the_chunk_arrives(analysis: AnalysisService) -> None:
    late = RUN[RUN.index(next(m for m in RUN if isinstance(m, Selected) and m.chunk == ZEE))]
    result = final_of(analysis, [*without(late), ChunkFailed(ZEE, "f.root: cannot be read", DIGEST)])

    assert (result["complete"], result["problems"]) == (False, ["Zee[40:80]: f.root: cannot be read"])
    assert result["samples"]["Zee"]["events_read"] == 40

    result = final_of(analysis, [late])
    assert (result["complete"], result["samples"]["Zee"]["events_read"]) == (True, 80)


def test_a_missing_file_ends_the_run_incomplete(analysis: AnalysisService) -> None:
    messages = [
        SamplePlan("run", "Zee", problem="no such file", digest=DIGEST) if message is PLANS[1] else message
        for message in RUN
    ]

    result = final_of(analysis, [m for m in messages if not (isinstance(m, Selected) and m.chunk.sample == "Zee")])

    assert (result["complete"], result["problems"]) == (False, ["Zee: no such file"])
    assert result["samples"]["data_A"]["events_read"] == 30


@pytest.mark.slow
def test_the_result_of_a_run_with_35_000_failed_chunks_fits_into_a_message(
    analysis: AnalysisService, store: Store
) -> None:
    count, reason = 35_000, "no such file: " + "é" * 1_000
    settings = ANALYSES.resolve(RunSettings(samples=("Zee",)))
    handle_all(analysis, [RunPlan("run", 1000.0, settings)])
    analysis.handle(SamplePlan("run", "Zee", count, tuple(range(count + 1)), digest=settings.digest))
    with store.transaction():
        for start in range(count - 1):
            store.fail(Chunk("run", "Zee", start, start + 1), reason)

    (result,) = analysis.handle(ChunkFailed(Chunk("run", "Zee", count - 1, count), reason, settings.digest))

    assert isinstance(result, Result)
    assert (result.final, result.result["complete"]) == (True, False)
    assert len(result.encode()) < 1_000_000
    *listed, last = result.result["problems"]
    assert len(listed) == 100
    assert all(problem.startswith("Zee[") and len(problem) == 1_000 for problem in listed)
    assert last == "and 34,900 more, which are in the database of the analysis"


def test_a_run_whose_result_is_too_large_for_a_message_fails_and_says_so(analysis: AnalysisService) -> None:
    settings = replace(ANALYSES.resolve(RunSettings(samples=("Zee",))), data="/" + "d" * 8_388_500)
    handle_all(analysis, [RunPlan("run", 1000.0, settings)])

    (failed,) = analysis.handle(SamplePlan("run", "Zee", problem="no such file", digest=settings.digest))

    assert isinstance(failed, RunFailed)
    assert re.match("its result cannot be published: result: 8[0-9]+ bytes are more than the 8388608", failed.problem)
    assert failed in analysis.handle(StatusRequest("run"))


def test_a_dead_lettered_chunk_is_a_problem_of_its_run(analysis: AnalysisService) -> None:
    (lost,) = (message for message in RUN if isinstance(message, Selected) and message.chunk == ZEE)
    handle_all(analysis, without(lost))

    (answer,) = notify(analysis, dead_letter("selected", lost))

    assert isinstance(answer, Result)
    assert answer.final
    assert answer.result["complete"] is False
    assert answer.result["problems"] == ["Zee[40:80]: a message in selected could not be handled: it is not a pickle"]


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("delivery_limit", "it was delivered too often without an outcome"),
        ("rejected", "the broker dead-lettered it"),
    ],
)
def test_a_chunk_dead_lettered_by_the_broker_is_a_problem_of_its_run(
    analysis: AnalysisService, reason: str, why: str
) -> None:
    (lost,) = (message for message in RUN if isinstance(message, Selected) and message.chunk == ZEE)
    handle_all(analysis, without(lost))
    task = ChunkTask(ZEE, RUN_PLAN.settings)

    (answer,) = notify(analysis, dead_letter_of_the_broker("chunks", task.headers, task.kind, reason))

    assert isinstance(answer, Result)
    assert answer.result["problems"] == [f"Zee[40:80]: a message in chunks could not be handled: {why}"]


def test_a_dead_lettered_file_task_ends_the_run_without_its_sample(analysis: AnalysisService) -> None:
    task = FileTask("run", "Zee", RUN_PLAN.settings)
    others = [m for m in RUN if m is not PLANS[1] and not (isinstance(m, Selected) and m.chunk.sample == "Zee")]
    handle_all(analysis, others)

    (answer,) = notify(analysis, dead_letter_of_the_broker("chunks", task.headers, task.kind, "delivery_limit"))

    assert isinstance(answer, Result)
    assert answer.result["problems"] == [
        "Zee: a message in chunks could not be handled: it was delivered too often without an outcome"
    ]
    assert answer.result["samples"]["data_A"]["events_read"] == 30


def test_a_dead_lettered_request_ends_its_run(analysis: AnalysisService) -> None:
    request = RunRequest("run", 1000.0, RUN_PLAN.settings)
    handle_all(analysis, [RUN_PLAN, PLANS[0], of_chunk(CHUNKS[0])])

    (answer,) = notify(analysis, dead_letter_of_the_broker("runs", request.headers, request.kind, "delivery_limit"))

    assert isinstance(answer, Result)
    assert [problem.partition(":")[0] for problem in answer.result["problems"]] == ["ZH125_ZZ4lep", "Zee"]


@pytest.mark.parametrize(
    ("queue", "message"), [("runs", RunRequest("run", 1000.0, RUN_PLAN.settings)), ("plans", RUN_PLAN)]
)
def test_a_run_without_a_plan_fails_if_its_request_is_dead_lettered(
    analysis: AnalysisService, queue: str, message: Message
) -> None:
    assert notify(analysis, dead_letter(queue, message, "RELEASE='x' is not known")) == [
        RunFailed("run", f"a message in {queue} could not be handled: RELEASE='x' is not known")
    ]


def test_a_status_request_is_answered_with_progress_or_result(analysis: AnalysisService) -> None:
    assert analysis.handle(StatusRequest("run")) == []
    everything = {plan.sample: Progress("plan", Chunk("run", plan.sample, 0, plan.entries)) for plan in PLANS}
    handle_all(analysis, [RUN_PLAN, PLANS[1], of_chunk(ZEE)])
    assert analysis.handle(StatusRequest("run")) == [everything["Zee"], Progress("analysis", ZEE)]
    result = final_of(analysis, RUN)
    (answer,) = results(analysis.handle(StatusRequest("run")))
    assert (answer.final, answer.result) == (True, result)


def test_a_status_request_without_a_run_id_is_answered_for_every_run_under_way(analysis: AnalysisService) -> None:
    notify(analysis, dead_letter("runs", RunRequest("wrong", 900.0, RUN_PLAN.settings), "no such sample"))
    handle_all(analysis, [RUN_PLAN, PLANS[1], of_chunk(ZEE)])
    everything = {plan.sample: Progress("plan", Chunk("run", plan.sample, 0, plan.entries)) for plan in PLANS}
    failed, *under_way = analysis.handle(StatusRequest(None))
    assert failed == RunFailed("wrong", "a message in runs could not be handled: no such sample")
    assert under_way == [RunStarted("run", RUN_PLAN.settings), everything["Zee"], Progress("analysis", ZEE)]
    final_of(analysis, RUN)
    assert analysis.handle(StatusRequest(None)) == [failed]


def test_a_status_request_for_a_failed_run_gets_the_reason_until_it_has_a_plan(
    tmp_path: Path,
) -> None:
    first = AnalysisService(read({}), Store(tmp_path / "analysis.sqlite"))
    failed = notify(first, dead_letter("runs", RunRequest("run", 1000.0, RUN_PLAN.settings), "no such sample"))
    assert first.handle(StatusRequest("run")) == failed != []
    first.close()
    second = AnalysisService(read({}), Store(tmp_path / "analysis.sqlite"))
    assert second.handle(StatusRequest("run")) == failed
    second.handle(RUN_PLAN)
    assert second.handle(StatusRequest("run")) == []
    second.close()


@pytest.mark.parametrize("kind", ["selected", "file-task"])
def test_a_dead_letter_that_arrives_before_its_plan_is_applied_with_the_plan(
    analysis: AnalysisService, kind: str
) -> None:
    (chunk,) = (message for message in RUN if isinstance(message, Selected) and message.chunk == ZEE)
    lost = {"selected": chunk, "file-task": FileTask("run", "Zee", RUN_PLAN.settings)}[kind]

    assert notify(analysis, dead_letter(lost.route, lost)) == []
    assert analysis.handle(StatusRequest("run")) == []

    assert final_of(analysis, without(chunk))["problems"] == [
        f"Zee[40:80]: a message in {lost.route} could not be handled: it is not a pickle"
    ]


def test_a_dead_letter_without_a_plan_fails_its_run_after_an_hour(analysis: AnalysisService, clock: Clock) -> None:
    sent = Published(analysis)
    task = FileTask("run", "Zee", RUN_PLAN.settings)
    assert notify(analysis, dead_letter("chunks", task)) == []
    analysis.poll()
    clock.now += 3601
    analysis.poll()

    assert sent.messages == [RunFailed("run", NO_PLAN)]
    assert analysis.handle(StatusRequest("run")) == sent.messages
    clock.now += 7200
    analysis.poll()
    assert len(sent.messages) == 1


def requeued(message: Message) -> Delivery:
    notice = RequeueNotice.from_headers(message.route, message.headers, notice_id=uuid4().hex)
    return Delivery(topology.DEAD_NOTICES.name, notice.kind, notice.encode(), notice.headers, False, token=None)


def test_a_requeued_chunk_completes_its_ended_run(analysis: AnalysisService, clock: Clock) -> None:
    (lost,) = (message for message in RUN if isinstance(message, Selected) and message.chunk == ZEE)
    handle_all(analysis, without(lost))
    (ended,) = notify(analysis, dead_letter("selected", lost))
    assert isinstance(ended, Result)
    assert (ended.final, ended.result["complete"]) == (True, False)
    clock.now += 3600

    assert results(notify(analysis, requeued(lost))) == []
    (completed,) = results(analysis.handle(lost))

    expected = final_of(AnalysisService(read({}), Store(None)), RUN)
    assert (completed.final, completed.result["complete"]) == (True, True)
    for key in ("samples", "categories", "histograms", "window", "problems"):
        assert completed.result[key] == expected[key]


def test_after_a_requeued_file_task_the_run_waits_for_all_chunks_of_the_sample(
    analysis: AnalysisService, clock: Clock
) -> None:
    task = FileTask("run", "Zee", RUN_PLAN.settings)
    of_zee = [PLANS[1], *(m for m in RUN if isinstance(m, Selected) and m.chunk.sample == "Zee")]
    handle_all(analysis, without(*of_zee))
    (ended,) = notify(analysis, dead_letter("chunks", task))
    assert isinstance(ended, Result)
    assert ended.final
    clock.now += 3600

    notify(analysis, requeued(task))

    *before, last = handle_all(analysis, of_zee)
    assert not any(message.final for message in results(before))
    assert isinstance(last, Result)
    assert (last.final, last.result["complete"]) == (True, True)


def test_a_requeued_message_that_is_dead_lettered_again_ends_its_run_again(
    analysis: AnalysisService, clock: Clock
) -> None:
    (lost,) = (message for message in RUN if isinstance(message, Selected) and message.chunk == ZEE)
    handle_all(analysis, without(lost))
    for reason in ("once", "twice"):
        (ended,) = notify(analysis, dead_letter("selected", lost, reason))
        assert isinstance(ended, Result)
        assert ended.final
        assert ended.result["problems"] == [f"Zee[40:80]: a message in selected could not be handled: {reason}"]
        notify(analysis, requeued(lost))


def test_a_dead_lettered_requeue_notice_is_treated_as_a_dead_letter(analysis: AnalysisService) -> None:
    message = analysis.decode(
        dead_letter("plans", RequeueNotice(notice_id="1", queue="plans", run_id="run", sample="Zee"))
    )
    assert isinstance(message, DeadLetterNotice)


NO_PLAN = "no plan of the run arrived within 1 h of its first message"


class Published:
    """Keeps the messages that a service publishes in ``poll``."""

    def __init__(self, service: AnalysisService) -> None:
        self.messages: list[Message] = []
        service.publish = self.messages.extend  # type: ignore[method-assign]


def test_chunks_without_a_plan_are_dropped_after_an_hour_and_named(
    analysis: AnalysisService, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sent = Published(analysis)
    orphaned = [of_chunk(Chunk("without-plan", "Zee", start, start + 10)) for start in (0, 10)]
    handle_all(analysis, orphaned)
    analysis.poll()
    clock.now += 3599
    analysis.poll()
    assert sent.messages == []

    clock.now += 61
    analysis.poll()

    (failed,) = sent.messages
    assert failed == RunFailed("without-plan", NO_PLAN)
    assert "Zee[0:10], Zee[10:20]" in caplog.text
    assert store.orphaned() == set()
    clock.now += 7200
    analysis.poll()
    assert sent.messages == [failed]


def test_chunks_wait_an_hour_for_their_plan_if_the_clock_is_set_forward(
    analysis: AnalysisService, clock: Clock
) -> None:
    sent = Published(analysis)
    plans = [RUN_PLAN, *PLANS]
    handle_all(analysis, without(*plans))
    analysis.poll()
    clock.now += 60
    clock.ahead = 86_400
    analysis.poll()

    assert final_of(analysis, plans)["complete"]
    assert sent.messages == []


@pytest.mark.parametrize("ahead", [-60.0, 60.0])
def test_the_duration_of_a_run_depends_on_no_clock_that_is_set(
    analysis: AnalysisService, clock: Clock, ahead: float
) -> None:
    analysis.handle(replace(RUN_PLAN, submitted=clock.time() + ahead))
    clock.now += 20
    clock.ahead = ahead

    timing = final_of(analysis, RUN[1:])["timing"]

    assert (timing["seconds"], timing["finished"]) == (20.0, "1970-01-01T00:33:40.000Z")
    assert timing["events_per_second"] == 160 / 20


def test_a_plan_that_arrives_59_minutes_after_its_chunks_completes_the_run(
    analysis: AnalysisService, clock: Clock
) -> None:
    sent = Published(analysis)
    plans = [RUN_PLAN, *PLANS]
    handle_all(analysis, without(*plans))
    analysis.poll()
    clock.now += 3540
    analysis.poll()
    assert final_of(analysis, plans)["complete"]
    assert sent.messages == []


def test_a_plan_that_arrives_after_its_chunks_were_dropped_ends_the_run(
    analysis: AnalysisService, clock: Clock
) -> None:
    Published(analysis)
    plans = [RUN_PLAN, *PLANS]
    handle_all(analysis, without(*plans))
    analysis.poll()
    clock.now += 3700
    analysis.poll()
    result = results(handle_all(analysis, plans))[-1].result
    assert not result["complete"]
    assert [problem.partition(":")[0] for problem in result["problems"]] == sorted(BOUNDS)
    assert all("no plan of the run" in problem for problem in result["problems"])


# --- the runs that are kept --------------------------------------------------


def messages_of(run_id: str) -> list[Message]:
    def renamed(message: Message) -> Message:
        if isinstance(message, Selected):
            return replace(message, chunk=replace(message.chunk, run_id=run_id))
        return replace(message, **{"run_id": run_id})

    return [renamed(message) for message in RUN]


def test_the_database_does_not_grow_with_the_number_of_ended_runs(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "analysis.sqlite"
    analysis = AnalysisService(replace(read({"RESULTS_KEEP": "5"}), database=path), fits=NoFits())
    sizes = []
    for number in range(50):
        final_of(analysis, messages_of(f"run-{number}"))
        handle_all(analysis, [*messages_of(f"incomplete-{number}")[:-1], failure_of(f"incomplete-{number}")])
        notify(analysis, dead_letter("runs", RunRequest(f"failed-{number}", 1000.0, RUN_PLAN.settings)))
        analysis.poll()
        if number in (9, 49):
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.close()
            sizes.append(path.stat().st_size)
    analysis.close()

    assert sizes[1] - sizes[0] < 120 * 200  # the ids and digests of 120 runs, and their index


def failure_of(run_id: str) -> ChunkFailed:
    return ChunkFailed(replace(CHUNKS[-1], run_id=run_id), "cannot be read", DIGEST)


def test_the_runs_that_were_submitted_last_are_kept_whatever_the_clock_says(clock: Clock) -> None:
    analysis = AnalysisService(read({"RESULTS_KEEP": "2"}), Store(None), NoFits())
    clock.ahead = 1e9
    final_of(analysis, messages_of("ahead"))
    clock.ahead = 0
    for run_id in ("second", "third"):
        final_of(analysis, messages_of(run_id))
        analysis.poll()

    kept = {run_id: analysis.handle(StatusRequest(run_id)) for run_id in ("ahead", "second", "third")}

    assert kept["ahead"] == [RunFailed("ahead", DELETED)]
    assert all(isinstance(kept[run_id][0], Result) for run_id in ("second", "third"))
    analysis.close()


def test_no_message_starts_a_deleted_run_again(clock: Clock) -> None:
    store = Store(None)
    analysis = AnalysisService(read({"RESULTS_KEEP": "1"}), store, NoFits())
    for run_id in ("first", "second"):
        final_of(analysis, messages_of(run_id))
    analysis.poll()

    plan, *others = messages_of("first")
    late = [ChunkFailed(replace(ZEE, run_id="first"), "late", DIGEST), *others]
    assert analysis.handle(plan) == [RunFailed("first", DELETED, DIGEST)]
    assert handle_all(analysis, late) == []
    assert notify(analysis, dead_letter("selected", others[-1])) == []
    assert notify(analysis, requeued(others[-1])) == []
    assert store.orphaned() == set()
    assert store.run("first") is None
    analysis.close()


DELETED = "the run has ended, and the analysis has deleted its result (RESULTS_KEEP); request it under another id"


# --- a result that cannot be made -------------------------------------------


def raise_type_error(*_args: object, **_keywords: object) -> None:
    raise TypeError("unsupported operand")


NOT_MADE = RunFailed("run", "its result cannot be made: TypeError: unsupported operand")


def test_a_run_whose_result_cannot_be_made_fails_once_and_other_runs_go_on(
    analysis: AnalysisService, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(service_module, "result_of", raise_type_error)
        answers = handle_all(analysis, [*RUN, *RUN[1:]])
    assert [answer for answer in answers if isinstance(answer, RunFailed)] == [NOT_MADE]
    assert notify(analysis, dead_letter("selected", RUN[-1])) == []
    assert analysis.handle(StatusRequest("run")) == [NOT_MADE]
    assert store.unfinished() == []
    assert final_of(analysis, messages_of("another"))["complete"] is True


def test_a_run_whose_dead_letter_ends_it_without_a_result_fails(
    analysis: AnalysisService, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle_all(analysis, RUN[:-1])
    monkeypatch.setattr(service_module, "result_of", raise_type_error)
    assert notify(analysis, dead_letter("selected", RUN[-1])) == [NOT_MADE]


def test_a_run_whose_fit_cannot_be_added_fails_and_the_service_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = fitting(Store(None), worker_functions.find_fit)
    handle_all(loop.analysis, toy_run.messages())
    monkeypatch.setattr(service_module, "with_fit", raise_type_error)

    def polled() -> list[Message]:
        loop.analysis.poll()
        return [message for message in loop.published if isinstance(message, RunFailed)]

    (failed,) = wait_until(polled, "the run had failed")
    assert failed.problem == NOT_MADE.problem
    assert final_of(loop.analysis, messages_of("another"))["complete"] is True
    loop.analysis.close()


def test_a_service_that_resumes_a_run_whose_result_cannot_be_made_fails_it_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "analysis.sqlite"
    killed = fitting(Store(path), worker_functions.fit_without_end)
    handle_all(killed.analysis, toy_run.messages())
    killed.analysis.close()
    monkeypatch.setattr(service_module, "result_of", raise_type_error)
    successor = fitting(Store(path))
    successor.analysis.poll()
    assert [message.problem for message in successor.published if isinstance(message, RunFailed)] == [NOT_MADE.problem]
    successor.analysis.poll()
    successor.analysis.close()


# --- a damaged database -----------------------------------------------------


ENDS = ("first", "second")


def pages_of_two_runs(path: Path) -> int:
    """Make a database with two runs that miss their last chunk; returns the number of its pages of 4 KiB."""
    analysis = AnalysisService(read({}), Store(path), NoFits())
    for run_id in ("first", "second"):
        handle_all(analysis, messages_of(run_id)[:-1])
    analysis.close()
    return path.stat().st_size // 4096


def test_of_a_damaged_database_every_run_is_right_or_given_up(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {run_id: final_of(AnalysisService(read({}), Store(None)), messages_of(run_id)) for run_id in ENDS}
    original, path = tmp_path / "original.sqlite", tmp_path / "analysis.sqlite"
    pages = pages_of_two_runs(original)
    ends: Counter[str] = Counter()
    stopped: list[str] = []
    for page in range(1, pages):
        content = bytearray(original.read_bytes())
        content[4096 * page : 4096 * (page + 1)] = np.random.default_rng(page).bytes(4096)
        path.write_bytes(content)
        analysis = AnalysisService(read({}), Store(path), NoFits())
        published = Published(analysis).messages
        try:
            analysis.poll()
            for run_id in ENDS:
                published += analysis.handle(messages_of(run_id)[-1])
        except DatabaseError as error:
            stopped.append(str(error))
        else:
            finals = {message.run_id: message.result for message in results(published) if message.final}
            failed = {message.run_id: message.problem for message in published if isinstance(message, RunFailed)}
            assert all(without_waits(finals[run_id]) == without_waits(expected[run_id]) for run_id in finals)
            assert all("it is damaged in the database" in failed[run_id] for run_id in failed)
            assert all(f"run {run_id}: " in caplog.text for run_id in failed)
            assert finals.keys() | failed.keys() == set(ENDS), page
            ends[f"{len(failed)} given up"] += 1
        analysis.close()
        for file in tmp_path.glob("analysis.sqlite*"):
            file.unlink()
    assert all(f"DATABASE={str(path)!r}: " in problem for problem in stopped)
    assert ends["1 given up"] > 0
    assert len(stopped) < pages / 4


def test_a_deleted_database_fails_its_runs_within_a_minute_and_ends_the_service(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "analysis.sqlite"
    analysis = AnalysisService(read({}), Store(path), NoFits())
    sent = Published(analysis)
    handle_all(analysis, RUN[:3])
    analysis.poll()
    path.unlink()
    clock.now += 59

    with pytest.raises(DatabaseError, match="was deleted or replaced"):
        analysis.poll()

    (failed,) = sent.messages
    assert isinstance(failed, RunFailed)
    assert "submit them again" in failed.problem
    analysis.close()


# --- the end ------------------------------------------------------------------


def test_a_complete_run_keeps_no_chunk_that_its_plan_does_not_have(analysis: AnalysisService, store: Store) -> None:
    unplanned = of_chunk(Chunk("run", "Zee", 3, 5))
    handle_all(analysis, [*RUN, unplanned])
    assert store.database.row("SELECT count(*) FROM chunks WHERE NOT planned") == (0,)


def test_a_dead_letter_after_a_complete_run_leaves_its_result(analysis: AnalysisService) -> None:
    final = final_of(analysis, RUN)
    tasks = [FileTask("run", "Zee", RUN_PLAN.settings), ChunkTask(ZEE, RUN_PLAN.settings), RUN[-1]]

    published: list[Result] = []
    analysis.publish = published.extend
    for task in tasks:
        assert notify(analysis, dead_letter(task.route, task)) == []
        assert [(one.final, one.result) for one in published] == [(True, final)]


def test_a_result_that_cannot_be_drawn_fails_its_run(analysis: AnalysisService) -> None:
    partial = Result("run", final=False, result={})
    queue = topology.VISUALISATION.name
    handle_all(analysis, RUN[:-1])
    assert notify(analysis, dead_letter(queue, partial)) == []
    final = final_of(analysis, RUN[-1:])

    answers = notify(analysis, dead_letter(queue, Result("run", final=True, result=final), "no font"))

    assert answers == [RunFailed("run", f"a message in {queue} could not be handled: no font")]


@pytest.mark.parametrize(
    "message", [Progress("data-loader", ZEE), FetchProgress("run", "Zee", 10, 100)], ids=lambda m: m.kind
)
def test_a_dead_lettered_progress_message_changes_no_run(analysis: AnalysisService, message: Message) -> None:
    handle_all(analysis, RUN[:-1])
    queue = topology.VISUALISATION.name

    assert notify(analysis, dead_letter_of_the_broker(queue, message.headers, message.kind, "maxlen")) == []

    assert final_of(analysis, RUN[-1:])["complete"] is True
    assert notify(analysis, dead_letter_of_the_broker(queue, message.headers, message.kind, "maxlen")) == []


def test_a_dead_letter_without_a_run_is_ignored_and_an_invalid_one_rejected(analysis: AnalysisService) -> None:
    assert notify(analysis, dead_letter_of_the_broker("runs", {}, "", "delivery_limit")) == []
    for headers in ({"run_id": 7}, {"run_id": "../x"}, {"run_id": "run", "sample": "Zee", "start": -1, "stop": 3}):
        with pytest.raises(MessageError, match="dead letter"):
            notify(analysis, dead_letter_of_the_broker("chunks", headers, "", "delivery_limit"))


@pytest.mark.parametrize(
    "cutflow",
    [
        {"read": 40, "four_leptons": 20, "pt_cuts": 20, "charge": 20, "flavour": 20, "beauty": 20},
        {"read": 40, "flavour": 20},
        {"read": 40, "four_leptons": 20, "pt_cuts": 20, "charge": 20, "flavour": 19},
    ],
)
def test_a_chunk_with_a_wrong_cutflow_is_rejected_and_changes_nothing(
    analysis: AnalysisService, cutflow: dict[str, int]
) -> None:
    (good,) = (message for message in RUN if isinstance(message, Selected) and message.chunk == ZEE)
    handle_all(analysis, without(good))

    with pytest.raises(MessageError, match=r"Zee\[40:80\]"):
        analysis.handle(replace(good, cutflow=cutflow))

    assert final_of(analysis, [good])["complete"] is True


def test_a_message_for_another_service_is_rejected(analysis: AnalysisService) -> None:
    with pytest.raises(MessageError, match="cannot handle a file-task"):
        analysis.handle(FileTask("run", "Zee", RUN_PLAN.settings))
