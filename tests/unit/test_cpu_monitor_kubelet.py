"""The CPU monitor on a Kubernetes cluster, with a stub of the API server."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitoring import usage
from monitoring.sources.base import CounterSample
from monitoring.sources.kubelet_source import KubeletSource
from monitoring.sources.kubernetes_api import KubernetesApi
from tests.support.cpu_recordings import SCRIPT, recording, run_monitor
from tests.support.paths import ROOT
from tests.support.stub_kubernetes import FORBIDDEN, PODS, SUMMARY, StubApiServer, kubelet_summary, pod_list
from tests.support.waiting import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StubApiServer]:
    server = StubApiServer(tmp_path)
    yield server
    server.close()


def test_the_metrics_server_replaces_a_forbidden_kubelet_with_a_note(cluster: StubApiServer) -> None:
    usage_of_pod = {
        "metadata": {"name": "p1"},
        "timestamp": datetime.now(UTC).isoformat(),
        "window": "15s",
        "containers": [{"name": "c", "usage": {"cpu": "250000000n", "memory": "64Mi"}}],
    }
    cluster.answers[PODS] = pod_list("analysis")
    cluster.answers[SUMMARY] = FORBIDDEN
    cluster.answers["/apis/metrics.k8s.io/v1beta1/namespaces/atlas/pods"] = 200, {"items": [usage_of_pod]}
    flags = ["--source", "kubernetes", "--once", "--json", "--services", "analysis"]
    finished = run_monitor(*flags, KUBECONFIG=str(cluster.kubeconfig))
    assert finished.returncode == 0, finished.stderr
    (service,) = json.loads(finished.stdout)["services"]
    assert (service["service"], service["cores"], service["memory_bytes"]) == ("analysis", 0.25, 64 * 2**20)
    assert 'averages only: the kubelet\'s summary is refused: nodes "n1" is forbidden' in finished.stderr


def test_a_missing_right_is_named_with_the_manifest_that_grants_it(cluster: StubApiServer) -> None:
    cluster.answers[PODS] = pod_list("analysis")
    cluster.answers[SUMMARY] = FORBIDDEN
    finished = run_monitor("--source", "kubernetes", "--once", KUBECONFIG=str(cluster.kubeconfig))
    assert finished.returncode == 1
    assert len(finished.stderr.splitlines()) == 1
    assert 'User "reader" cannot get resource "nodes/proxy"' in finished.stderr
    assert "kubernetes/cpu-monitor-role.yaml" in finished.stderr


def test_the_platform_of_another_machine_is_what_its_kubelet_reports(
    cluster: StubApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    cluster.answers[PODS] = pod_list("analysis")
    status, summary = kubelet_summary(at=10, cpu=4.0, start=0, pod_cpu=4.0)
    (container,) = summary["pods"][0]["containers"]
    summary["pods"].append(
        {
            "podRef": {"name": "kube-apiserver-n1", "namespace": "kube-system", "uid": "s1"},
            "containers": [{**container, "name": "kube-apiserver"}],
        }
    )
    summary["node"]["systemContainers"] = [{**container, "name": name} for name in ("kubelet", "pods")]
    cluster.answers[SUMMARY] = status, summary
    source = KubeletSource(KubernetesApi("atlas"), min_request_interval_s=0.0)
    samples = source.read()
    names = {sample.service: [one.container for one in samples if one.service == sample.service] for sample in samples}
    assert names["platform"] == ["n1/kubelet", "kube-apiserver-n1/kube-apiserver"]
    assert names["host"] == ["n1"]
    unseen = [line.partition(":")[0] for line in source.describe()["unseen"]]
    assert unseen == ["container runtime", "etcd", "scheduler", "controllers", "kube-proxy", "DNS"]


def test_a_missing_namespace_is_reported_in_one_line(cluster: StubApiServer) -> None:
    flags = ["--source", "kubernetes", "--namespace", "nosuch"]
    finished = run_monitor(*flags, KUBECONFIG=str(cluster.kubeconfig))
    line = "cpu_monitor.py: there is no namespace 'nosuch' in the cluster; name one with --namespace"
    assert (finished.returncode, finished.stderr.splitlines()) == (1, [line])


def test_a_missing_right_to_list_pods_is_reported_in_one_line(cluster: StubApiServer) -> None:
    cluster.answers[PODS] = 403, {"message": 'User "x" cannot list resource "pods"'}
    finished = run_monitor("--source", "kubernetes", KUBECONFIG=str(cluster.kubeconfig))
    line = 'cpu_monitor.py: the right to list pods is missing: User "x" cannot list resource "pods"'
    assert (finished.returncode, finished.stderr.splitlines()) == (1, [line])


@pytest.mark.parametrize("label", ["app", "app.kubernetes.io/name"])
def test_cpu_time_before_a_restart_is_recovered_from_the_pods_counter(
    cluster: StubApiServer, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    cluster.answers[PODS] = pod_list("analysis", label)
    source = KubeletSource(KubernetesApi("atlas"), min_request_interval_s=0.0)
    samples: list[CounterSample] = []
    # 4 s used before the recording, 6 s until second 20, 3 s that no sample shows, then 2 s after the restart.
    for summary in (
        kubelet_summary(at=10, cpu=4.0, start=0, pod_cpu=4.0),
        kubelet_summary(at=20, cpu=10.0, start=0, pod_cpu=10.0),
        kubelet_summary(at=20, cpu=10.0, start=0, pod_cpu=10.0),
        kubelet_summary(at=35, cpu=1.0, start=25, pod_cpu=14.0),
        kubelet_summary(at=45, cpu=2.0, start=25, pod_cpu=15.0),
    ):
        cluster.answers[SUMMARY] = summary
        samples += [one for one in source.read() if one.service == "analysis"]
    used = usage.usage_by_service(recording(samples))["analysis"]
    assert [one.cpu_seconds for one in samples if one.state == "final"] == [pytest.approx(13.0)]
    assert used.restarts == 1
    assert used.cpu_seconds == pytest.approx(15.0 - 4.0)


def test_a_recording_begins_and_ends_with_current_counters(cluster: StubApiServer, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    cluster.answers[PODS] = pod_list("analysis")
    cluster.answers[SUMMARY] = kubelet_summary(-5, 4.0, -99, 4.0, now)
    output = tmp_path / "k.csv"
    flags = ["--source", "kubernetes", "--services", "analysis", "--interval", "0.2", "--duration", "0.5"]
    process = subprocess.Popen(
        [*SCRIPT, *flags, "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def rows() -> list[tuple[str, str, float]]:
        lines = [line for line in output.read_text().splitlines() if not line.startswith("#")]
        every = csv.DictReader(lines)
        return [(r["replica"], r["container"], float(r["cpu_seconds"])) for r in every if r["service"] == "analysis"]

    wait_until(output.exists, "the recording began", 180)
    cluster.answers[SUMMARY] = kubelet_summary(600, 6.0, -99, 6.0, now)
    wait_until(rows, "the first current counter was recorded", 180)
    cluster.answers[SUMMARY] = kubelet_summary(610, 9.5, -99, 9.5, now)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert rows()[0] == ("p1", "p1/c", 6.0)
    assert {cpu for _, _, cpu in rows()} <= {6.0, 9.5}
