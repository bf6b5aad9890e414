"""The Kubernetes manifests and kubernetes-run.sh, checked without a cluster."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import kubernetes_validate
import pytest
import yaml

from common import topology
from common.settings import VARIABLES, RunSettings
from physics import ANALYSES
from tests.support.autoscaler import Autoscaler
from tests.support.paths import ROOT

MANIFESTS = ROOT / "kubernetes"
#: The oldest release that is supported, one ten releases later, and the newest known one.
RELEASES = ("1.25", "1.34", kubernetes_validate.utils.latest_version())
SERVICES = {"data-loader", "data-processor", "analysis", "visualisation"}
#: APIs that are not part of Kubernetes.
FOREIGN = ("kustomize.config.k8s.io/", "keda.sh/")

NO_MANIFESTS = ("worker-patch.yaml", "prometheus-adapter.yaml")

Manifest = dict[str, Any]


def read(*paths: Path) -> list[Manifest]:
    return [document for path in paths for document in yaml.safe_load_all(path.read_text()) if document]


def files() -> list[Path]:
    return sorted(path for path in MANIFESTS.rglob("*.yaml") if path.name not in NO_MANIFESTS)


def name_of(path: Path) -> str:
    return str(path.relative_to(MANIFESTS))


def build(folder: Path, *components: str) -> list[Manifest]:
    """Render kubernetes/ with these components."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    overlay = {
        "namespace": "physics",
        "resources": [_from(folder, MANIFESTS)],
        "components": [_from(folder, MANIFESTS / component) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def _from(folder: Path, target: Path) -> str:
    return os.path.relpath(target, folder.resolve())


def by_name(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pod templates, by kind and name of their workload."""
    return {
        f"{m['kind']}/{m['metadata']['name']}": m["spec"]["template"]
        for m in manifests
        if m["kind"] in ("Deployment", "StatefulSet", "Job")
    }


def containers(pod: Manifest) -> list[Manifest]:
    found: list[Manifest] = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
    return found


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


@pytest.fixture(
    scope="module", params=[("submission",), ("submission", "high-availability")], ids=["one broker", "three brokers"]
)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The rendered manifests of the pipeline and a submission."""
    return build(tmp_path_factory.mktemp("rendered"), *request.param)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", files(), ids=name_of)
def test_every_manifest_matches_the_schemas_of_kubernetes_1_25_to_1_34(path: Path, release: str) -> None:
    for manifest in read(path):
        if not manifest["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(manifest, release, strict=True)


def test_rendered_manifests_match_the_schema_of_the_latest_release(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        kubernetes_validate.validate(manifest, RELEASES[-1], strict=True)


def test_rendered_manifests_have_one_broker_or_three(tmp_path: Path) -> None:
    for number, components in enumerate(((), ("high-availability",))):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = pods(build(folder, *components))
        broker = "StatefulSet/rabbitmq" if components else "Deployment/rabbitmq"
        assert set(made) == {broker} | {f"Deployment/{service}" for service in SERVICES}


def test_every_pod_follows_the_restricted_security_standard(rendered: list[Manifest]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    for name, pod in pods(rendered).items():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
        assert all(volume.keys() - {"name"} <= allowed for volume in spec.get("volumes", [])), name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name


def test_every_container_has_resource_requests_and_limits(rendered: list[Manifest]) -> None:
    for name, pod in pods(rendered).items():
        for container in containers(pod):
            for kind in ("requests", "limits"):
                assert container["resources"][kind].keys() == {"cpu", "memory"}, name


def test_every_service_has_probes_and_no_worker_has_a_token(rendered: list[Manifest]) -> None:
    for name, pod in pods(rendered).items():
        (main,) = pod["spec"]["containers"]
        if name != "Job/submit":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= main.keys(), name
            assert pod["spec"]["terminationGracePeriodSeconds"] >= 60, name
        assert pod["spec"]["enableServiceLinks"] is False, name
        assert pod["spec"]["automountServiceAccountToken"] is (name == "StatefulSet/rabbitmq"), name


def test_a_deployment_with_a_volume_never_has_two_pods(rendered: list[Manifest]) -> None:
    for name, deployment in by_name(rendered, "Deployment").items():
        claims = [v for v in deployment["spec"]["template"]["spec"]["volumes"] if "persistentVolumeClaim" in v]
        if claims:
            assert deployment["spec"]["strategy"] == {"type": "Recreate"}, name
            assert deployment["spec"]["replicas"] == 1, name
        else:
            assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0, name
            assert "replicas" not in deployment["spec"], f"{name}: the next apply would undo 'kubectl scale'"


def test_everything_that_a_pod_refers_to_exists(rendered: list[Manifest]) -> None:
    configs, claims = by_name(rendered, "ConfigMap"), by_name(rendered, "PersistentVolumeClaim")
    accounts = by_name(rendered, "ServiceAccount")
    # What kubernetes-run.sh creates.
    secret_keys = {"RABBITMQ_USER", "RABBITMQ_PASS", "RABBITMQ_VHOST", "ERLANG_COOKIE", "MESSAGE_KEY"}
    for name, pod in pods(rendered).items():
        assert pod["spec"]["serviceAccountName"] in accounts, name
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims, name
        for container in containers(pod):
            for source in container.get("envFrom", []):
                assert source["configMapRef"]["name"] in configs, name
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    assert variable["valueFrom"]["secretKeyRef"]["name"] == "rabbitmq", name
                    assert variable["valueFrom"]["secretKeyRef"]["key"] in secret_keys, name
            for mount in container["volumeMounts"]:
                config = volumes.get(mount["name"], {}).get("configMap")
                if config and not config.get("optional"):
                    assert mount["subPath"] in configs[config["name"]]["data"], name


def test_every_selector_matches_its_pods(rendered: list[Manifest]) -> None:
    labels = {name.partition("/")[2]: pod["metadata"]["labels"] for name, pod in pods(rendered).items()}

    def found(selector: Mapping[str, Any]) -> set[str]:
        return {name for name in labels if matches(selector, labels[name])}

    services = {
        name: found({"matchLabels": service["spec"]["selector"]})
        for name, service in by_name(rendered, "Service").items()
    }
    assert services.pop("rabbitmq-nodes", {"rabbitmq"}) == {"rabbitmq"}
    assert services == {"rabbitmq": {"rabbitmq"}, "visualisation": {"visualisation"}, "workers": SERVICES}
    budgets = read(*(MANIFESTS / "autoscaling" / "disruption").glob("*.yaml"))
    for name, budget in by_name(budgets, "PodDisruptionBudget").items():
        assert found(budget["spec"]["selector"]) == {name}


def test_only_services_reach_the_broker_and_only_the_page_is_public(rendered: list[Manifest]) -> None:
    labels = {name.partition("/")[2]: pod["metadata"]["labels"] for name, pod in pods(rendered).items()}
    policies = by_name(rendered, "NetworkPolicy")
    assert {n for n in labels if matches(policies["nothing"]["spec"]["podSelector"], labels[n])} == labels.keys()
    assert "ingress" not in policies["nothing"]["spec"]

    def may_reach(target: str, port: int, source: Mapping[str, str] | None) -> bool:
        """Whether a pod with these labels (None: a client outside the namespace) is admitted."""
        for policy in policies.values():
            if not matches(policy["spec"]["podSelector"], labels[target]):
                continue
            for rule in policy["spec"].get("ingress", []):
                peers = rule.get("from")
                admitted = peers is None or (
                    source is not None and any(matches(peer["podSelector"], source) for peer in peers)
                )
                if admitted and port in {entry["port"] for entry in rule["ports"]}:
                    return True
        return False

    clients = {name for name in labels if may_reach("rabbitmq", 5672, labels[name])}
    assert clients - {"rabbitmq"} == SERVICES | {"submit"}
    assert not may_reach("rabbitmq", 5672, {"app": "other"})
    assert not may_reach("rabbitmq", 15672, {"app": "other"})
    from_outside = {(n, p) for n in labels for p in (4369, 5672, 8080, 9100, 15672, 25672) if may_reach(n, p, None)}
    assert from_outside == {("visualisation", 8080)}


def test_every_pod_may_connect_to_others_in_a_namespace_that_denies_it(rendered: list[Manifest]) -> None:
    outgoing = by_name(rendered, "NetworkPolicy")["outgoing"]["spec"]
    assert outgoing["policyTypes"] == ["Egress"]
    assert outgoing["egress"] == [{}]
    assert all(matches(outgoing["podSelector"], pod["metadata"]["labels"]) for pod in pods(rendered).values())


RUN = {"ANALYSIS", "RELEASE", "DATA", "SAMPLES", "LUMI", "FRACTION", "PT_CUTS", "DEMO_EVENTS", "CHUNK_ENTRIES", "PLOTS"}
BROKER = {f"RABBITMQ_{name}" for name in ("HOST", "PORT", "USER", "PASS", "VHOST", "TLS_CA")} | {"MESSAGE_KEY"}
EVERY_SERVICE = BROKER | {"LOG_LEVEL", "METRICS_PORT", "ANALYSES_DIR"}
#: The settings that each service and the command use. A new variable of the README's table must be added here.
USED_BY = {
    "data-loader": EVERY_SERVICE | {"CACHE"},
    "data-processor": EVERY_SERVICE,
    "analysis": EVERY_SERVICE | {"DATABASE", "RESULTS_KEEP"},
    "visualisation": EVERY_SERVICE | {"OUTPUT", "PAGE_PORT", "RESULTS_KEEP"},
    "submit": EVERY_SERVICE | RUN | {"OUTPUT"},
}
#: What the image of a service sets, because its ports are reached from outside the container.
SET_BY_IMAGE = {name: {"METRICS_HOST"} for name in ("data-loader", "data-processor", "analysis")}
SET_BY_IMAGE["visualisation"] = {"METRICS_HOST", "PAGE_HOST"}
VARIABLE_NAMES = {variable.name for variable in VARIABLES}


def compose() -> Manifest:
    read_file: Manifest = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return read_file


def settings_of_kubernetes() -> dict[str, str]:
    lines = (MANIFESTS / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_compose_and_kubernetes_set_no_setting_to_its_default() -> None:
    given = settings_of_kubernetes()
    defaults = {variable.name: variable.default for variable in VARIABLES}
    for service in compose()["services"].values():
        settings = {name: value for name, value in service.get("environment", {}).items() if value is not None}
        given |= {name: str(value) for name, value in settings.items() if not name.startswith("RABBITMQ_DEFAULT_")}
    assert given.keys() <= defaults.keys()
    assert not [name for name, value in given.items() if value == defaults[name]]


def test_every_variable_of_the_readme_is_used_by_a_service_or_the_command() -> None:
    table = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(table) == VARIABLE_NAMES == set().union(*USED_BY.values(), *SET_BY_IMAGE.values())


@pytest.mark.parametrize("service", SET_BY_IMAGE)
def test_an_image_listens_on_all_addresses_of_its_container(service: str) -> None:
    file = ROOT / "workers" / service.replace("-", "_") / "Dockerfile"
    assert set(re.findall(r"\b([A-Z]+_HOST)=::", file.read_text())) == SET_BY_IMAGE[service]


@pytest.mark.parametrize("service", USED_BY)
def test_compose_gives_each_service_the_variables_that_it_uses(service: str) -> None:
    assert compose()["services"][service]["environment"].keys() == USED_BY[service]


def test_compose_mounts_the_certificate_authority_into_every_service() -> None:
    file = compose()
    assert file["configs"]["tls-ca"]["file"] == "${RABBITMQ_TLS_CA:-/dev/null}"
    for service in USED_BY:
        (mounted,) = file["services"][service]["configs"]
        path = file["services"][service]["environment"]["RABBITMQ_TLS_CA"]
        assert (mounted["source"], path) == ("tls-ca", f"${{RABBITMQ_TLS_CA:+{mounted['target']}}}")


def test_kubernetes_gives_each_service_the_variables_that_it_uses(rendered: list[Manifest]) -> None:
    """As variables of the pod, or in the ConfigMap, where kubernetes-run.sh adds those of its own environment."""
    script = (ROOT / "kubernetes-run.sh").read_text()
    flags, added = (
        set(found[1].split())
        for pattern in (r"read_flags '(RELEASE [A-Z_ ]+)'", r"set_ones (RABBITMQ_HOST [A-Z_ ]+) >")
        if (found := re.search(pattern, script)) is not None
    )
    assert flags | {"PLOTS"} == RUN | {"OUTPUT"}
    assert added <= set(re.findall(r"[A-Z_]+", re.search("kept='([A-Z_ ]+)'", script)[1]))  # type: ignore[index]
    added |= settings_of_kubernetes().keys()
    for name, pod in pods(rendered).items():
        service = name.partition("/")[2]
        if service == "rabbitmq":
            continue
        (container,) = containers(pod)
        assert [list(source) for source in container["envFrom"]] == [["configMapRef"]]
        own = {variable["name"] for variable in container["env"]} & VARIABLE_NAMES
        # Flags give a run its settings; the job's results are fetched from the pod.
        assert own | added >= USED_BY[service] - (RUN | {"OUTPUT"} if service == "submit" else set()), name
        (mounted,) = [mount for mount in container["volumeMounts"] if mount["name"] == "broker-ca"]
        assert f"RABBITMQ_TLS_CA={mounted['mountPath']}/ca.pem" in script


def test_compose_and_kubernetes_share_the_broker_configuration() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    mounts = [volume["source"] for volume in compose["services"]["rabbitmq"]["volumes"] if isinstance(volume, dict)]
    assert "./kubernetes/rabbitmq.conf" in mounts
    (generator,) = [
        g for g in read(MANIFESTS / "kustomization.yaml")[0]["configMapGenerator"] if g["name"] == "rabbitmq"
    ]
    assert generator["files"] == ["rabbitmq.conf"]


def tasks_of_a_run(release: str) -> int:
    """The most messages that one data-loader ever leaves in the queue `chunks` during a run with the defaults."""
    settings = ANALYSES.resolve(RunSettings(release=release))
    chunks = [-(-(sample.entries or 0) // settings.chunk_entries) for sample in ANALYSES.of(settings).samples]
    most = waiting = len(chunks)  # a task for each file; it is replaced by the chunks of the file but the first
    for in_file in chunks:
        waiting += max(in_file - 1, 0) - 1
        most = max(most, waiting)
    return most


AUTOSCALERS = [
    manifest
    for folder in ("hpa", "keda")
    for manifest in read(*(MANIFESTS / "autoscaling" / folder).glob("*.yaml"))
    if manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
]


@pytest.mark.parametrize("manifest", AUTOSCALERS, ids=lambda m: f"{m['kind']}/{m['metadata']['name']}")
def test_an_autoscaler_reaches_its_maximum_and_leaves_its_minimum(manifest: Manifest) -> None:
    """With the messages that the queue's limit, or a run of the smallest release of real data, permits."""
    service = manifest["metadata"]["name"]
    queues = {queue.name: queue for queue in topology.consumed_by(service)}
    autoscaler = Autoscaler.from_manifest(manifest)
    assert autoscaler.targets.keys() <= queues.keys()
    (queue,) = autoscaler.targets.keys() - {topology.RUNS.name}
    waiting = queues[queue].limit or tasks_of_a_run("2020e-13tev")

    def settled(waiting: int, replicas: int) -> int:
        autoscaler = Autoscaler.from_manifest(manifest)
        for now in range(0, 3600, 15):
            # Each replica has an unacknowledged message besides, unless it is idle.
            messages = waiting + (replicas if waiting else 0)
            replicas = autoscaler.replicas(now, replicas, {topology.RUNS.name: 0, queue: messages})
        return replicas

    lowest = max(autoscaler.minimum, 1)
    assert settled(waiting, autoscaler.minimum) == autoscaler.maximum
    assert settled(math.ceil(autoscaler.targets[queue] * lowest * 1.2), lowest) > lowest
    assert settled(0, autoscaler.maximum) == autoscaler.minimum


def test_a_run_request_starts_a_data_loader_that_was_scaled_to_zero() -> None:
    (loader,) = (m for m in AUTOSCALERS if m["kind"] == "ScaledObject" and m["metadata"]["name"] == "data-loader")
    autoscaler = Autoscaler.from_manifest(loader)
    assert autoscaler.minimum == 0
    assert autoscaler.replicas(0.0, 0, {"runs": 1, "chunks": 0}) == 1


def test_keda_counts_unacknowledged_messages_and_hpa_has_the_same_limits() -> None:
    by_kind = {kind: by_name(AUTOSCALERS, kind) for kind in ("HorizontalPodAutoscaler", "ScaledObject")}
    for name, scaled in by_kind["ScaledObject"].items():
        assert scaled["spec"]["scaleTargetRef"] == {"name": name}
        for trigger in scaled["spec"]["triggers"]:
            given = {key: trigger["metadata"][key] for key in ("protocol", "excludeUnacknowledged", "mode")}
            assert given == {"protocol": "http", "excludeUnacknowledged": "false", "mode": "QueueLength"}
            assert trigger["authenticationRef"] == {"name": "rabbitmq"}
        hpa = by_kind["HorizontalPodAutoscaler"][name]
        assert hpa["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        keda, external = Autoscaler.from_manifest(scaled), Autoscaler.from_manifest(hpa)
        assert external.targets.items() <= keda.targets.items()
        assert (external.maximum, external.up_s, external.down_s) == (keda.maximum, keda.up_s, keda.down_s)
    rules = yaml.safe_load((MANIFESTS / "autoscaling" / "prometheus-adapter.yaml").read_text())["rules"]["external"]
    for hpa in by_kind["HorizontalPodAutoscaler"].values():
        (metric,) = hpa["spec"]["metrics"]
        assert metric["external"]["metric"]["name"] in {rule["name"]["as"] for rule in rules}


def test_rendered_manifests_grant_no_cluster_permissions(rendered: list[Manifest]) -> None:
    assert not {m["kind"] for m in rendered} & {"ClusterRole", "ClusterRoleBinding"}
    monitor = read(MANIFESTS / "cpu-monitor-role.yaml")
    verbs = {verb for m in monitor for rule in m.get("rules", []) for verb in rule["verbs"]}
    assert verbs == {"get", "list"}


# --- kubernetes-run.sh with a stub of kubectl -----------------------------------

TOOLS = "bash sh cp dirname sed grep cat od tr mktemp rm date sleep base64 head tail paste mkdir mv tar env"


class Machine:
    """A copy of the script, and a folder for PATH with stubs of kubectl, docker and others, each one line of shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.project = folder / "project"
        self.temporary = folder / "temporary"
        for made in (self.folder, self.project, self.temporary):
            made.mkdir()
        shutil.copy(ROOT / "kubernetes-run.sh", self.project)
        (self.project / "kubernetes").symlink_to(MANIFESTS)
        for tool in TOOLS.split():
            found = shutil.which(tool)
            assert found is not None, tool
            (self.folder / tool).symlink_to(found)

    def add_stub(self, command: str, body: str) -> None:
        path = self.folder / command
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "{command} $*" >>"{self.folder}/calls"\n{body}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.project / "kubernetes-run.sh", *arguments],
            env={"PATH": str(self.folder), "TMPDIR": str(self.temporary), **environment},
            cwd=self.project,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    assert not list(made.temporary.iterdir())


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--data", "4lep"], {}, "the pods cannot read this machine's directories; give an address"),
        (["--data=/home/me/4lep"], {}, "DATA_CLAIM=<PersistentVolumeClaim>"),
        ([], {"DATA": "4lep"}, "the pods cannot read this machine's directories"),
        (["--data", "https:/me:geheim@host/4lep"], {}, "an address has two slashes after the colon"),
        ([], {"DATA": "me:geheim@host/4lep"}, "an address has two slashes after the colon"),
        (["--broker", "amqp://there"], {}, "this script uses the broker of the namespace"),
        (["--data"], {}, "--data needs a value"),
        (["--output", "/proc/1/none"], {}, "--output /proc/1/none: this directory cannot be created"),
        ([], {"AUTOSCALE": "yes"}, "choose hpa or keda"),
        (["--luminosity", "10"], {}, "there is no flag --luminosity here; see --help"),
        (["demo"], {}, "'demo' is neither a flag nor one of runs, follow, cancel and dead-letters"),
        (["--lumi", "10", "demo"], {}, "'demo' is neither a flag nor one of"),
        (["follow"], {}, "follow needs the id of a run; './kubernetes-run.sh runs' lists them"),
        (["cancel", "a;b"], {}, "cancel needs the id of a run"),
        (["follow", "a", "--release", "demo"], {}, "there is no flag --release here"),
        (["--down", "now"], {}, "--down takes no value"),
        (["--logs", "web"], {}, "--logs takes one of data-loader data-processor analysis visualisation rabbitmq"),
        (["--scale"], {}, "--scale needs a value, for example data-processor=4"),
        (["--scale", "analysis=2"], {}, "--scale analysis=2: write data-loader=N or data-processor=N"),
        (["--scale=data-loader=2", "--scale=data-loader=2x"], {}, "--scale data-loader=2x: write data-loader=N"),
        (["--scale", "data-loader=2", "demo"], {}, "'demo' is not --scale SERVICE=N"),
        (["--scan", "analysis=1,2"], {}, "--scan analysis=1,2: write data-loader=N,N,.. or data-processor=N,N,.."),
        (["--scan=data-loader=1,x"], {}, "--scan data-loader=1,x: write data-loader=N,N,.."),
        (["--scan", "data-loader=1,2", "--events"], {}, "--events needs a value"),
        (["--scan", "data-loader=1,2", "--repeat", "0"], {}, "--repeat 0: write a whole number from 1"),
        (["--scan", "data-loader=1,2", "--lumi", "1"], {}, "there is no flag --lumi with --scan"),
        (["--json"], {}, "--json is for analysis.py"),
        (["--analysis", "none.py"], {}, "--analysis none.py: no such file, or it cannot be read"),
        ([], {"ANALYSIS": "none.py"}, "ANALYSIS=none.py: no such file, or it cannot be read"),
    ],
)
def test_wrong_usage_is_reported_before_kubectl_is_called(
    machine: Machine, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    machine.add_stub("kubectl", "exit 1")
    done = machine.run(*arguments, **environment)
    assert done.returncode == 2
    assert expected in last_line(done)
    assert "geheim" not in done.stderr
    assert machine.calls() == []


def test_a_missing_kubectl_is_reported_with_alternatives(machine: Machine) -> None:
    done = machine.run("--release", "demo")
    assert done.returncode == 1
    assert last_line(done).startswith("kubernetes-run.sh: kubectl is not installed; install it, or use ./docker-run.sh")


def test_a_missing_cluster_is_reported_with_alternatives(machine: Machine) -> None:
    machine.add_stub("kubectl", "exit 1")
    assert "no Kubernetes cluster answers" in last_line(machine.run())


def test_a_missing_permission_is_named(machine: Machine) -> None:
    machine.add_stub("kubectl", 'case "$*" in *"create secrets"*) echo no; exit 1;; *can-i*) echo yes;; esac')
    done = machine.run(NAMESPACE="physics")
    assert done.returncode == 1
    assert "you may not create secrets in the namespace physics" in last_line(done)


def test_a_missing_image_is_reported_with_the_build_command(machine: Machine) -> None:
    machine.add_stub("kubectl", 'case "$*" in *can-i*) echo yes;; esac')
    machine.add_stub("docker", '[ "$1" = info ] || exit 1')
    done = machine.run(IMAGE_TAG="v7")
    assert "the image atlas-open-data/data-loader:v7 is not on this machine; build it with IMAGE_TAG=v7" in last_line(
        done
    )


@pytest.mark.parametrize(
    ("context", "command"),
    [("kind-physics", "kind load docker-image --name physics"), ("minikube", "minikube image load")],
)
def test_local_images_are_loaded_into_kind_and_minikube(machine: Machine, context: str, command: str) -> None:
    machine.add_stub(
        "kubectl",
        f'case "$*" in *can-i*) echo yes;; *current-context) echo {context};; *"get namespace"*) exit 1;; esac',
    )
    machine.add_stub("docker", "")
    machine.add_stub(command.split()[0], "")
    machine.run(IMAGE_TAG="v7")
    names = ("data-loader", "data-processor", "analysis", "visualisation")
    images = " ".join(f"atlas-open-data/{name}:v7" for name in names)
    assert f"{command} {images}" in machine.calls()


@pytest.mark.parametrize(
    ("kept", "command", "given"),
    [
        ("", "create secret generic rabbitmq --from-env-file=/dev/stdin", r"^MESSAGE_KEY=[0-9a-f]{64}$"),
        (
            "secret/rabbitmq",
            "patch secret rabbitmq --type=merge",
            r'^\{"stringData": \{"MESSAGE_KEY": "[0-9a-f]{64}"\}\}$',
        ),
    ],
)
def test_a_message_key_is_generated_once_and_is_in_no_command_line(
    machine: Machine, kept: str, command: str, given: str
) -> None:
    machine.add_stub(
        "kubectl",
        f'case "$*" in *can-i*) echo yes;; *"get secret rabbitmq --ignore-not-found"*) echo "{kept}";; '
        f'*"{command}"*) cat >"{machine.folder}/stdin";; *kustomize*) exit 1;; esac',
    )
    machine.add_stub("docker", "")
    machine.run()
    assert re.search(given, (machine.folder / "stdin").read_text(), re.MULTILINE)
    key = re.search(r"[0-9a-f]{64}", (machine.folder / "stdin").read_text())
    assert key is not None
    assert not [call for call in machine.calls() if key[0] in call]


def test_images_of_a_registry_are_not_looked_for_locally(machine: Machine) -> None:
    machine.add_stub(
        "kubectl", 'case "$*" in *can-i*) echo yes;; *"get namespace"*|*"create --filename=-"*) exit 1;; esac'
    )
    machine.add_stub("docker", "exit 1")
    done = machine.run(REGISTRY="registry.example/atlas")
    assert "the namespace atlas does not exist and you may not create it" in last_line(done)
    assert not [call for call in machine.calls() if call.startswith("docker")]


def test_settings_and_certificate_authority_of_the_environment_reach_the_pods(machine: Machine) -> None:
    machine.add_stub(
        "kubectl",
        'case "$*" in *can-i*) echo yes;; *"create secret"*) cat >/dev/null;; *--kustomize=*) for argument; do '
        f'case $argument in --kustomize=*) cat "${{argument#*=}}/kustomization.yaml" >"{machine.folder}/overlay"; '
        f'cp "${{argument#*=}}/settings.env" "{machine.folder}/settings"; '
        f'cp "${{argument#*=}}/ca.pem" "{machine.folder}/ca";; esac; done; exit 1;; esac',
    )
    machine.add_stub("docker", "exit 1")
    (machine.project / "own.pem").write_text("certificates")
    file = str(machine.project / "own.pem")
    done = machine.run(RABBITMQ_HOST="broker.example", RABBITMQ_TLS_CA=file, LOG_LEVEL="DEBUG", REGISTRY="r.example")
    assert "the cluster rejected the manifests" in last_line(done)
    overlay = yaml.safe_load((machine.folder / "overlay").read_text())
    generators = {generator["name"]: generator for generator in overlay["configMapGenerator"]}
    assert generators["broker-ca"]["files"] == ["ca.pem"]
    assert set((machine.folder / "settings").read_text().split()) == {
        "RABBITMQ_HOST=broker.example", "RABBITMQ_TLS_CA=/broker-ca/ca.pem", "LOG_LEVEL=DEBUG",
    }  # fmt: skip
    assert (machine.folder / "ca").read_text() == "certificates"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RABBITMQ_HOST": "localhost"}, "in a pod, this is the pod itself"),
        ({"RABBITMQ_TLS_CA": "/nowhere.pem"}, "RABBITMQ_TLS_CA=/nowhere.pem: no such file"),
    ],
)
def test_a_broker_that_no_pod_can_reach_is_refused(
    machine: Machine, environment: dict[str, str], expected: str
) -> None:
    done = machine.run(**environment)
    assert done.returncode == 2
    assert expected in last_line(done)


def test_the_file_of_an_analysis_is_added_to_the_config_map(machine: Machine) -> None:
    machine.add_stub(
        "kubectl",
        'case "$*" in *can-i*) echo yes;; *"create secret"*) cat >/dev/null;; *"patch configmap"*) exit 1;; esac',
    )
    machine.add_stub("docker", "exit 1")
    (machine.project / "own.py").write_text("ANALYSIS = 1\n")
    done = machine.run("--analysis", str(machine.project / "own.py"), REGISTRY="r.example")
    assert "the file of the analysis could not be put into the ConfigMap analyses" in last_line(done)
    calls = "\n".join(machine.calls())
    assert "create configmap analyses\n" in calls  # it did not exist
    assert f"create configmap analyses --from-file=own.py={machine.project}/own.py --dry-run=client" in calls
    assert "patch configmap analyses --type=merge --patch-file=" in calls


def test_help_is_printed_wherever_it_stands_and_nothing_else_happens(machine: Machine) -> None:
    for arguments in (["--help"], ["runs", "--help"], ["--release", "demo", "-h"]):
        done = machine.run(*arguments)
        assert done.returncode == 0
        assert done.stdout.startswith("Run an analysis on a Kubernetes cluster")
    assert machine.calls() == []


def test_words_about_runs_are_answered_in_the_pod_of_the_analysis(machine: Machine) -> None:
    machine.add_stub("kubectl", 'case "$*" in *"get deployment/analysis"*) echo it;; *exec*) exit 7;; esac')
    for arguments in (["runs", "--json"], ["cancel", "20260131-demo-1f3a"], ["dead-letters", "--requeue"]):
        assert machine.run(*arguments).returncode == 7
        call = machine.calls()[-1]
        assert call.startswith(
            "kubectl --namespace atlas exec deployment/analysis -- env COMMAND_NAME=./kubernetes-run"
        )
        assert call.endswith(f" sh {' '.join(arguments)}")


def test_replicas_are_scaled_without_applying_anything(machine: Machine) -> None:
    machine.add_stub("kubectl", 'case "$*" in *"get deployment/analysis"*) echo it;; esac')
    assert machine.run("--scale", "data-loader=0", "--scale=data-processor=12").returncode == 0
    changes = [call.removeprefix("kubectl --namespace atlas ") for call in machine.calls() if " get " not in call]
    assert changes[:2] == [
        "scale deployment/data-loader --replicas=0",
        "scale deployment/data-processor --replicas=12",
    ]
    assert not [call for call in changes if "apply" in call]


def test_a_scan_is_done_by_the_monitor_but_not_beside_an_autoscaler(machine: Machine) -> None:
    machine.add_stub("kubectl", "")
    machine.add_stub("python", 'echo "$NAMESPACE $*"')
    (machine.project / "venv.sh").write_text("use_venv() { :; }\n")
    done = machine.run("--scan=data-loader=1,2", "--repeat", "2", NAMESPACE="mine")
    flags = "scan --platform kubernetes data-loader=1,2 --repeat 2"
    assert done.stdout == f"mine {machine.project}/common/cpu_monitor.py {flags}\n", done.stderr
    machine.add_stub("kubectl", 'case "$*" in *"get configmap kubernetes-run"*) echo AUTOSCALE=keda;; esac')
    assert "AUTOSCALE=keda sets the number of replicas" in last_line(machine.run("--scan=data-loader=1,2"))


def test_a_word_needs_a_pipeline_that_runs(machine: Machine) -> None:
    machine.add_stub("kubectl", "")
    assert "the pipeline does not run in the namespace atlas; start it" in last_line(machine.run("runs"))


def test_settings_of_an_earlier_call_hold_unless_they_are_set(machine: Machine) -> None:
    earlier = "REGISTRY=r.example\\nLOG_LEVEL=DEBUG\\nRESULTS_KEEP=7"
    machine.add_stub(
        "kubectl",
        f'case "$*" in *can-i*) echo yes;; *"get configmap kubernetes-run"*) printf "{earlier}";; '
        '*"create secret"*) cat >/dev/null;; *--kustomize=*) for argument; do case $argument in --kustomize=*) '
        f'cp "${{argument#*=}}/environment" "{machine.folder}/environment";; esac; done; exit 1;; esac',
    )
    machine.run(LOG_LEVEL="", RESULTS_KEEP="3")
    kept = (machine.folder / "environment").read_text().split()
    assert kept == ["IMAGE_TAG=latest", "REGISTRY=r.example", "RESULTS_KEEP=3"]


def test_keda_gets_the_address_of_the_management_interface(machine: Machine) -> None:
    stored = {"USER": "atlas", "PASS": "p@ss/w%rd", "VHOST": "a/b"}
    answers = "".join(f'*data.RABBITMQ_{key}}}) printf %s "{value}" | base64;; ' for key, value in stored.items())
    machine.add_stub(
        "kubectl",
        f'case "$*" in *can-i*) echo yes;; api-versions) echo keda.sh/v1alpha1;; {answers}'
        '*data.MESSAGE_KEY*) printf key | base64;; *"get secret rabbitmq --ignore-not-found"*) echo it;; '
        f'*"apply --filename=-") cat >"{machine.folder}/secret"; exit 1;; esac',
    )
    machine.run(REGISTRY="r.example", AUTOSCALE="keda", NAMESPACE="physics")
    secret = yaml.safe_load((machine.folder / "secret").read_text())
    host = urlsplit(secret["stringData"]["host"])
    assert (host.scheme, host.hostname, host.port) == ("http", "rabbitmq.physics.svc", 15672)
    assert unquote(host.username or "") == stored["USER"]
    assert unquote(host.password or "") == stored["PASS"]
    assert host.path.count("/") == 1
    assert unquote(host.path.removeprefix("/")) == stored["VHOST"]
    (reference,) = read(MANIFESTS / "autoscaling" / "keda" / "trigger-authentication.yaml")[0]["spec"][
        "secretTargetRef"
    ]
    assert reference == {"parameter": "host", "name": secret["metadata"]["name"], "key": "host"}
