"""The progress of a run by stage."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from common.messages import Chunk, Progress
from common.progress import RunProgress, StageProgress

CHUNKS = [Chunk("run", "Zee", start, start + 10) for start in range(0, 1000, 10)]


@pytest.mark.parametrize("seed", range(5))
def test_a_chunk_counts_once_in_any_order(seed: int) -> None:
    reports = [*CHUNKS, *CHUNKS[:50], Chunk("run", "llll", 0, 7)]
    random.Random(seed).shuffle(reports)
    stage = StageProgress()
    for chunk in reports:
        stage.add(chunk)
    assert (stage.events, stage.chunks, stage.samples) == (1007, 101, 2)


def test_a_chunk_that_passed_a_stage_has_passed_those_before_it() -> None:
    run = RunProgress()
    run.update(Progress("data-loader", CHUNKS[0]))
    run.update(Progress("analysis", CHUNKS[0]))
    run.update(Progress("data-processor", CHUNKS[1]))
    assert {stage: done.events for stage, done in run.stages.items()} == {
        "data-loader": 20,
        "data-processor": 20,
        "analysis": 10,
    }


def test_the_total_is_that_of_the_opened_files() -> None:
    run = RunProgress()
    for sample, entries in (("Zee", 1000), ("llll", 7), ("Zee", 1000)):
        run.update(Progress("plan", Chunk("run", sample, 0, entries)))
    assert run.total_events == 1007
    assert list(run.planned) == ["Zee", "llll"]


def test_the_throughput_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stage = StageProgress()
    assert stage.throughput() is None
    for second in range(60):
        now = float(second)
        start = 100 * second if second < 30 else 3000 + 10 * (second - 30)
        stage.add(Chunk("run", "Zee", start, start + (100 if second < 30 else 10)))
    assert stage.throughput() == pytest.approx(10, rel=0.1)


def test_the_memory_does_not_grow_with_the_number_of_chunks() -> None:
    stage = StageProgress()
    tracemalloc.start()
    for start in range(0, 25_000_000, 1000):
        stage.add(Chunk("run", "Zee", start, start + 1000))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stage.chunks == 25_000
    assert used < 50_000
