"""The platforms of a campaign: each starts the project's services, submits runs and stops them.

All that a platform of a campaign makes has names, ports and volumes of its own, and is removed by ``remove``. A scan
uses the services that the user has started, with ``running_services``.
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
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass
class Platform:
    """A way to run the services, by commands in the project's directory. Their output is in a log file.

    ``kind`` is the monitor's source of the counters, ``project`` the Compose project or the namespace. With
    ``create_command``, ``remove_command`` is called only if that created something.
    """

    kind: str
    project: str
    folder: Path
    variables: dict[str, str]
    check: Sequence[str]
    run_command: Sequence[str]
    start_command: Sequence[str] = ()
    stop_command: Sequence[str] = ()
    create_command: Sequence[str] = ()
    remove_command: Sequence[str] = ()
    #: Whether files that the services generate are lost with them; they then run until the campaign ends.
    stays_up: bool = False

    def __post_init__(self) -> None:
        #: Where the results of runs are written.
        self.output = self.folder / "results" / self.kind
        self.log = self.folder / "logs" / f"{self.kind}.log"
        inherited = {name: text for name, text in os.environ.items() if name not in _RUN_SETTINGS}
        self.environment = inherited | self.variables
        for path in (self.output, self.log.parent):
            path.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Raise MonitorError if the machine lacks this platform."""
        if shutil.which(self.check[0]) is None or self.call(self.check):
            raise MonitorError(f"{self.kind} is left out: {' '.join(self.check)} fails")
        if self.create_command and self.call(self.create_command):
            self.remove_command = ()

    def start(self, flags: Sequence[str]) -> int:
        """Start the services and run the analysis once; returns the exit code."""
        return self.call([*self.start_command, *flags, "--output", str(self.output)])

    def run(self, flags: Sequence[str]) -> int:
        """Run the analysis on the running services; returns the exit code."""
        return self.call([*self.run_command, *flags, "--output", str(self.output)])

    def scale(self, service: str, replicas: int) -> None:
        """Set the number of replicas; raises MonitorError if the script does not."""
        if self.call([*self.start_command, "--scale", f"{service}={replicas}"]):
            raise MonitorError(f"{service}={replicas}: {self.last_line()}")

    def replicas(self, service: str) -> int:
        """Return the number of replicas; raises MonitorError if it cannot be read."""
        command = ["docker", "compose", "ps", "--quiet", service]
        if self.kind == "kubernetes":
            command = ["kubectl", "--namespace", self.project, "get", f"deployment/{service}"]
            command += ["--output", "jsonpath={.spec.replicas}"]
        done = subprocess.run(  # noqa: S603  fixed commands
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        found = done.stdout.split()
        if done.returncode or not found:
            raise MonitorError(f"the number of replicas of {service} is not known: {done.stderr.strip()}")
        return int(found[0]) if self.kind == "kubernetes" else len(found)

    def last_line(self) -> str:
        """Return the last line that a command has written, and where the others are."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return f"{next((line for line in reversed(lines) if line.strip()), 'it failed')}; see {self.log}"

    def stop(self) -> None:
        """Stop the services; what they have generated may be kept."""
        self.call(self.stop_command)

    def remove(self) -> None:
        """Stop the services and remove everything that was made, results and logs aside."""
        self.stop()
        if self.remove_command:
            self.call(self.remove_command)

    def call(self, command: Sequence[str]) -> int:
        """Run a command to its end; returns the exit code."""
        with open(self.log, "ab") as log:
            finished = subprocess.run(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, check=False)  # noqa: S603
        return finished.returncode


class ProcessPlatform(Platform):
    """The services and RabbitMQ as processes of this machine, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "process"
        self.port, self._epmd_port = _free_port(), _free_port()
        variables = {
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_PORT": str(self.port),
            "RABBITMQ_USER": NAME,
            "RABBITMQ_PASS": NAME,
            "RABBITMQ_VHOST": "/",
            "RABBITMQ_TLS_CA": "",
            "MESSAGE_KEY": secrets.token_hex(32),
            "DATABASE": str(self.files / "analysis.sqlite"),
            "CACHE": str(self.files / "cache"),
            "PAGE_PORT": str(_free_port()),
        }
        self._server = str(_DEBIAN_SERVER) if _DEBIAN_SERVER.exists() else "rabbitmq-server"
        super().__init__(
            kind="process",
            project=NAME,
            folder=folder,
            variables=variables,
            check=("which", self._server),
            run_command=(sys.executable, "analysis.py", "--broker", f"amqp://127.0.0.1:{self.port}"),
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, flags: Sequence[str]) -> int:
        """Start the services with a first run."""
        self._start_broker()
        for worker in _WORKERS:
            self._begin([sys.executable, "-m", f"workers.{worker}"], {"OUTPUT": str(self.files / "results")})
        return self.run(flags)

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
            self.call([epmd, "-port", str(self._epmd_port), "-kill"])

    def remove(self) -> None:
        """Remove the services and their files."""
        self.stop()
        shutil.rmtree(self.files, ignore_errors=True)

    def _begin(self, command: Sequence[str], variables: dict[str, str]) -> None:
        environment = self.environment | variables
        with open(self.log, "ab") as log:
            process = subprocess.Popen(  # noqa: S603  fixed commands
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)

    def _start_broker(self) -> None:
        """Start RabbitMQ with the configuration of the containers and wait for its port; raises MonitorError."""
        self.files.mkdir(parents=True, exist_ok=True)
        lines = (
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndefault_user = {NAME}\ndefault_pass = {NAME}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {_free_port()}\n"
        )
        configuration = self.files / "rabbitmq.conf"
        configuration.write_text(lines + (ROOT / "kubernetes" / "rabbitmq.conf").read_text())
        (self.files / "plugins").write_text("[rabbitmq_management].\n")
        variables = {
            "HOME": str(self.files),
            "RABBITMQ_NODENAME": f"{NAME}-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.files / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.files / "broker"),
            "RABBITMQ_LOGS": str(self.files / "broker.log"),
        }
        self._begin([self._server], variables)
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline and self._processes[-1].poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.5)
        raise MonitorError(f"RabbitMQ did not start within {_START_LIMIT_S:.0f} s; see {self.log}")


def open_platform(kind: str, folder: Path) -> Platform:
    """Return the platform ``kind`` for a campaign in ``folder``; raises MonitorError if the machine lacks it."""
    opened = {"process": ProcessPlatform, "docker": _docker, "kubernetes": _kubernetes}[kind](folder)
    opened.prepare()
    return opened


def running_services(kind: str, project: str, folder: Path) -> Platform:
    """Return the services of ``docker-run.sh`` or ``kubernetes-run.sh`` as the user has started them.

    ``project`` is the Compose project or the namespace.
    """
    script = (f"./{kind}-run.sh",)
    if kind == "kubernetes":
        return Platform(kind, project, folder, {"NAMESPACE": project}, (), run_command=script, start_command=script)
    variables = {"COMPOSE_PROJECT_NAME": project, "RESULTS_DIR": str(folder / "results" / kind)}
    return Platform(kind, project, folder, variables, (), run_command=_submit(), start_command=script)


def _docker(folder: Path) -> Platform:
    """Return the Compose stack of ``docker-run.sh``, as a Compose project of its own."""
    (folder / "compose.env").touch()
    variables = {
        "COMPOSE_PROJECT_NAME": NAME,
        "COMPOSE_ENV_FILES": str(folder / "compose.env"),
        "MESSAGE_KEY": secrets.token_hex(32),
        "PAGE_PORT": str(_free_port()),
        "MANAGEMENT_PORT": str(_free_port()),
        "RESULTS_DIR": str(folder / "results" / "docker"),
        "DATA_DIR": "",
    }
    down = ("docker", "compose", "--profile", "submit", "down", "--remove-orphans")
    return Platform(
        kind="docker",
        project=NAME,
        folder=folder,
        variables=variables,
        check=("docker", "info"),
        start_command=("./docker-run.sh",),
        run_command=_submit(),
        stop_command=down,
        remove_command=(*down, "--volumes"),
    )


def _submit() -> tuple[str, ...]:
    """Return the command of a run. Unlike docker-run.sh, it does not check the images and the services before."""
    compose = ("docker", "compose", "--progress", "quiet", "run", "--rm", "--no-deps", "-T")
    return (*compose, "--user", f"{os.getuid()}:{os.getgid()}", "submit")


def _kubernetes(folder: Path) -> Platform:
    """Return the pods of ``kubernetes-run.sh``, in a namespace of their own; NAMESPACE names another one."""
    namespace = os.environ.get("NAMESPACE") or NAME
    run = ("./kubernetes-run.sh",)
    return Platform(
        kind="kubernetes",
        project=namespace,
        folder=folder,
        variables={"NAMESPACE": namespace},
        check=("kubectl", "get", "--raw", "/version", "--request-timeout=10s"),
        create_command=("kubectl", "create", "namespace", namespace),  # a recording needs it
        start_command=run,
        run_command=run,
        stop_command=(*run, "--down"),
        remove_command=("kubectl", "delete", "namespace", namespace, "--wait=false"),
        stays_up=True,  # the generated files are in a volume of the data-loader's pod
    )


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
