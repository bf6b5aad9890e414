"""Complete runs: the same bits with every transport, number of replicas, fault and restart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common import messages, settings, topology
from common.delivery import Delivery
from common.messages import Chunk, Message, Result, RunRequest, RunStarted, Selected
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

DEMO = RunSettings(release="demo", demo_events=20_000, chunk_entries=1_000, plots=False)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache shared by all runs, so that the demo release is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def reference(cache: Path) -> str:
    """The numbers of a demo run without faults."""
    outcome = run_embedded(DEMO, cache)
    assert outcome.result is not None
    assert outcome.result["complete"]
    return numbers(outcome)


@pytest.fixture
def demo_workers(workers: Workers, cache: Path) -> Workers:
    """Workers that find the demo release in the common cache."""
    (workers.folder / "cache").symlink_to(cache)
    return workers


@pytest.fixture(scope="module")
def services(broker: Broker, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One replica of each service, for all tests that leave it so."""
    vhost = broker.new_vhost()
    running = Workers(vhost, tmp_path_factory.mktemp("services"))
    (running.folder / "cache").symlink_to(cache)
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
def test_one_replica_of_each_service_gives_the_bits_of_the_embedded_run(services: Workers, reference: str) -> None:
    assert numbers(run_on_broker(services.settings, DEMO)) == reference


@pytest.mark.broker
def test_any_number_of_replicas_gives_the_bits_of_the_embedded_run(demo_workers: Workers, reference: str) -> None:
    demo_workers.start_all(data_loaders=2, data_processors=4)
    assert numbers(run_on_broker(demo_workers.settings, DEMO)) == reference


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
def test_a_broker_killed_while_a_run_is_submitted_delays_no_run(
    broker: Broker, services: Workers, reference: str
) -> None:
    """The follower's queue is exclusive: a durable one could come back without a leader and block all publishers."""
    assert numbers(run_on_broker(services.settings, DEMO)) == reference
    transport = RabbitMQTransport(services.settings, connect_timeout_s=30)
    follower, bystander = (transport.open([topology.follower(name)], prefetch=100) for name in ("run", "bystander"))
    broker.kill()
    broker.start()
    submit(follower, "run", DEMO)
    assert numbers(follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline())) == reference
    for session in (follower, bystander):
        session.close()


@pytest.mark.broker
@pytest.mark.parametrize("victim", ["data_loader", "data_processor", "analysis", "visualisation"])
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


@pytest.mark.broker
def test_a_worker_stopped_in_the_middle_of_a_run_exits_cleanly(demo_workers: Workers, reference: str) -> None:
    demo_workers.start_all()
    services = ("data_loader", "data_processor", "analysis", "visualisation")
    for service in services:
        wait_until(lambda: "connected to" in demo_workers.log(service), f"{service} is connected")  # noqa: B023
    codes: list[dict[str, list[int]]] = []

    def restart_all(events: Mapping[str, int]) -> None:
        if not codes and events.get("analysis", 0) > 2_000:
            codes.append(demo_workers.stop())
            demo_workers.start_all()

    assert numbers(run_on_broker(demo_workers.settings, DEMO, QuietDisplay(restart_all))) == reference
    assert codes == [{service: [0] for service in services}]


@pytest.mark.broker
def test_the_visualisation_stores_the_folder_that_the_follower_receives(services: Workers) -> None:
    outcome = run_on_broker(services.settings, DEMO)
    assert outcome.result is not None
    kept = services.folder / "service-results" / outcome.result["run_id"]
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == dict(outcome.files)


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


def test_the_first_message_about_a_run_is_that_it_started(tmp_path: Path) -> None:
    received: list[Message] = []
    with EmbeddedServices(settings.read({"CACHE": str(tmp_path)})) as services:
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
def test_a_dead_lettered_message_leaves_its_run_incomplete_with_the_reason(
    demo_workers: Workers, queue: topology.Queue, consumer: str
) -> None:
    transport = RabbitMQTransport(demo_workers.settings, connect_timeout_s=30)
    follower = transport.open([topology.follower("run")], prefetch=100)
    submit(follower, "run", DEMO)
    for service in ("data_loader", "data_processor", "analysis", "visualisation"):
        if service != consumer:
            demo_workers.start(service)
    consumer_of_one = transport.open([queue], prefetch=1)
    consumer_of_one.dead_letter(take(consumer_of_one), "made unreadable by a test")
    consumer_of_one.close()
    demo_workers.start(consumer)
    outcome = follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline())
    follower.close()
    assert outcome.result is not None
    assert not outcome.result["complete"]
    assert any("made unreadable by a test" in problem for problem in outcome.result["problems"])


@pytest.mark.broker
def test_a_requeued_dead_letter_completes_its_run_with_the_same_bits(demo_workers: Workers, reference: str) -> None:
    transport = RabbitMQTransport(demo_workers.settings, connect_timeout_s=30)
    follower = transport.open([topology.follower("run")], prefetch=100)
    submit(follower, "run", DEMO)
    for service in ("data_loader", "analysis", "visualisation"):
        demo_workers.start(service)
    consumer_of_one = transport.open([topology.EVENTS], prefetch=1)
    consumer_of_one.dead_letter(take(consumer_of_one), "made unreadable by a test")
    consumer_of_one.close()
    demo_workers.start("data_processor")
    outcome = follow(follower, "run", ANALYSES, QuietDisplay(), before_deadline())
    follower.close()
    assert outcome.result is not None
    assert not outcome.result["complete"]

    (dead_letter,) = requeue(demo_workers.settings, "run")
    assert (dead_letter.queue, dead_letter.kind, dead_letter.problem) == (
        "events",
        "events",
        "made unreadable by a test",
    )

    written = demo_workers.folder / "service-results" / "run" / "result.json"
    result = wait_until(
        lambda: (found := json.loads(written.read_text())) and found["complete"] and found, "the run is complete", 60
    )
    assert numbers(Outcome(result, {"result.json": written.read_bytes()})) == reference
    assert dead_letters(demo_workers.settings) == []


@pytest.mark.broker
def test_an_invalid_message_is_dead_lettered_and_the_worker_continues(services: Workers, reference: str) -> None:
    class Poison(Selected):
        kind = "selected"
        route = topology.EVENTS.name

        def encode(self) -> bytes:
            return b"cos\nsystem\n(S'touch /tmp/should-not-exist'\ntR."

    transport = RabbitMQTransport(services.settings, connect_timeout_s=30)
    sender = transport.open([])
    poison: Message = Poison(Chunk("another-run", "Zee", 0, 1), "demo", {}, None)
    sender.publish([poison])
    sender.close()
    assert numbers(run_on_broker(services.settings, DEMO)) == reference
    dead_letter_session = transport.open([topology.dead_letter_queue("events")])
    dead_letter = take(dead_letter_session)
    assert dead_letter.headers["run_id"] == "another-run"
    assert "GLOBAL" in dead_letter.headers["problem"]
    dead_letter_session.close()


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
