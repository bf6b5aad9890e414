"""A second analysis or visualisation that is started by mistake waits, and changes no run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common.settings import BrokerSettings, RunSettings
from tests.support.runs import QuietDisplay, numbers, run_embedded, run_on_broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker

RUN = RunSettings(release="demo", demo_events=20_000, chunk_entries=400, plots=False)
SINGLE = ("analysis", "visualisation")


@pytest.fixture
def copies(vhost: BrokerSettings, tmp_path: Path, cache: Path) -> Iterator[Workers]:
    """Other services on the same broker, with a database and an output folder of their own."""
    folder = tmp_path / "copies"
    folder.mkdir()
    running = Workers(vhost, folder, cache)
    yield running
    running.stop()


@pytest.mark.slow
def test_copies_started_during_a_run_wait_and_leave_its_numbers(workers: Workers, copies: Workers, cache: Path) -> None:
    reference = numbers(run_embedded(RUN, cache))
    workers.start_all()
    started: list[str] = []

    def start_copies(events: Mapping[str, int]) -> None:
        if not started and events["analysis"]:
            started.extend(SINGLE)
            for service in SINGLE:
                copies.start(service)

    outcome = run_on_broker(workers.settings, RUN, QuietDisplay(start_copies))

    assert numbers(outcome) == reference
    for service in SINGLE:
        waiting = f"another {service} service is running"
        wait_until(lambda service=service, waiting=waiting: waiting in copies.log(service), "the copy waits", 30)
        assert "connected" not in copies.log(service)
        workers.kill(service)
        wait_until(lambda service=service: "connected" in copies.log(service), "the copy takes over", 30)
    assert numbers(run_on_broker(workers.settings, RUN)) == reference


@pytest.mark.slow
def test_a_copy_that_waits_ends_with_sigterm(workers: Workers, copies: Workers) -> None:
    workers.start("analysis")
    wait_until(lambda: "connected" in workers.log("analysis"), "the analysis runs", 30)
    copies.start("analysis")
    wait_until(lambda: "another analysis service is running" in copies.log("analysis"), "the copy waits", 30)

    assert copies.stop() == {"analysis": [0]}


def test_a_second_analysis_with_the_same_database_is_refused(workers: Workers) -> None:
    workers.start("analysis")
    wait_until(lambda: "connected" in workers.log("analysis"), "the analysis runs", 30)

    (second,) = workers.start("analysis")

    assert second.wait(30) == 2
    assert "another analysis service uses this file" in workers.log("analysis")
