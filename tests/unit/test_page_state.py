"""What the page shows of the states of services, the spans of chunks and partial results, without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from common.messages import Chunk, Progress, QueueStatus, Result, ServiceStatus, Span
from tests.unit.test_page import RUN, document, spans, status, status_messages
from workers.analysis.timeline import Timeline as AnalysisTimeline
from workers.visualisation.page.live import LiveRuns
from workers.visualisation.page.partial import scaled_result
from workers.visualisation.page.pipeline import GONE_SHOWN_S, Pipeline
from workers.visualisation.page.timeline import COLUMNS, Timeline
from workers.visualisation.page.usage import usage_of, with_usage


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that sets the monotonic clock."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def set_now(seconds: float) -> None:
        now[0] = seconds

    return set_now


def send(pipeline: Pipeline, at: float, *replicas: str, **changes: Any) -> None:
    """Send the status of processors, and of the queues, at a time."""
    for replica in replicas:
        pipeline.update(status(replica, at, **changes))
    pipeline.update(QueueStatus({}, at))


def states(pipeline: Pipeline) -> dict[str, str]:
    return {one.status.replica: one.state for _, service in pipeline.state().flow for one in service.replicas}


def test_a_killed_replica_is_shown_as_gone_and_its_successor_as_started(set_clock: Callable[[float], None]) -> None:
    pipeline = Pipeline()
    for second in range(100, 103):
        set_clock(second)
        send(pipeline, second, "one", "two")
    for second in range(103, 115):
        set_clock(second)
        send(pipeline, second, "one")
    assert states(pipeline) == {"one": "busy", "two": "gone"}
    send(pipeline, 115.0, "three", since=113.0)
    happened = [text for _, text in pipeline.state().happenings]
    assert happened == [
        "three (data-processor) has started",
        "two (data-processor) is gone; it was handling llll[0:500]",
    ]
    set_clock(104 + GONE_SHOWN_S)
    send(pipeline, 104 + GONE_SHOWN_S, "one", "three")
    assert states(pipeline) == {"one": "busy", "three": "busy"}


@pytest.mark.parametrize(("skew_s", "delay_s"), [(30.0, 0.0), (-30.0, 0.0), (0.0, 30.0)])
def test_a_replica_is_not_gone_if_its_clock_is_wrong_or_all_messages_are_late(
    set_clock: Callable[[float], None], skew_s: float, delay_s: float
) -> None:
    pipeline = Pipeline()
    for second in range(100, 110):
        set_clock(second + (delay_s if second > 104 else 0.0))
        pipeline.update(status("skewed", second + skew_s))
        send(pipeline, second, "one")
        assert states(pipeline) == {"one": "busy", "skewed": "busy"}


def test_a_replica_that_was_silent_is_back_when_it_sends_again(set_clock: Callable[[float], None]) -> None:
    pipeline = Pipeline()
    set_clock(100)
    send(pipeline, 100.0, "one", "two")
    for second in range(101, 114):
        set_clock(second)
        send(pipeline, second, "one")
    send(pipeline, 114.0, "two")
    assert states(pipeline) == {"one": "busy", "two": "busy"}
    assert pipeline.state().happenings[0] == (114.0, "two (data-processor) is back")


def test_a_stopped_replica_is_gone_at_once(set_clock: Callable[[float], None]) -> None:
    pipeline = Pipeline()
    send(pipeline, 100.0, "one", "two")
    send(pipeline, 101.0, "two", state="stopping")
    assert states(pipeline) == {"one": "busy", "two": "gone"}
    send(pipeline, 102.0, "two", state="stopping")  # until it has handled its last message
    assert states(pipeline) == {"one": "busy", "two": "gone"}
    assert pipeline.state().happenings[0] == (101.0, "two (data-processor) has stopped")


def test_services_in_one_process_share_its_cpu_time_and_memory() -> None:
    pipeline = Pipeline()
    for at in (100.0, 102.0):
        for service in ("data-loader", "data-processor", "analysis", "visualisation"):
            pipeline.update(status("this", at, service, pid=1))
        pipeline.update(QueueStatus({}, at))
    state = pipeline.state()
    assert state.process == (0.5, 100_000_000)
    assert all(service.cores is None for _, service in state.flow)
    assert pipeline.samples(0.0, 200.0) == {"all services": [(100.0, 0.0, 100_000_000), (102.0, 0.5, 100_000_000)]}


def test_the_cpu_of_the_services_is_listed_in_the_order_of_the_flow() -> None:
    pipeline = Pipeline()
    for at in (100.0, 101.0):
        for service in ("visualisation", "analysis", "data-loader"):
            pipeline.update(status(service, at, service))
        pipeline.update(QueueStatus({}, at))
    assert list(pipeline.samples(0.0, 200.0)) == ["data-loader", "analysis", "visualisation"]


def test_each_replica_has_a_row_with_its_steps_and_redeliveries() -> None:
    timeline = Timeline()
    timeline.add(spans(1000.0))
    timeline.add(spans(1003.75, redeliveries=1))
    parts = timeline.parts()
    assert parts is not None
    assert parts.limits == (1000.0, 1005.0)
    loader, processor, analysis = parts.rows
    assert dict(loader.steps) == {"read": [(0, 100), (750, 100)]}
    assert dict(processor.steps) == {"selected": [(150, 50), (900, 50)], "waited": [(100, 50), (850, 50)]}
    assert dict(analysis.steps) == {"added": [(200, 50), (950, 50)]}
    assert processor.busy == pytest.approx(0.1)
    assert (list(processor.redelivered), processor.chunks) == ([900], 2)
    assert [(wait.step, wait.seconds, wait.chunks) for wait in parts.waits[:2]] == [
        ("read", 1.0, 2),
        ("waited", 0.5, 2),
    ]


def test_a_timeline_of_25000_chunks_is_drawn_with_few_bars() -> None:
    rng = np.random.default_rng(1)
    timeline = Timeline()
    for start in np.sort(rng.uniform(0, 600, 25_000)):
        replica = f"{rng.integers(4)}"
        timeline.add([Span("read", "data-loader", replica, start, start + rng.uniform(0.01, 0.1))])
    parts = timeline.parts()
    assert parts is not None
    assert sum(row.chunks for row in parts.rows) == 25_000
    assert all(len(ranges) <= COLUMNS / 2 for row in parts.rows for ranges in row.steps.values())


def test_the_page_shows_the_same_timeline_from_the_file_as_from_the_messages() -> None:
    chunks = [(Chunk(RUN, "Zee", 1000 * n, 1000 * n + 1000), spans(1000.0 + 2 * n, redeliveries=n)) for n in range(2)]
    live = Timeline()
    for _, of_chunk in chunks:
        live.add(of_chunk)
    samples = {"analysis": [(1000.0 + n, 0.5, 100 + n) for n in range(4)]}
    content = with_usage(AnalysisTimeline(RUN, chunks).trace(), samples)
    read, expected = Timeline.of_file(content).parts(), live.parts()
    assert read is not None
    assert expected is not None
    assert read.rows == expected.rows
    assert read.samples == samples
    usage = usage_of(read.samples, read.limits)["analysis"]
    assert (usage.most_cores, usage.most_bytes) == (0.5, 103)
    assert usage.memory.startswith("M0 ")
    for broken in (b"", b"[]", b'{"traceEvents": 5}'):
        with pytest.raises(msgspec.MsgspecError):
            Timeline.of_file(broken)


def partial(read: dict[str, int], planned: int = 1000) -> Any:
    """Return what the page shows of a partial result in which so many events of ``planned`` are read of each sample."""
    made = document(complete=False, problems=[])
    made["samples"] = {name: {**made["samples"][name], "events_read": events} for name, events in read.items()}
    made["window"] = {
        "low": 115.0, "high": 130.0, "n_data": 0, "n_background": 1.0, "n_signal_plus_background": 2.0,
        "significance": 2.0,
    }  # fmt: skip
    live = LiveRuns(lambda run_id: False)
    for name in read:
        live.update(Progress("plan", Chunk(RUN, name, 0, planned)))
    live.update(Result(RUN, False, made))
    run = live.get(RUN)
    assert run is not None
    return made, scaled_result(run)


def test_simulation_is_scaled_to_the_fraction_of_the_data_that_is_read() -> None:
    made, shown = partial({"data_A": 250, "llll": 1000, "Zee": 500, "Zmumu": 0})
    done = "simulation is scaled to the 25 % of the data that are read; 1 simulated sample not read yet"
    assert shown["progress"] == {"percent": 43, "note": done, "unread": 1}
    before, after = made["histograms"]["m4l"], shown["histograms"]["m4l"]
    assert after["data"] == before["data"]
    assert after["zz"]["values"] == pytest.approx(0.25 * np.array(before["zz"]["values"]))
    assert after["zz"]["variances"] == pytest.approx(0.0625 * np.array(before["zz"]["variances"]))
    assert shown["categories"]["zz"]["yield"] == 0.25 * made["categories"]["zz"]["yield"]
    inside = slice(7, 10)  # 115 to 130 GeV
    assert shown["window"]["n_background"] == pytest.approx(
        sum(sum(after[name]["values"][inside]) for name in ("zz", "z_ttbar"))
    )
    assert shown["window"]["significance"] is None


def test_simulation_is_scaled_to_the_whole_run_before_data_are_read() -> None:
    made, shown = partial({"data_A": 0, "llll": 500})
    assert shown["progress"]["note"] == "simulation is scaled to the whole run"
    assert shown["categories"]["zz"]["yield"] == 2 * made["categories"]["zz"]["yield"]


def test_messages_of_the_pipeline_are_of_no_run() -> None:
    live = LiveRuns(lambda run_id: False)
    for message in status_messages():
        assert isinstance(message, ServiceStatus | QueueStatus)
        live.update(message)
    assert live.all() == []
