"""Counters of a namespace's pods, from the summaries of the kubelets.

The kubelet reads the cumulative counters of each container about every ten
seconds and reports the time of reading. Requests in between return the same
values, which are recorded once. CPU time that a container used between its last
sample and a restart is in no later sample of the container, but in the counter
of its pod, from which it is recovered.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from monitoring import run_results
from monitoring.sources.base import HOST, PLATFORM, CounterSample, MonitorError, seconds
from monitoring.sources.kubernetes_api import CLOCK_RESOLUTION_S, KubernetesApi, Pod, RefusedError, quantity
from monitoring.sources.machine import KUBERNETES_PROCESSES, MachineSource, is_this_machine
from monitoring.sources.pod_counters import CounterSeries, PodCounters

#: Maximum age of the list of pods, in seconds.
_LIST_AGE_S = 5.0
#: Maximum age of the list of pods in ``is_current``, where a missing pod would be a missing counter.
_CURRENT_LIST_AGE_S = 1.0
#: Minimum seconds between two requests to a kubelet, whatever the interval: its values change more slowly.
MIN_REQUEST_INTERVAL_S = 2.0


class KubeletSource:
    """Samples of one namespace from ``/api/v1/nodes/NODE/proxy/stats/summary``."""

    refresh_s = 40.0

    def __init__(
        self,
        api: KubernetesApi,
        problems: Sequence[str] = (),
        min_request_interval_s: float = MIN_REQUEST_INTERVAL_S,
    ) -> None:
        self._api = api
        self._problems = list(problems)
        self._min_request_interval_s = min_request_interval_s
        #: The earliest time that it can be now by the clocks of the cluster.
        self._begin = api.now() - CLOCK_RESOLUTION_S
        #: Pods in the latest list, and all pods ever listed, by uid.
        self._pods: dict[str, Pod] = {}
        self._known: dict[str, Pod] = {}
        self._counters: dict[str, PodCounters] = {}
        self._returned_until: dict[tuple[str, float], float] = {}
        self._listed_at = 0.0
        #: The processes of this machine, if all nodes are on it.
        self._machine: MachineSource | None = None
        self._nodes: Mapping[str, Mapping[str, Any]] = {}
        self._requested_at = -math.inf
        self._list_pods()
        self._find_nodes()

    def now(self) -> float:
        """Return the cluster's time."""
        return self._api.now()

    def read(self) -> Sequence[CounterSample]:
        """Return the samples since the last call."""
        now = time.monotonic()
        if now - self._requested_at < self._min_request_interval_s:
            return []
        self._requested_at = now
        if self.now() - self._listed_at > _LIST_AGE_S:
            self._list_pods()
        samples = list(self._samples())
        if self._machine is not None:
            samples += self._machine.read(time.time())
        return samples

    def is_current(self, since: float) -> bool:
        """Return whether the counters of all running containers, and the machine's, were read at or after ``since``."""
        if self._machine is not None and not self._machine.is_current(since):
            return False
        if self._listed_at < since or self.now() - self._listed_at > _CURRENT_LIST_AGE_S:
            self._list_pods()
        for pod in self._pods.values():
            counters = self._counters.get(pod.uid)
            for name in pod.running:
                latest = counters.latest.get(f"{pod.name}/{name}") if counters else None
                if latest is None or latest.time < since:
                    return False
            if counters and counters.missed:
                return False
        return True

    def describe(self) -> Mapping[str, Any]:
        """Return versions, nodes, and the image and limits of each service."""
        used = {pod.node for pod in self._known.values()}
        nodes = {name: status for name, status in self._nodes.items() if name in used or not used}
        info: Mapping[str, Any] = next((status["nodeInfo"] for status in nodes.values()), {})
        pods = self._known.values()
        return {
            "platform": "kubernetes",
            "source": "the kubelets' summary, the containers' cumulative counters about every ten seconds",
            "namespace": self._api.namespace,
            "versions": {
                "kubernetes": self._api.version.get("gitVersion"),
                "kubelet": info.get("kubeletVersion"),
                "runtime": info.get("containerRuntimeVersion"),
                "kernel": info.get("kernelVersion"),
            },
            "cores": sum(int(status["capacity"]["cpu"]) for status in nodes.values()) or None,
            "memory_bytes": sum(int(quantity(status["capacity"]["memory"]) or 0) for status in nodes.values()) or None,
            "limits": {pod.service: _limits(pod) for pod in pods},
            "images": {pod.service: _image(pod) for pod in pods},
            "unseen": self._unseen(),
            "problems": list(self._problems),
        }

    def find_result(self, run_id: str | None, since: float) -> Mapping[str, Any] | None:
        """Return the ``result.json`` in a visualisation pod, which needs the right to create pods/exec."""
        for pod in self._pods.values():
            if pod.service != "visualisation" or not pod.running:
                continue
            container = pod.spec["containers"][0]
            output = {v["name"]: v.get("value") for v in container.get("env") or []}.get("OUTPUT") or "results"

            def execute(command: Sequence[str], pod: str = pod.name, container: str = container["name"]) -> str:
                return self._api.execute(pod, container, command)

            with contextlib.suppress(MonitorError):
                result = run_results.find_in_container(execute, output, run_id, since)
                if result is not None:
                    return result
        return None

    def close(self) -> None:
        """Close the counters of containers."""
        if self._machine is not None:
            self._machine.close()

    def has_pods(self) -> bool:
        """Return whether any service has a pod."""
        return bool(self._pods)

    def _find_nodes(self) -> None:
        """Read the status of the nodes, if this is permitted, and find out whether all are on this machine."""
        with contextlib.suppress(MonitorError):
            nodes = self._api.get("/api/v1/nodes")["items"]
            self._nodes = {node["metadata"]["name"]: node["status"] for node in nodes}
        boots = [status.get("nodeInfo", {}).get("bootID") for status in self._nodes.values()]
        if self._machine is None and boots and all(map(is_this_machine, boots)):
            self._machine = MachineSource(KUBERNETES_PROCESSES, self._ours)

    def _ours(self, cgroups: Set[str]) -> Set[str] | None:
        """Return the cgroups of the namespace's pods, also of those that were created after the latest list.

        None if the API server does not answer.
        """
        try:
            self._list_pods()
        except MonitorError:
            return None
        uids = {*self._known, *(uid.replace("-", "_") for uid in self._known)}
        return {cgroup for cgroup in cgroups if any(uid in cgroup for uid in uids)}

    def _unseen(self) -> list[str]:
        """Return which parts of the platform have no sample; on this machine, all are seen as processes."""
        if self._machine is not None:
            return []
        seen = " ".join(container for container, _ in self._returned_until)
        parts = {
            "kubelet": "/kubelet",
            "container runtime": "/runtime",
            "API server": "kube-apiserver",
            "etcd": "etcd",
            "scheduler": "kube-scheduler",
            "controllers": "kube-controller-manager",
            "kube-proxy": "kube-proxy",
            "DNS": "dns",
        }
        return [
            f"{part}: neither a pod of kube-system nor reported by the kubelet"
            for part, name in parts.items()
            if name not in seen
        ]

    def _list_pods(self) -> None:
        requested_at = self.now()
        self._pods = {pod.uid: pod for pod in self._api.pods()}
        self._listed_at = requested_at
        self._known |= self._pods
        for uid, counters in self._counters.items():
            counters.pod = self._known[uid]

    def _samples(self) -> Iterator[CounterSample]:
        for node in sorted({pod.node for pod in self._pods.values()}):
            try:
                summary = self._api.get(f"/api/v1/nodes/{node}/proxy/stats/summary")
            except RefusedError as error:
                raise RefusedError(error.status, f"the kubelet's summary is refused: {error}") from None
            pods = [pod for pod in summary["pods"] if pod["podRef"]["namespace"] == self._api.namespace]
            if any(pod["podRef"]["uid"] not in self._known for pod in pods):
                self._list_pods()
            for stats in pods:
                if stats["podRef"]["uid"] in self._known:
                    yield from self._pod_samples(stats)
            if self._machine is None:
                yield from self._machine_samples(node, summary)

    def _pod_samples(self, stats: Mapping[str, Any]) -> Iterator[CounterSample]:
        uid = stats["podRef"]["uid"]
        containers = stats.get("containers") or []
        starts = [seconds(container["startTime"]) for container in containers]
        if max(starts, default=0.0) >= math.floor(self._listed_at - CLOCK_RESOLUTION_S):
            # The list does not count this restart yet.
            self._list_pods()
        pod = self._known[uid]
        is_new = pod.started is not None and pod.started >= math.floor(self._begin)
        counters = self._counters.setdefault(uid, PodCounters(pod, is_new))
        if cpu := _cpu(stats):
            if counters.total is None:
                counters.total = CounterSeries(*cpu)
            counters.total.add(*cpu)
        network = stats.get("network") or {}
        for container in containers:
            if cpu := _cpu(container):
                yield from self._container_samples(counters, container, cpu, network)
        for missed in list(counters.missed):
            final = counters.recover(*missed)
            if final is not None:
                counters.missed.remove(missed)
                yield final

    def _container_samples(
        self, counters: PodCounters, stats: Mapping[str, Any], cpu: tuple[float, float], network: Mapping[str, Any]
    ) -> Iterator[CounterSample]:
        pod = counters.pod
        started = seconds(stats["startTime"])
        sample = CounterSample(
            time=cpu[0],
            service=pod.service,
            replica=pod.name,
            container=f"{pod.name}/{stats['name']}",
            started=started,
            cpu_seconds=cpu[1],
            cores=stats["cpu"].get("usageNanoCores", 0) / 1e9,
            memory_bytes=(stats.get("memory") or {}).get("workingSetBytes"),
            network_rx_bytes=network.get("rxBytes"),
            network_tx_bytes=network.get("txBytes"),
            restarts=pod.restarts.get(stats["name"], 0),
        )
        before = counters.latest.get(sample.container)
        if sample.time <= self._returned_until.get(sample.lifetime, 0.0) or (before and before.started > started):
            return
        if sample.lifetime not in counters.lifetimes:
            zero = replace(sample, time=started, cpu_seconds=0.0, cores=None, memory_bytes=None, state="started")
            # The kubelet truncates start times to seconds. A lifetime after another one is always new.
            is_new = started >= math.floor(self._begin) or before is not None
            counters.lifetimes[sample.lifetime] = CounterSeries(*((started, 0.0) if is_new else cpu))
            if before is not None:
                counters.missed.append((before, started))
            elif sample.restarts and counters.total is not None and pod.started == counters.total.times[0]:
                # Earlier lifetimes ended before the kubelet sampled them. The first began with the pod.
                unsampled = replace(zero, time=pod.started, started=pod.started, restarts=0)
                counters.missed.append((unsampled, started))
                yield unsampled
            if is_new:
                yield zero
        counters.lifetimes[sample.lifetime].add(*cpu)
        counters.latest[sample.container] = sample
        self._returned_until[sample.lifetime] = sample.time
        yield sample

    def _machine_samples(self, node: str, summary: Mapping[str, Any]) -> Iterator[CounterSample]:
        """Yield the node's counter, and those of the platform's parts that the kubelet reports."""
        yield from self._machine_sample(HOST, node, summary["node"])
        for part in summary["node"].get("systemContainers") or []:
            if part["name"] in ("kubelet", "runtime"):
                yield from self._machine_sample(PLATFORM, f"{node}/{part['name']}", part)
        for pod in summary["pods"]:
            if pod["podRef"]["namespace"] == "kube-system":
                for container in pod.get("containers") or []:
                    yield from self._machine_sample(PLATFORM, f"{pod['podRef']['name']}/{container['name']}", container)

    def _machine_sample(self, service: str, container: str, stats: Mapping[str, Any]) -> Iterator[CounterSample]:
        cpu = _cpu(stats)
        started = seconds(stats["startTime"])
        if cpu and cpu[0] > self._returned_until.get((container, started), 0.0):
            self._returned_until[container, started] = cpu[0]
            memory = (stats.get("memory") or {}).get("workingSetBytes")
            cores = stats["cpu"].get("usageNanoCores", 0) / 1e9
            yield CounterSample(
                cpu[0], service, container, container, started, cpu[1], cores=cores, memory_bytes=memory
            )


def _cpu(stats: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return when a CPU counter was read, and its seconds; None if the kubelet has not read it yet."""
    cpu = stats.get("cpu") or {}
    if "usageCoreNanoSeconds" not in cpu:
        return None
    return seconds(cpu["time"]), cpu["usageCoreNanoSeconds"] / 1e9


def _limits(pod: Pod) -> dict[str, float | None]:
    limits = (pod.spec["containers"][0].get("resources") or {}).get("limits") or {}
    return {"cores": quantity(limits.get("cpu")), "memory_bytes": quantity(limits.get("memory"))}


def _image(pod: Pod) -> dict[str, str]:
    container = pod.spec["containers"][0]
    return {"name": container["image"], "id": pod.images.get(container["name"], "").rpartition("//")[2]}
