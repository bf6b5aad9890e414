"""A Kubernetes API server as the monitor asks it: plain JSON, and refusals in one line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.utils.quantity import parse_quantity

from kubernetes import client, config, stream
from monitoring.sources.base import MonitorError

#: A service is known by the first of these labels that its pod has.
LABELS = ("app", "app.kubernetes.io/name")
_TIMEOUT_S = 10.0


class RefusedError(MonitorError):
    """The API server says no: ``status`` is 403 where a right is missing, 404 where there is no such thing."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Pod:
    """What the monitor needs to know of a pod; ``running`` holds the names of the containers that run."""

    uid: str
    name: str
    service: str
    node: str
    started: float | None
    running: frozenset[str]
    restarts: Mapping[str, int]
    finished: Mapping[str, float]
    spec: Mapping[str, Any] = field(repr=False)
    images: Mapping[str, str]


class Cluster:
    """One namespace of a cluster; raises MonitorError where no API server answers, or there is no such namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        try:
            config.load_kube_config()
        except (ConfigException, OSError) as error:
            try:
                config.load_incluster_config()
            except ConfigException:
                reason = str(error).splitlines()[0].rstrip(".")
                raise MonitorError(f"no Kubernetes cluster: {reason}; set KUBECONFIG, or run inside a pod") from None
        configuration = client.Configuration.get_default_copy()
        configuration.retries = False
        self._api = client.ApiClient(configuration)
        self.version: Mapping[str, Any] = self.get("/version")
        try:
            self.get(f"/api/v1/namespaces/{namespace}")
        except RefusedError as error:
            if error.status == 404:
                raise MonitorError(
                    f"there is no namespace {namespace!r} in the cluster; name one with --namespace"
                ) from None

    def get(self, path: str) -> Any:
        """GET a path as JSON; raises RefusedError with the server's own words, MonitorError where none answers."""
        request = self._api.param_serialize("GET", path, auth_settings=["BearerToken"])
        try:
            response = self._api.call_api(*request, _request_timeout=_TIMEOUT_S)
            body = response.read()
        except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
            reason = str(getattr(error, "reason", None) or error)
            host = self._api.configuration.host
            raise MonitorError(f"no Kubernetes API server answers at {host}: {reason}") from None
        if response.status != 200:
            message = body.decode(errors="replace").strip()
            with contextlib.suppress(ValueError, KeyError, TypeError):
                message = json.loads(body)["message"]
            raise RefusedError(response.status, message)
        return json.loads(body)

    def pods(self) -> Sequence[Pod]:
        """The namespace's pods that are known as services and have a node."""
        try:
            items = self.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        except RefusedError as error:
            raise RefusedError(error.status, f"the right to list pods is missing: {error}") from None
        return [pod for item in items if (pod := _pod(item)) is not None]

    def run(self, pod: str, container: str, command: Sequence[str]) -> str:
        """What a command prints inside a container; raises MonitorError where that is refused."""
        try:
            text: str = stream.stream(
                client.CoreV1Api(client.ApiClient(self._api.configuration)).connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                container=container,
                command=list(command),
                stdout=True,
                stderr=False,
                stdin=False,
                tty=False,
                _preload_content=False,
                _request_timeout=_TIMEOUT_S,
            )
            answer: Any = text
            answer.run_forever(timeout=_TIMEOUT_S)
            return str(answer.read_stdout(timeout=0))
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise MonitorError(f"the right to create pods/exec is missing: {error}") from None


def _pod(item: Mapping[str, Any]) -> Pod | None:
    metadata, spec, status = item["metadata"], item["spec"], item["status"]
    labels = metadata.get("labels") or {}
    service = next((labels[label] for label in LABELS if label in labels), None)
    if service is None or not spec.get("nodeName"):
        return None
    states = status.get("containerStatuses") or []
    finished = {}
    for state in states:
        ended = {**(state.get("lastState") or {}), **(state.get("state") or {})}.get("terminated")
        if ended and ended.get("finishedAt"):
            finished[state["name"]] = seconds(ended["finishedAt"])
    return Pod(
        uid=metadata["uid"],
        name=metadata["name"],
        service=service,
        node=spec["nodeName"],
        started=seconds(status["startTime"]) if status.get("startTime") else None,
        running=frozenset(state["name"] for state in states if "running" in (state.get("state") or {})),
        restarts={state["name"]: state["restartCount"] for state in states},
        finished=finished,
        spec=spec,
        images={state["name"]: state.get("imageID", "") for state in states},
    )


def seconds(text: str) -> float:
    """Seconds since 1970 of a time as the API server writes it."""
    return datetime.fromisoformat(text).timestamp()


def quantity(text: str | None) -> float | None:
    """A quantity such as ``500m`` or ``1Gi`` as a number."""
    return None if text is None else float(parse_quantity(text))
