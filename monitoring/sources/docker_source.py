"""Counters of a Compose project's containers, from the Docker Engine API.

The engine reads the counters of each container once a second and streams them
with the time of reading. Its events report containers that start and end. If
the engine runs on this machine, the last value of a counter, and values at
intervals below a second, come from the cgroup files that the engine reads.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import docker
import requests
import urllib3

from monitoring import run_results
from monitoring.sources import docker_stats
from monitoring.sources.base import CounterSample, MonitorError
from monitoring.sources.cgroup import Cgroup, ExitWatcher, cgroup_of
from monitoring.sources.host import host_sample

_PROJECT = "com.docker.compose.project"
_SERVICE = "com.docker.compose.service"
_NUMBER = "com.docker.compose.container-number"
#: Seconds between the engine's own samples. At shorter intervals, cgroup files are read.
_ENGINE_INTERVAL_S = 1.0
#: Seconds between the last sample of a container and its end that are not reported as a problem.
_UNSAMPLED_LIMIT_S = 0.1
#: What the libraries raise when the engine stops, also in the middle of a stream.
_ENGINE_ERRORS = (
    docker.errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)


def connect() -> docker.DockerClient:
    """Connect to the engine at DOCKER_HOST or the default socket; raises MonitorError if there is none."""
    try:
        client = docker.from_env(timeout=20)
        client.ping()
    except _ENGINE_ERRORS as error:
        raise MonitorError(f"no Docker engine answers: {error}; start it, or set DOCKER_HOST") from None
    return client


def projects(client: docker.DockerClient) -> list[str]:
    """Return the Compose projects with running containers."""
    labels = (container["Labels"] for container in client.api.containers(filters={"label": _PROJECT}))
    return sorted({label[_PROJECT] for label in labels})


@dataclass
class _Container:
    """A container between one start and its end."""

    id: str
    #: The sample at its start, with a counter of 0.
    first: CounterSample
    details: Mapping[str, Any]
    #: Whether it started after the source was opened.
    is_new: bool
    cgroup: Cgroup | None = None
    latest: CounterSample | None = None
    #: Time and CPU seconds of the latest sample of the cgroup file.
    cgroup_sample: tuple[float, float] | None = None
    returned_until: float = 0.0
    has_ended: bool = False


class DockerSource:
    """Samples of one Compose project."""

    refresh_s = 5.0

    def __init__(self, client: docker.DockerClient, project: str, interval_s: float) -> None:
        self._client = client
        self._project = project
        self._interval_s = interval_s
        self._begin = time.time()
        self._lock = threading.Lock()
        self._containers: dict[tuple[str, float], _Container] = {}
        #: Samples of starts and ends since the last call of ``read``.
        self._pending: list[CounterSample] = []
        self._problems: list[str] = []
        self._closed = threading.Event()
        self._exits = ExitWatcher(self._sample_cgroups)
        self._is_local = bool(re.match(r"(unix|http\+docker|npipe)://", client.api.base_url))
        label = f"{_PROJECT}={project}"
        self._events = client.events(
            since=int(self._begin),
            filters={"type": "container", "label": label, "event": ["start", "die"]},
            decode=True,
        )
        threading.Thread(target=self._follow_events, name="events", daemon=True).start()
        for container in client.api.containers(filters={"label": label}):
            self._add(container["Id"])

    def read(self) -> Sequence[CounterSample]:
        """Return the samples since the last call."""
        with self._lock:
            samples, self._pending = self._pending, []
            for container in self._containers.values():
                sample = self._current(container)
                if sample is not None and sample.time > container.returned_until:
                    container.returned_until = sample.time
                    samples.append(sample)
        if samples and self._is_local:
            samples.append(host_sample())
        return samples

    def is_current(self, since: float) -> bool:
        """Return whether the engine has read the counters of all running containers at or after ``since``."""
        with self._lock:
            running = [container for container in self._containers.values() if not container.has_ended]
            return all(container.latest is not None and container.latest.time >= since for container in running)

    def describe(self) -> Mapping[str, Any]:
        """Return versions, cores, and the image and limits of each service."""
        with self._lock:
            containers = list(self._containers.values())
            problems = list(self._problems)
        try:
            version, info = self._client.version(), self._client.info()
        except _ENGINE_ERRORS as error:
            problems.append(f"the engine stopped answering: {error}")
            version, info = {}, {}
        exact = bool(containers) and all(container.cgroup is not None for container in containers)
        return {
            "platform": "compose",
            "source": "Docker Engine API, the containers' cumulative counters each second; "
            + ("the last one of a container from its cgroup file" if exact else "the last one may be a second old"),
            "project": self._project,
            "versions": {
                "engine": version.get("Version"),
                "api": version.get("ApiVersion"),
                "kernel": version.get("KernelVersion"),
                "cgroup": f"v{info.get('CgroupVersion', '1')}, {info.get('CgroupDriver')}",
            },
            "cores": info.get("NCPU"),
            "memory_bytes": info.get("MemTotal"),
            "limits": {one.first.service: docker_stats.limits(one.details["HostConfig"]) for one in containers},
            "images": {one.first.service: docker_stats.image(one.details) for one in containers},
            "problems": problems,
        }

    def find_result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """Return the ``result.json`` in a visualisation container."""
        with self._lock:
            running = [container for container in self._containers.values() if not container.has_ended]
        for container in running:
            if container.first.service != "visualisation":
                continue
            variables = dict(pair.partition("=")[::2] for pair in container.details["Config"]["Env"] or [])

            def execute(command: Sequence[str], container_id: str = container.id) -> str:
                execution = self._client.api.exec_create(container_id, list(command), stderr=False)
                return str(self._client.api.exec_start(execution["Id"]).decode())

            with contextlib.suppress(*_ENGINE_ERRORS):
                result = run_results.find_in_container(execute, variables.get("OUTPUT", "results"), run_id, since)
                if result is not None:
                    return result
        return None

    def close(self) -> None:
        """Close the streams and the cgroup files."""
        self._closed.set()
        with contextlib.suppress(*_ENGINE_ERRORS):
            self._events.close()
        self._exits.close()
        for container in self._containers.values():
            if container.cgroup is not None:
                container.cgroup.close()

    def _current(self, container: _Container) -> CounterSample | None:
        """Return the latest sample of a running container; at short intervals, read its cgroup file now."""
        if container.has_ended or container.latest is None:
            return None
        if container.cgroup is None or self._interval_s >= _ENGINE_INTERVAL_S:
            return container.latest
        try:
            return replace(container.latest, cpu_seconds=container.cgroup.cpu_seconds(), time=time.time())
        except OSError:
            return None

    def _follow_events(self) -> None:
        with contextlib.suppress(*_ENGINE_ERRORS):
            for event in self._events:
                if self._closed.is_set():
                    return
                at = event["timeNano"] / 1e9
                if event["Action"] == "start":
                    self._add(event["id"], at)
                else:
                    self._end_by_event(event["id"], at)

    def _add(self, container_id: str, event_time: float | None = None) -> None:
        """Begin to sample a running container; report one that was removed or restarted before it was sampled."""
        try:
            details = self._client.api.inspect_container(container_id)
        except docker.errors.NotFound:
            self._problems.append(f"container {container_id[:12]} was removed before its counter could be read")
            return
        started = docker_stats.seconds(details["State"]["StartedAt"])
        name = details["Name"].lstrip("/")
        if event_time is not None and started > event_time:
            self._problems.append(f"{name} ended and started again before its counter could be read")
        labels = details["Config"]["Labels"]
        first = CounterSample(
            time=started,
            service=labels[_SERVICE],
            replica=labels.get(_NUMBER, "1"),
            container=name,
            started=started,
            cpu_seconds=0.0,
            state="started",
            restarts=details["RestartCount"],
        )
        with self._lock:
            if (container_id, started) in self._containers:
                return
            container = _Container(container_id, first, details, is_new=started >= self._begin)
            self._containers[container_id, started] = container
            if container.is_new:
                self._pending.append(first)
        pid = details["State"]["Pid"]
        container.cgroup = cgroup_of(pid, container_id) if pid else None
        if container.cgroup is not None:
            self._exits.watch(pid, lambda: self._end_by_exit(container))
        threading.Thread(target=self._follow_stats, args=[container], name=f"stats {name}", daemon=True).start()

    def _follow_stats(self, container: _Container) -> None:
        with contextlib.suppress(*_ENGINE_ERRORS):
            for stats in self._client.api.stats(container.id, stream=True, decode=True):
                if self._closed.is_set() or container.has_ended:
                    return
                if not stats["cpu_stats"]["cpu_usage"]["total_usage"]:
                    continue  # the engine sends zeros for a container that does not run
                with self._lock:
                    if not container.has_ended:
                        container.latest = docker_stats.sample(container.first, stats)

    def _sample_cgroups(self) -> None:
        for container in list(self._containers.values()):
            if container.cgroup is not None and not container.has_ended:
                with contextlib.suppress(OSError):
                    container.cgroup_sample = time.time(), container.cgroup.cpu_seconds()

    def _end_by_exit(self, container: _Container) -> None:
        """End a container whose first process has just exited: its cgroup counter is final."""
        assert container.cgroup is not None
        with contextlib.suppress(OSError):
            used = container.cgroup.cpu_seconds()
            with self._lock:
                if not container.has_ended:
                    last = container.latest or container.first
                    self._end(container, replace(last, time=time.time(), cpu_seconds=used, state="final"))

    def _end_by_event(self, container_id: str, at: float) -> None:
        """End a container at the engine's event, with its last sample, and report a gap between the two."""
        with self._lock:
            for container in self._containers.values():
                if container.id != container_id or container.has_ended or container.first.started >= at:
                    continue
                last = container.latest or (container.first if container.is_new else None)
                if container.cgroup_sample is not None and (last is None or container.cgroup_sample[0] > last.time):
                    time_s, used = container.cgroup_sample
                    last = replace(last or container.first, time=time_s, cpu_seconds=used)
                if last is not None and at - last.time > _UNSAMPLED_LIMIT_S:
                    self._problems.append(f"{last.container} ended {at - last.time:.2f} s after its last sample")
                self._end(container, None if last is None else replace(last, state="final"))

    def _end(self, container: _Container, final: CounterSample | None) -> None:
        container.has_ended = True
        if container.latest is not None and container.latest.time > container.returned_until:
            self._pending.append(container.latest)
        if final is not None:
            self._pending.append(final)
