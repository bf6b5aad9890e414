"""Following a run: what its display shows, and when, over both transports."""

from __future__ import annotations

import copy
import json
import queue
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from rich.console import Console

from common import messages, topology
from common.display import Bars
from common.messages import Chunk, Progress, Result, ResultFiles, RunFailed, StatusRequest
from common.progress import RunProgress
from common.settings import BrokerSettings
from common.submission import Outcome, follow
from common.transport import Session, Transport
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.integration.test_pipeline import before_deadline
from tests.support.broker import Broker
from tests.support.waiting import wait_until
from tests.unit.test_fit_plots import fitted

RUN = "run"


class Shown:
    """A display that keeps the results, for a test to wait for."""

    def __init__(self) -> None:
        self.results: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self.events: dict[str, int] = {}

    def progress(self, run: RunProgress) -> None:
        self.events = {stage: done.events for stage, done in run.stages.items()}

    def note(self, text: str) -> None: ...

    def result(self, document: Mapping[str, Any]) -> None:
        self.results.put(document)


def folder(result: Mapping[str, Any]) -> ResultFiles:
    return ResultFiles(RUN, {"result.json": json.dumps(result).encode()})


def changed(result: dict[str, Any]) -> dict[str, Any]:
    other = copy.deepcopy(result)
    other["problems"].append("a chunk came late")
    return other


@pytest.fixture
def services(transport: Transport) -> Iterator[Session]:
    """A session in which a test publishes what the services would."""
    with closing(transport.open([])) as session:
        yield session


@pytest.fixture
def following(transport: Transport, services: Session) -> Iterator[Callable[[Shown], Any]]:
    """Follows the run in a thread; returns the future outcome."""
    with ThreadPoolExecutor(1) as thread, closing(transport.open([topology.follower(RUN)])) as session:
        yield lambda display: thread.submit(follow, session, RUN, ANALYSES, display, before_deadline())


def test_the_result_is_shown_before_its_files_arrive(services: Session, following: Callable[[Shown], Any]) -> None:
    display, result = Shown(), fitted()
    outcome = following(display)
    services.publish([Result(RUN, final=False, result={"so": "far"}), Result(RUN, final=True, result=result)])
    assert display.results.get(timeout=20) == result
    assert not outcome.done()
    services.publish([folder(result)])
    assert outcome.result(20) == Outcome(result, folder(result).files)
    assert display.results.empty()


def test_a_repeated_result_is_shown_once_and_a_changed_one_again(
    services: Session, following: Callable[[Shown], Any]
) -> None:
    display, first, last = Shown(), fitted(), changed(fitted())
    outcome = following(display)
    services.publish([Result(RUN, final=True, result=each) for each in (first, first, last)])
    services.publish([folder(last)])
    assert outcome.result(20).result == last
    assert [display.results.get_nowait() for _ in range(2)] == [first, last]
    assert display.results.empty()


def test_a_result_whose_plots_cannot_be_drawn_is_shown_once(
    services: Session, following: Callable[[Shown], Any]
) -> None:
    display, result = Shown(), fitted()
    drawn = {**result, "problems": [*result["problems"], "figure m4l cannot be drawn: KeyError: 'm4l'"]}
    drawn["provenance"] = {**result["provenance"], "packages": {"matplotlib": "3.11"}}  # those of the visualisation
    outcome = following(display)
    services.publish([Result(RUN, final=True, result=result), folder(drawn)])
    assert outcome.result(20).result == drawn
    assert display.results.get_nowait() == result
    assert display.results.empty()


def test_a_result_that_was_missed_is_shown_from_its_files(services: Session, following: Callable[[Shown], Any]) -> None:
    display, result = Shown(), fitted()
    outcome = following(display)
    services.publish([folder(result)])
    assert outcome.result(20).result == result
    assert display.results.get_nowait() == result


def test_a_run_that_fails_after_its_result_has_a_problem(services: Session, following: Callable[[Shown], Any]) -> None:
    display, result = Shown(), fitted()
    outcome = following(display)
    services.publish([Result(RUN, final=True, result=result), RunFailed(RUN, "it cannot be drawn")])
    assert outcome.result(20) == Outcome(None, {}, "it cannot be drawn")
    assert display.results.get_nowait() == result


@pytest.mark.broker
def test_a_follower_that_lost_its_connection_requests_the_status(broker: Broker, vhost: BrokerSettings) -> None:
    transport, result = RabbitMQTransport(vhost, connect_timeout_s=20), fitted()
    outcome: Future[Outcome]
    with closing(transport.open([topology.follower(RUN)])) as session, ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(follow, session, RUN, ANALYSES, Shown(), before_deadline())
        wait_until(lambda: broker.cut_connections(vhost), "the follower lost its connection", 30)
        with closing(transport.open([topology.PLANS])) as analysis:
            request = wait_until(lambda: analysis.receive(0.5), "the follower sent a status request", 20)
            assert messages.decode(request.kind, request.body, ANALYSES) == StatusRequest(RUN)
            analysis.publish_and_acknowledge(request, [folder(result)])
        assert outcome.result(20).result == result


def test_analysed_chunks_count_as_loaded_and_processed(services: Session, following: Callable[[Shown], Any]) -> None:
    display = Shown()
    outcome = following(display)
    chunks = [Chunk(RUN, "Zee", start, start + 10) for start in (0, 10)]
    services.publish([Progress("data-loader", chunks[0]), *(Progress("analysis", chunk) for chunk in chunks)])
    services.publish([folder(fitted())])
    outcome.result(20)
    assert display.events == {"data-loader": 20, "data-processor": 20, "analysis": 20}


def test_the_bars_of_a_complete_run_are_full_even_if_progress_was_missed() -> None:
    result = fitted()
    events = sum(sample["events_read"] for sample in result["samples"].values())
    console = Console(record=True, width=120, highlight=False)
    progress = RunProgress()
    progress.update(Progress("data-loader", Chunk(RUN, "Zee", 0, 1)))
    with Bars(console, len(result["samples"])) as bars:
        bars.progress(progress)
        bars.result(result)
        console.print(bars)
    assert result["complete"]
    assert console.export_text().count(f"{events}/{events}") == 3


def test_the_bars_print_the_results() -> None:
    result = fitted()
    console = Console(record=True, width=120, highlight=False)
    with Bars(console, 4) as bars:
        bars.result(result)
        printed = console.export_text()
    for text in (
        "Cutflow",
        "Yields",
        "115 to 130 GeV: ",
        "signal strength μ = 1.1 ± ",
    ):
        assert text in printed
