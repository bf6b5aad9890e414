"""CPU of a namespace's pods from the metrics server, where the kubelets' own counters are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from monitoring.sources.base import MonitorError, Reading
from monitoring.sources.kubelet_source import KubeletSource
from monitoring.sources.kubernetes_api import Cluster, RefusedError, quantity, seconds
from monitoring.sources.pod_counters import PodCounters


class MetricsSource(KubeletSource):
    """Readings of one namespace from ``metrics.k8s.io``: averages over its window, added up to a counter."""

    def about(self) -> Mapping[str, Any]:
        """As the kubelet's, with the source's name."""
        source = "metrics.k8s.io: averages over its window, added up; not the kubelet's own counters"
        return {**super().about(), "source": source}

    def _readings(self) -> Iterator[Reading]:
        path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{self._cluster.namespace}/pods"
        by_name = {pod.name: pod for pod in self._known.values()}
        for item in self._cluster.get(path)["items"]:
            pod = by_name.get(item["metadata"]["name"])
            at = seconds(item["timestamp"])
            for usage in item["containers"] if pod else []:
                assert pod is not None
                cores = quantity(usage["usage"]["cpu"]) or 0.0
                started = pod.started or at
                counters = self._counters.setdefault(pod.uid, PodCounters(pod, False))
                name = f"{pod.name}/{usage['name']}"
                before = counters.latest.get(name)
                if before is not None and before.time >= at:
                    continue
                reading = Reading(
                    time=at,
                    service=pod.service,
                    replica=pod.name,
                    container=name,
                    started=started,
                    cpu_seconds=before.cpu_seconds + cores * (at - before.time) if before else 0.0,
                    restarts=pod.restarts.get(usage["name"], 0),
                    memory_bytes=int(quantity(usage["usage"]["memory"]) or 0),
                    rate_cores=cores,
                )
                counters.latest[name] = reading
                yield reading


def open_kubernetes(namespace: str) -> KubeletSource:
    """The kubelets' counters, or where they are refused the metrics server's averages.

    Raises MonitorError where there is no cluster, no namespace, or neither
    right; it names the right that is missing.
    """
    cluster = Cluster(namespace)
    source = KubeletSource(cluster)
    try:
        source.read()
    except RefusedError as refused:
        if refused.status not in (401, 403):
            raise
        try:
            MetricsSource(cluster).read()
        except RefusedError as also:
            raise MonitorError(
                f"{refused}; and metrics.k8s.io does not help: {also}; "
                "give the right with kubectl apply -f kubernetes/cpu-monitor-role.yaml"
            ) from None
        return MetricsSource(cluster, [f"averages only: {refused}"])
    return KubeletSource(cluster)
