"""The environment and the fault catalogue where the services are the containers of compose.yaml."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import docker
import docker.errors
import psutil
from docker.models.containers import Container

from common.settings import BrokerSettings
from tests.chaos.delivery_faults import Duplicate, RedeliverAfterRun, Reorder, RepeatRequest
from tests.chaos.environment import ERLANG, FIT_ARGUMENT, SERVICES, Environment, FollowedRun
from tests.chaos.fault import Fault, Phase, ServiceFault
from tests.chaos.network_faults import KillBroker, MemoryAlarm
from tests.support.broker import Broker
from tests.support.paths import ROOT
from tests.support.waiting import free_port, wait_until

#: The stack's broker, except for its port.
SETTINGS = BrokerSettings("127.0.0.1")


class ServiceContainers:
    """The services of a Compose project of its own; their results go to ``folder``."""

    def __init__(self, folder: Path, replicas: Mapping[str, int]) -> None:
        self.folder = folder
        self.replicas = {service: replicas.get(service, 1) for service in SERVICES}
        self.project = f"chaos-{secrets.token_hex(4)}"
        self.broker_port, self.api_port = free_port(), free_port()
        self._engine = docker.from_env()
        self._ended: dict[str, int] = {}
        self._updated_at = 0.0
        (folder / "service-results").mkdir()
        (folder / "service-results").chmod(0o777)  # the service runs as another user

    def compose(self, *arguments: str) -> None:
        """Run docker compose on the project; raises CalledProcessError where it fails."""
        variables = {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_ENV_FILES": os.devnull,  # whatever is in .env
            "IMAGE_TAG": os.environ.get("IMAGE_TAG", "latest"),
            "MANAGEMENT_PORT": str(self.api_port),
            "BROKER_PORT": str(self.broker_port),
            "PAGE_PORT": str(free_port()),
            "OUTPUT_DIR": str(self.folder / "service-results"),
            "ERLANG": ERLANG,
            "RABBITMQ_USER": SETTINGS.user,
            "RABBITMQ_PASS": SETTINGS.password,
            "RABBITMQ_VHOST": SETTINGS.vhost,
            "MESSAGE_KEY": SETTINGS.message_key,
        }
        files = ["-f", "compose.yaml", "-f", "tests/chaos/containers.yaml"]
        command = ["docker", "compose", "--project-directory", str(ROOT), *files, *arguments]
        with open(self.folder / "compose.log", "ab") as log:
            subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True, stdout=log, stderr=log)

    def start(self) -> None:
        """Start the project and its replicas from images that exist."""
        scale = [f"--scale={service.replace('_', '-')}={number}" for service, number in self.replicas.items()]
        self.compose("up", "--detach", "--wait", "--no-build", *scale)

    def stop(self) -> None:
        """Save the logs, and delete the project with its volumes."""
        self.compose("logs", "--no-color")
        self.compose("down", "--volumes", "--timeout", "10")

    def containers(self, service: str) -> list[Container]:
        """A service's containers, running or not."""
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        found: list[Container] = self._engine.containers.list(all=True, filters={"label": labels})
        return found

    def ended(self) -> dict[str, int]:
        """How many containers have ended, by service; updated once a second."""
        if time.monotonic() > self._updated_at + 1:
            self._updated_at = time.monotonic()
            self._ended = {
                service: sum(one.status != "running" for one in self.containers(service.replace("_", "-")))
                for service in SERVICES
            }
        return self._ended

    def has_ended(self) -> bool:
        """Whether a container has ended."""
        return any(self.ended().values())

    def fit_process(self) -> psutil.Process | None:
        """The analysis service's process for fits, if it runs; it is a process of this machine, too."""
        (analysis,) = self.containers("analysis")
        with suppress(docker.errors.APIError):  # the container does not run
            table = analysis.top()
            for row in table["Processes"]:
                if FIT_ARGUMENT in row[-1]:
                    return psutil.Process(int(row[table["Titles"].index("PID")]))
        return None


class KillContainer(ServiceFault):
    """SIGKILL of a container, which is started again."""

    kind = "docker kill"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        container = rng.choice(environment.workers.containers(self.service.replace("_", "-")))
        container.kill()
        container.start()
        return True


class Disconnect(ServiceFault):
    """A container without a network for five seconds; neither side gets a reset."""

    kind = "docker network disconnect for 5 s"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        name = self.service.replace("_", "-")
        container = rng.choice(environment.workers.containers(name))
        network = docker.from_env().networks.get(f"{environment.workers.project}_default")
        network.disconnect(container)
        time.sleep(5)
        network.connect(container, aliases=[name])
        return True


def _faults() -> list[Fault]:
    phases: list[tuple[str, Phase]] = [(service, "chunks") for service in SERVICES]
    faults: list[Fault] = [
        KillContainer(*when) for when in (*phases, ("analysis", "fit"), ("visualisation", "drawing"))
    ]
    faults += [Disconnect(*when) for when in phases[1:3]]
    faults += [KillBroker(), KillBroker("drawing"), MemoryAlarm(), RepeatRequest(late=False), RepeatRequest(late=True)]
    kinds: tuple[Callable[[str], Fault], ...] = (Duplicate, Reorder, RedeliverAfterRun)
    return [*faults, *(of(queue) for queue in ("chunks", "events", "selected") for of in kinds)]


#: The fault catalogue of containers.
FAULTS: tuple[Fault, ...] = tuple(_faults())


@contextmanager
def open_environment(folder: Path, **replicas: int) -> Iterator[Environment]:
    """Start a Compose project of its own, and delete it at the end."""
    workers = ServiceContainers(folder, replicas)
    try:
        workers.start()
        (container,) = workers.containers("rabbitmq")
        settings = replace(SETTINGS, port=workers.broker_port)
        control = ("docker", "exec", container.id, "rabbitmqctl")
        broker = Broker(settings, workers.api_port, control, {}, container.kill, container.start, tls_port=None)
        wait_until(lambda: broker.api("GET", "overview"), "RabbitMQ answered", 120)
        environment = Environment(broker, None, settings, workers)
        environment.wait_until_ready()
        yield environment
    finally:
        workers.stop()
