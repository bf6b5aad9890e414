"""What whoever follows a run is shown of it, and when, over both transports."""

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
from physics import RELEASES
from tests.integration.test_pipeline import in_time
from tests.support.broker import Broker
from tests.support.waiting import wait_until
from tests.unit.test_fit_plots import fitted

RUN = "run"


class Shown:
    """Keeps the results it is given, for a test to wait for."""

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
    """What the services publish, a test publishes."""
    with closing(transport.open([])) as session:
        yield session


@pytest.fixture
def following(transport: Transport, services: Session) -> Iterator[Callable[[Shown], Any]]:
    """Follows the run in a thread of its own; gives the future outcome."""
    with ThreadPoolExecutor(1) as thread, closing(transport.open([topology.follower(RUN)])) as session:
        yield lambda display: thread.submit(follow, session, RUN, RELEASES, display, in_time())


def test_the_result_is_shown_before_its_folder_is_there(services: Session, following: Callable[[Shown], Any]) -> None:
    display, result = Shown(), fitted()
    outcome = following(display)
    services.publish([Result(RUN, final=False, result={"so": "far"}), Result(RUN, final=True, result=result)])
    assert display.results.get(timeout=20) == result
    assert not outcome.done()
    services.publish([folder(result)])
    assert outcome.result(20) == Outcome(result, folder(result).files)
    assert display.results.empty()


def test_a_result_that_comes_twice_is_shown_once_and_a_changed_one_again(
    services: Session, following: Callable[[Shown], Any]
) -> None:
    display, first, last = Shown(), fitted(), changed(fitted())
    outcome = following(display)
    services.publish([Result(RUN, final=True, result=each) for each in (first, first, last)])
    services.publish([folder(last)])
    assert outcome.result(20).result == last
    assert [display.results.get_nowait() for _ in range(2)] == [first, last]
    assert display.results.empty()


def test_a_folder_whose_result_was_missed_is_shown_all_the_same(
    services: Session, following: Callable[[Shown], Any]
) -> None:
    display, result = Shown(), fitted()
    outcome = following(display)
    services.publish([folder(result)])
    assert outcome.result(20).result == result
    assert display.results.get_nowait() == result


def test_a_run_that_fails_after_its_result_says_why(services: Session, following: Callable[[Shown], Any]) -> None:
    display, result = Shown(), fitted()
    outcome = following(display)
    services.publish([Result(RUN, final=True, result=result), RunFailed(RUN, "it cannot be drawn")])
    assert outcome.result(20) == Outcome(None, {}, "it cannot be drawn")
    assert display.results.get_nowait() == result


@pytest.mark.broker
def test_whoever_lost_the_connection_asks_again_and_is_told_how_the_run_ended(
    broker: Broker, vhost: BrokerSettings
) -> None:
    transport, result = RabbitMQTransport(vhost, connect_timeout_s=20), fitted()
    outcome: Future[Outcome]
    with closing(transport.open([topology.follower(RUN)])) as session, ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(follow, session, RUN, RELEASES, Shown(), in_time())
        wait_until(lambda: broker.cut_connections(vhost), "the follower lost its connection", 30)
        with closing(transport.open([topology.PLANS])) as analysis:
            asked = wait_until(lambda: analysis.receive(0.5), "the follower asked", 20)
            assert messages.decode(asked.kind, asked.body, RELEASES) == StatusRequest(RUN)
            analysis.publish_and_acknowledge(asked, [folder(result)])
        assert outcome.result(20).result == result


def test_what_the_analysis_has_done_the_others_have_done_before_it(
    services: Session, following: Callable[[Shown], Any]
) -> None:
    display = Shown()
    outcome = following(display)
    chunks = [Chunk(RUN, "Zee", start, start + 10) for start in (0, 10)]
    services.publish([Progress("data-loader", chunks[0]), *(Progress("analysis", chunk) for chunk in chunks)])
    services.publish([folder(fitted())])
    outcome.result(20)
    assert display.events == {"data-loader": 20, "data-processor": 20, "analysis": 20}


def test_the_bars_of_a_complete_run_are_full_though_some_progress_was_missed() -> None:
    result = fitted()
    events = sum(sample["events_read"] for sample in result["samples"].values())
    console = Console(record=True, width=120, highlight=False)
    with Bars(console, len(result["samples"])) as bars:
        bars.progress("data-loader", 1, 1)
        bars.result(result)
    assert result["complete"]
    assert console.export_text().count(f"{events}/{events}") == 3


def test_the_bars_print_the_numbers_while_they_run() -> None:
    result = fitted()
    console = Console(record=True, width=120, highlight=False)
    with Bars(console, 4) as bars:
        bars.result(result)
        printed = console.export_text()
    for words in (
        "Cutflow",
        "Yields",
        "115 to 130 GeV: ",
        f"signal strength {result['fit']['signal_strength']:.2f} ± ",
    ):
        assert words in printed
