"""The CPU monitor on a Kubernetes cluster: pods report their own CPU time, and the monitor must agree."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from monitoring import usage
from monitoring.recording import Recording, read_recording
from tests.support.cpu_load import CPU_LOAD, IMAGE
from tests.support.cpu_recordings import SCRIPT, parts_and_host
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

#: Prints the CPU seconds that it used, summed over restarts; its second argument is the number of starts.
PROGRAM = f"""{CPU_LOAD}
with open("/state/used", "a+") as state:
    print(used(), file=state)
    state.seek(0)
    starts = state.read().split()
if len(starts) < int(sys.argv[2]):
    time.sleep(30)  # the kubelet reads a counter every ten seconds or so
    os._exit(1)
print("used", sum(map(float, starts)), flush=True)
time.sleep(3600)
"""


def kubectl(*arguments: str, text: str | None = None) -> str:
    return subprocess.run(
        ["kubectl", *arguments], input=text, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


def cluster_answers() -> bool:
    try:
        kubectl("get", "nodes", "--request-timeout=10s")
    except (OSError, subprocess.SubprocessError):
        return False
    return True


pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.skipif(not cluster_answers(), reason="no Kubernetes cluster answers here"),
]


def run_monitor(*flags: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SCRIPT, *flags],
        cwd=ROOT,
        env=os.environ | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class Namespace:
    """A namespace of this test."""

    def __init__(self, folder: Path) -> None:
        self.name = f"cpu-monitor-{secrets.token_hex(4)}"
        self.folder = folder
        kubectl("create", "namespace", self.name)

    def pods(self, names: Sequence[str], cpu_seconds: float, starts: int = 1) -> Path:
        """Write a manifest of pods that use CPU time, as replicas of one service."""
        items = [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": "worker"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "volumes": [{"name": "state", "emptyDir": {}}],
                    "containers": [
                        {
                            "name": "worker",
                            "image": IMAGE,
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["python", "-c", PROGRAM, str(cpu_seconds), str(starts)],
                            "volumeMounts": [{"name": "state", "mountPath": "/state"}],
                        }
                    ],
                },
            }
            for name in names
        ]
        path = self.folder / "pods.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        return path

    def reported(self, pod: str) -> float:
        """The CPU seconds that a pod printed, summed over restarts; 0 before it has."""
        printed = kubectl("-n", self.name, "logs", pod).split()
        return float(printed[1]) if printed[:1] == ["used"] else 0.0

    def record(self, pods: Path, names: Sequence[str], interval: str = "1") -> Recording:
        """Create pods and record until all have used their CPU time."""
        until_used = " && ".join(
            f"until kubectl -n {self.name} logs {name} 2>&1 | grep -q used; do sleep 1; done" for name in names
        )
        output = self.folder / "recording.csv"
        source = ["--source", "kubernetes", "--namespace", self.name, "--interval", interval, "--output", str(output)]
        command = f"kubectl -n {self.name} apply -f {pods} && {until_used}"
        finished = run_monitor("record", *source, "--", "sh", "-c", command)
        assert finished.returncode == 0, finished.stderr
        return read_recording(output)


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    made = Namespace(tmp_path)
    yield made
    kubectl("delete", "namespace", made.name, "--wait=false")


def worker(recording: Recording) -> usage.ServiceUsage:
    return usage.usage_by_service(recording)["worker"]


@pytest.mark.parametrize("interval", ["0.2", "1", "5"])
def test_a_pods_cpu_time_is_recorded_within_one_percent(namespace: Namespace, interval: str) -> None:
    recording = namespace.record(namespace.pods(["one"], 4.0), ["one"], interval)
    assert worker(recording).cpu_seconds == pytest.approx(namespace.reported("one"), rel=0.01)
    samples = [sample for sample in recording.samples if sample.service == "worker"]
    assert samples[-1].time >= recording.header["end"]
    assert recording.header["problems"] == []
    times = [sample.time for sample in samples if sample.state != "started"]
    assert len(times) == len(set(times))


def test_the_replicas_of_a_service_are_recorded_separately(namespace: Namespace) -> None:
    recording = namespace.record(namespace.pods(["one", "two"], 3.0), ["one", "two"])
    by_replica = {one.samples[0].replica: one.used[-1] for one in worker(recording).lifetimes}
    assert by_replica == {name: pytest.approx(namespace.reported(name), rel=0.01) for name in ("one", "two")}
    assert worker(recording).replicas == 2


def test_services_platform_and_rest_add_up_to_the_host(namespace: Namespace) -> None:
    recording = namespace.record(namespace.pods(["one", "two"], 15.0), ["one", "two"])
    if recording.header["unseen"]:
        pytest.skip("the node is not this machine: its kubelet reports no rest")
    components = {sample.replica for sample in recording.samples if sample.service == "platform"}
    assert {"kubelet", "kube-apiserver", "etcd"} <= components
    together, host = parts_and_host(recording)
    assert together == pytest.approx(host, rel=0.01)


def test_a_restart_loses_no_cpu_time(namespace: Namespace) -> None:
    recording = namespace.record(namespace.pods(["one"], 3.0, starts=2), ["one"])
    reported = namespace.reported("one")
    assert reported >= 6.0
    assert worker(recording).restarts + worker(recording).replicas >= 2
    # The pod's counter includes its sandbox and the start of two containers by the runtime.
    assert worker(recording).cpu_seconds == pytest.approx(reported, rel=0.01, abs=0.1)


def reader(namespace: Namespace, role: bool) -> Path:
    """Create a service account and return its kubeconfig. Without ``role``, it may only list pods."""
    name = namespace.name
    if role:
        text = (ROOT / "kubernetes/cpu-monitor-role.yaml").read_text()
        text = text.replace("namespace: atlas", f"namespace: {name}").replace("atlas-cpu-monitor", name)
        kubectl("-n", name, "apply", "-f", "-", text=text)
    else:
        kubectl("-n", name, "create", "serviceaccount", "cpu-monitor")
        kubectl("-n", name, "create", "role", "lists", "--verb=get,list", "--resource=pods")
        account = f"{name}:cpu-monitor"
        kubectl("-n", name, "create", "rolebinding", "lists", "--role=lists", f"--serviceaccount={account}")
    secret: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "token", "annotations": {"kubernetes.io/service-account.name": "cpu-monitor"}},
        "type": "kubernetes.io/service-account-token",
    }
    kubectl("-n", name, "apply", "-f", "-", text=json.dumps(secret))

    def token() -> str:
        return kubectl("-n", name, "get", "secret", "token", "-o", "go-template={{.data.token | base64decode}}")

    config = json.loads(kubectl("config", "view", "--minify", "--raw", "--flatten", "-o", "json"))
    config["users"][0]["user"] = {"token": wait_until(token, "the account has a token")}
    path = namespace.folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def test_a_missing_right_to_read_kubelets_is_named_in_one_line(namespace: Namespace) -> None:
    kubectl("-n", namespace.name, "apply", "-f", str(namespace.pods(["one"], 0.1)))
    wait_until(lambda: namespace.reported("one"), "the pod runs")
    kubeconfig = reader(namespace, role=False)
    finished = run_monitor("--once", "--source", "kubernetes", "--namespace", namespace.name, kubeconfig=kubeconfig)
    assert finished.returncode == 1
    assert len(finished.stderr.splitlines()) == 1
    assert 'cannot get resource "nodes/proxy"' in finished.stderr


def test_the_role_in_kubernetes_grants_all_rights_that_are_needed(namespace: Namespace) -> None:
    kubectl("-n", namespace.name, "apply", "-f", str(namespace.pods(["one"], 0.1)))
    wait_until(lambda: namespace.reported("one"), "the pod runs")
    try:
        kubeconfig = reader(namespace, role=True)
        flags = ["--once", "--json", "--source", "kubernetes", "--namespace", namespace.name]

        def workers() -> Any:
            finished = run_monitor(*flags, kubeconfig=kubeconfig)
            assert finished.returncode == 0, finished.stderr
            return [one for one in json.loads(finished.stdout)["services"] if one["service"] == "worker"]

        (service,) = wait_until(workers, "the kubelet has read the pod")
        assert service["counter_seconds"] > 0
    finally:
        kubectl("delete", "clusterrole,clusterrolebinding", namespace.name, "--ignore-not-found")


def test_a_missing_namespace_is_reported_in_one_line() -> None:
    finished = run_monitor("--source", "kubernetes", "--namespace", "no-such-namespace")
    assert finished.returncode == 1
    line = "cpu_monitor.py: there is no namespace 'no-such-namespace' in the cluster; name one with --namespace"
    assert finished.stderr.splitlines() == [line]
