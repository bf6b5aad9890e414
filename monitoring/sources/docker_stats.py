"""What the Docker Engine API says of a container, in the monitor's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from monitoring.sources.base import Reading


def reading(first: Reading, stats: Mapping[str, Any]) -> Reading:
    """A reading from what the engine sends; the working set is what ``docker stats`` and the kubelet mean by it."""
    memory = stats.get("memory_stats", {})
    pages = memory.get("stats", {})
    inactive = pages.get("total_inactive_file", pages.get("inactive_file", 0))
    networks = stats.get("networks", {}).values()
    blocks = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []

    def moved(kind: str) -> int | None:
        return sum(block["value"] for block in blocks if block["op"].lower() == kind) if blocks else None

    return replace(
        first,
        time=seconds(stats["read"]),
        cpu_seconds=stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
        state="running",
        memory_bytes=max(0, memory["usage"] - inactive) if "usage" in memory else None,
        network_rx_bytes=sum(network["rx_bytes"] for network in networks) if networks else None,
        network_tx_bytes=sum(network["tx_bytes"] for network in networks) if networks else None,
        disk_read_bytes=moved("read"),
        disk_write_bytes=moved("write"),
        throttled_seconds=stats["cpu_stats"].get("throttling_data", {}).get("throttled_time", 0) / 1e9,
    )


def limits(host: Mapping[str, Any]) -> dict[str, float | None]:
    """A container's limits from its HostConfig."""
    cores = host.get("NanoCpus", 0) / 1e9
    if not cores and host.get("CpuQuota", 0) > 0:
        cores = host["CpuQuota"] / (host.get("CpuPeriod") or 100_000)
    return {"cores": cores or None, "memory_bytes": host.get("Memory") or None}


def image(details: Mapping[str, Any]) -> dict[str, str]:
    """A container's image: its name as given, and its id."""
    return {"name": details["Config"]["Image"], "id": details["Image"]}


def seconds(text: str) -> float:
    """Seconds since 1970 of a time as the engine writes it."""
    return datetime.fromisoformat(text).timestamp()
