"""Counters of a Compose project's containers, from the Docker Engine API.

The engine reads the counters of each container once a second and streams them
with the time of reading by its own clock, which may differ from this machine's;
all times here are by the engine's. Its events report containers that start and end. If
the engine runs on this machine, the last value of a counter, and values at
intervals below a second, come from the cgroup files that the engine reads.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import docker

from monitoring import run_results
from monitoring.sources import docker_api
from monitoring.sources.base import CounterSample
from monitoring.sources.cgroup import Cgroup, cgroup_of
from monitoring.sources.machine import DOCKER_PROCESSES, MachineSource

#: Seconds between the engine's own samples. At shorter intervals, cgroup files are read.
_ENGINE_INTERVAL_S = 1.0
#: Seconds between samples of cgroup files. They limit the loss if a busy machine reads a last one too late.
_CGROUP_INTERVAL_S = 0.05
#: Seconds between the last sample of a container and its end that are not reported as a problem.
_UNSAMPLED_LIMIT_S = 0.1


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
    #: Readable when the first process has exited.
    pidfd: int | None = None
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
        asked_at = time.monotonic()
        self._begin = docker_api.system_time(client)
        #: The engine's time less the monotonic time of this process; too large by the time of the request, if at all.
        self._clock_offset = self._begin - asked_at
        self._lock = threading.Lock()
        self._containers: dict[tuple[str, float], _Container] = {}
        #: Samples of starts and ends since the last call of ``read``.
        self._pending: list[CounterSample] = []
        self._problems: list[str] = []
        self._label = f"{docker_api.PROJECT_LABEL}={project}"
        self._closed = threading.Event()
        self._exits = select.poll()
        self._machine: MachineSource | None = None
        if sys.platform == "linux" and (os.environ.get("DOCKER_HOST") or "unix:").startswith("unix:"):
            self._machine = MachineSource(DOCKER_PROCESSES, self._ours)
        self._events = client.events(
            since=int(self._begin),
            filters={"type": "container", "label": self._label, "event": ["start", "die"]},
            decode=True,
        )
        _start_thread(self._follow_events)
        self._cgroup_thread = _start_thread(self._follow_cgroups)
        for container in client.api.containers(filters={"label": self._label}):
            self._add(container["Id"])

    def now(self) -> float:
        """Return the engine's time."""
        return self._clock_offset + time.monotonic()

    def read(self) -> Sequence[CounterSample]:
        """Return the samples since the last call."""
        with self._lock:
            samples, self._pending = self._pending, []
            for container in self._containers.values():
                sample = self._current(container)
                if sample is not None and sample.time > container.returned_until:
                    container.returned_until = sample.time
                    samples.append(sample)
        if self._machine is not None:
            samples += self._machine.read(self.now())
        return samples

    def is_current(self, since: float) -> bool:
        """Return whether the counters of all running containers, and the machine's, were read at or after ``since``."""
        if self._machine is not None and not self._machine.is_current(since):
            return False
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
        except docker_api.ENGINE_ERRORS as error:
            problems.append(f"the engine stopped answering: {error}")
            version, info = {}, {}
        exact = bool(containers) and all(container.cgroup is not None for container in containers)
        return {
            "platform": "docker",
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
            "limits": {one.first.service: docker_api.limits(one.details["HostConfig"]) for one in containers},
            "images": {one.first.service: docker_api.image(one.details) for one in containers},
            "unseen": [] if self._machine else ["the engine's own processes: the engine runs on another machine"],
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

            with contextlib.suppress(*docker_api.ENGINE_ERRORS):
                result = run_results.find_in_container(execute, variables.get("OUTPUT", "results"), run_id, since)
                if result is not None:
                    return result
        return None

    def close(self) -> None:
        """Close the streams and the cgroup files."""
        self._closed.set()
        with contextlib.suppress(*docker_api.ENGINE_ERRORS):
            self._events.close()
        self._cgroup_thread.join()
        if self._machine is not None:
            self._machine.close()
        for container in self._containers.values():
            if container.cgroup is not None:
                container.cgroup.close()
            if container.pidfd is not None:
                os.close(container.pidfd)

    def _ours(self, cgroups: Set[str]) -> Set[str] | None:
        """Return the cgroups of the project's containers, also of those whose start the engine has not reported yet.

        None if the engine does not answer.
        """
        with self._lock:
            ids = {container.id for container in self._containers.values()}
        try:
            listed = self._client.api.containers(all=True, filters={"label": self._label})
        except docker_api.ENGINE_ERRORS:
            return None
        ids |= {container["Id"] for container in listed}
        return {cgroup for cgroup in cgroups if any(one in cgroup for one in ids)}

    def _current(self, container: _Container) -> CounterSample | None:
        """Return the latest sample of a running container; at short intervals, read its cgroup file now."""
        if container.has_ended or container.latest is None:
            return None
        if container.cgroup is None or self._interval_s >= _ENGINE_INTERVAL_S:
            return container.latest
        try:
            return replace(container.latest, cpu_seconds=container.cgroup.cpu_seconds(), time=self.now())
        except OSError:
            return None

    def _follow_events(self) -> None:
        with contextlib.suppress(*docker_api.ENGINE_ERRORS):
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
        first = docker_api.first_sample(details)
        if event_time is not None and first.started > event_time:
            self._problems.append(f"{first.container} ended and started again before its counter could be read")
        with self._lock:
            if (container_id, first.started) in self._containers:
                return
            container = _Container(container_id, first, details, is_new=first.started >= self._begin)
            self._containers[container_id, first.started] = container
            if container.is_new:
                self._pending.append(first)
        pid = details["State"]["Pid"]
        container.cgroup = cgroup_of(pid, container_id) if pid else None
        if container.cgroup is not None:
            with contextlib.suppress(OSError):
                container.pidfd = os.pidfd_open(pid)
                self._exits.register(container.pidfd, select.POLLIN)
        _start_thread(self._follow_stats, container)

    def _follow_stats(self, container: _Container) -> None:
        with contextlib.suppress(*docker_api.ENGINE_ERRORS):
            for stats in self._client.api.stats(container.id, stream=True, decode=True):
                if self._closed.is_set() or container.has_ended:
                    return
                if not stats["cpu_stats"]["cpu_usage"]["total_usage"]:
                    continue  # the engine sends zeros for a container that does not run
                with self._lock:
                    if not container.has_ended:
                        container.latest = docker_api.sample(container.first, stats)

    def _follow_cgroups(self) -> None:
        """Sample the cgroup files periodically, and when a container's first process exits: then it is final."""
        with contextlib.suppress(PermissionError):
            # The last sample must be taken within milliseconds. Only Linux has priorities of threads.
            if sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        while not self._closed.is_set():
            exited = [descriptor for descriptor, _ in self._exits.poll(_CGROUP_INTERVAL_S * 1000)]
            for descriptor in exited:
                self._exits.unregister(descriptor)
            for container in list(self._containers.values()):
                if container.cgroup is None or container.has_ended:
                    continue
                with contextlib.suppress(OSError):
                    container.cgroup_sample = self.now(), container.cgroup.cpu_seconds()
                    if container.pidfd in exited:
                        self._end(container)

    def _end_by_event(self, container_id: str, at: float) -> None:
        """End a container at the engine's event, with the last sample of its cgroup file if it is the latest."""
        for container in list(self._containers.values()):
            if container.id == container_id and container.first.started < at:
                self._end(container, at)

    def _end(self, container: _Container, ended_at: float | None = None) -> None:
        """Add the final sample of a container, unless it has one, and report a gap before its end."""
        with self._lock:
            if container.has_ended:
                return
            container.has_ended = True
            last = container.latest or (container.first if container.is_new else None)
            if last is not None and last.time > container.returned_until and last.state == "running":
                self._pending.append(last)
            if container.cgroup_sample is not None and (last is None or container.cgroup_sample[1] >= last.cpu_seconds):
                time_s, used = container.cgroup_sample
                last = replace(last or container.first, time=max(time_s, last.time if last else 0.0), cpu_seconds=used)
            if last is None:
                return
            if ended_at is not None and ended_at - last.time > _UNSAMPLED_LIMIT_S:
                self._problems.append(f"{last.container} ended {ended_at - last.time:.2f} s after its last sample")
            self._pending.append(replace(last, state="final"))


def _start_thread(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread
