"""Complete runs: the same bits with every transport, number of replicas, fault and restart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common import messages, settings, topology
from common.delivery import Delivery
from common.messages import Message, Result, RunRequest, RunStarted
from common.settings import RunSettings
from common.submission import Outcome, follow, submit
from common.transport import Session
from common.transport.dead_letters import dead_letters, requeue
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.support.broker import Broker
from tests.support.real_data import real_data
from tests.support.runs import QuietDisplay, before_deadline, numbers, run_embedded, run_on_broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers
from workers.embedded import EmbeddedServices

SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")
DEMO = RunSettings(release="demo", demo_events=20_000, chunk_entries=1_000, plots=False)


@pytest.fixture(scope="module")
def reference(cache: Path) -> str:
    """The numbers of a demo run without faults."""
    outcome = run_embedded(DEMO, cache)
    assert outcome.result is not None
    assert outcome.result["complete"]
    return numbers(outcome)


@pytest.fixture(scope="module")
def services(broker: Broker, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One replica of each service; every test leaves at least one running."""
    vhost = broker.new_vhost()
    running = Workers(vhost, tmp_path_factory.mktemp("services"), cache)
    running.start_all()
    yield running
    running.stop()
    broker.delete_vhost(vhost)


@pytest.mark.parametrize("where", ["embedded", pytest.param("rabbitmq", marks=pytest.mark.broker)])
def test_real_events_give_the_published_counts_and_yields(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = real_data()
    reference = json.loads((data / "reference.json").read_text())["samples"]
    run = RunSettings(data=str(data / "4lep"), samples=tuple(reference), pt_cuts_gev=(), lumi_ifb=10.0, plots=False)
    if where == "embedded":
        outcome = run_embedded(run, tmp_path)
    else:
        services: Workers = request.getfixturevalue("services")
        outcome = run_on_broker(services.settings, run)
    assert outcome.result is not None
    assert outcome.result["complete"]
    for name, published in reference.items():
        sample = outcome.result["samples"][name]
        assert sample["events_selected"] == published["events_selected"]
        assert sample["yield"] == pytest.approx(published["yield"], rel=1e-6)


@pytest.mark.broker
def test_a_run_has_the_bits_of_the_embedded_one_and_its_folder_is_stored(services: Workers, reference: str) -> None:
    outcome = run_on_broker(services.settings, DEMO)
    assert numbers(outcome) == reference
    assert outcome.result is not None
    stored = services.folder / "service-results" / outcome.result["run_id"]
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == dict(outcome.files)


@pytest.mark.broker
def test_more_replicas_give_the_bits_of_the_embedded_run(services: Workers, reference: str) -> None:
    added = [*services.start("data_loader"), *services.start("data_processor", 2)]
    for service, number in (("data_loader", 2), ("data_processor", 3)):
        wait_until(lambda: services.log(service).count("connected to") >= number, f"{service} is connected")  # noqa: B023
    assert numbers(run_on_broker(services.settings, DEMO)) == reference
    for process in added:
        process.kill()
        process.wait()


def test_more_threads_give_the_bits_of_the_embedded_run(cache: Path, reference: str) -> None:
    assert numbers(run_embedded(DEMO, cache, data_loaders=3, data_processors=2)) == reference


@pytest.mark.broker
def test_workers_process_several_runs_at_once_and_another_one_after_them(services: Workers, reference: str) -> None:
    transport = RabbitMQTransport(services.settings, connect_timeout_s=30)
    runs = [f"run-{number}" for number in range(3)]
    sessions = [transport.open([topology.follower(run_id)], prefetch=100) for run_id in runs]
    for session, run_id in zip(sessions, runs, strict=True):
        submit(session, run_id, DEMO)
    for session, run_id in zip(sessions, runs, strict=True):
        assert numbers(follow(session, run_id, ANALYSES, QuietDisplay(), before_deadline())) == reference
        session.close()
    assert numbers(run_on_broker(services.settings, DEMO)) == reference


@pytest.mark.broker
@pytest.mark.parametrize("victim", SERVICES)
def test_a_worker_killed_in_the_middle_of_a_run_changes_no_bit(services: Workers, reference: str, victim: str) -> None:
    progress_when_killed = []

    def kill(events: Mapping[str, int]) -> None:
        if not progress_when_killed and events.get("analysis", 0) > 2_000:
            progress_when_killed.append(dict(events))
            services.kill(victim)
            services.start(victim)

    assert numbers(run_on_broker(services.settings, DEMO, QuietDisplay(kill))) == reference
    assert progress_when_killed
    assert progress_when_killed[0]["analysis"] < 20_000


@pytest.mark.broker
def test_broken_connections_in_the_middle_of_a_run_change_no_bit(
    services: Workers, reference: str, broker: Broker
) -> None:
    cut: list[bool] = []

    def cut_connections(events: Mapping[str, int]) -> None:
        if len(cut) < 1 and events.get("analysis", 0) > 2_000:
            cut.append(wait_until(lambda: broker.cut_connections(services.settings), "connections were cut"))

    assert numbers(run_on_broker(services.settings, DEMO, QuietDisplay(cut_connections))) == reference
    assert cut


@pytest.mark.slow
@pytest.mark.broker
def test_workers_stopped_in_the_middle_of_a_run_exit_cleanly_and_change_no_bit(
    services: Workers, reference: str
) -> None:
    stopped: list[str] = []
    codes: list[int] = []

    def restart_all(events: Mapping[str, int]) -> None:
        if not stopped and events.get("analysis", 0) > 2_000:
            processes = [process for service in SERVICES for process in services.running(service)]
            services.stop()
            codes.extend(process.returncode for process in processes)
            stopped.extend(SERVICES)
            services.start_all()

    assert numbers(run_on_broker(services.settings, DEMO, QuietDisplay(restart_all))) == reference
    assert codes == [0, 0, 0, 0]


def test_a_missing_file_leaves_a_run_incomplete_with_the_reason(tmp_path: Path) -> None:
    data = real_data()
    outcome = run_embedded(RunSettings(data=str(data / "4lep"), samples=("data_A", "data_D"), plots=False), tmp_path)
    assert outcome.result is not None
    assert not outcome.result["complete"]
    assert outcome.result["samples"]["data_A"]["events_read"] == 39
    (problem,) = outcome.result["problems"]
    assert problem.startswith("data_D:")
    assert "data_D.4lep.root: no such file" in problem


def test_a_broken_file_leaves_its_run_incomplete_and_the_others_complete(tmp_path: Path) -> None:
    shutil.copytree(real_data() / "4lep", tmp_path / "4lep")
    broken = tmp_path / "4lep" / "MC" / "mc_341964.WH125_ZZ4lep.4lep.root"
    content = bytearray(broken.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    broken.write_bytes(content)
    outcome = run_embedded(
        RunSettings(data=str(tmp_path / "4lep"), samples=("Zee", "WH125_ZZ4lep"), plots=False), tmp_path
    )
    assert outcome.result is not None
    assert not outcome.result["complete"]
    assert outcome.result["samples"]["Zee"]["events_read"] == 243
    (problem,) = outcome.result["problems"]
    assert "WH125_ZZ4lep" in problem
    assert str(broken) in problem


def test_the_first_message_about_a_run_is_that_it_started(cache: Path) -> None:
    received: list[Message] = []
    with EmbeddedServices(settings.read({"CACHE": str(cache)}), processes=0) as services:
        session = services.transport.open([topology.follower("run")])
        submit(session, "run", DEMO)
        while not (received and isinstance(received[-1], Result) and received[-1].final):
            delivery = wait_until(lambda: session.receive(0.5), "a message came")
            session.publish_and_acknowledge(delivery)
            received.append(messages.decode(delivery.kind, delivery.body, ANALYSES))
    assert received[0] == RunStarted("run", ANALYSES.resolve(DEMO))


def take(session: Session) -> Delivery:
    delivery = wait_until(lambda: session.receive(0.5), "a delivery came")
    assert isinstance(delivery, Delivery)
    return delivery


@pytest.mark.broker
@pytest.mark.parametrize(("queue", "consumer"), [(topology.EVENTS, "data_processor"), (topology.SELECTED, "analysis")])
def test_a_run_with_a_dead_letter_says_why_and_is_complete_once_it_is_requeued(
    services: Workers, reference: str, queue: topology.Queue, consumer: str
) -> None:
    services.kill(consumer)
    transport = RabbitMQTransport(services.settings, connect_timeout_s=30)
    run_id = f"dead-letter-in-{queue.name}"
    follower = transport.open([topology.follower(run_id)], prefetch=100)
    submit(follower, run_id, DEMO)
    consumer_of_one = transport.open([queue], prefetch=1)
    consumer_of_one.dead_letter(take(consumer_of_one), "made unreadable by a test")
    consumer_of_one.close()
    services.start(consumer)
    outcome = follow(follower, run_id, ANALYSES, QuietDisplay(), before_deadline())
    follower.close()
    assert outcome.result is not None
    assert not outcome.result["complete"]
    assert any("made unreadable by a test" in problem for problem in outcome.result["problems"])

    (dead_letter,) = requeue(services.settings, run_id)
    assert (dead_letter.queue, dead_letter.problem) == (queue.name, "made unreadable by a test")

    written = services.folder / "service-results" / run_id / "result.json"
    result = wait_until(
        lambda: (found := json.loads(written.read_text())) and found["complete"] and found, "the run is complete", 60
    )
    assert numbers(Outcome(result, {"result.json": written.read_bytes()})) == reference
    assert run_id not in {left.run_id for left in dead_letters(services.settings)}


@pytest.mark.broker
def test_an_invalid_run_request_ends_with_the_reason(services: Workers) -> None:
    class Wrong(RunRequest):
        def encode(self) -> bytes:
            return b'{"run_id": "wrong", "submitted": 1, "settings": {"lumi_ifb": -5}}'

    session = RabbitMQTransport(services.settings, connect_timeout_s=30).open([topology.follower("wrong")])
    session.publish([Wrong("wrong", 1.0, DEMO)])
    outcome = follow(session, "wrong", ANALYSES, QuietDisplay(), before_deadline())
    session.close()
    assert outcome.problem is not None
    assert "LUMI=-5" in outcome.problem
