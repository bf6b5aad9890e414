"""The platforms of a campaign: each starts the project's services, submits runs and stops them.

All that a platform makes has names, ports and volumes of its own, and is removed by ``remove``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from monitoring.sources.base import MonitorError

ROOT = Path(__file__).resolve().parents[2]
#: The Compose project and the namespace of a campaign.
NAME = "atlas-campaign"
#: Variables of a run; those of the user's environment are not used.
_RUN_SETTINGS = ("OUTPUT", "DATA", "ANALYSIS", "RELEASE", "SAMPLES", "LUMI", "FRACTION", "PT_CUTS", "PLOTS")
_WORKERS = ("data_loader", "data_processor", "analysis", "visualisation")
#: Debian's script /usr/sbin/rabbitmq-server changes the user; this is what it starts.
_DEBIAN_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 20.0


class Platform(ABC):
    """A way to run the services. Commands run in the project's directory, their output is in a log file.

    Parameters
    ----------
    kind
        The monitor's source of the services' counters.
    project
        The Compose project or the namespace of the services.
    folder
        The folder of the campaign.
    variables
        Environment variables of all commands.
    """

    #: Whether files that the services have generated are lost with them; they then run until the campaign ends.
    stays_up = False

    def __init__(self, kind: str, project: str, folder: Path, variables: dict[str, str]) -> None:
        self.kind = kind
        self.project = project
        #: Where the results of runs are written.
        self.output = folder / "results" / kind
        self.log = folder / "logs" / f"{kind}.log"
        self.environment = {name: text for name, text in os.environ.items() if name not in _RUN_SETTINGS} | variables
        for path in (self.output, self.log.parent):
            path.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def prepare(self) -> str | None:
        """Return what this machine lacks for this platform; None if the services can be started."""

    @abstractmethod
    def start(self, flags: Sequence[str]) -> int:
        """Start the services and run the analysis once; returns the exit code."""

    @abstractmethod
    def run(self, flags: Sequence[str]) -> int:
        """Run the analysis on the running services; returns the exit code."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the services; what they have generated may be kept."""

    @abstractmethod
    def remove(self) -> None:
        """Stop the services and remove everything that was made, results and logs aside."""

    def call(self, *command: str | Path) -> int:
        """Run a command to its end; returns the exit code."""
        with open(self.log, "ab") as log:
            finished = subprocess.run(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, check=False)  # noqa: S603
        return finished.returncode


class DockerPlatform(Platform):
    """The Compose stack of ``docker-run.sh``, as a Compose project of its own."""

    def __init__(self, folder: Path) -> None:
        variables = {
            "COMPOSE_PROJECT_NAME": NAME,
            "COMPOSE_ENV_FILES": str(folder / "compose.env"),
            "MESSAGE_KEY": secrets.token_hex(32),
            "PAGE_PORT": str(_free_port()),
            "MANAGEMENT_PORT": str(_free_port()),
            "RESULTS_DIR": str(folder / "results" / "docker"),
            "DATA_DIR": "",
        }
        super().__init__("docker", NAME, folder, variables)
        (folder / "compose.env").touch()

    def prepare(self) -> str | None:
        """Return what is missing."""
        if shutil.which("docker") is None or self.call("docker", "info"):
            return "no Docker engine answers"
        return None

    def start(self, flags: Sequence[str]) -> int:
        """Start the services with a first run."""
        return self.call(ROOT / "docker-run.sh", *flags, "--output", self.output)

    def run(self, flags: Sequence[str]) -> int:
        """Run the analysis."""
        # Unlike docker-run.sh, this does not check the images and the services first.
        submit = ("docker", "compose", "--progress", "quiet", "run", "--rm", "--no-deps", "-T")
        return self.call(*submit, "--user", f"{os.getuid()}:{os.getgid()}", "submit", *flags)

    def stop(self) -> None:
        """Stop the services."""
        self.call("docker", "compose", "--profile", "submit", "down", "--remove-orphans")

    def remove(self) -> None:
        """Remove the services and their files."""
        self.call("docker", "compose", "--profile", "submit", "down", "--remove-orphans", "--volumes")


class KubernetesPlatform(Platform):
    """The pods of ``kubernetes-run.sh``, in a namespace of their own; NAMESPACE names another one."""

    stays_up = True  # the generated files are in a volume of the data-loader's pod

    def __init__(self, folder: Path) -> None:
        namespace = os.environ.get("NAMESPACE") or NAME
        super().__init__("kubernetes", namespace, folder, {"NAMESPACE": namespace})
        self._is_new = False

    def prepare(self) -> str | None:
        """Return what is missing; creates the namespace, which a recording needs."""
        if shutil.which("kubectl") is None or self.call("kubectl", "get", "--raw", "/version", "--request-timeout=10s"):
            return "no Kubernetes cluster answers"
        if self.call("kubectl", "get", "namespace", self.project):
            self._is_new = self.call("kubectl", "create", "namespace", self.project) == 0
        return None

    def start(self, flags: Sequence[str]) -> int:
        """Start the services with a first run."""
        return self.run(flags)

    def run(self, flags: Sequence[str]) -> int:
        """Run the analysis."""
        return self.call(ROOT / "kubernetes-run.sh", *flags, "--output", self.output)

    def stop(self) -> None:
        """Stop the services."""
        self.call(ROOT / "kubernetes-run.sh", "--down")

    def remove(self) -> None:
        """Remove the services and their files."""
        self.stop()
        if self._is_new:
            self.call("kubectl", "delete", "namespace", self.project, "--wait=false")


class ProcessPlatform(Platform):
    """The services and RabbitMQ as processes of this machine, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "process"
        self.port, self._epmd_port = _free_port(), _free_port()
        variables = {
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_PORT": str(self.port),
            "RABBITMQ_USER": NAME,
            "RABBITMQ_PASS": NAME,
            "RABBITMQ_VHOST": "/",
            "RABBITMQ_TLS_CA": "",
            "MESSAGE_KEY": secrets.token_hex(32),
            "DATABASE": str(self.folder / "analysis.sqlite"),
            "CACHE": str(self.folder / "cache"),
            "PAGE_PORT": str(_free_port()),
        }
        super().__init__("process", NAME, folder, variables)
        self._processes: list[subprocess.Popen[bytes]] = []

    def prepare(self) -> str | None:
        """Return what is missing."""
        return None if self._server() else "rabbitmq-server is not installed"

    def start(self, flags: Sequence[str]) -> int:
        """Start the services with a first run."""
        self._start_broker()
        for worker in _WORKERS:
            self._start([sys.executable, "-m", f"workers.{worker}"], {"OUTPUT": str(self.folder / "results")})
        return self.run(flags)

    def run(self, flags: Sequence[str]) -> int:
        """Run the analysis."""
        broker = f"amqp://127.0.0.1:{self.port}"
        return self.call(sys.executable, "analysis.py", "--broker", broker, *flags, "--output", self.output)

    def stop(self) -> None:
        """Stop the services, then the broker."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()
        if epmd := shutil.which("epmd"):
            self.call(epmd, "-port", str(self._epmd_port), "-kill")

    def remove(self) -> None:
        """Remove the services and their files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _server(self) -> str | None:
        return str(_DEBIAN_SERVER) if _DEBIAN_SERVER.exists() else shutil.which("rabbitmq-server")

    def _start(self, command: Sequence[str], variables: dict[str, str]) -> None:
        environment = self.environment | variables
        with open(self.log, "ab") as log:
            process = subprocess.Popen(  # noqa: S603  fixed commands
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)

    def _start_broker(self) -> None:
        """Start RabbitMQ with the configuration of the containers and wait for its port; raises MonitorError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = (
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndefault_user = {NAME}\ndefault_pass = {NAME}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {_free_port()}\n"
        )
        configuration = self.folder / "rabbitmq.conf"
        configuration.write_text(lines + (ROOT / "kubernetes" / "rabbitmq.conf").read_text())
        (self.folder / "plugins").write_text("[rabbitmq_management].\n")
        variables = {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"{NAME}-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "broker"),
            "RABBITMQ_LOGS": str(self.folder / "broker.log"),
        }
        self._start([str(self._server())], variables)
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline and self._processes[-1].poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.5)
        raise MonitorError(f"RabbitMQ did not start within {_START_LIMIT_S:.0f} s; see {self.log}")


PLATFORMS: Mapping[str, type[ProcessPlatform | DockerPlatform | KubernetesPlatform]] = {
    "process": ProcessPlatform,
    "docker": DockerPlatform,
    "kubernetes": KubernetesPlatform,
}


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
