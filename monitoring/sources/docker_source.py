"""CPU counters of a Compose project's containers, from the Docker Engine API.

The engine reads each container's counters once a second and sends them, with
the time it read them, down one stream per container; its events tell which
containers come and go. Where the engine runs on this machine, the last value
of a counter, and values at intervals below a second, are read from the same
cgroup files that the engine reads.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import docker
import requests
import urllib3

from monitoring import run_results as runs
from monitoring.sources import docker_stats
from monitoring.sources.base import MonitorError, Reading
from monitoring.sources.cgroup import Cgroup, ExitWatch, cgroup_of
from monitoring.sources.host import host_reading

_PROJECT = "com.docker.compose.project"
_SERVICE = "com.docker.compose.service"
_NUMBER = "com.docker.compose.container-number"
#: The engine's own pace; below it, counters are read from the cgroup files.
ENGINE_REFRESH_S = 1.0
#: What a container may live on after its last reading without a word about it.
_UNSEEN_S = 0.1
#: What an engine that goes away raises in the middle of a stream.
_GONE = (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


def connect() -> docker.DockerClient:
    """The engine that DOCKER_HOST or the default socket names; raises MonitorError where none answers."""
    try:
        client = docker.from_env(timeout=20)
        client.ping()
    except _GONE as error:
        raise MonitorError(f"no Docker engine answers: {_innermost(error)}; start it, or set DOCKER_HOST") from None
    return client


def projects(client: docker.DockerClient) -> list[str]:
    """The Compose projects that have running containers."""
    labels = (container["Labels"] for container in client.api.containers(filters={"label": _PROJECT}))
    return sorted({label[_PROJECT] for label in labels})


@dataclass
class _Life:
    """A container between one start and one end."""

    id: str
    first: Reading
    details: Mapping[str, Any]
    born: bool
    cgroup: Cgroup | None = None
    latest: Reading | None = None
    glanced: tuple[float, float] | None = None
    given: float = 0.0
    ended: bool = False


class DockerSource:
    """Readings of one Compose project."""

    refresh_s = 5.0

    def __init__(self, client: docker.DockerClient, project: str, interval_s: float) -> None:
        self._client = client
        self._project = project
        self._interval_s = interval_s
        self._begin = time.time()
        self._lock = threading.Lock()
        self._lives: dict[tuple[str, float], _Life] = {}
        self._news: list[Reading] = []
        self._problems: list[str] = []
        self._closed = threading.Event()
        self._exits = ExitWatch(self._glance)
        self._local = bool(re.match(r"(unix|http\+docker|npipe)://", client.api.base_url))
        label = f"{_PROJECT}={project}"
        self._events = client.events(
            since=int(self._begin),
            filters={"type": "container", "label": label, "event": ["start", "die"]},
            decode=True,
        )
        threading.Thread(target=self._follow_events, name="events", daemon=True).start()
        for container in client.api.containers(filters={"label": label}):
            self._attach(container["Id"])

    def read(self) -> Sequence[Reading]:
        """The readings since the last call."""
        with self._lock:
            readings, self._news = self._news, []
            for life in self._lives.values():
                reading = self._now(life)
                if reading is not None and reading.time > life.given:
                    life.given = reading.time
                    readings.append(reading)
        if readings and self._local:
            readings.append(host_reading())
        return readings

    def fresh(self, since: float) -> bool:
        """Whether the engine has read every running container's counter at or after ``since``."""
        with self._lock:
            running = [life for life in self._lives.values() if not life.ended]
            return all(life.latest is not None and life.latest.time >= since for life in running)

    def about(self) -> Mapping[str, Any]:
        """Engine, cores, and each service's image and limits."""
        with self._lock:
            lives = list(self._lives.values())
            problems = list(self._problems)
        try:
            version, info = self._client.version(), self._client.info()
        except _GONE as error:
            problems.append(f"the engine went away: {_innermost(error)}")
            version, info = {}, {}
        exact = bool(lives) and all(life.cgroup is not None for life in lives)
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
            "limits": {life.first.service: docker_stats.limits(life.details["HostConfig"]) for life in lives},
            "images": {life.first.service: docker_stats.image(life.details) for life in lives},
            "problems": problems,
        }

    def result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """The result.json that the visualisation has kept."""
        with self._lock:
            lives = [life for life in self._lives.values() if life.first.service == "visualisation" and not life.ended]
        for life in lives:
            variables = dict(pair.partition("=")[::2] for pair in life.details["Config"]["Env"] or [])
            output = variables.get("OUTPUT", "results")
            with contextlib.suppress(*_GONE, KeyError, TypeError, tarfile.TarError):
                chosen = run_id or self._newest(life.id, output)
                stream, _ = self._client.api.get_archive(life.id, f"{output}/{chosen}/result.json")
                with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                    content = archive.extractfile("result.json")
                    result = json.loads(content.read()) if content else None
                if result and (run_id or runs.finished(result) >= since):
                    return dict(result)
        return None

    def close(self) -> None:
        """Leave the streams."""
        self._closed.set()
        with contextlib.suppress(*_GONE):
            self._events.close()
        self._exits.close()
        for life in self._lives.values():
            if life.cgroup is not None:
                life.cgroup.close()

    def _newest(self, container_id: str, output: str) -> str:
        command = self._client.api.exec_create(container_id, ["ls", output])["Id"]
        return max(str(self._client.api.exec_start(command).decode()).split(), default="")

    def _now(self, life: _Life) -> Reading | None:
        """The latest reading of a running life; at short intervals straight from the counter."""
        if life.ended or life.latest is None or life.cgroup is None or self._interval_s >= ENGINE_REFRESH_S:
            return None if life.ended else life.latest
        try:
            return replace(life.latest, cpu_seconds=life.cgroup.cpu_seconds(), time=time.time())
        except OSError:
            return None

    def _follow_events(self) -> None:
        with contextlib.suppress(*_GONE):
            for event in self._events:
                if self._closed.is_set():
                    return
                at = event["timeNano"] / 1e9
                if event["Action"] == "start":
                    self._attach(event["id"], at)
                else:
                    self._detach(event["id"], at)

    def _attach(self, container_id: str, event_time: float | None = None) -> None:
        """Begin to read a container that runs; one that is gone again leaves a word in the header."""
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
        first = Reading(
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
            if (container_id, started) in self._lives:
                return
            life = _Life(container_id, first, details, born=started >= self._begin)
            self._lives[container_id, started] = life
            if life.born:
                self._news.append(first)
        pid = details["State"]["Pid"]
        life.cgroup = cgroup_of(pid, container_id) if pid else None
        if life.cgroup is not None:
            self._exits.watch(pid, lambda: self._last_counter(life))
        threading.Thread(target=self._follow_stats, args=[life], name=f"stats {name}", daemon=True).start()

    def _follow_stats(self, life: _Life) -> None:
        with contextlib.suppress(*_GONE):
            for stats in self._client.api.stats(life.id, stream=True, decode=True):
                if self._closed.is_set() or life.ended:
                    return
                if not stats["cpu_stats"]["cpu_usage"]["total_usage"]:
                    continue  # what the engine sends of a container that does not run
                with self._lock:
                    if not life.ended:
                        life.latest = docker_stats.reading(life.first, stats)

    def _glance(self) -> None:
        for life in list(self._lives.values()):
            if life.cgroup is not None and not life.ended:
                with contextlib.suppress(OSError):
                    life.glanced = time.time(), life.cgroup.cpu_seconds()

    def _last_counter(self, life: _Life) -> None:
        """The container's first process has just ended: its counter is final."""
        assert life.cgroup is not None
        with contextlib.suppress(OSError):
            used = life.cgroup.cpu_seconds()
            with self._lock:
                if not life.ended:
                    final = replace(life.latest or life.first, time=time.time(), cpu_seconds=used, state="final")
                    self._end(life, final)

    def _detach(self, container_id: str, at: float) -> None:
        """The engine says that a container has ended: what is not known by now is lost."""
        with self._lock:
            for life in self._lives.values():
                if life.id == container_id and not life.ended and life.first.started < at:
                    last = life.latest or (life.first if life.born else None)
                    if life.glanced is not None and (last is None or life.glanced[0] > last.time):
                        last = replace(last or life.first, time=life.glanced[0], cpu_seconds=life.glanced[1])
                    if last is not None and at - last.time > _UNSEEN_S:
                        name = life.first.container
                        self._problems.append(f"{name} ended {at - last.time:.2f} s after its last counter")
                    self._end(life, None if last is None else replace(last, state="final"))

    def _end(self, life: _Life, final: Reading | None) -> None:
        life.ended = True
        if life.latest is not None and life.latest.time > life.given:
            self._news.append(life.latest)
        if final is not None:
            self._news.append(final)


def _innermost(error: BaseException) -> str:
    """The reason at the bottom of a chain of wrapped errors, in one line."""
    *_, last = _chain(error)
    return " ".join(str(last).split()) or type(last).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
