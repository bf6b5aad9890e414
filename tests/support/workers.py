"""The four services as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from common.settings import BrokerSettings
from tests.support.paths import ROOT


class Workers:
    """The four services as processes on one virtual host.

    ``folder`` has their logs, results, database and own analyses; ``cache`` is the folder of the files that they read,
    by default a new one.
    """

    def __init__(self, settings: BrokerSettings, folder: Path, cache: Path | None = None) -> None:
        self.settings = settings
        self.folder = folder
        self._cache = cache or folder / "cache"
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def environment(self) -> dict[str, str]:
        return {
            "RABBITMQ_HOST": self.settings.host,
            "RABBITMQ_PORT": str(self.settings.port),
            "RABBITMQ_USER": self.settings.user,
            "RABBITMQ_PASS": self.settings.password,
            "RABBITMQ_VHOST": self.settings.vhost,
            "RABBITMQ_TLS_CA": str(self.settings.tls_ca or ""),
            "MESSAGE_KEY": self.settings.message_key,
            "OUTPUT": str(self.folder / "service-results"),
            "DATABASE": str(self.folder / "analysis.sqlite"),
            "CACHE": str(self._cache),
            "ANALYSES_DIR": str(self.folder / "analyses"),
        }

    def command(self, service: str) -> list[str]:
        return [sys.executable, "-m", f"workers.{service}"]

    def start(self, service: str, replicas: int = 1, **variables: str) -> list[subprocess.Popen[bytes]]:
        started = []
        for _ in range(replicas):
            with open(self.folder / f"{service}.log", "ab") as log:
                process = subprocess.Popen(
                    self.command(service),
                    cwd=ROOT,
                    env=os.environ | self.environment() | variables,
                    stdout=log,
                    stderr=log,
                )
            self._processes.append((service, process))
            started.append(process)
        return started

    def start_all(self, data_loaders: int = 1, data_processors: int = 1) -> None:
        self.start("data_loader", data_loaders)
        self.start("data_processor", data_processors)
        self.start("analysis")
        self.start("visualisation")

    def running(self, service: str) -> list[subprocess.Popen[bytes]]:
        return [process for name, process in self._processes if name == service and process.poll() is None]

    def kill(self, service: str) -> None:
        """Kill every process of a service with SIGKILL."""
        for process in self.running(service):
            process.kill()
            process.wait()

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text()

    def stop(self) -> dict[str, list[int]]:
        """Stop all processes with SIGTERM; returns the exit codes by service."""
        codes: dict[str, list[int]] = {}
        for _, process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for name, process in self._processes:
            try:
                codes.setdefault(name, []).append(process.wait(15))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.setdefault(name, []).append(process.wait())
        self._processes.clear()
        return codes
