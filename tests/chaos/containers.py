"""The stage and the faults where the services are the containers of compose.yaml."""

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
from tests.chaos.delivery_faults import ComeLate, Duplicate, Reorder, RepeatRequest
from tests.chaos.fault import Fault, Moment, OfService
from tests.chaos.line_faults import Alarm, KillBroker
from tests.chaos.stage import ERLANG, FITTER, SERVICES, Run, Stage
from tests.support.broker import Broker
from tests.support.paths import ROOT
from tests.support.waiting import free_port, wait_until

#: How the stack's broker is spoken to, but for its port.
SETTINGS = BrokerSettings("127.0.0.1")


class ServiceContainers:
    """The services of a Compose project of our own; ``folder`` is where their results go."""

    def __init__(self, folder: Path, replicas: Mapping[str, int]) -> None:
        self.folder = folder
        self.replicas = {service: replicas.get(service, 1) for service in SERVICES}
        self.project = f"chaos-{secrets.token_hex(4)}"
        self.broker_port, self.api_port = free_port(), free_port()
        self._engine = docker.from_env()
        self._ended: dict[str, int] = {}
        self._looked = 0.0
        (folder / "service-results").mkdir()
        (folder / "service-results").chmod(0o777)  # the service is a user of its own

    def compose(self, *arguments: str) -> None:
        """Run docker compose on the project; raises CalledProcessError where it fails."""
        variables = {
            "COMPOSE_PROJECT_NAME": self.project,
            "IMAGE_TAG": os.environ.get("IMAGE_TAG", "latest"),
            "MANAGEMENT_PORT": str(self.api_port),
            "BROKER_PORT": str(self.broker_port),
            "PAGE_PORT": str(free_port()),
            "OUTPUT_DIR": str(self.folder / "service-results"),
            "ERLANG": ERLANG,
            # As our own sessions have it, whatever stands in .env.
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
        """Bring the project up, with its replicas, of images that are there."""
        scale = [f"--scale={service.replace('_', '-')}={number}" for service, number in self.replicas.items()]
        self.compose("up", "--detach", "--wait", "--no-build", *scale)

    def stop(self) -> None:
        """Keep the logs, and take the project down with all it holds."""
        self.compose("logs", "--no-color")
        self.compose("down", "--volumes", "--timeout", "10")

    def containers(self, service: str) -> list[Container]:
        """A service's containers, running or not."""
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        found: list[Container] = self._engine.containers.list(all=True, filters={"label": labels})
        return found

    def ended(self) -> dict[str, int]:
        """How many containers have ended, by service; looked at once a second."""
        if time.monotonic() > self._looked + 1:
            self._looked = time.monotonic()
            self._ended = {
                service: sum(one.status != "running" for one in self.containers(service.replace("_", "-")))
                for service in SERVICES
            }
        return self._ended

    def has_lost(self) -> bool:
        """Whether a container has ended that was to run."""
        return any(self.ended().values())

    def fitter(self) -> psutil.Process | None:
        """The process that the analysis has its fits done in, where there is one: a process of this machine, too."""
        (analysis,) = self.containers("analysis")
        with suppress(docker.errors.APIError):  # it is not running
            table = analysis.top()
            for row in table["Processes"]:
                if FITTER in row[-1]:
                    return psutil.Process(int(row[table["Titles"].index("PID")]))
        return None


class KillContainer(OfService):
    """SIGKILL of a container, which is started again."""

    kind = "docker kill"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        container = rng.choice(stage.workers.containers(self.service.replace("_", "-")))
        container.kill()
        container.start()
        return True


class Disconnect(OfService):
    """A container without a network for five seconds: no reset tells either side."""

    kind = "docker network disconnect for 5 s"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        name = self.service.replace("_", "-")
        container = rng.choice(stage.workers.containers(name))
        network = docker.from_env().networks.get(f"{stage.workers.project}_default")
        network.disconnect(container)
        time.sleep(5)
        network.connect(container, aliases=[name])
        return True


def _deck() -> list[Fault]:
    moments: list[tuple[str, Moment]] = [(service, "chunks") for service in SERVICES]
    deck: list[Fault] = [KillContainer(*when) for when in (*moments, ("analysis", "fit"), ("visualisation", "drawing"))]
    deck += [Disconnect(*when) for when in moments[1:3]]
    deck += [KillBroker(), KillBroker("drawing"), Alarm(), RepeatRequest(late=False), RepeatRequest(late=True)]
    sorts: tuple[Callable[[str], Fault], ...] = (Duplicate, Reorder, ComeLate)
    return [*deck, *(of(queue) for queue in ("chunks", "events", "selected") for of in sorts)]


#: One fault of every sort that containers can suffer.
DECK: tuple[Fault, ...] = tuple(_deck())


@contextmanager
def set_stage(folder: Path, **replicas: int) -> Iterator[Stage]:
    """Bring up a Compose project of our own, and take it down in the end."""
    workers = ServiceContainers(folder, replicas)
    try:
        workers.start()
        (container,) = workers.containers("rabbitmq")
        settings = replace(SETTINGS, port=workers.broker_port)
        control = ("docker", "exec", container.id, "rabbitmqctl")
        broker = Broker(settings, workers.api_port, control, {}, container.kill, container.start, tls_port=None)
        wait_until(lambda: broker.api("GET", "overview"), "RabbitMQ answered", 120)
        stage = Stage(broker, None, settings, workers)
        stage.wait_until_ready()
        yield stage
    finally:
        workers.stop()
