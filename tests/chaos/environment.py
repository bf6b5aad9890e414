"""The environment of a scenario: a broker that can be killed, a proxy in front of it, the services, and runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.parse import quote

import psutil

from common.messages import RunRequest
from common.settings import BrokerSettings, RunSettings
from common.submission import Outcome, new_run_id
from tests.chaos.proxy import Proxy
from tests.support.broker import Broker
from tests.support.runs import QuietDisplay, before_deadline, run_on_broker
from tests.support.waiting import wait_until
from tests.support.workers import Workers

#: RabbitMQ updates its queue depths every 5 s; with this, every 0.5 s.
ERLANG = "-rabbit quorum_tick_interval 500 -rabbit collect_statistics_interval 500"
SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")
#: An argument of the analysis service's process for fits.
FIT_ARGUMENT = "--multiprocessing-fork"
#: The longest that a run with faults may take.
RUN_DEADLINE_S = 480.0
START_DEADLINE_S = 60.0


class ServiceProcesses(Workers):
    """The four services as processes behind the proxy, which can be killed at a named point."""

    def __init__(self, settings: BrokerSettings, folder: Path, cache: Path, replicas: Mapping[str, int]) -> None:
        super().__init__(settings, folder)
        self.replicas = {service: replicas.get(service, 1) for service in SERVICES}
        (folder / "cache").symlink_to(cache)
        self.database = folder / "database"
        self.database.mkdir()

    def environment(self) -> dict[str, str]:
        return super().environment() | {"DATABASE": str(self.database / "analysis.sqlite")}

    def kill_order(self, service: str) -> Path:
        """The file that says at which point a service is to be killed."""
        return self.folder / f"{service}.order"

    def command(self, service: str) -> list[str]:
        return [sys.executable, "-m", "tests.chaos.service_process", service, str(self.kill_order(service))]

    def start_missing(self) -> None:
        """Start the processes that are missing."""
        for service, wanted in self.replicas.items():
            self.start(service, wanted - len(self.running(service)))

    def ended(self) -> dict[str, int]:
        """How many processes have ended, by service."""
        return {service: self.replicas[service] - len(self.running(service)) for service in SERVICES}

    def has_ended(self) -> bool:
        """Whether a process has ended."""
        return any(self.ended().values())

    def fit_process(self) -> psutil.Process | None:
        """The analysis service's process for fits, if it runs."""
        for analysis in self.running("analysis"):
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(analysis.pid).children():
                    if FIT_ARGUMENT in child.cmdline():
                        return child
        return None


class FollowedRun:
    """A run and its follower, which has a connection of its own to the broker."""

    def __init__(self, settings: BrokerSettings, run: RunSettings) -> None:
        self.request = RunRequest(new_run_id(run.release), time.time(), run)
        self._changed = threading.Condition()
        self._done: dict[str, int] = {}
        self._notes: set[str] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="follower")
        display = QuietDisplay(self._on_progress)
        display.note = self._on_note
        self._stopped = False
        is_before_deadline = before_deadline(RUN_DEADLINE_S)

        def is_alive() -> bool:
            return is_before_deadline() and not self._stopped

        self.outcome: Future[Outcome] = self._pool.submit(
            run_on_broker, settings, run, display, self.request.run_id, is_alive
        )
        self.outcome.add_done_callback(lambda _: self._notify())

    def is_over(self) -> bool:
        return self.outcome.done()

    def is_drawing(self) -> bool:
        return "drawing the plots" in self._notes

    def done(self, service: str = "analysis") -> int:
        """How many entries a service has handled."""
        return self._done.get(service, 0)

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds, and return True; False where the run ends before."""
        with self._changed:
            while not condition() and not self.is_over():
                self._changed.wait(0.05)
            return not self.is_over()

    def stop(self) -> None:
        """Stop following the run."""
        self._stopped = True

    def _on_progress(self, events: Mapping[str, int]) -> None:
        self._done = dict(events)
        self._notify()

    def _on_note(self, text: str) -> None:
        self._notes.add(text)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        self.stop()
        self._pool.shutdown()


class Environment:
    """Broker, proxy and services, for one run after the other."""

    def __init__(self, broker: Broker, proxy: Proxy, vhost: BrokerSettings, workers: ServiceProcesses) -> None:
        self.broker, self.proxy, self.vhost, self.workers = broker, proxy, vhost, workers
        #: Called after the run.
        self.after_run: list[Callable[[], None]] = []

    @property
    def output(self) -> Path:
        """The folder of the visualisation's result folders."""
        return self.workers.folder / "service-results"

    def run(self, run: RunSettings) -> FollowedRun:
        """Submit a run, and follow it in the background."""
        return FollowedRun(self.vhost, run)

    def wait_until_ready(self) -> None:
        """Wait until the services consume their queues."""
        wanted = {
            "chunks": self.workers.replicas["data_loader"],
            "events": self.workers.replicas["data_processor"],
            "selected": 1,
            "results.visualisation": 1,
        }

        def all_consume() -> bool:
            queues = {queue["name"]: queue.get("consumers", 0) for queue in self.queues()}
            return all(queues.get(name, 0) >= number for name, number in wanted.items())

        wait_until(all_consume, "the services consumed", START_DEADLINE_S)

    def queues(self) -> list[dict[str, Any]]:
        """The queues of the virtual host, from the management API."""
        found: list[dict[str, Any]] = self.broker.api("GET", f"queues/{quote(self.vhost.vhost, safe='')}")
        return found

    def restart_broker(self) -> None:
        """SIGKILL the broker, start it again, and wait until it answers."""
        self.broker.kill()
        self.broker.start()
        wait_until(self.queues, "the broker answered again", 120)

    def proxied_ports(self, process: Popen[bytes]) -> set[int]:
        """The local ports of a process's connections to the proxy."""
        connections = psutil.Process(process.pid).net_connections("tcp4")
        return {c.laddr.port for c in connections if c.raddr and c.raddr.port == self.proxy.port}

    @contextmanager
    def file_size_limit(self, service: str, limit: int) -> Iterator[None]:
        """Limit the size of a service's files to ``limit`` bytes, as if its disk were full."""
        (process,) = self.workers.running(service)
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield
        finally:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))


class HeldFit:
    """Suspends the process for fits, because a fit takes less time than it takes to inject a fault into it."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._process: psutil.Process | None = None

    def hold(self) -> None:
        """Suspend the process, if it runs."""
        if self._process is None or not self._process.is_running():
            self._process = self._environment.workers.fit_process()
            if self._process is not None:
                with suppress(psutil.NoSuchProcess):
                    self._process.suspend()

    def release(self) -> None:
        """Resume the process, if it still runs."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.resume()
            self._process = None


@contextmanager
def open_environment(broker: Broker, cache: Path, folder: Path, **replicas: int) -> Iterator[Environment]:
    """Start an environment on a virtual host of its own, and end it."""
    vhost = broker.new_vhost()
    with Proxy(vhost.port) as proxy:
        workers = ServiceProcesses(replace(vhost, port=proxy.port), folder, cache, replicas)
        with separate_file_system(workers.database):
            try:
                workers.start_missing()
                environment = Environment(broker, proxy, vhost, workers)
                environment.wait_until_ready()
                yield environment
            finally:
                workers.stop()
                broker.delete_vhost(vhost)


@contextmanager
def separate_file_system(folder: Path) -> Iterator[None]:
    """Mount a small file system at a folder, where the user is root, so that it can be filled without harm."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
