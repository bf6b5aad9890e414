"""The pipeline on a real Kubernetes cluster gives the bits of the embedded run, whatever happens to its pods.

The images come from ./build-images.sh (IMAGE_TAG, REGISTRY as for kubernetes-run.sh). The tests use the namespaces
atlas-test and atlas-test-three, and keep their volumes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.real_data import real_data
from tests.support.waiting import wait_until

WORKERS = ("data-loader", "data-processor", "analysis", "visualisation")
#: Long enough for faults during the run: about 400 chunks.
LONG = ("--release", "demo", "--demo-events", "1000000", "--chunk-entries", "2500")
DEADLINE_S = 600


def cluster_answers() -> bool:
    if shutil.which("kubectl") is None:
        return False
    question = ["kubectl", "get", "--raw", "/version", "--request-timeout=10s"]
    return subprocess.run(question, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.skipif(not cluster_answers(), reason="needs a Kubernetes cluster: kubectl reaches none"),
]


class Run:
    """A run that kubernetes-run.sh follows in the background."""

    def __init__(self, cluster: Cluster, folder: Path, flags: tuple[str, ...]) -> None:
        self.output = folder / "results"
        self._log = folder / "log"
        self._cluster = cluster
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [ROOT / "kubernetes-run.sh", *flags, "--output", str(self.output)],
                env=os.environ | cluster.environment,
                stdout=log,
                stderr=log,
            )

    def wait_for_progress(self) -> None:
        """Wait until the analysis service has a tenth of the chunks of a LONG run."""

        def chunks() -> float:
            assert self._process.poll() is None, self.log()
            return self._cluster.handled("analysis", "selected")

        wait_until(lambda: "job.batch/submit" in self.log() or not self.is_under_way(), "it was submitted", DEADLINE_S)
        before = wait_until(lambda: (chunks(),), "the analysis service reported its progress")[0]
        wait_until(lambda: chunks() >= before + 40, "a tenth of the chunks were analysed", DEADLINE_S)

    def is_under_way(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    def code(self) -> int:
        return self._process.wait(DEADLINE_S)

    def result(self) -> dict[str, Any]:
        """The result, after the run has ended with exit code 0."""
        assert self.code() == 0, self.log()
        (path,) = self.output.glob("*/result.json")
        result: dict[str, Any] = json.loads(path.read_text())
        assert result["complete"]
        return result

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Cluster:
    """One namespace of the cluster."""

    def __init__(self, namespace: str, **environment: str) -> None:
        self.namespace = namespace
        self.environment = {"NAMESPACE": namespace, **environment}

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout

    def script(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "kubernetes-run.sh", *arguments],
            env=os.environ | self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )

    def handled(self, service: str, queue: str) -> float:
        """How many messages of a queue a service has handled since its pod started."""
        script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
        for line in self.kubectl("exec", f"deployment/{service}", "--", "python", "-c", script).splitlines():
            if line.startswith(f'atlas_messages_handled_total{{queue="{queue}"}}'):
                return float(line.split()[-1])
        return 0.0

    def pods(self, *names: str) -> list[str]:
        selector = f"app.kubernetes.io/name in ({','.join(names)})"
        return self.kubectl("get", "pods", f"--selector={selector}", "--output=name").split()

    def ready(self, *workloads: str) -> None:
        for workload in workloads:
            self.kubectl("rollout", "status", workload, "--timeout=240s")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The pipeline with one broker."""
    started = Cluster("atlas-test")
    yield started
    started.script("--down")


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start runs in the background; they are killed after the test."""
    runs: list[Run] = []

    def start_run(*flags: str, on: Cluster = cluster) -> Run:
        (tmp_path / str(len(runs))).mkdir()
        runs.append(Run(on, tmp_path / str(len(runs)), flags))
        return runs[-1]

    yield start_run
    for run in runs:
        run.stop()


def numbers(result: dict[str, Any]) -> str:
    """The numbers of a result, which must be the same for every way to run it."""
    return json.dumps({key: result[key] for key in ("samples", "categories", "histograms", "window", "problems")})


def embedded(folder: Path, *flags: str) -> str:
    """The numbers of the same run on this machine, in one process."""
    subprocess.run([sys.executable, "analysis.py", *flags, "--output", str(folder)], cwd=ROOT, check=True, timeout=600)
    (path,) = folder.glob("*/result.json")
    return numbers(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The numbers of the LONG run."""
    return embedded(tmp_path_factory.mktemp("embedded"), *LONG)


def test_the_demo_equals_the_embedded_run_and_its_folder_is_the_users(
    start: Callable[..., Run], reference: str
) -> None:
    run = start(*LONG)
    assert numbers(run.result()) == reference
    (folder,) = run.output.iterdir()
    assert {"result.json", "m4l.png", "m4l.pdf", "histograms.root"} <= {path.name for path in folder.iterdir()}
    assert {path.stat().st_uid for path in (folder, *folder.iterdir())} == {os.getuid()}
    assert f"{folder}/; for the page: kubectl -n atlas-test port-forward" in run.log()


def test_an_own_analysis_and_a_changed_one_equal_the_embedded_runs(
    cluster: Cluster, start: Callable[..., Run], tmp_path: Path
) -> None:
    source = (ROOT / "examples" / "hzz4l_tight.py").read_text()
    services = ("data-loader", "data-processor", "analysis", "visualisation")
    pods = []
    for number, changed in enumerate((source, source.replace("< 20.0", "< 10.0"))):
        (tmp_path / "own.py").write_text(changed)
        flags = ("--analysis", str(tmp_path / "own.py"), "--release", "demo", "--demo-events", "20000", "--no-plots")
        result = start(*flags).result()
        assert numbers(result) == embedded(tmp_path / f"embedded-{number}", *flags)
        pods.append(cluster.pods(*services))
    assert pods[0] == pods[1]


def test_real_events_over_http_equal_the_embedded_run(
    cluster: Cluster, start: Callable[..., Run], tmp_path: Path
) -> None:
    data = real_data()
    samples = ",".join(json.loads((data / "reference.json").read_text())["samples"])
    cluster.script("--release", "demo", "--demo-events", "1000", "--output", str(tmp_path / "first"))
    image = cluster.kubectl("get", "deployment/analysis", "--output=jsonpath={..image}")
    cluster.kubectl("delete", "pod/files", "--ignore-not-found")
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(file_server(image)))
    try:
        cluster.kubectl("wait", "--for=condition=Ready", "pod/files", "--timeout=120s")
        archive = subprocess.run(
            ["tar", "-C", str(data / "4lep"), "-cf", "-", "Data", "MC"], capture_output=True, check=True
        )
        unpack = ["kubectl", "-n", cluster.namespace, "exec", "-i", "files", "--", "tar", "-C", "/files", "-xf", "-"]
        subprocess.run([*unpack, "--no-same-owner", "-m"], input=archive.stdout, check=True)
        address = cluster.kubectl("get", "pod/files", "--output=jsonpath={.status.podIP}")
        run = start("--data", f"http://{address}:8000/", "--samples", samples)
        local = embedded(tmp_path / "embedded", "--data", str(data / "4lep"), "--samples", samples)
        assert numbers(run.result()) == local
    finally:
        cluster.kubectl("delete", "pod/files", "--grace-period=1")


def file_server(image: str) -> dict[str, Any]:
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    server = {
        "name": "files",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "http.server", "--directory", "/files", "8000"],
        "securityContext": restricted,
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}},
        "volumeMounts": [{"name": "files", "mountPath": "/files"}],
    }
    spec = {
        "containers": [server],
        "volumes": [{"name": "files", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "files"}, "spec": spec}


def test_deleting_all_pods_and_the_broker_during_a_run_changes_no_bit(
    cluster: Cluster, start: Callable[..., Run], reference: str
) -> None:
    run = start(*LONG)
    run.wait_for_progress()
    cluster.kubectl("delete", "--grace-period=0", "--force", *cluster.pods(*WORKERS))
    cluster.ready(*(f"deployment/{worker}" for worker in WORKERS))
    assert run.is_under_way()
    cluster.kubectl("delete", "--grace-period=0", "--force", *cluster.pods("rabbitmq"))
    assert run.is_under_way()
    assert numbers(run.result()) == reference


def test_a_rollout_restart_during_a_run_changes_no_bit(
    cluster: Cluster, start: Callable[..., Run], reference: str
) -> None:
    run = start(*LONG)
    run.wait_for_progress()
    deployments = [f"deployment/{worker}" for worker in WORKERS]
    before = set(cluster.pods(*WORKERS))
    cluster.kubectl("rollout", "restart", *deployments)
    cluster.ready(*deployments)
    assert run.is_under_way()
    assert numbers(run.result()) == reference
    wait_until(lambda: not before & set(cluster.pods(*WORKERS)), "the old pods had ended", DEADLINE_S)


def test_scaling_the_processor_during_a_run_changes_no_bit(
    cluster: Cluster, start: Callable[..., Run], reference: str
) -> None:
    run = start(*LONG)
    run.wait_for_progress()
    cluster.kubectl("scale", "deployment/data-processor", "--replicas=4")
    cluster.ready("deployment/data-processor")
    assert run.is_under_way()
    assert numbers(run.result()) == reference
    assert len(cluster.pods("data-processor")) == 4
    cluster.kubectl("scale", "deployment/data-processor", "--replicas=1")


def test_a_missing_autoscaling_api_is_reported(cluster: Cluster) -> None:
    served = cluster.kubectl("api-versions").split()
    for way, api in (("hpa", "autoscaling/v2"), ("keda", "keda.sh/v1alpha1")):
        if api not in served:
            done = cluster.script("--release", "demo", AUTOSCALE=way)
            assert done.returncode == 1
            assert f"this cluster has no {api}" in done.stderr.splitlines()[-1]


def test_a_failed_rollout_is_explained_and_the_next_one_repairs_it(cluster: Cluster, tmp_path: Path) -> None:
    failed = cluster.script("--release", "demo", REGISTRY="registry.invalid", ROLLOUT_TIMEOUT="120")
    assert failed.returncode == 1
    assert "the cluster has no such image" in failed.stderr.splitlines()[-1]
    assert "registry.invalid/data-loader" in failed.stderr
    repaired = cluster.script("--release", "demo", "--demo-events", "1000", "--output", str(tmp_path))
    assert repaired.returncode == 0, repaired.stderr


def test_an_incomplete_run_ends_with_exit_code_1_and_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    flags = ("--data", "http://127.0.0.1:9/", "--samples", "data_A", "--output", str(tmp_path))
    done = cluster.script(*flags)
    assert done.returncode == 1
    assert "data_A" in done.stdout
    wrong = cluster.script("--release", "none-such")
    assert wrong.returncode == 2


def test_a_password_that_the_broker_does_not_have_is_rejected(cluster: Cluster) -> None:
    done = cluster.script("--release", "demo", RABBITMQ_PASS="another")
    assert done.returncode == 1
    assert (
        "RABBITMQ_PASS differs from the one that the broker in the namespace atlas-test was created with" in done.stderr
    )


def test_down_deletes_the_workloads_and_names_what_is_kept(cluster: Cluster) -> None:
    done = cluster.script("--down")
    assert done.returncode == 0, done.stderr
    kept = "kept in the namespace atlas-test: the Secret rabbitmq and the volumes broker database results; "
    assert kept in done.stdout
    everything = "deployments,statefulsets,services,jobs,configmaps,networkpolicies,pods"
    ours = "--selector=app.kubernetes.io/part-of=atlas-open-data"
    assert cluster.kubectl("get", everything, ours, "--output=name") == ""


def test_losing_one_of_three_brokers_during_a_run_changes_no_bit(start: Callable[..., Run], reference: str) -> None:
    three = Cluster("atlas-test-three", HIGH_AVAILABILITY="1")

    def members() -> dict[str, int]:
        """How many brokers hold each queue, except the exclusive ones, which are those of one connection."""
        listing = ("rabbitmqctl", "-q", "--formatter=json", "list_queues", "name", "exclusive", "members")
        listed = json.loads(three.kubectl("exec", "rabbitmq-0", "--", *listing))
        return {queue["name"]: len(queue["members"]) for queue in listed if not queue["exclusive"]}

    try:
        run = start(*LONG, on=three)
        run.wait_for_progress()
        wait_until(lambda: set(members().values()) == {3}, "every queue had three members", 120)
        assert run.is_under_way()
        three.kubectl("scale", "statefulset/rabbitmq", "--replicas=2")
        three.kubectl("wait", "--for=delete", "pod/rabbitmq-2", "--timeout=180s")
        assert run.is_under_way()
        assert numbers(run.result()) == reference
        again = start(*LONG, on=three)
        again.wait_for_progress()
        three.kubectl("delete", "pod/rabbitmq-0", "--grace-period=0", "--force")
        assert again.is_under_way()
        assert numbers(again.result()) == reference
    finally:
        three.script("--down")
