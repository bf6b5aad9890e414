"""CPU usage of a namespace's pods from the metrics server, for accounts that may not read the kubelets' counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from monitoring.sources.base import CounterSample, MonitorError, seconds
from monitoring.sources.kubelet_source import KubeletSource
from monitoring.sources.kubernetes_api import KubernetesApi, Pod, RefusedError, quantity
from monitoring.sources.pod_counters import PodCounters


class MetricsSource(KubeletSource):
    """Samples of one namespace from ``metrics.k8s.io``: means over its window, integrated to a counter."""

    def describe(self) -> Mapping[str, Any]:
        """Return the same as the kubelet's source, with this source's name."""
        source = "metrics.k8s.io: averages over its window, added up; not the kubelet's own counters"
        unseen = [] if self._machine else ["the platform: metrics.k8s.io reports pods of the namespace only"]
        return {**super().describe(), "source": source, "unseen": unseen}

    def _samples(self) -> Iterator[CounterSample]:
        path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{self._api.namespace}/pods"
        by_name = {pod.name: pod for pod in self._known.values()}
        for item in self._api.get(path)["items"]:
            pod = by_name.get(item["metadata"]["name"])
            if pod is not None:
                for usage in item["containers"]:
                    yield from self._container_usage(pod, usage, seconds(item["timestamp"]))

    def _container_usage(self, pod: Pod, usage: Mapping[str, Any], time_s: float) -> Iterator[CounterSample]:
        counters = self._counters.setdefault(pod.uid, PodCounters(pod, is_new=False))
        container = f"{pod.name}/{usage['name']}"
        before = counters.latest.get(container)
        if before is not None and before.time >= time_s:
            return
        cores = quantity(usage["usage"]["cpu"]) or 0.0
        sample = CounterSample(
            time=time_s,
            service=pod.service,
            replica=pod.name,
            container=container,
            started=pod.started or time_s,
            cpu_seconds=before.cpu_seconds + cores * (time_s - before.time) if before else 0.0,
            cores=cores,
            memory_bytes=int(quantity(usage["usage"]["memory"]) or 0),
            restarts=pod.restarts.get(usage["name"], 0),
        )
        counters.latest[container] = sample
        yield sample


def open_kubernetes(namespace: str) -> KubeletSource:
    """Return the source of the kubelets' counters, or if they are refused, of the metrics server's means.

    Raises MonitorError if there is no cluster or namespace, or both are refused;
    it names the missing right.
    """
    api = KubernetesApi(namespace)
    source = KubeletSource(api)
    try:
        source.read()
    except RefusedError as refusal:
        if refusal.status not in (401, 403):
            raise
        try:
            MetricsSource(api).read()
        except RefusedError as second_refusal:
            raise MonitorError(
                f"{refusal}; and metrics.k8s.io is refused too: {second_refusal}; "
                "give the right with kubectl apply -f kubernetes/cpu-monitor-role.yaml"
            ) from None
        return MetricsSource(api, [f"averages only: {refusal}"])
    return KubeletSource(api)
