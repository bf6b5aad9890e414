"""Conversion of the Docker Engine API's documents to the monitor's types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from monitoring.sources.base import CounterSample


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


def seconds(text: str) -> float:
    """Return an ISO 8601 time as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()
