"""The requests that the monitor sends to a Kubernetes API server, with refusals as one-line errors.

Documents are read as plain JSON: the kubelet's summary has no typed client, and
typed pods would fail on fields that a newer server adds.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.utils.quantity import parse_quantity

from kubernetes import client, config, stream
from monitoring.sources.base import MonitorError, seconds

#: The first of these labels that a pod has names its service.
SERVICE_LABELS = ("app", "app.kubernetes.io/name")
_TIMEOUT_S = 10.0
#: Resolution of the time in the API server's answers.
CLOCK_RESOLUTION_S = 1.0


class RefusedError(MonitorError):
    """The API server refused a request; ``status`` is 403 for a missing right, 404 for a missing object."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Pod:
    """A pod of a service. ``running`` holds the names of running containers, times are seconds since 1970."""

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


class KubernetesApi:
    """One namespace of a cluster; raises MonitorError if no API server answers or the namespace does not exist."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        try:
            config.load_kube_config(os.environ.get("KUBECONFIG"))
        except (ConfigException, OSError) as error:
            try:
                config.load_incluster_config()
            except ConfigException:
                reason = str(error).splitlines()[0].rstrip(".")
                raise MonitorError(f"no Kubernetes cluster: {reason}; set KUBECONFIG, or run inside a pod") from None
        configuration = client.Configuration.get_default_copy()
        configuration.retries = False
        self._client = client.ApiClient(configuration)
        #: The cluster's time less the monotonic time of this process; see ``now``.
        self._clock_offset = 0.0
        self.version: Mapping[str, Any] = self.get("/version")
        try:
            self.get(f"/api/v1/namespaces/{namespace}")
        except RefusedError as error:
            if error.status == 404:
                raise MonitorError(
                    f"there is no namespace {namespace!r} in the cluster; name one with --namespace"
                ) from None

    def now(self) -> float:
        """Return the cluster's time, in seconds since 1970: the end of the second that the API server has now."""
        return self._clock_offset + time.monotonic()

    def get(self, path: str) -> Any:
        """GET a path as JSON; raises RefusedError with the server's message, MonitorError if it does not answer."""
        request = self._client.param_serialize("GET", path, auth_settings=["BearerToken"])
        asked_at = time.monotonic()
        try:
            response = self._client.call_api(*request, _request_timeout=_TIMEOUT_S)
            body = response.read()
        except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
            reason = str(getattr(error, "reason", None) or error)
            host = self._client.configuration.host
            raise MonitorError(f"no Kubernetes API server answers at {host}: {reason}") from None
        if not self._clock_offset and (date := response.getheader("Date")):
            self._clock_offset = parsedate_to_datetime(date).timestamp() + CLOCK_RESOLUTION_S - asked_at
        if response.status != 200:
            message = body.decode(errors="replace").strip()
            with contextlib.suppress(ValueError, KeyError, TypeError):
                message = json.loads(body)["message"]
            raise RefusedError(response.status, message)
        return json.loads(body)

    def pods(self) -> Sequence[Pod]:
        """Return the namespace's pods that have a service label and run on a node."""
        try:
            items = self.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        except RefusedError as error:
            raise RefusedError(error.status, f"the right to list pods is missing: {error}") from None
        return [pod for item in items if (pod := _pod(item)) is not None]

    def execute(self, pod: str, container: str, command: Sequence[str]) -> str:
        """Return the output of a command in a container; raises MonitorError if the server refuses to run it."""
        try:
            execution: Any = stream.stream(
                client.CoreV1Api(client.ApiClient(self._client.configuration)).connect_get_namespaced_pod_exec,
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
            execution.run_forever(timeout=_TIMEOUT_S)
            return str(execution.read_stdout(timeout=0))
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise MonitorError(f"the right to create pods/exec is missing: {error}") from None


def _pod(item: Mapping[str, Any]) -> Pod | None:
    metadata, spec, status = item["metadata"], item["spec"], item["status"]
    labels = metadata.get("labels") or {}
    service = next((labels[label] for label in SERVICE_LABELS if label in labels), None)
    if service is None or not spec.get("nodeName"):
        return None
    states = status.get("containerStatuses") or []
    finished = {}
    for state in states:
        terminated = {**(state.get("lastState") or {}), **(state.get("state") or {})}.get("terminated")
        if terminated and terminated.get("finishedAt"):
            finished[state["name"]] = seconds(terminated["finishedAt"])
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


def quantity(text: str | None) -> float | None:
    """Return a Kubernetes quantity such as ``500m`` or ``1Gi`` as a number."""
    return None if text is None else float(parse_quantity(text))
