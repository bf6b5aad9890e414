"""The Docker Engine API: connection, and conversion of its documents to the monitor's types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import docker
import requests
import urllib3

from monitoring.sources.base import CounterSample, MonitorError, seconds

PROJECT_LABEL = "com.docker.compose.project"
_SERVICE_LABEL = "com.docker.compose.service"
_NUMBER_LABEL = "com.docker.compose.container-number"
#: What the libraries raise when the engine stops, also in the middle of a stream.
ENGINE_ERRORS = (
    docker.errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)


def connect() -> docker.DockerClient:
    """Connect to the engine at DOCKER_HOST or the default socket; raises MonitorError if there is none."""
    try:
        client = docker.from_env(timeout=20)
        client.ping()
    except ENGINE_ERRORS as error:
        raise MonitorError(f"no Docker engine answers: {error}; start it, or set DOCKER_HOST") from None
    return client


def system_time(client: docker.DockerClient) -> float:
    """Return the time by the engine's clock, in seconds since 1970; raises MonitorError if it does not answer."""
    try:
        return seconds(client.info()["SystemTime"])
    except ENGINE_ERRORS as error:
        raise MonitorError(f"the Docker engine does not answer: {error}") from None


def projects(client: docker.DockerClient) -> list[str]:
    """Return the Compose projects with running containers."""
    containers = client.api.containers(filters={"label": PROJECT_LABEL})
    return sorted({container["Labels"][PROJECT_LABEL] for container in containers})


def first_sample(details: Mapping[str, Any]) -> CounterSample:
    """Return the sample of a container at its start, from the document of ``inspect``."""
    labels = details["Config"]["Labels"]
    started = seconds(details["State"]["StartedAt"])
    return CounterSample(
        time=started,
        service=labels[_SERVICE_LABEL],
        replica=labels.get(_NUMBER_LABEL, "1"),
        container=details["Name"].lstrip("/"),
        started=started,
        cpu_seconds=0.0,
        state="started",
        restarts=details["RestartCount"],
    )


def sample(first: CounterSample, stats: Mapping[str, Any]) -> CounterSample:
    """Return the sample in a ``stats`` document of the container that ``first`` describes.

    The working set is usage without inactive page cache, as ``docker stats``
    and the kubelet define it.
    """
    memory = stats.get("memory_stats", {})
    pages = memory.get("stats", {})
    inactive = pages.get("total_inactive_file", pages.get("inactive_file", 0))
    networks = stats.get("networks", {}).values()
    blocks = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []

    def disk_bytes(operation: str) -> int | None:
        return sum(block["value"] for block in blocks if block["op"].lower() == operation) if blocks else None

    return replace(
        first,
        time=seconds(stats["read"]),
        cpu_seconds=stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
        state="running",
        memory_bytes=max(0, memory["usage"] - inactive) if "usage" in memory else None,
        network_rx_bytes=sum(network["rx_bytes"] for network in networks) if networks else None,
        network_tx_bytes=sum(network["tx_bytes"] for network in networks) if networks else None,
        disk_read_bytes=disk_bytes("read"),
        disk_write_bytes=disk_bytes("write"),
        throttled_seconds=stats["cpu_stats"].get("throttling_data", {}).get("throttled_time", 0) / 1e9,
    )


def limits(host: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a container's limits from its ``HostConfig``."""
    cores = host.get("NanoCpus", 0) / 1e9
    if not cores and host.get("CpuQuota", 0) > 0:
        cores = host["CpuQuota"] / (host.get("CpuPeriod") or 100_000)
    return {"cores": cores or None, "memory_bytes": host.get("Memory") or None}


def image(details: Mapping[str, Any]) -> dict[str, str]:
    """Return the name and the id of a container's image."""
    return {"name": details["Config"]["Image"], "id": details["Image"]}
