"""The four services as processes of this machine with RabbitMQ, and the CPU time of each in a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.resource_usage import cpu_seconds, memory_bytes
from common import messages, topology
from common.messages import Result, ResultFiles, RunFailed
from common.settings import BrokerSettings, RunSettings
from common.submission import new_run_id, submit
from common.transport import Session
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from physics.hzz4l.toy.files import demo_file
from tests.support.broker import Broker, running_broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers

SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")
READY_DEADLINE_S, RUN_DEADLINE_S = 60.0, 1800.0
#: RabbitMQ updates its statistics every five seconds.
STATISTICS_S = 6.0


DEMO = ANALYSES["demo"]
#: Number of simulated events in the 4lep files of the 2020 release.
FULL_SIZE = sum((sample.entries or 0) for sample in DEMO.samples if not sample.is_data)
#: A run before the measured ones.
WARM_UP = RunSettings(release="demo", demo_events=200_000)


class BenchmarkError(Exception):
    """A measured run failed, is not complete, or selected other events than the reference."""


@dataclass(frozen=True)
class Measured:
    """A run from its submission to its final result; ``cpu_seconds`` by service, and of ``rabbitmq``."""

    seconds: float
    cpu_seconds: Mapping[str, float]
    result: Mapping[str, Any]


class Stack:
    """Services that run on a virtual host of a broker."""

    def __init__(self, broker: Broker, vhost: BrokerSettings, workers: Workers) -> None:
        self.broker = broker
        self.vhost = vhost
        self.workers = workers
        self._broker_process = _process_of(broker)

    @property
    def processes(self) -> Mapping[str, list[psutil.Process]]:
        """Return the running processes of each service and of the broker."""
        running = {
            service.replace("_", "-"): [psutil.Process(process.pid) for process in self.workers.running(service)]
            for service in SERVICES
        }
        return {**running, "rabbitmq": [self._broker_process]}

    def run(self, settings: RunSettings, run_id: str | None = None) -> Measured:
        """Measure a run from its submission to its final result, fit included; then wait for its result files."""
        run_id = run_id or new_run_id(settings.release)
        session = RabbitMQTransport(self.vhost).open([topology.follower(run_id)], prefetch=100)
        try:
            before, started = self.cpu_seconds(), time.perf_counter()
            submit(session, run_id, settings)
            result = final_result(session, run_id)
            seconds, after = time.perf_counter() - started, self.cpu_seconds()
            wait_for_result_files(session)
        finally:
            session.close()
        return Measured(seconds, {service: after[service] - before[service] for service in after}, result)

    def cpu_seconds(self) -> dict[str, float]:
        """Return user and system seconds so far by service, child processes included."""
        return {name: sum(map(cpu_seconds, found)) for name, found in self.processes.items()}

    def memory_bytes(self) -> dict[str, int]:
        """Return the resident memory in bytes by service, child processes included."""
        return {name: sum(map(memory_bytes, found)) for name, found in self.processes.items()}

    def bytes_through_broker(self) -> int:
        """Return the bytes that the services have sent to the broker so far, by the broker's statistics."""
        time.sleep(STATISTICS_S)
        connections = self.broker.api("GET", f"vhosts/{self.vhost.vhost}/connections")
        return sum(connection["recv_oct"] for connection in connections)


def toy_release(events: int, cache: Path, *, release: str = DEMO.release, all_branches: bool = False) -> Path:
    """Make a toy release with so many simulated events where a data-loader with this CACHE finds it.

    Returns its directory. Its files are read, so that no implementation waits for the disk because it is the first one.
    """
    analysis = ANALYSES[release]
    for sample in analysis.samples:
        path = demo_file(sample, analysis, events, cache / release, all_branches=all_branches)
        with path.open("rb") as file, open(os.devnull, "wb") as nowhere:
            shutil.copyfileobj(file, nowhere)
    return path.parents[len(Path(sample.file).parts) - 1]


@contextmanager
def near_broker(folder: Path) -> Iterator[Broker]:
    """Start a RabbitMQ, which on Linux is connected to at the address of its container.

    A published port would lead through Docker's proxy, which copies every byte twice more; the services of
    the Compose stack do not use it either.
    """
    with running_broker(folder) as broker:
        if broker.control[0] == "docker" and sys.platform == "linux":
            address = _inspect(broker, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
            yield replace(broker, settings=replace(broker.settings, host=address, port=5672), api_port=15672)
        else:
            yield broker


def broker_version() -> str:
    """Start a RabbitMQ to ask for its version."""
    with tempfile.TemporaryDirectory() as name, running_broker(Path(name)) as broker:
        return broker.version


@contextmanager
def empty_stack(cache: Path) -> Iterator[Stack]:
    """Start a broker and no service yet; the services started later use ``cache`` and are stopped at the end."""
    with tempfile.TemporaryDirectory() as name, near_broker(Path(name)) as broker:
        vhost = broker.new_vhost()
        workers = Workers(vhost, Path(name), cache)
        try:
            yield Stack(broker, vhost, workers)
        finally:
            workers.stop()


@contextmanager
def warm_stack(
    broker: Broker, folder: Path, cache: Path, *, data_loaders: int = 1, data_processors: int = 1
) -> Iterator[Stack]:
    """Start the four services on a new virtual host and do a small run with them; stop them at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    vhost = broker.new_vhost()
    workers = Workers(vhost, folder, cache)
    try:
        workers.start_all(data_loaders, data_processors)
        warm = Stack(broker, vhost, workers)
        warm.run(WARM_UP)
        yield warm
    finally:
        workers.stop()
        broker.delete_vhost(vhost)


def wait_for_consumers(vhost: BrokerSettings) -> None:
    """Wait until every queue of the services has a consumer."""
    session = RabbitMQTransport(vhost).open([])
    try:
        wait_until(
            lambda: session.is_connected() and session.queues_without_consumer() == [],
            "every queue has a consumer",
            READY_DEADLINE_S,
        )
    finally:
        session.close()


def final_result(session: Session, run_id: str) -> Mapping[str, Any]:
    """Wait for the final result of a run; raises BenchmarkError if the run fails or is not complete."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    while time.monotonic() < deadline:
        delivery = session.receive(1.0)
        if delivery is None:
            continue
        session.publish_and_acknowledge(delivery)
        if delivery.kind not in (Result.kind, RunFailed.kind):
            continue
        message = messages.decode(delivery.kind, delivery.body, ANALYSES)
        if isinstance(message, RunFailed) and message.run_id == run_id:
            raise BenchmarkError(f"run {run_id} failed: {message.problem}")
        if isinstance(message, Result) and message.run_id == run_id and message.final:
            if not message.result["complete"]:
                raise BenchmarkError(f"run {run_id} is not complete: {message.result['problems']}")
            return message.result
    raise BenchmarkError(f"run {run_id} did not finish within {RUN_DEADLINE_S:g} s")


def wait_for_result_files(session: Session) -> None:
    """Wait for the result files of a run, after which the services have no more work for it."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    while time.monotonic() < deadline:
        delivery = session.receive(1.0)
        if delivery is not None:
            session.publish_and_acknowledge(delivery)
            if delivery.kind == ResultFiles.kind:
                return
    raise BenchmarkError(f"no result files arrived within {RUN_DEADLINE_S:g} s")


def _process_of(broker: Broker) -> psutil.Process:
    """Return the first process of the broker, seen from this machine."""
    if broker.control[0] == "docker":
        return psutil.Process(int(_inspect(broker, "{{.State.Pid}}")))
    return psutil.Process(int(broker.ctl("eval", "os:getpid().").strip().strip('"')))


def _inspect(broker: Broker, template: str) -> str:
    """Return what ``docker inspect`` prints for the broker's container."""
    command = ["docker", "inspect", "--format", template, broker.control[2]]
    return subprocess.check_output(command, text=True).strip()  # noqa: S603  our own container
