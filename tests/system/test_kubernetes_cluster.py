"""The pipeline on a real Kubernetes cluster gives the bits of the embedded run, whatever happens to its pods.

The images come from ./build-images.sh (IMAGE_TAG, REGISTRY as for kubernetes-run.sh). The tests use the namespaces
atlas-test and atlas-test-three, and keep their volumes; they create and delete the namespace atlas-test-limits.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.autoscaler import Autoscaler
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
    pytest.mark.timeout(1200),
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
                process_group=0,
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

    def interrupt(self) -> int:
        """Press Ctrl-C; returns the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self.code()

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
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


@contextmanager
def queue_counts(cluster: Cluster) -> Iterator[Callable[[], Mapping[str, int]]]:
    """Yield a function that reads the messages of each queue, waiting and unacknowledged, as KEDA does it."""
    stored = json.loads(cluster.kubectl("get", "secret/rabbitmq", "--output=json"))["data"]
    credentials = b":".join(b64decode(stored[f"RABBITMQ_{key}"]) for key in ("USER", "PASS"))
    command = ["kubectl", "-n", cluster.namespace, "port-forward", "service/rabbitmq", ":management"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        assert forward.stdout is not None
        port = int(forward.stdout.readline().split(" -> ")[0].rpartition(":")[2])
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/queues/%2F",
            headers={"Authorization": f"Basic {b64encode(credentials).decode()}"},
        )

        def read() -> Mapping[str, int]:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return {queue["name"]: queue.get("messages", 0) for queue in json.load(answer)}

        yield read
        forward.terminate()


def test_autoscaling_from_zero_and_to_zero_during_a_run_changes_no_bit(
    cluster: Cluster, start: Callable[..., Run], reference: str, tmp_path: Path
) -> None:
    """The autoscalers compute what KEDA computes from the manifests, thirty times as fast, and scale with kubectl."""
    assert cluster.script("--release", "demo", "--demo-events", "1000", "--output", str(tmp_path)).returncode == 0
    folder = ROOT / "kubernetes" / "autoscaling" / "keda"
    loader, processor = scaled = ("data-loader", "data-processor")
    manifests = {name: yaml.safe_load((folder / f"{name}-scaledobject.yaml").read_text()) for name in scaled}
    autoscalers = {name: Autoscaler.from_manifest(manifests[name], seconds=1 / 30) for name in scaled}
    replicas = dict.fromkeys(scaled, 0)

    def scale(name: str, number: int) -> None:
        if number != replicas[name]:
            cluster.kubectl("scale", f"deployment/{name}", f"--replicas={number}")
            replicas[name] = number

    for name in scaled:
        assert cluster.script("--scale", f"{name}=0").returncode == 0
    with queue_counts(cluster) as read:

        def drive(*names: str) -> None:
            messages = read()
            for name in names:
                scale(name, autoscalers[name].replicas(time.monotonic(), replicas[name], messages))

        def driven(*names: str, until: Callable[[], bool]) -> Callable[[], bool]:
            return lambda: drive(*names) is None and until()

        run = start(*LONG)
        wait_until(driven(loader, until=lambda: read()["events"] >= 16), "the queue was full", DEADLINE_S)
        assert replicas[loader] > 0
        wait_until(driven(processor, until=lambda: replicas[processor] > 1), "processors were added", DEADLINE_S)
        scale(loader, 0)
        wait_until(driven(processor, until=lambda: replicas[processor] == 0), "the last processor ended", DEADLINE_S)
        assert run.is_under_way()
        wait_until(driven(*scaled, until=lambda: not run.is_under_way()), "the run ended", DEADLINE_S)
        assert numbers(run.result()) == reference
        wait_until(driven(*scaled, until=lambda: not any(replicas.values())), "all replicas ended", DEADLINE_S)
    for name in scaled:
        assert cluster.script("--scale", f"{name}=1").returncode == 0


def test_what_it_was_started_with_holds_for_later_calls_and_runs_restart_no_pod(
    cluster: Cluster, tmp_path: Path
) -> None:
    flags = ("--release", "demo", "--demo-events", "1000", "--no-plots", "--output", str(tmp_path))
    assert cluster.script(*flags, LOG_LEVEL="DEBUG", RESULTS_KEEP="7").returncode == 0
    assert cluster.script("--scale", "data-processor=2").returncode == 0
    pods = cluster.pods(*WORKERS, "rabbitmq")
    assert cluster.script(*flags, "--lumi", "5", "--pt-cuts", "30").returncode == 0
    assert cluster.pods(*WORKERS, "rabbitmq") == pods
    assert len(cluster.pods("data-processor")) == 2
    environment = cluster.kubectl("exec", "deployment/analysis", "--", "env").splitlines()
    assert {"LOG_LEVEL=DEBUG", "RESULTS_KEEP=7"} <= set(environment)
    assert cluster.script(*flags, LOG_LEVEL="", RESULTS_KEEP="").returncode == 0
    environment = cluster.kubectl("exec", "deployment/analysis", "--", "env").splitlines()
    assert not [line for line in environment if line.startswith(("LOG_LEVEL", "RESULTS_KEEP"))]


def secrets_with_an_address(cluster: Cluster) -> dict[str, Any]:
    """The Secrets of jobs that read data from an address, by name."""
    secrets = json.loads(cluster.kubectl("get", "secrets", "--output=json"))["items"]
    return {secret["metadata"]["name"]: secret for secret in secrets if "DATA" in (secret.get("data") or {})}


def test_the_address_of_the_data_is_only_in_a_secret_of_the_job(cluster: Cluster, tmp_path: Path) -> None:
    address = "http://me:geheim@127.0.0.1:9/4lep?token=abc"
    before = secrets_with_an_address(cluster)
    done = cluster.script("--data", address, "--samples", "data_A", "--output", str(tmp_path))
    assert done.returncode == 1
    assert "data_A" in done.stdout
    shown = cluster.kubectl("get", "jobs,pods,configmaps,deployments", "--output=yaml")
    shown += done.stdout + done.stderr
    assert "geheim" not in shown
    assert "token=abc" not in shown
    (secret,) = (secret for name, secret in secrets_with_an_address(cluster).items() if name not in before)
    assert [owner["kind"] for owner in secret["metadata"]["ownerReferences"]] == ["Job"]
    assert b64decode(secret["data"]["DATA"]).decode() == address
    cluster.kubectl("delete", f"job/{secret['metadata']['name']}")
    wait_until(
        lambda: secret["metadata"]["name"] not in cluster.kubectl("get", "secrets", "--output=name"),
        "the Secret was deleted with its Job",
        60,
    )


def test_an_interrupted_run_continues_and_can_be_followed(
    cluster: Cluster, start: Callable[..., Run], reference: str
) -> None:
    run = start(*LONG)
    run.wait_for_progress()
    assert run.interrupt() == 130
    (message,) = (line for line in run.log().splitlines() if line.startswith("kubernetes-run.sh: interrupted"))
    run_id = message.partition("./kubernetes-run.sh follow ")[2].partition("'")[0]
    assert run_id in cluster.script("runs").stdout
    followed = start("follow", run_id)
    assert numbers(followed.result()) == reference


def test_a_change_by_hand_is_kept_or_undone_by_the_next_call(cluster: Cluster, tmp_path: Path) -> None:
    flags = ("--release", "demo", "--demo-events", "1000", "--no-plots", "--output", str(tmp_path))
    assert cluster.script(*flags).returncode == 0
    image = cluster.kubectl("get", "deployment/analysis", "--output=jsonpath={..image}")
    cluster.kubectl("set", "image", "deployment/analysis", "analysis=none.invalid/none:1")
    cluster.kubectl("annotate", "deployment/analysis", "note=by-hand", "--overwrite")
    cluster.kubectl("delete", "service/workers", "networkpolicy/page")
    deployment = json.loads(cluster.kubectl("get", "deployment/data-processor", "--output=json"))
    applied = {key: deployment[key] for key in ("apiVersion", "kind", "spec")} | {
        "metadata": {"name": "data-processor", "labels": deployment["metadata"]["labels"]}
    }
    by_hand = ("apply", "--server-side", "--force-conflicts", "--field-manager=by-hand", "--filename=-")
    cluster.kubectl(*by_hand, stdin=json.dumps(applied))
    done = cluster.script(*flags)
    assert done.returncode == 0, done.stderr
    assert cluster.kubectl("get", "deployment/analysis", "--output=jsonpath={..image}") == image
    assert "by-hand" in cluster.kubectl("get", "deployment/analysis", "--output=jsonpath={.metadata.annotations.note}")
    cluster.kubectl("get", "service/workers", "networkpolicy/page")


@pytest.fixture
def limited() -> Iterator[Cluster]:
    """A new namespace without a pipeline."""
    made = Cluster("atlas-test-limits")
    subprocess.run(["kubectl", "create", "namespace", made.namespace], check=True, capture_output=True)
    yield made
    subprocess.run(["kubectl", "delete", "namespace", made.namespace], check=True, capture_output=True)


def quota(**hard: str) -> dict[str, Any]:
    spec = {"hard": {name.replace("_", "."): value for name, value in hard.items()}}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "limits"}, "spec": spec}


def limit_range(**maximum: str) -> dict[str, Any]:
    spec = {"limits": [{"type": "Container", "max": maximum}]}
    return {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"}, "spec": spec}


@pytest.mark.parametrize(
    ("forbidding", "reason"),
    [
        (quota(pods="3"), "exceeded quota: limits"),
        (quota(pods="5"), "exceeded quota: limits"),  # enough for the services, not for a run
        (quota(persistentvolumeclaims="1"), "exceeded quota: limits"),
        (limit_range(cpu="1"), "maximum cpu usage per Container is 1, but limit is 2"),
    ],
    ids=["pods", "pods of a run", "volumes", "CPU of a container"],
)
def test_a_namespace_that_forbids_the_pods_is_named_and_nothing_is_left(
    limited: Cluster, forbidding: dict[str, Any], reason: str
) -> None:
    limited.kubectl("apply", "--filename=-", stdin=json.dumps(forbidding))
    done = limited.script("--release", "demo")
    assert done.returncode == 1
    assert reason in done.stderr
    assert "everything but the volumes and the Secret was deleted again" in done.stderr.splitlines()[-1]
    everything = "deployments,statefulsets,services,jobs,networkpolicies,pods"
    assert limited.kubectl("get", everything, "--output=name") == ""


def test_a_namespace_with_enough_quota_runs_the_pipeline(limited: Cluster, tmp_path: Path) -> None:
    enough = quota(pods="6", requests_cpu="1", requests_memory="2Gi", limits_cpu="12", limits_memory="6Gi")
    limited.kubectl("apply", "--filename=-", stdin=json.dumps(enough))
    limited.kubectl("apply", "--filename=-", stdin=json.dumps(limit_range(cpu="2", memory="1Gi")))
    done = limited.script("--release", "demo", "--demo-events", "1000", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_user_of_one_namespace_can_run_there_and_nowhere_else(limited: Cluster, tmp_path: Path) -> None:
    configuration = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    for user in configuration["users"]:
        user["user"] |= {"as": "student", "as-groups": ["system:authenticated"]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(configuration))
    flags = ("--release", "demo", "--demo-events", "1000", "--output", str(tmp_path))
    own = {"KUBECONFIG": str(tmp_path / "kubeconfig")}
    refused = limited.script(*flags, **own)
    assert refused.returncode == 1
    assert "you may not create deployments.apps in the namespace atlas-test-limits" in refused.stderr
    limited.kubectl("create", "rolebinding", "student", "--clusterrole=admin", "--user=student")
    done = limited.script(*flags, **own)
    assert done.returncode == 0, done.stderr


def test_a_cluster_without_a_default_storage_class_is_refused(limited: Cluster) -> None:
    classes = json.loads(limited.kubectl("get", "storageclasses", "--output=json"))["items"]
    mark = "storageclass.kubernetes.io/is-default-class"
    default = [c["metadata"]["name"] for c in classes if c["metadata"].get("annotations", {}).get(mark) == "true"]
    for name in default:
        limited.kubectl("annotate", "--overwrite", f"storageclass/{name}", f"{mark}=false")
    try:
        done = limited.script("--release", "demo")
    finally:
        for name in default:
            limited.kubectl("annotate", "--overwrite", f"storageclass/{name}", f"{mark}=true")
    assert done.returncode == 1
    assert "this cluster has no default StorageClass" in done.stderr.splitlines()[-1]
    assert (
        limited.kubectl("get", "deployments,persistentvolumeclaims,secrets", "--selector=app.kubernetes.io/part-of")
        == ""
    )


def test_a_missing_autoscaling_api_is_reported(cluster: Cluster) -> None:
    served = cluster.kubectl("api-versions")
    for way, api in (("hpa", "external.metrics.k8s.io"), ("keda", "keda.sh/v1alpha1")):
        if api not in served:
            done = cluster.script("--release", "demo", AUTOSCALE=way)
            assert done.returncode == 1
            assert f"this cluster has no {api}" in done.stderr.splitlines()[-1]


def test_a_failed_rollout_is_explained_and_the_next_one_repairs_it(cluster: Cluster, tmp_path: Path) -> None:
    failed = cluster.script("--release", "demo", REGISTRY="registry.invalid", ROLLOUT_TIMEOUT="120")
    assert failed.returncode == 1
    assert "the cluster has no such image" in failed.stderr.splitlines()[-1]
    assert "registry.invalid/atlas-open-data/data-loader" in failed.stderr
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
        # A broker ends when it may, which can take longer than the run; without a data-processor the run waits.
        three.kubectl("scale", "deployment/data-processor", "--replicas=0")
        wait_until(lambda: set(members().values()) == {3}, "every queue had three members", 120)
        three.kubectl("scale", "statefulset/rabbitmq", "--replicas=2")
        three.kubectl("wait", "--for=delete", "pod/rabbitmq-2", "--timeout=180s")
        assert run.is_under_way()
        three.kubectl("scale", "deployment/data-processor", "--replicas=1")
        assert numbers(run.result()) == reference
        again = start(*LONG, on=three)
        again.wait_for_progress()
        three.kubectl("delete", "pod/rabbitmq-0", "--grace-period=0", "--force")
        assert again.is_under_way()
        assert numbers(again.result()) == reference
    finally:
        three.script("--down")
