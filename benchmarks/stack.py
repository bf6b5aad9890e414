"""The four services as processes of this machine on a real RabbitMQ, warm, with the CPU time of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import cpu_seconds, memory_bytes
from common import messages, topology
from common.messages import Folder, Result, RunFailed
from common.settings import RunSettings
from common.submission import new_run_id, submit
from common.transport import Session
from common.transport.rabbitmq import RabbitMQTransport
from tests.conftest import Broker

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")
READY_DEADLINE_S, RUN_DEADLINE_S = 60.0, 1800.0


class BenchmarkError(Exception):
    """A measured run did not end as it should."""


@dataclass(frozen=True)
class Measured:
    """A run from its submission to its final result; ``cpu_seconds`` by service, ``rabbitmq`` among them."""

    seconds: float
    cpu_seconds: Mapping[str, float]
    result: Mapping[str, Any]


class Stack:
    """Warm workers on a broker."""

    def __init__(self, broker: Broker, processes: Mapping[str, list[psutil.Process]]) -> None:
        self.broker = broker
        self.processes = processes
        self._run_id = ""

    def run(self, settings: RunSettings) -> Measured:
        """Submit a run, and measure it up to its final result, that is to say with its fit."""
        run_id = new_run_id(settings.release)
        session = RabbitMQTransport(self.broker.settings).open([topology.follower(run_id)], prefetch=100)
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


@contextmanager
def stack(
    broker: Broker, root_pid: int, folder: Path, *, data_loaders: int = 1, data_processors: int = 1
) -> Iterator[Stack]:
    """Start the four services, and stop them in the end; ``root_pid`` is the broker's first process."""
    replicas = {"data_loader": data_loaders, "data_processor": data_processors}
    started: dict[str, list[subprocess.Popen[bytes]]] = {}
    environment = {
        "RABBITMQ_HOST": broker.settings.host,
        "RABBITMQ_PORT": str(broker.settings.port),
        "RABBITMQ_USER": broker.settings.user,
        "RABBITMQ_PASS": broker.settings.password,
        "RABBITMQ_VHOST": broker.settings.vhost,
        "OUTPUT": str(folder / "results"),
        "DATABASE": str(folder / "analysis.sqlite"),
        "CACHE": str(folder / "cache"),
    }
    try:
        for service in SERVICES:
            for _ in range(replicas.get(service, 1)):
                with open(folder / f"{service}.log", "ab") as log:
                    process = subprocess.Popen(  # noqa: S603  our own command
                        [sys.executable, "-m", f"workers.{service}"],
                        cwd=ROOT,
                        env=os.environ | environment,
                        stdout=log,
                        stderr=log,
                    )
                started.setdefault(service, []).append(process)
        processes = {
            service.replace("_", "-"): [psutil.Process(one.pid) for one in found] for service, found in started.items()
        }
        warm = Stack(broker, {**processes, "rabbitmq": [psutil.Process(root_pid)]})
        _wait_for_consumers(broker)
        warm.run(RunSettings(release="demo"))
        yield warm
    finally:
        for process in (one for found in started.values() for one in found):
            process.send_signal(signal.SIGTERM)
        for process in (one for found in started.values() for one in found):
            process.wait(60)


def final_result(session: Session, run_id: str) -> Mapping[str, Any]:
    """Wait for a run's final result; raises BenchmarkError where it fails or is not complete."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    while time.monotonic() < deadline:
        delivery = session.receive(1.0)
        if delivery is None:
            continue
        session.settle(delivery)
        if delivery.kind not in (Result.kind, RunFailed.kind):
            continue
        message = messages.decode(delivery.kind, delivery.body)
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
            session.settle(delivery)
            if delivery.kind == Folder.kind:
                return
    raise BenchmarkError(f"no result folder came within {RUN_DEADLINE_S:g} s")


def _wait_for_consumers(broker: Broker) -> None:
    session = RabbitMQTransport(broker.settings).open([])
    try:
        deadline = time.monotonic() + READY_DEADLINE_S
        session.idle()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if not session.idle():
                return
    finally:
        session.close()
    raise BenchmarkError(f"nobody consumes {', '.join(session.idle())}; see the logs of the services")
