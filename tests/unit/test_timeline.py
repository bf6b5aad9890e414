"""The timeline of a run has each span of each chunk once, opens in a trace viewer, and fits into a message."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from common.delivery import Delivery
from common.messages import Chunk, Result, Software, Span, decompress
from workers.analysis.provenance import provenance, version_warnings
from workers.analysis.timeline import Timeline
from workers.visualisation.result_files import with_visualisation


def spans(at: float, *, replica: int = 1, redeliveries: int = 0) -> tuple[Span, ...]:
    """What happens to a chunk from the time ``at``, published to ``chunks`` at 100 s."""
    loader, processor, analysis = ("data-loader", f"a-{replica}"), ("data-processor", f"b-{replica}"), ("analysis", "c")
    return (
        Span("waited", *loader, 100.0, at, redeliveries),
        Span("read", *loader, at, at + 1.0, redeliveries),
        Span("published", *loader, at + 1.0, at + 1.5),
        Span("waited", *processor, at + 1.5, at + 1.75),
        Span("selected", *processor, at + 1.75, at + 2.0),
        Span("published", *processor, at + 2.0, at + 2.125),
        Span("waited", *analysis, at + 2.125, at + 2.25),
        Span("added", *analysis, at + 2.25, at + 2.5),
    )


CHUNKS = [(Chunk("run", "Zee", 10 * i, 10 * i + 10), spans(101.0 + 2 * i, redeliveries=i == 1)) for i in range(3)]
TIMELINE = Timeline("run", CHUNKS)


def test_the_seconds_of_each_step_are_summed_over_the_chunks() -> None:
    assert TIMELINE.waits() == {
        "waited in queue chunks": 9.0,
        "read": 3.0,
        "published to queue events": 1.5,
        "waited in queue events": 0.75,
        "selected": 0.75,
        "added": 0.75,
        "published to queue selected": 0.375,
        "waited in queue selected": 0.375,
    }
    assert TIMELINE.replicas() == {"data-loader": ["a-1"], "data-processor": ["b-1"], "analysis": ["c"]}


def test_a_trace_has_each_span_of_a_chunk_once_and_those_of_a_replica_do_not_overlap() -> None:
    events = json.loads(TIMELINE.trace())["traceEvents"]
    named = {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e["ph"] == "M"}
    shown = [event for event in events if event["ph"] == "X"]
    found = Counter((e["args"]["chunk"], named[e["pid"], None], e["name"]) for e in shown)
    assert set(found.values()) == {1}
    assert len(found) == 3 * 8
    for replica, name in named.items():
        ends = sorted((e["ts"], e["ts"] + e["dur"]) for e in shown if (e["pid"], e["tid"]) == replica)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(ends)), name
    reads = [event for event in shown if event["name"] == "read"]
    assert [(e["ts"], e["dur"]) for e in reads] == [(int(at * 1e6), 1_000_000) for at in (101, 103, 105)]
    assert [e["args"].get("redeliveries", 0) for e in reads] == [0, 1, 0]
    waits = [
        e["args"]["in_queue_us"] for e in shown if e["name"] == "waited" and named[e["pid"], None] == "data-loader"
    ]
    assert waits == [1_000_000, 3_000_000, 5_000_000]


def test_spans_that_overlap_or_end_before_they_start_are_shown_without() -> None:
    """Another thread publishes what a worker process has read; the clocks of two machines differ."""
    first = (Span("read", "data-loader", "a", 1.0, 2.0), Span("published", "data-loader", "a", 2.0, 9.0))
    second = (Span("waited", "data-loader", "a", 5.0, 3.0), Span("read", "data-loader", "a", 3.0, 4.0))
    timeline = Timeline("run", [(Chunk("run", "Zee", 0, 1), first), (Chunk("run", "Zee", 1, 2), second)])
    events = [event for event in json.loads(timeline.trace())["traceEvents"] if event["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in events][:2] == [
        ("read", 10**6, 10**6),
        ("published", 2 * 10**6, 10**6),
    ]
    assert all(event["dur"] >= 0 for event in events)
    assert timeline.waits()["waited in queue chunks"] == 0


@pytest.mark.slow
def test_the_timeline_of_25000_chunks_fits_into_a_message_with_the_result() -> None:
    chunks = [
        (Chunk("run", "Zee", i, i + 1), spans(1.8e9 + i * 0.0123456789 + i % 7 * 0.00314159, replica=i % 8))
        for i in range(25_000)
    ]
    timeline = Timeline("run", chunks).compressed()
    assert len(json.loads(decompress(timeline))["traceEvents"]) > 8 * 25_000
    assert len(Result("run", final=True, result={}, timeline=timeline).encode()) < 5_000_000


def software(numpy: str = "2.4.0", **packages: str) -> Software:
    return Software("0.2.0", "abc", "docker, Linux x86_64", {"numpy": numpy, **packages})


def test_packages_are_stated_once_and_by_service_where_they_differ() -> None:
    same = [("data-loader", software(uproot="5.7")), ("analysis", software())]
    document = provenance(same, {"analysis": ["c"]}, {}, None)
    assert document["packages"] == {"numpy": "2.4.0", "uproot": "5.7"}
    assert document["platform"] == "docker, Linux x86_64"
    assert document["replicas"] == {"analysis": ["c"]}
    assert version_warnings(same) == []

    other = [*same, ("data-loader", software("2.3.1"))]
    assert provenance(other, {}, {}, None)["packages"]["numpy"] == {"data-loader": "2.4.0, 2.3.1", "analysis": "2.4.0"}
    (warning,) = version_warnings(other)
    assert "numpy 2.4.0, 2.3.1 (data-loader), 2.4.0 (analysis)" in warning
    assert "commit" not in warning


def test_a_result_names_the_packages_that_only_the_visualisation_has_or_has_otherwise() -> None:
    result = {"provenance": {"version": "0.2.0", "packages": {"numpy": "2.4.0", "python": "3.13.1", "scipy": "1.16"}}}
    drawn = with_visualisation(result, software("2.4.0", python="3.13.2", matplotlib="3.10"))
    assert drawn["provenance"] == {
        "version": "0.2.0",
        "packages": {
            "numpy": "2.4.0",
            "python": {"other services": "3.13.1", "visualisation": "3.13.2"},
            "scipy": "1.16",
            "matplotlib": "3.10",
        },
    }


def test_a_number_of_64_bits_in_the_broker_s_headers_can_be_encoded() -> None:
    """Pika gives such numbers, like the count of deliveries, as a class of its own."""

    class Long(int):
        pass

    delivery = Delivery("events", "events", b"", {"x-delivery-count": Long(3)}, redelivered=True, token=1)
    assert msgspec.json.encode(delivery.redeliveries) == b"3"
