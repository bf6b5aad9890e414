"""Whether recordings may be compared: the same data, cuts, events, images, limits and machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from monitoring import usage
from monitoring.recording import Recording
from monitoring.sources.base import HOST

#: Recordings whose lengths differ by more hold different amounts of idling.
_LENGTHS_ALIKE = 1.2


def events_of(recording: Recording) -> int | None:
    """Events of the recorded run, of all samples."""
    return (recording.header.get("run") or {}).get("events") or None


def warnings(recordings: Sequence[Recording]) -> list[str]:
    """Where recordings are not comparable, a sentence each."""
    found = [
        *_differing(recordings, "the runs differ in data (release)", lambda r: _run(r).get("release")),
        *_differing(recordings, "the runs differ in data (samples)", lambda r: sorted(_run(r).get("samples") or {})),
        *_differing(recordings, "the runs differ in cuts (pt_cuts, GeV)", lambda r: _setting(r, "pt_cuts")),
        *_differing(recordings, "the runs differ in luminosity (fb⁻¹)", lambda r: _setting(r, "lumi")),
        *_differing(recordings, "the runs differ in the fraction of events", lambda r: _setting(r, "fraction")),
        *_differing(recordings, "the runs differ in events read", events_of),
        *_differing(recordings, "the runs differ in events selected", _selected),
        *_differing(recordings, "the runs give other histograms (digest)", lambda r: _run(r).get("digest")),
        *_differing(recordings, "the machines differ in cores", lambda r: r.header.get("cores")),
        *_differing(recordings, "the machines differ in kernel", lambda r: known(r, "versions").get("kernel")),
    ]
    services = {service for r in recordings for service in usage.usages(r) if service != HOST}
    for service in usage.counted(services):
        found += _differing(recordings, f"{service}: other image", partial(_image, service=service, part="name"))
        found += _differing(
            recordings, f"{service}: same tag, other image", partial(_image, service=service, part="id")
        )
        found += _differing(recordings, f"{service}: other CPU limit (cores)", partial(_cores, service=service))
        found += _differing(recordings, f"{service}: other memory limit (MB)", partial(_memory_mb, service=service))
        found += _differing(recordings, f"{service}: other number of replicas", partial(_replicas, service=service))
    for recording in recordings:
        if not recording.header.get("run"):
            found.append(f"{recording.name}: no run is known, so neither are its data, cuts and events")
        elif not _run(recording).get("complete"):
            found.append(f"{recording.name}: its run is not complete")
        if "averages" in str(recording.header.get("source")):
            found.append(f"{recording.name}: averages of metrics.k8s.io, not counters")
        found += [f"{recording.name}: {problem}" for problem in recording.header.get("problems") or ()]
    lengths = {recording.name: usage.seconds_recorded(usage.usages(recording)) for recording in recordings}
    if max(lengths.values()) > _LENGTHS_ALIKE * min(lengths.values()):
        shown = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in lengths.items())
        found.append(f"the recordings differ in length, so in idling: {shown}")
    return found


def _differing(recordings: Sequence[Recording], what: str, value: Callable[[Recording], Any]) -> list[str]:
    """A sentence where known values are not all the same."""
    values: dict[str, list[str]] = {}
    for recording in recordings:
        its = value(recording)
        if its is not None and its != {} and (its != [] or "cuts" in what):
            values.setdefault(str(its), []).append(recording.name)
    if len(values) < 2:
        return []
    return [f"{what}: " + "; ".join(f"{known} in {', '.join(names)}" for known, names in values.items())]


def known(recording: Recording, key: str) -> Mapping[str, Any]:
    """A part of a recording's header, empty where it is not there."""
    value = recording.header.get(key)
    return value if isinstance(value, Mapping) else {}


def _run(recording: Recording) -> Mapping[str, Any]:
    return known(recording, "run")


def _setting(recording: Recording, name: str) -> Any:
    return (_run(recording).get("settings") or {}).get(name)


def _selected(recording: Recording) -> int | None:
    samples = _run(recording).get("samples")
    return sum(selected for _, selected in samples.values()) if samples else None


def _image(recording: Recording, service: str, part: str) -> str | None:
    value = str((known(recording, "images").get(service) or {}).get(part) or "").removeprefix("docker.io/library/")
    if part == "id":  # an engine's own id; a registry's digest is another kind of number
        return value[:19] if value.startswith("sha256:") else None
    return value if not value or ":" in value.rpartition("/")[2] or "@" in value else f"{value}:latest"


def _cores(recording: Recording, service: str) -> float | None:
    """What a service may use: no limit, or one above the machine's cores, is the machine's cores."""
    return _limit(recording, service, "cores", recording.header.get("cores"))


def _memory_mb(recording: Recording, service: str) -> float | None:
    limit = _limit(recording, service, "memory_bytes", recording.header.get("memory_bytes"))
    return None if limit is None else round(limit / 1e6)


def _limit(recording: Recording, service: str, name: str, machine: float | None) -> float | None:
    if service not in known(recording, "limits"):
        return None
    limit = known(recording, "limits")[service].get(name)
    those = [float(value) for value in (limit, machine) if value]
    return min(those) if those else None


def _replicas(recording: Recording, service: str) -> int | None:
    used = usage.usages(recording).get(service)
    return used.replicas if used else None
