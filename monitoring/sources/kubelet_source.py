"""CPU counters of a namespace's pods, from the kubelets' summaries.

The kubelet reads each container's cumulative counters every ten seconds or so
and says when it did; asking more often gives the same reading again, which is
recorded once. What a container used between its last reading and a restart is
not in any later counter of it, but in that of its pod, which goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from monitoring import run_results as runs
from monitoring.sources.base import HOST, MonitorError, Reading
from monitoring.sources.kubernetes_api import Cluster, Pod, RefusedError, quantity, seconds
from monitoring.sources.pod_counters import Curve, PodCounters

#: How old the list of pods may be, in seconds.
_LIST_S = 5.0
#: Never ask a kubelet more often than this, however short the interval: it has nothing new to say.
_ASK_S = 2.0
#: How old the list of pods may be where it matters that none is missing.
_LATE_LIST_S = 1.0


class KubeletSource:
    """Readings of one namespace from ``/api/v1/nodes/NODE/proxy/stats/summary``."""

    refresh_s = 40.0

    def __init__(self, cluster: Cluster, problems: Sequence[str] = ()) -> None:
        self._cluster = cluster
        self._begin = time.time()
        self._pods: dict[str, Pod] = {}
        self._known: dict[str, Pod] = {}
        self._counters: dict[str, PodCounters] = {}
        self._given: dict[tuple[str, float], float] = {}
        self._listed = self._listed_at = self._asked = 0.0
        self._problems = list(problems)
        self._list()

    def read(self) -> Sequence[Reading]:
        """The readings since the last call."""
        now = time.monotonic()
        if now - self._asked < _ASK_S:
            return []
        self._asked = now
        if now - self._listed > _LIST_S:
            self._list()
        return list(self._readings())

    def fresh(self, since: float) -> bool:
        """Whether the kubelets have read every running container's counter at or after ``since``."""
        if self._listed_at < since or time.time() - self._listed_at > _LATE_LIST_S:
            self._list()
        for pod in self._pods.values():
            counters = self._counters.get(pod.uid)
            for name in pod.running:
                latest = counters.latest.get(f"{pod.name}/{name}") if counters else None
                if latest is None or latest.time < since:
                    return False
            if counters and counters.hidden:
                return False
        return True

    def about(self) -> Mapping[str, Any]:
        """Cluster, nodes, and each service's image and limits."""
        nodes = {}
        for name in sorted({pod.node for pod in self._known.values()}):
            with contextlib.suppress(MonitorError):
                nodes[name] = self._cluster.get(f"/api/v1/nodes/{name}")["status"]
        facts: Mapping[str, Any] = next((status["nodeInfo"] for status in nodes.values()), {})
        pods = self._known.values()
        return {
            "platform": "kubernetes",
            "source": "the kubelets' summary, the containers' cumulative counters about every ten seconds",
            "namespace": self._cluster.namespace,
            "versions": {
                "kubernetes": self._cluster.version.get("gitVersion"),
                "kubelet": facts.get("kubeletVersion"),
                "runtime": facts.get("containerRuntimeVersion"),
                "kernel": facts.get("kernelVersion"),
            },
            "cores": sum(int(status["capacity"]["cpu"]) for status in nodes.values()) or None,
            "memory_bytes": sum(int(quantity(status["capacity"]["memory"]) or 0) for status in nodes.values()) or None,
            "limits": {pod.service: _limits(pod) for pod in pods},
            "images": {pod.service: _image(pod) for pod in pods},
            "problems": list(self._problems),
        }

    def result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """The result.json that the visualisation has kept; it needs the right to create pods/exec."""
        for pod in self._pods.values():
            if pod.service != "visualisation" or not pod.running:
                continue
            container = pod.spec["containers"][0]
            output = {v["name"]: v.get("value") for v in container.get("env") or []}.get("OUTPUT", "results")
            with contextlib.suppress(MonitorError, ValueError, KeyError, TypeError):
                run = run_id or max(self._cluster.run(pod.name, container["name"], ["ls", output]).split(), default="")
                text = self._cluster.run(pod.name, container["name"], ["cat", f"{output}/{run}/result.json"])
                result = json.loads(text)
                if run_id or runs.finished(result) >= since:
                    return dict(result)
        return None

    def close(self) -> None:
        """Nothing is held."""

    def has_pods(self) -> bool:
        """Whether any service has a pod."""
        return bool(self._pods)

    def _list(self) -> None:
        listed_at = time.time()
        self._pods = {pod.uid: pod for pod in self._cluster.pods()}
        self._listed = time.monotonic()
        self._listed_at = listed_at
        for uid, pod in self._pods.items():
            self._known[uid] = pod
            if uid in self._counters:
                self._counters[uid].pod = pod

    def _readings(self) -> Iterator[Reading]:
        for node in sorted({pod.node for pod in self._pods.values()}):
            summary = self._summary(node)
            mine = [pod for pod in summary["pods"] if pod["podRef"]["namespace"] == self._cluster.namespace]
            if any(pod["podRef"]["uid"] not in self._known for pod in mine):
                self._list()
            for stats in mine:
                pod = self._known.get(stats["podRef"]["uid"])
                if pod is not None:
                    yield from self._of_pod(pod, stats)
            yield from self._of_node(node, summary["node"])

    def _summary(self, node: str) -> Any:
        try:
            return self._cluster.get(f"/api/v1/nodes/{node}/proxy/stats/summary")
        except RefusedError as error:
            raise RefusedError(error.status, f"the kubelet's summary is refused: {error}") from None

    def _of_pod(self, pod: Pod, stats: Mapping[str, Any]) -> Iterator[Reading]:
        starts = [seconds(container["startTime"]) for container in stats.get("containers") or []]
        if max(starts, default=0.0) >= math.floor(self._listed_at):  # its restarts have not been counted yet
            self._list()
            pod = self._known[pod.uid]
        born = pod.started is not None and pod.started >= math.floor(self._begin)
        counters = self._counters.setdefault(pod.uid, PodCounters(pod, born))
        if cpu := _cpu(stats):
            if counters.whole is None:
                counters.whole = Curve(*cpu)
            counters.whole.add(*cpu)
        network = stats.get("network") or {}
        for container in stats.get("containers") or []:
            if cpu := _cpu(container):
                yield from self._of_container(counters, container, cpu, network)
        for hidden in list(counters.hidden):
            final = counters.tail(*hidden)
            if final is not None:
                counters.hidden.remove(hidden)
                yield final

    def _of_container(
        self, counters: PodCounters, stats: Mapping[str, Any], cpu: tuple[float, float], network: Mapping[str, Any]
    ) -> Iterator[Reading]:
        pod = counters.pod
        started = seconds(stats["startTime"])
        reading = Reading(
            time=cpu[0],
            service=pod.service,
            replica=pod.name,
            container=f"{pod.name}/{stats['name']}",
            started=started,
            cpu_seconds=cpu[1],
            restarts=pod.restarts.get(stats["name"], 0),
            memory_bytes=(stats.get("memory") or {}).get("workingSetBytes"),
            network_rx_bytes=network.get("rxBytes"),
            network_tx_bytes=network.get("txBytes"),
            rate_cores=stats["cpu"].get("usageNanoCores", 0) / 1e9,
        )
        before = counters.latest.get(reading.container)
        if reading.time <= self._given.get(reading.life, 0.0) or (before is not None and before.started > started):
            return
        first = replace(reading, time=started, cpu_seconds=0.0, state="started", memory_bytes=None, rate_cores=None)
        if reading.life not in counters.lives:
            # The kubelet cuts fractions of a second off; what comes after another life is born in any case.
            born = started >= math.floor(self._begin) or before is not None
            counters.lives[reading.life] = Curve(*((started, 0.0) if born else cpu))
            if before is not None:
                counters.hidden.append((before, started))
            elif reading.restarts and counters.whole is not None and pod.started == counters.whole.times[0]:
                # Earlier lives went by before the kubelet ever read them; they began with the pod.
                unseen = replace(first, time=pod.started, started=pod.started, restarts=0)
                counters.hidden.append((unseen, started))
                yield unseen
            if born:
                yield first
        counters.lives[reading.life].add(*cpu)
        counters.latest[reading.container] = reading
        self._given[reading.life] = reading.time
        yield reading

    def _of_node(self, node: str, stats: Mapping[str, Any]) -> Iterator[Reading]:
        cpu = _cpu(stats)
        started = seconds(stats["startTime"])
        if cpu and cpu[0] > self._given.get((node, started), 0.0):
            self._given[node, started] = cpu[0]
            memory = (stats.get("memory") or {}).get("workingSetBytes")
            rate = stats["cpu"].get("usageNanoCores", 0) / 1e9
            yield Reading(cpu[0], HOST, node, node, started, cpu[1], memory_bytes=memory, rate_cores=rate)


def _cpu(stats: Mapping[str, Any]) -> tuple[float, float] | None:
    """When a counter was read, and its CPU seconds."""
    cpu = stats.get("cpu") or {}
    if "usageCoreNanoSeconds" not in cpu:
        return None
    return seconds(cpu["time"]), cpu["usageCoreNanoSeconds"] / 1e9


def _limits(pod: Pod) -> dict[str, float | None]:
    limits = [(container.get("resources") or {}).get("limits") or {} for container in pod.spec["containers"]]
    return {"cores": quantity(limits[0].get("cpu")), "memory_bytes": quantity(limits[0].get("memory"))}


def _image(pod: Pod) -> dict[str, str]:
    container = pod.spec["containers"][0]
    return {"name": container["image"], "id": pod.images.get(container["name"], "").rpartition("//")[2]}
