"""A RabbitMQ for the tests: a container where a Docker engine answers, else Debian's package."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from common.settings import BrokerSettings
from tests.support.paths import ROOT
from tests.support.waiting import free_port, wait_until

IMAGE = "rabbitmq:4-management"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
CONFIGURATION = ROOT / "kubernetes" / "rabbitmq.conf"


@dataclass(frozen=True)
class Broker:
    """A running RabbitMQ; ``control`` is its rabbitmqctl command.

    ``kill`` ends it with SIGKILL, ``start`` starts it again on the same ports and data.
    """

    settings: BrokerSettings
    api_port: int
    control: tuple[str, ...]
    environment: dict[str, str]
    kill: Callable[[], None]
    start: Callable[[], None]
    tls_port: int | None

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Send a request to the management API."""
        request = urllib.request.Request(
            f"http://{self.settings.host}:{self.api_port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic "
                + b64encode(f"{self.settings.user}:{self.settings.password}".encode()).decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def ctl(self, *arguments: str) -> None:
        """Run rabbitmqctl."""
        subprocess.run(
            [*self.control, *arguments], check=True, capture_output=True, timeout=60, env=os.environ | self.environment
        )

    def new_vhost(self) -> BrokerSettings:
        """Make an empty virtual host."""
        name = f"test-{secrets.token_hex(4)}"
        self.api("PUT", f"vhosts/{name}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"permissions/{name}/{self.settings.user}", everything)
        return replace(self.settings, vhost=name)

    def delete_vhost(self, vhost: BrokerSettings) -> None:
        self.api("DELETE", f"vhosts/{vhost.vhost}")

    def cut_connections(self, vhost: BrokerSettings) -> int:
        """Have the broker close every connection to a virtual host; returns their number."""
        cut = 0
        for connection in self.api("GET", f"vhosts/{vhost.vhost}/connections"):
            with contextlib.suppress(urllib.error.HTTPError):
                self.api("DELETE", f"connections/{urllib.parse.quote(connection['name'], safe='')}")
                cut += 1
        return cut


def docker_answers() -> bool:
    if os.environ.get("TEST_BROKER") == "package" or shutil.which("docker") is None:
        return False
    image = ["docker", "image", "inspect", IMAGE]
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        return False
    if subprocess.run(image, capture_output=True, check=False).returncode == 0:
        return True
    return subprocess.run(["docker", "pull", "--quiet", IMAGE], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def broker_in_container(folder: Path, configuration: str, erlang: str) -> Iterator[Broker]:
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.container import DockerContainer

    port, api_port, tls_port = free_port(), free_port(), free_port()  # fixed, so that a restart keeps them
    folder.chmod(0o755)
    (folder / "test.conf").write_text(configuration.format(folder="/test", tls_port=5671))
    started = (
        DockerContainer(IMAGE)
        .with_env("RABBITMQ_DEFAULT_USER", "tests")
        .with_env("RABBITMQ_DEFAULT_PASS", "tests")
        .with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", erlang)
        .with_bind_ports(5671, tls_port)
        .with_bind_ports(5672, port)
        .with_bind_ports(15672, api_port)
        .with_volume_mapping(str(CONFIGURATION), "/etc/rabbitmq/conf.d/20-pipeline.conf", "ro")
        .with_volume_mapping(str(folder), "/test", "ro")
        .with_volume_mapping(str(folder / "test.conf"), "/etc/rabbitmq/conf.d/30-test.conf", "ro")
    )
    with started:
        container = started.get_wrapped_container()
        yield Broker(
            BrokerSettings("127.0.0.1", port, "tests", "tests"),
            api_port,
            ("docker", "exec", container.id, "rabbitmqctl"),
            {},
            container.kill,
            container.start,
            tls_port,
        )


@contextlib.contextmanager
def broker_from_package(folder: Path, configuration: str, erlang: str) -> Iterator[Broker]:
    port, api_port, distribution_port, tls_port = free_port(), free_port(), free_port(), free_port()
    (folder / "plugins").write_text("[rabbitmq_management].\n")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {api_port}\n"
        f"default_user = tests\ndefault_pass = tests\n{CONFIGURATION.read_text()}"
        f"{configuration.format(folder=folder, tls_port=tls_port)}"
    )
    environment = {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"tests-{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOGS": str(folder / "broker.log"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
        "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with open(folder / "console.log", "ab") as console:
            process = subprocess.Popen(
                [SERVER], env=os.environ | environment, stdout=console, stderr=console, start_new_session=True
            )
        processes.append(process)

    def kill() -> None:
        os.killpg(processes[-1].pid, signal.SIGKILL)  # the script and the virtual machine that it started
        processes[-1].wait()

    start()
    try:
        settings = BrokerSettings("127.0.0.1", port, "tests", "tests")
        control = (str(SERVER.with_name("rabbitmqctl")),)
        yield Broker(settings, api_port, control, environment, kill, start, tls_port)
    finally:
        processes[-1].terminate()
        processes[-1].wait(30)


@contextlib.contextmanager
def running_broker(folder: Path, configuration: str = "", erlang: str = "") -> Iterator[Broker]:
    """A RabbitMQ with the configuration of Compose and Kubernetes.

    ``configuration`` are more lines of rabbitmq.conf, in which {folder} and {tls_port} are replaced; ``erlang`` are
    more arguments of its virtual machine.
    """
    if docker_answers():
        running = broker_in_container(folder, configuration, erlang)
    elif SERVER.exists():
        running = broker_from_package(folder, configuration, erlang)
    else:
        pytest.skip("needs RabbitMQ: neither a Docker engine nor rabbitmq-server was found")
    with running as started:
        wait_until(lambda: started.api("GET", "overview"), "RabbitMQ answered", 120)
        yield started
