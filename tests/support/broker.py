"""A RabbitMQ for the tests: a container where a Docker engine answers, else Debian's package.

``python -m tests.support.broker FOLDER`` runs the one that all processes of a test session share.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trustme

from common.settings import BrokerSettings
from tests.support.paths import ROOT
from tests.support.waiting import free_port, wait_until

IMAGE = "rabbitmq:4-management"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
CONFIGURATION = ROOT / "kubernetes" / "rabbitmq.conf"
#: The limit of a message in that configuration.
MAX_MESSAGE_BYTES = 16 * 2**20
TLS_LISTENER = """
listeners.ssl.default = {tls_port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.key
ssl_options.verify = verify_none
"""


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

    @property
    def version(self) -> str:
        """The version of RabbitMQ, as its management API tells it."""
        return str(self.api("GET", "overview")["rabbitmq_version"])

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

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl; returns what it prints."""
        environment = os.environ | self.environment
        return subprocess.check_output(
            [*self.control, *arguments], stderr=subprocess.PIPE, timeout=60, env=environment, text=True
        )

    def limit_messages(self, size: int) -> None:
        """Accept messages of at most so many bytes on new channels."""
        self.ctl(
            "eval",
            f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size}).",
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

    def cut_connections(self, vhost: BrokerSettings, at_least: int = 1) -> int:
        """Have the broker close every connection to a virtual host; returns their number.

        The broker lists a connection seconds after its start: none is closed before ``at_least`` are listed.
        """
        cut = 0
        connections = self.api("GET", f"vhosts/{vhost.vhost}/connections")
        for connection in connections if len(connections) >= at_least else []:
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


def write_certificates(folder: Path) -> None:
    """Write a certificate for localhost, the authority that signed it (ca.pem), and another one (other-ca.pem)."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
    for path in (*folder.glob("*.pem"), folder / "server.key"):
        path.chmod(0o644)  # the container reads them as another user


#: Processes of shared brokers that were started here, which may outlive this process.
STARTED: list[subprocess.Popen[bytes]] = []


def not_available() -> NoReturn:
    raise NotImplementedError("other tests use this broker at the same time: kill one that a test has started")


@contextlib.contextmanager
def shared_broker(folder: Path) -> Iterator[Broker]:
    """The broker of all processes that use the same folder. It listens with TLS, too, and cannot be killed.

    A process of its own runs the broker as long as somebody has a shared lock on the file ``users``; the system
    releases the lock of a process that is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "broker.json"
    with open(folder / "start", "w") as start, open(folder / "users", "w") as users:
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        if not state.exists():
            with open(folder / "process.log", "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.broker", folder],
                    cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            STARTED.append(process)
            wait_until(lambda: state.exists() or process.poll() is not None, "the broker was started", 180)
        fcntl.flock(start, fcntl.LOCK_UN)
        if not state.exists():
            pytest.fail(f"the broker was not started: {(folder / 'process.log').read_text()}")
        read = json.loads(state.read_text())
        if "skipped" in read:
            pytest.skip(read["skipped"])
        settings, control = BrokerSettings(**read.pop("settings")), tuple(read.pop("control"))
        yield Broker(settings=settings, control=control, kill=not_available, start=not_available, **read)


def run_shared_broker(folder: Path) -> None:
    """Run the broker until nobody uses it."""
    with contextlib.ExitStack() as stack:
        users = stack.enter_context(open(folder / "users"))  # first, so that it is closed after the broker has ended
        write_certificates(folder)
        try:
            broker = stack.enter_context(running_broker(folder, TLS_LISTENER))
        except pytest.skip.Exception as reason:
            read = {"skipped": str(reason)}
        else:
            fields = ("api_port", "control", "environment", "tls_port")
            read = {name: getattr(broker, name) for name in fields} | {"settings": asdict(broker.settings)}
        (folder / "new").write_text(json.dumps(read))
        (folder / "new").rename(folder / "broker.json")
        fcntl.flock(users, fcntl.LOCK_EX)
        (folder / "broker.json").unlink()


if __name__ == "__main__":
    run_shared_broker(Path(sys.argv[1]))
