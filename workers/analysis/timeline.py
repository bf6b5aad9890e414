"""The timeline of a run: what happened to each chunk, in the Chrome trace event format, and totals of it."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec

from common.messages import MAX_TIMELINE_BYTES, Chunk, Span

#: The services in the order of the flow, the queue that each consumes for its chunks, and what it publishes to.
_QUEUES = {"data-loader": ("chunks", "events"), "data-processor": ("events", "selected"), "analysis": ("selected", "")}
#: The most bytes of the compressed timeline, which travels in one message with the result. 25,000 chunks need 3.2 MB.
MAX_BYTES = 3_600_000


@dataclass(frozen=True)
class Timeline:
    """What happened to the chunks of a run."""

    run_id: str
    chunks: list[tuple[Chunk, tuple[Span, ...]]]

    def waits(self) -> dict[str, float]:
        """Return the seconds that the chunks spent in each step together, by its description, the longest first."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for _, spans in self.chunks:
            for span in spans:
                seconds[_description(span)] += span.seconds
        return {name: round(total, 3) for name, total in sorted(seconds.items(), key=itemgetter(1), reverse=True)}

    def replicas(self) -> dict[str, list[str]]:
        """Return the names of the replicas that worked on the run, by their services."""
        found: dict[str, set[str]] = {service: set() for service in _QUEUES}
        for _, spans in self.chunks:
            for span in spans:
                found.setdefault(span.service, set()).add(span.replica)
        return {service: sorted(names) for service, names in found.items()}

    def compressed(self) -> bytes:
        """Return the content of timeline.json, compressed by zlib; empty if it is too large for a message."""
        content = self.trace()
        packed = zlib.compress(content) if len(content) <= MAX_TIMELINE_BYTES else b""
        return packed if len(packed) <= MAX_BYTES else b""

    def trace(self) -> bytes:
        """Return a document in the Chrome trace event format, which Perfetto shows.

        A service is a process in it, a replica a thread, and a span an event with the name of its step. ``ts`` (since
        1970) and ``dur`` are in microseconds. The events of a replica do not overlap: ``waited`` is the part of the
        wait in which the replica had nothing to do, and its argument ``in_queue_us`` the whole; ``published`` ends when
        the replica begins with another chunk. Events of a message that was delivered before have the argument
        ``redeliveries``.
        """
        by_replica: defaultdict[tuple[str, str], list[tuple[Span, Chunk]]] = defaultdict(list)
        for chunk, spans in self.chunks:
            for span in spans:
                by_replica[span.service, span.replica].append((span, chunk))
        services = list(dict.fromkeys([*_QUEUES, *(service for service, _ in sorted(by_replica))]))
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": service}}
            for pid, service in enumerate(services, start=1)
        ]
        for tid, (service, replica) in enumerate(sorted(by_replica), start=1):
            pid = services.index(service) + 1
            events.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": replica}})
            events += _events(by_replica[service, replica], pid, tid)
        return msgspec.json.encode(
            {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run_id": self.run_id}}
        )


def _events(spans: list[tuple[Span, Chunk]], pid: int, tid: int) -> Iterator[dict[str, Any]]:
    """Yield the events of one replica, in the order of its work, without overlap."""
    spans.sort(key=lambda one: one[0].end if one[0].step == "waited" else one[0].start)
    works = iter([span.start for span, _ in spans if span.step not in ("waited", "published")] + [math.inf])
    next_work = next(works)
    free_at = 0.0  # when the replica has finished what came before
    for span, chunk in spans:
        step, start, end = span.step, span.start, max(span.start, span.end)
        args: dict[str, Any] = {"sample": chunk.sample, "chunk": f"{chunk.start}:{chunk.stop}"}
        if span.redeliveries:
            args["redeliveries"] = span.redeliveries
        if step == "waited":
            args["in_queue_us"] = round((end - start) * 1e6)
            start = min(max(start, free_at), end)
        elif step == "published":
            end = max(start, min(end, next_work))
        else:
            next_work = next(works)
        free_at = max(free_at, end)
        us = round(start * 1e6)
        yield {"ph": "X", "pid": pid, "tid": tid, "name": step, "ts": us, "dur": round(end * 1e6) - us, "args": args}


def _description(span: Span) -> str:
    consumed, published = _QUEUES.get(span.service, ("", ""))
    match span.step:
        case "waited":
            return f"waited in queue {consumed}"
        case "published":
            return f"published to queue {published}"
    return span.step
