"""A message of any kind that is sent again after its run changes neither the database nor the result folder."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from common import messages, settings, topology
from common.delivery import Delivery
from common.messages import (
    KINDS,
    CancelRequest,
    ChunkFailed,
    ChunkTask,
    FetchProgress,
    FileTask,
    FirstFiles,
    Message,
    QueueStatus,
    RequeueNotice,
    Result,
    RunCancelled,
    RunListRequest,
    RunRequest,
    ServiceStatus,
    StatusRequest,
)
from common.service import Service, serve
from common.settings import RunSettings
from common.transport.embedded import EmbeddedSession, EmbeddedTransport
from physics import ANALYSES
from tests.unit.test_analysis_service import NoFits
from workers.analysis.service import AnalysisService
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor
from workers.visualisation.plots.pool import DrawingPool
from workers.visualisation.service import Visualisation

RUN = "run"
SAMPLES = ("Zee", "WH125_ZZ4lep")
SETTINGS = ANALYSES.resolve(
    RunSettings(release="demo", samples=SAMPLES, demo_events=20_000, chunk_entries=100, plots=False)
)
REQUEST = RunRequest(RUN, 1000.0, SETTINGS)
SERVICE_STATUS = ServiceStatus(
    "data-loader", "a1", "host", 1, "busy", RUN, "Zee[0:100]", 0, {}, 0.0, 0, since=1000.0, at=1001.0, version="1"
)
#: What is recorded of a dead letter, which has the kind of its message.
DEAD_LETTER = "dead-letter"


class RecordingTransport(EmbeddedTransport):
    """Records every message as somebody could who can read all queues of a broker."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[str, Any]] = []

    def store(self, route: str, stored: Any) -> None:
        self.recorded.append((route, stored))
        super().store(route, stored)


class UntilEmpty:
    """A session that stops its service when no message is left."""

    def __init__(self, session: EmbeddedSession, stop: threading.Event) -> None:
        self._session, self._stop = session, stop
        self.received = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def receive(self, timeout_s: float) -> Delivery | None:
        delivery = self._session.receive(0.0)
        if delivery is None:
            self._stop.set()
        elif delivery.kind not in (ServiceStatus.kind, QueueStatus.kind):  # one is published at each start
            self.received += 1
        return delivery


@dataclass(frozen=True)
class State:
    """The rows of the database's tables, and the files of the result folder: their contents and times of writing."""

    rows: list[str]
    files: Mapping[str, tuple[bytes, int]]

    @property
    def is_complete(self) -> bool:
        """Whether the result in the folder is complete."""
        return bool(json.loads(self.files["result.json"][0])["complete"])


class Pipeline:
    """The four services, which are started for the messages that wait, and stopped when none is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read = settings.read(
            {name: str(folder / name.lower()) for name in ("OUTPUT", "DATABASE", "CACHE")} | {"DEMO_EVENTS": "20000"}
        )
        self.transport = RecordingTransport()
        self.follower = self.transport.open([topology.follower(RUN)])
        self.pool = DrawingPool()

    def publish(self, *published: Message) -> None:
        with closing(self.transport.open([])) as session:
            session.publish(published)

    def work(self) -> None:
        """Handle messages until all queues are empty."""
        while sum(self._serve(service) for service in self._services()):
            pass

    def _services(self) -> Iterator[Service]:
        yield DataLoader(self.read)
        yield DataProcessor(self.read)
        yield AnalysisService(self.read, fits=NoFits())
        yield Visualisation(self.read, pool=self.pool)

    def _serve(self, service: Service) -> int:
        stop = threading.Event()
        session = UntilEmpty(self.transport.open(service.consumes), stop)
        serve(service, session, stop)  # type: ignore[arg-type]
        return session.received

    def state(self) -> State:
        with closing(sqlite3.connect(self.read.database)) as database:
            rows = [row for row in database.iterdump() if "sqlite_sequence" not in row]
        folder = self.read.output / RUN
        return State(rows, {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()})


@dataclass(frozen=True)
class Recording:
    """A complete run, of which everything was recorded; ``by_kind`` has the messages with their routes."""

    pipeline: Pipeline
    by_kind: Mapping[str, list[tuple[str, Any]]]

    def replay(self, kind: str) -> None:
        """Send all messages of a kind again, and handle what they cause."""
        for route, stored in self.by_kind[kind]:
            if not route.endswith(".dead"):
                self.pipeline.transport.store(route, stored)
        self.pipeline.work()


def recorded(pipeline: Pipeline) -> Recording:
    by_kind: dict[str, list[tuple[str, Any]]] = {}
    for route, stored in pipeline.transport.recorded:
        is_dead = route.endswith(".dead") or (route == topology.DEAD_NOTICES.name and stored.kind != RequeueNotice.kind)
        by_kind.setdefault(DEAD_LETTER if is_dead else stored.kind, []).append((route, stored))
    return Recording(pipeline, by_kind)


def begun(folder: Path) -> tuple[Pipeline, list[Delivery]]:
    """A run that lost the file of one sample and a chunk of the other, and the two dead letters."""
    pipeline, loader, lost = Pipeline(folder), None, []
    pipeline.publish(REQUEST, FetchProgress(RUN, "Zee", 1, 2), StatusRequest(RUN), StatusRequest(None))
    pipeline.publish(SERVICE_STATUS, QueueStatus({}, 1001.0), RunListRequest("list"))
    pipeline.publish(FirstFiles(RUN, {"result.json": b"{}"}))
    loader = DataLoader(pipeline.read)
    with closing(pipeline.transport.open(loader.consumes)) as session:
        while len(lost) < 2:
            delivery = session.receive(0.0)
            assert delivery is not None
            message = loader.decode(delivery)
            if message.kind in {dead.kind for dead in lost} or isinstance(message, RunRequest):
                session.publish_and_acknowledge(delivery, loader.handle(message))
            else:
                session.dead_letter(delivery, "it could not be handled")
                lost.append(delivery)
    chunk = messages.decode(lost[1].kind, lost[1].body, ANALYSES)
    assert isinstance(chunk, ChunkTask)
    pipeline.publish(ChunkFailed(chunk.chunk, "it could not be read", chunk.digest))
    pipeline.work()
    return pipeline, lost


def requeue(pipeline: Pipeline, dead_letter: Delivery) -> None:
    task = messages.decode(dead_letter.kind, dead_letter.body, ANALYSES)
    pipeline.publish(RequeueNotice.from_headers(dead_letter.queue, dead_letter.headers, notice_id=uuid4().hex), task)
    pipeline.work()


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    """A run whose dead letters made the first results incomplete, and were requeued; another request was refused."""
    pipeline, lost = begun(tmp_path_factory.mktemp("pipeline"))
    pipeline.publish(replace(REQUEST, settings=replace(SETTINGS, pt_cuts_gev=(1.0,))))
    for dead_letter in lost:
        assert not pipeline.state().is_complete
        requeue(pipeline, dead_letter)
    assert pipeline.state().is_complete
    pipeline.publish(CancelRequest(RUN, SETTINGS.digest), RunCancelled("another"))
    pipeline.work()
    yield recorded(pipeline)
    pipeline.pool.close()


@pytest.mark.parametrize("kind", [*KINDS, DEAD_LETTER])
def test_a_replay_of_any_kind_of_message_changes_nothing(complete_run: Recording, kind: str) -> None:
    before = complete_run.pipeline.state()
    complete_run.replay(kind)
    after = complete_run.pipeline.state()
    assert after.rows == before.rows
    assert after.files == before.files


def incomplete(folder: Path) -> Recording:
    """A run that lost a file and a chunk, of which the file was requeued; another request was refused."""
    pipeline, lost = begun(folder)
    pipeline.publish(replace(REQUEST, settings=replace(SETTINGS, pt_cuts_gev=(1.0,))))
    requeue(pipeline, lost[0])
    pipeline.publish(CancelRequest(RUN, SETTINGS.digest), RunCancelled("another"))
    pipeline.work()
    assert not pipeline.state().is_complete
    pipeline.pool.close()
    return recorded(pipeline)


@pytest.fixture(scope="module")
def incomplete_run(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """An incomplete run, for the tests that leave it as it is."""
    return incomplete(tmp_path_factory.mktemp("incomplete"))


#: A replay of these does the lost work of an incomplete run again.
TASKS = (RunRequest.kind, FileTask.kind, ChunkTask.kind)


@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, DEAD_LETTER) if kind not in TASKS])
def test_a_replay_leaves_an_incomplete_run_as_it_is(incomplete_run: Recording, kind: str) -> None:
    before = incomplete_run.pipeline.state()
    incomplete_run.replay(kind)
    assert incomplete_run.pipeline.state() == before


@pytest.mark.parametrize("kind", TASKS)
def test_a_replayed_task_can_only_complete_an_incomplete_run(tmp_path: Path, kind: str) -> None:
    run = incomplete(tmp_path)
    run.replay(kind)
    assert run.pipeline.state().is_complete


def test_an_older_incomplete_result_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    pipeline, lost = begun(tmp_path)
    first = pipeline.state()
    results = recorded(pipeline)
    requeue(pipeline, lost[0])
    second = pipeline.state()
    assert first.files != second.files
    results.replay(Result.kind)
    assert pipeline.state() == second
    pipeline.pool.close()
