"""CPU and memory of the services over the time of a run: in timeline.json, and as paths of an SVG of 1000 by 30."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

#: The names of the counters in timeline.json are a service's name and this.
CORES = ", cores"
WIDTH, HEIGHT = 1000, 30
#: The most points of a path.
MAX_POINTS = 300

#: A time in seconds since 1970, and the cores and bytes of memory then.
Sample = tuple[float, float, int]


@dataclass(frozen=True)
class Usage:
    """The paths of a service's cores and memory, relative to the highest values."""

    cores: str
    memory: str
    most_cores: float
    most_bytes: int


def with_usage(timeline: bytes, samples: Mapping[str, Sequence[Sample]]) -> bytes:
    """Return the content of a timeline.json with the samples added as counters, of which Perfetto draws a curve."""
    trace = msgspec.json.decode(timeline, type=dict[str, msgspec.Raw])
    events = msgspec.json.decode(trace["traceEvents"], type=list[msgspec.Raw])
    for name, found in samples.items():
        for at, cores, memory in found[:: max(1, len(found) // MAX_POINTS)]:
            args = {"cores": round(cores, 3), "bytes": memory}
            counter = {"ph": "C", "pid": 0, "name": f"{name}{CORES}", "ts": round(1e6 * at), "args": args}
            events.append(msgspec.Raw(msgspec.json.encode(counter)))
    return msgspec.json.encode({**trace, "traceEvents": events})


def usage_of(samples: Mapping[str, Sequence[Sample]], limits: tuple[float, float]) -> dict[str, Usage]:
    """Return the paths of each service between two times; a service without at least two samples is left out."""
    return {name: _paths(found, *limits) for name, found in samples.items() if len(found) > 1}


def _paths(samples: Sequence[Sample], start: float, end: float) -> Usage:
    kept = samples[:: max(1, len(samples) // MAX_POINTS)]
    most_cores, most_bytes = max(one[1] for one in kept), max(one[2] for one in kept)
    x = [min(WIDTH, max(0, round(WIDTH * (at - start) / max(end - start, 1e-3)))) for at, *_ in kept]
    cores = [HEIGHT - (HEIGHT - 2) * one / (most_cores or 1) for _, one, _ in kept]
    memory = [HEIGHT - (HEIGHT - 2) * one / (most_bytes or 1) for *_, one in kept]
    line = "".join(f"L{at} {y:.1f}" for at, y in zip(x, cores, strict=True))
    return Usage(
        f"M{x[0]} {HEIGHT}{line}L{x[-1]} {HEIGHT}z",
        "M" + "L".join(f"{at} {y:.1f}" for at, y in zip(x, memory, strict=True)),
        most_cores,
        most_bytes,
    )
