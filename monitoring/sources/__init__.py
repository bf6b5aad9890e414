"""Selection of a source: a Compose project, a Kubernetes namespace, or the processes of this machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monitoring.sources.base import MonitorError, Source

SOURCES = ("docker", "kubernetes", "process")


@dataclass(frozen=True)
class SourceOptions:
    """Where to look for services. With ``wait_for_services``, a source without services is accepted."""

    project: str
    namespace: str
    interval_s: float
    wait_for_services: bool


def open_source(kind: str, options: SourceOptions, command: Sequence[str]) -> Source:
    """Open the source ``kind``; for ``auto``, the first that has services.

    If ``auto`` finds no services and they may start later, the name of
    ``command`` decides (docker…, kube…, local…), then the first source that can
    be opened. Raises MonitorError if there is none.
    """
    if kind != "auto":
        return _OPEN[kind](options)
    name = Path(command[0]).name if command else ""
    for prefix, candidate in (("docker", "docker"), ("kube", "kubernetes"), ("local", "process")):
        if name.startswith(prefix):
            return _OPEN[candidate](options)
    attempts = [replace(options, wait_for_services=False), *([options] if options.wait_for_services else [])]
    reasons: dict[str, None] = {}
    for attempt in attempts:
        for candidate in SOURCES:
            try:
                return _OPEN[candidate](attempt)
            except MonitorError as error:
                reasons[str(error)] = None
    raise MonitorError("; ".join(reasons))


def _docker(options: SourceOptions) -> Source:
    api = _import("docker_api", "docker")
    client = api.connect()
    running = api.projects(client)
    if options.project not in running and not options.wait_for_services:
        others = f"; running projects: {', '.join(running)}" if running else ""
        raise MonitorError(f"no containers run in the Compose project {options.project!r}{others}")
    source: Source = _import("docker_source", "docker").DockerSource(client, options.project, options.interval_s)
    return source


def _kubernetes(options: SourceOptions) -> Source:
    source = _import("metrics_source", "kubernetes").open_kubernetes(options.namespace)
    if not source.has_pods() and not options.wait_for_services:
        raise MonitorError(f"no pod with an app label runs in the namespace {options.namespace!r}")
    opened: Source = source
    return opened


def _process(options: SourceOptions) -> Source:
    source: Source = _import("process_source", "psutil").ProcessSource()
    if not source.read() and not options.wait_for_services:
        raise MonitorError("no service runs as a process of this machine")
    return source


def _import(module: str, package: str) -> Any:
    """Import a source's module, which needs an optional package."""
    try:
        return importlib.import_module(f"monitoring.sources.{module}")
    except ImportError as error:
        raise MonitorError(f"the package {package} is missing ({error}); run: pip install {package}") from None


_OPEN: dict[str, Callable[[SourceOptions], Source]] = {
    "docker": _docker,
    "kubernetes": _kubernetes,
    "process": _process,
}
