"""Find the services: in a Compose project, in a namespace, or among this machine's processes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.sources.base import MonitorError, Source

KINDS = ("docker", "kubernetes", "process")


@dataclass(frozen=True)
class Where:
    """Where to look, and whether the services may come later (``patient``)."""

    project: str
    namespace: str
    interval_s: float
    patient: bool


def open_source(kind: str, where: Where, command: Sequence[str]) -> Source:
    """The source of that kind, or for ``auto`` the first that has the services.

    Where ``auto`` finds none and the services may come later, the command's
    name decides, then what answers. Raises MonitorError in one line.
    """
    if kind != "auto":
        return _OPEN[kind](where)
    hint = Path(command[0]).name if command else ""
    for start, hinted in (("docker", "docker"), ("kube", "kubernetes"), ("local", "process")):
        if hint.startswith(start):
            return _OPEN[hinted](where)
    reasons = []
    strict = Where(where.project, where.namespace, where.interval_s, patient=False)
    for candidate in KINDS:
        try:
            return _OPEN[candidate](strict)
        except MonitorError as error:
            reasons.append(str(error))
    for candidate in KINDS if where.patient else ():
        try:
            return _OPEN[candidate](where)
        except MonitorError:
            continue
    raise MonitorError("; ".join(reasons))


def _docker(where: Where) -> Source:
    engine = _module("docker_source", "docker")
    client = engine.connect()
    running = engine.projects(client)
    if where.project not in running and not where.patient:
        others = f"; there are {', '.join(running)}" if running else ""
        raise MonitorError(f"no containers run in a Compose project {where.project!r}{others}")
    source: Source = engine.DockerSource(client, where.project, where.interval_s)
    return source


def _kubernetes(where: Where) -> Source:
    metrics_server = _module("metrics_source", "kubernetes")
    source = metrics_server.open_kubernetes(where.namespace)
    if not source.has_pods() and not where.patient:
        raise MonitorError(f"no pod with an app label runs in the namespace {where.namespace!r}")
    opened: Source = source
    return opened


def _processes(where: Where) -> Source:
    processes = _module("process_source", "psutil")
    source = processes.ProcessSource()
    if not source.read() and not where.patient:
        raise MonitorError("no service runs as a process of this machine")
    fresh: Source = processes.ProcessSource()
    return fresh


def _module(name: str, package: str) -> Any:
    """A module of ours that needs a package; one line where it is missing (the folder kubernetes/ is no package)."""
    try:
        return importlib.import_module(f"monitoring.sources.{name}")
    except ImportError as error:
        raise MonitorError(
            f"the package {package} is missing ({error}); pip install -r requirements-monitor.txt"
        ) from None


_OPEN: dict[str, Callable[[Where], Source]] = {"docker": _docker, "kubernetes": _kubernetes, "process": _processes}
