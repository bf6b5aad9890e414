"""The four services as processes of this machine on a real RabbitMQ, warm, with the CPU time of each."""

from __future__ import annotations

import subprocess
import sys
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
from physics import RELEASES
from tests.support.broker import Broker, running_broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers
from workers.data_loader.demo import demo_file

SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")
READY_DEADLINE_S, RUN_DEADLINE_S = 60.0, 1800.0
#: The broker's own statistics come every five seconds.
STATISTICS_S = 6.0


DEMO = RELEASES["demo"]
#: Number of simulated events in the 4lep files of the 2020 release.
FULL_SIZE = sum(sample.entries for sample in DEMO.samples if not sample.is_data)


class BenchmarkError(Exception):
    """A measured run did not end as it should."""


@dataclass(frozen=True)
class Measured:
    """A run from its submission to its final result; ``cpu_seconds`` by service, ``rabbitmq`` among them."""

    seconds: float
    cpu_seconds: Mapping[str, float]
    result: Mapping[str, Any]


class Stack:
    """Warm services on a virtual host of a broker."""

    def __init__(self, broker: Broker, vhost: BrokerSettings, workers: Workers) -> None:
        self.broker = broker
        self.vhost = vhost
        self.workers = workers
        self._broker_process = _process_of(broker)

    @property
    def processes(self) -> Mapping[str, list[psutil.Process]]:
        """The processes of each service that run now, and the broker's."""
        running = {
            service.replace("_", "-"): [psutil.Process(process.pid) for process in self.workers.running(service)]
            for service in SERVICES
        }
        return {**running, "rabbitmq": [self._broker_process]}

    def run(self, settings: RunSettings) -> Measured:
        """Submit a run, measure it up to its final result, that is to say with its fit, and wait for its folder."""
        run_id = new_run_id(settings.release)
        session = RabbitMQTransport(self.vhost).open([topology.follower(run_id)], prefetch=100)
        try:
            before, started = self.cpu_seconds(), time.perf_counter()
            submit(session, run_id, settings)
            result = final_result(session, run_id)
            seconds, after = time.perf_counter() - started, self.cpu_seconds()
            wait_for_folder(session)
        finally:
            session.close()
        return Measured(seconds, {service: after[service] - before[service] for service in after}, result)

    def cpu_seconds(self) -> dict[str, float]:
        """User and system seconds so far, children included, by service."""
        return {name: sum(map(cpu_seconds, found)) for name, found in self.processes.items()}

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory, children included, by service."""
        return {name: sum(map(memory_bytes, found)) for name, found in self.processes.items()}

    def bytes_through_broker(self) -> int:
        """What the services' connections have sent to the broker so far, by the broker's own account."""
        time.sleep(STATISTICS_S)
        connections = self.broker.api("GET", f"vhosts/{self.vhost.vhost}/connections")
        return sum(connection["recv_oct"] for connection in connections)


def toy_release(events: int, cache: Path, *, all_branches: bool = False) -> Path:
    """Make the demo release with so many simulated events where a data-loader with this CACHE finds it.

    Returns its directory.
    """
    for sample in DEMO.samples:
        path = demo_file(sample, DEMO, events, cache / DEMO.name, all_branches=all_branches)
    return path.parents[1]


@contextmanager
def near_broker(folder: Path) -> Iterator[Broker]:
    """A RabbitMQ of our own; on Linux at its container's address, where Compose has its services find it.

    The proxy behind a published port, which Compose's services do not meet, copies every byte twice more.
    """
    with running_broker(folder) as broker:
        if broker.control[0] == "docker" and sys.platform == "linux":
            address = _inspect(broker, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
            yield replace(broker, settings=replace(broker.settings, host=address, port=5672), api_port=15672)
        else:
            yield broker


@contextmanager
def warm_stack(broker: Broker, folder: Path, *, data_loaders: int = 1, data_processors: int = 1) -> Iterator[Stack]:
    """Start the four services on a virtual host of their own and have them do a small run; stop them in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    vhost = broker.new_vhost()
    workers = Workers(vhost, folder)
    try:
        workers.start_all(data_loaders, data_processors)
        warm = Stack(broker, vhost, workers)
        warm.run(RunSettings(release="demo"))
        yield warm
    finally:
        workers.stop()
        broker.delete_vhost(vhost)


def wait_for_consumers(vhost: BrokerSettings) -> None:
    """Wait until every queue of the services has somebody who consumes it."""
    session = RabbitMQTransport(vhost).open([])
    try:
        wait_until(
            lambda: session.is_connected() and session.queues_without_consumer() == [],
            "every service consumed",
            READY_DEADLINE_S,
        )
    finally:
        session.close()


def final_result(session: Session, run_id: str) -> Mapping[str, Any]:
    """Wait for a run's final result; raises BenchmarkError where it fails or is not complete."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    while time.monotonic() < deadline:
        delivery = session.receive(1.0)
        if delivery is None:
            continue
        session.publish_and_acknowledge(delivery)
        if delivery.kind not in (Result.kind, RunFailed.kind):
            continue
        message = messages.decode(delivery.kind, delivery.body, RELEASES)
        if isinstance(message, RunFailed) and message.run_id == run_id:
            raise BenchmarkError(f"run {run_id} failed: {message.problem}")
        if isinstance(message, Result) and message.run_id == run_id and message.final:
            if not message.result["complete"]:
                raise BenchmarkError(f"run {run_id} is not complete: {message.result['problems']}")
            return message.result
    raise BenchmarkError(f"run {run_id} was not done within {RUN_DEADLINE_S:g} s")


def wait_for_folder(session: Session) -> None:
    """Wait until a run's folder has come: the services have nothing more to do for it."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    while time.monotonic() < deadline:
        delivery = session.receive(1.0)
        if delivery is not None:
            session.publish_and_acknowledge(delivery)
            if delivery.kind == ResultFiles.kind:
                return
    raise BenchmarkError(f"no result folder came within {RUN_DEADLINE_S:g} s")


def _process_of(broker: Broker) -> psutil.Process:
    """The broker's first process, as this machine counts processes."""
    if broker.control[0] == "docker":
        return psutil.Process(int(_inspect(broker, "{{.State.Pid}}")))
    answer = subprocess.check_output([*broker.control, "eval", "os:getpid()."], text=True)  # noqa: S603  our own broker
    return psutil.Process(int(answer.strip().strip('"')))


def _inspect(broker: Broker, template: str) -> str:
    """What Docker says of the broker's container."""
    command = ["docker", "inspect", "--format", template, broker.control[2]]
    return subprocess.check_output(command, text=True).strip()  # noqa: S603  our own container
