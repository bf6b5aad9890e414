"""The CPU monitor on a real cluster: what pods burn, measured inside them, within the kubelet's own refresh."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from monitoring import usage
from monitoring.recording import Recording, read_recording
from tests.support.burning import BURN, IMAGE
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

#: Says how much it has used. With a file to remember by, the first life ends then.
PROGRAM = f"""{BURN}
with open("/memory/burned", "a+") as memory:
    print(used(), file=memory)
    memory.seek(0)
    lives = memory.read().split()
if len(lives) < int(sys.argv[2]):
    time.sleep(30)  # the kubelet reads a counter every ten seconds or so
    os._exit(1)
print("burned", sum(map(float, lives)), flush=True)
time.sleep(3600)
"""


def kubectl(*words: str, text: str | None = None) -> str:
    return subprocess.run(
        ["kubectl", *words], input=text, check=True, capture_output=True, text=True, timeout=120
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


def monitor(*flags: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "common/cpu_monitor.py", *flags],
        cwd=ROOT,
        env=os.environ | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class Namespace:
    """A namespace of this test's own."""

    def __init__(self, folder: Path) -> None:
        self.name = f"cpu-monitor-{secrets.token_hex(4)}"
        self.folder = folder
        kubectl("create", "namespace", self.name)

    def pods(self, names: Sequence[str], cpu_seconds: float, lives: int = 1) -> Path:
        """A file of pods that burn, as replicas of one service."""
        items = [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": "burner"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "volumes": [{"name": "memory", "emptyDir": {}}],
                    "containers": [
                        {
                            "name": "burner",
                            "image": IMAGE,
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["python", "-c", PROGRAM, str(cpu_seconds), str(lives)],
                            "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
                        }
                    ],
                },
            }
            for name in names
        ]
        path = self.folder / "pods.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        return path

    def burned(self, pod: str) -> float:
        """What a pod says of itself, over all its lives."""
        words = kubectl("-n", self.name, "logs", pod).split()
        return float(words[1]) if words[:1] == ["burned"] else 0.0

    def record(self, pods: Path, names: Sequence[str], interval: str = "1") -> Recording:
        """Record around the making of pods until all have burned."""
        said = " && ".join(
            f"until kubectl -n {self.name} logs {name} 2>&1 | grep -q burned; do sleep 1; done" for name in names
        )
        output = self.folder / "recording.csv"
        place = ["--source", "kubernetes", "--namespace", self.name, "--interval", interval, "--output", str(output)]
        told = monitor("record", *place, "--", "sh", "-c", f"kubectl -n {self.name} apply -f {pods} && {said}")
        assert told.returncode == 0, told.stderr
        return read_recording(output)


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    made = Namespace(tmp_path)
    yield made
    kubectl("delete", "namespace", made.name, "--wait=false")


def burner(recording: Recording) -> usage.Usage:
    return usage.usages(recording)["burner"]


@pytest.mark.parametrize("interval", ["0.2", "1", "5"])
def test_what_a_pod_burns_is_reported_within_one_percent_once_the_kubelet_has_read_it(
    namespace: Namespace, interval: str
) -> None:
    recording = namespace.record(namespace.pods(["one"], 4.0), ["one"], interval)
    assert burner(recording).cpu_seconds == pytest.approx(namespace.burned("one"), rel=0.01)
    last = [sample.reading for sample in recording.samples if sample.reading.service == "burner"][-1]
    assert last.time >= recording.header["end"]
    assert recording.header["problems"] == []
    burners = (sample.reading for sample in recording.samples if sample.reading.service == "burner")
    times = [reading.time for reading in burners if reading.state != "started"]
    assert len(times) == len(set(times))


def test_two_replicas_are_kept_apart_and_add_up(namespace: Namespace) -> None:
    recording = namespace.record(namespace.pods(["one", "two"], 3.0), ["one", "two"])
    by_replica = {life.readings[0].replica: life.used[-1] for life in burner(recording).lives}
    assert by_replica == {name: pytest.approx(namespace.burned(name), rel=0.01) for name in ("one", "two")}
    assert burner(recording).replicas == 2


def test_a_restart_loses_nothing(namespace: Namespace) -> None:
    recording = namespace.record(namespace.pods(["one"], 3.0, lives=2), ["one"])
    burned = namespace.burned("one")
    assert burned >= 6.0
    assert burner(recording).restarts + burner(recording).replicas >= 2
    # The pod's counter also holds its sandbox and the runtime's start of two containers.
    assert burner(recording).cpu_seconds == pytest.approx(burned, rel=0.01, abs=0.1)


def reader(namespace: Namespace, role: bool) -> Path:
    """The kubeconfig of a service account, with the Role of kubernetes/ or with the right to list pods only."""
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


def test_without_the_right_to_the_kubelet_it_is_named_in_one_line(namespace: Namespace) -> None:
    kubectl("-n", namespace.name, "apply", "-f", str(namespace.pods(["one"], 0.1)))
    wait_until(lambda: namespace.burned("one"), "the pod runs")
    kubeconfig = reader(namespace, role=False)
    told = monitor("--once", "--source", "kubernetes", "--namespace", namespace.name, kubeconfig=kubeconfig)
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1
    assert 'cannot get resource "nodes/proxy"' in told.stderr


def test_the_role_of_the_repository_is_enough(namespace: Namespace) -> None:
    kubectl("-n", namespace.name, "apply", "-f", str(namespace.pods(["one"], 0.1)))
    wait_until(lambda: namespace.burned("one"), "the pod runs")
    try:
        kubeconfig = reader(namespace, role=True)
        flags = ["--once", "--json", "--source", "kubernetes", "--namespace", namespace.name]

        def look() -> Any:
            told = monitor(*flags, kubeconfig=kubeconfig)
            assert told.returncode == 0, told.stderr
            return [one for one in json.loads(told.stdout)["services"] if one["service"] == "burner"]

        (service,) = wait_until(look, "the kubelet has read the pod")
        assert service["counter_seconds"] > 0
    finally:
        kubectl("delete", "clusterrole,clusterrolebinding", namespace.name, "--ignore-not-found")


def test_a_namespace_that_is_not_there_is_one_line() -> None:
    told = monitor("--source", "kubernetes", "--namespace", "no-such-namespace")
    assert told.returncode == 1
    line = "cpu_monitor.py: there is no namespace 'no-such-namespace' in the cluster; name one with --namespace"
    assert told.stderr.splitlines() == [line]
