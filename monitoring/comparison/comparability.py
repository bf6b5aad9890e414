"""Checks whether recordings are comparable: equal data, cuts, events, images, limits and machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from monitoring import usage
from monitoring.recording import Recording

#: Recordings whose durations differ by a larger factor include different amounts of idle time.
_DURATION_FACTOR = 1.2


def warnings(recordings: Sequence[Recording]) -> list[str]:
    """Return one sentence for each reason why recordings are not comparable."""
    usages = [usage.usage_by_service(recording) for recording in recordings]
    found = []
    for what, value in (
        ("the runs differ in data (release)", lambda r: r.part("run").get("release")),
        ("the runs differ in data (samples)", lambda r: sorted(r.part("run").get("samples") or {}) or None),
        ("the runs differ in cuts (pt_cuts, GeV)", partial(_setting, name="pt_cuts")),
        ("the runs differ in luminosity (fb⁻¹)", partial(_setting, name="lumi")),
        ("the runs differ in the fraction of events", partial(_setting, name="fraction")),
        ("the runs differ in events read", events_of),
        ("the runs differ in events selected", _events_selected),
        ("the runs differ in histograms (digest)", lambda r: r.part("run").get("digest")),
        ("the machines differ in cores", lambda r: r.header.get("cores")),
        ("the machines differ in kernel", lambda r: r.part("versions").get("kernel")),
    ):
        found += _differences(recordings, what, value)
    for service in usage.services_in_total({service for one in usages for service in one}):
        for what, value in (
            ("different images", partial(_image, service=service, part="name")),
            ("different images of the same tag", partial(_image, service=service, part="id")),
            ("different CPU limits (cores)", partial(_core_limit, service=service)),
            ("different memory limits (MB)", partial(_memory_limit_mb, service=service)),
            ("different numbers of replicas", partial(_replicas, service=service)),
        ):
            found += _differences(recordings, f"{service}: {what}", value)
    for recording in recordings:
        if not recording.part("run"):
            found.append(f"{recording.name}: no run is known, so neither are its data, cuts and events")
        elif not recording.part("run").get("complete"):
            found.append(f"{recording.name}: its run is not complete")
        if "averages" in str(recording.header.get("source")):
            found.append(f"{recording.name}: averages of metrics.k8s.io, not counters")
        found += [f"{recording.name}: {problem}" for problem in recording.header.get("problems") or ()]
    durations = [usage.duration_s(one) for one in usages]
    if max(durations) > _DURATION_FACTOR * min(durations):
        listed = ", ".join(f"{r.name} {seconds:.0f} s" for r, seconds in zip(recordings, durations, strict=True))
        found.append(f"the recordings differ in duration, so in idle time: {listed}")
    return found


def events_of(recording: Recording) -> int | None:
    """Return the number of events that the recorded run read, or None."""
    return recording.part("run").get("events") or None


def _differences(recordings: Sequence[Recording], what: str, value: Callable[[Recording], Any]) -> list[str]:
    """Return a sentence if the known values are not all equal."""
    names_by_value: dict[str, list[str]] = {}
    for recording in recordings:
        if (known := value(recording)) is not None:
            names_by_value.setdefault(str(known), []).append(recording.name)
    if len(names_by_value) < 2:
        return []
    return [f"{what}: " + "; ".join(f"{known} in {', '.join(names)}" for known, names in names_by_value.items())]


def _setting(recording: Recording, name: str) -> Any:
    return (recording.part("run").get("settings") or {}).get(name)


def _events_selected(recording: Recording) -> int | None:
    samples = recording.part("run").get("samples")
    return sum(selected for _, selected in samples.values()) if samples else None


def _image(recording: Recording, service: str, part: str) -> str | None:
    value = str((recording.part("images").get(service) or {}).get(part) or "")
    value = value.removeprefix("docker.io/library/")
    if part == "id":  # an engine's id; the digest of a registry is a different number
        return value[:19] if value.startswith("sha256:") else None
    if not value:
        return None
    return value if ":" in value.rpartition("/")[2] or "@" in value else f"{value}:latest"


def _core_limit(recording: Recording, service: str) -> float | None:
    return _limit(recording, service, "cores", recording.header.get("cores"))


def _memory_limit_mb(recording: Recording, service: str) -> float | None:
    limit = _limit(recording, service, "memory_bytes", recording.header.get("memory_bytes"))
    return None if limit is None else round(limit / 1e6)


def _limit(recording: Recording, service: str, name: str, machine: float | None) -> float | None:
    """Return a service's limit; without one, or above what the machine has, it is what the machine has."""
    limits = recording.part("limits")
    if service not in limits:
        return None
    return min((float(value) for value in (limits[service].get(name), machine) if value), default=None)


def _replicas(recording: Recording, service: str) -> int | None:
    used = usage.usage_by_service(recording).get(service)
    return used.replicas if used else None
