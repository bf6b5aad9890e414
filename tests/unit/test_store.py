"""The store counts each chunk once, whether messages arrive in another order, late, repeatedly or never."""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DamagedError, DatabaseError, SettingsError, Unavailable
from common.messages import Chunk, FileIdentity, RunPlan, SamplePlan, Span
from common.settings import RunSettings
from physics import ANALYSES
from tests.support.paths import ROOT
from tests.support.real_data import ANALYSIS, random_selected
from workers.analysis.histograms import fill
from workers.analysis.result import result_of
from workers.analysis.store import PartialSums, Store

SAMPLES = {"data_A": (0, 20, 40), "Zee": (0, 30, 60, 90, 120), "llll": (0, 50), "ZH125_ZZ4lep": (0,)}
SETTINGS = ANALYSES.resolve(RunSettings(samples=tuple(SAMPLES)))


def partial(chunk: Chunk) -> PartialSums:
    """What a chunk adds; its weights are random, so that another order of additions changes the last bits."""
    rng = np.random.default_rng([chunk.start, *chunk.sample.encode()])
    events = random_selected(rng, chunk.stop - chunk.start)
    cutflow = dict.fromkeys(ANALYSIS.steps, len(events))
    weights = np.empty(0, np.float32) if chunk.sample == "data_A" else np.asarray(events.weight)
    return PartialSums(cutflow, fill(events, ANALYSIS, ANALYSIS.sample(chunk.sample).category), weights)


def spans(chunk: Chunk) -> tuple[Span, ...]:
    return (Span("read", "data-loader", "replica-1", 1.0 + chunk.start, 2.0 + chunk.start),)


Step = Callable[[Store], object]


def sample_plan(run_id: str, sample: str) -> SamplePlan:
    return SamplePlan(run_id, sample, SAMPLES[sample][-1], SAMPLES[sample])


def chunks(run_id: str) -> list[Chunk]:
    return [chunk for sample in SAMPLES for chunk in sample_plan(run_id, sample).chunks]


def steps(run_id: str) -> list[Step]:
    """All steps of a complete run."""

    def begin(store: Store) -> None:
        store.begin(RunPlan(run_id, 1000.0, SETTINGS))

    def plan(sample: str) -> Step:
        return lambda store: store.plan(sample_plan(run_id, sample))

    def add(chunk: Chunk) -> Step:
        return lambda store: store.add(chunk, partial(chunk), spans(chunk))

    return [begin, *map(plan, SAMPLES), *map(add, chunks(run_id))]


def final(store: Store, run_id: str = "run") -> str:
    """A run's final result to the last bit, because JSON keeps floats exactly."""
    run = store.run(run_id)
    assert run is not None
    return json.dumps(result_of(run, store, 1010.0, final=True))


def complete_run() -> str:
    with closing(Store(None)) as store:
        for step in steps("run"):
            step(store)
        return final(store)


EXPECTED = complete_run()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(None)
    yield store
    store.close()


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 8))
def test_any_order_with_repetitions_gives_the_same_bits(rng: random.Random, repeats: int) -> None:
    todo = steps("run")
    todo += rng.choices(todo, k=repeats)
    rng.shuffle(todo)

    with closing(Store(None)) as store:
        for step in todo:
            step(store)

        assert store.is_settled("run")
        assert final(store) == EXPECTED


@pytest.mark.parametrize("left_out", range(len(steps("run"))))
def test_a_run_is_settled_only_when_everything_has_arrived(store: Store, left_out: int) -> None:
    assert not store.is_settled("run")
    todo = steps("run")
    last = todo.pop(left_out)
    for step in todo:
        step(store)
    assert not store.is_settled("run")

    last(store)

    assert store.is_settled("run")


def test_a_second_delivery_of_a_chunk_changes_nothing(store: Store) -> None:
    for step in steps("run"):
        step(store)
    chunk = Chunk("run", "Zee", 30, 60)
    other = partial(Chunk("run", "Zee", 31, 61))

    assert store.add(chunk, other, spans(chunk) * 2) is False
    assert final(store) == EXPECTED
    assert dict(store.spans("run")) == {planned: spans(planned) for planned in chunks("run")}


def test_a_second_plan_with_other_bounds_counts_no_event_twice(store: Store) -> None:
    for step in steps("run"):
        step(store)
    store.plan(SamplePlan("run", "Zee", 120, (0, 60, 120)))
    for chunk in SamplePlan("run", "Zee", 120, (0, 60, 120)).chunks:
        store.add(chunk, partial(chunk), spans(chunk))

    assert store.is_settled("run")
    assert final(store) == EXPECTED


# --- failures -------------------------------------------------------------

ZEE = Chunk("run", "Zee", 30, 60)


def without(chunk: Chunk, store: Store) -> None:
    """Add all chunks of a run except one."""
    store.begin(RunPlan("run", 1000.0, SETTINGS))
    for sample in SAMPLES:
        store.plan(sample_plan("run", sample))
    for other in chunks("run"):
        if other != chunk:
            store.add(other, partial(other), spans(other))


def test_a_failed_chunk_settles_its_run_and_success_removes_the_problem(store: Store) -> None:
    without(ZEE, store)
    store.fail(ZEE, "the file is broken", spans(ZEE))

    assert store.is_settled("run")
    assert store.problems("run") == ["Zee[30:60]: the file is broken"]
    assert dict(store.spans("run"))[ZEE] == spans(ZEE)
    assert json.loads(final(store))["samples"]["Zee"]["events_read"] == 90
    assert json.loads(final(store))["complete"] is False

    assert store.add(ZEE, partial(ZEE), spans(ZEE)) is True
    assert store.problems("run") == []
    assert final(store) == EXPECTED


def test_a_failure_after_success_is_ignored(store: Store) -> None:
    for step in steps("run"):
        step(store)
    store.fail(ZEE, "a replica ran out of memory")

    assert final(store) == EXPECTED


def test_a_chunk_may_fail_before_it_is_planned(store: Store) -> None:
    store.fail(ZEE, "the file is broken")
    without(ZEE, store)

    assert store.is_settled("run")
    assert store.problems("run") == ["Zee[30:60]: the file is broken"]


def test_a_sample_that_cannot_be_read_is_a_problem_until_it_is_planned(store: Store) -> None:
    store.begin(RunPlan("run", 1000.0, SETTINGS))
    for sample in SAMPLES:
        store.plan(SamplePlan("run", sample, problem="no such file"))
    assert store.is_settled("run")
    assert store.problems("run") == sorted(f"{sample}: no such file" for sample in SAMPLES)

    for step in steps("run"):
        step(store)
    assert final(store) == EXPECTED

    store.plan(SamplePlan("run", "Zee", problem="no such file"))
    assert final(store) == EXPECTED


def lost(store: Store) -> None:
    store.mark_lost("run", "Zee", "the loader crashed")


def planned(store: Store) -> None:
    store.plan(sample_plan("run", "Zee"))


def two_chunks(store: Store) -> None:
    for chunk in sample_plan("run", "Zee").chunks[:2]:
        store.add(chunk, partial(chunk), spans(chunk))


@pytest.mark.parametrize("order", [*permutations([lost, planned, two_chunks])])
def test_a_lost_sample_settles_its_run_and_late_chunks_still_count(store: Store, order: tuple[Step, ...]) -> None:
    store.begin(RunPlan("run", 1000.0, SETTINGS))
    for sample in SAMPLES:
        if sample != "Zee":
            store.plan(sample_plan("run", sample))
    for chunk in chunks("run"):
        if chunk.sample != "Zee":
            store.add(chunk, partial(chunk), spans(chunk))
    for step in order:
        step(store)

    assert store.is_settled("run")
    assert store.problems("run") == ["Zee[60:90]: the loader crashed", "Zee[90:120]: the loader crashed"]
    assert json.loads(final(store))["samples"]["Zee"]["events_read"] == 60

    for chunk in sample_plan("run", "Zee").chunks:
        store.add(chunk, partial(chunk), spans(chunk))
    assert final(store) == EXPECTED


def test_a_sample_lost_before_its_plan_is_the_run_s_problem(store: Store) -> None:
    store.mark_lost("run", "llll", "the loader crashed")
    store.begin(RunPlan("run", 1000.0, ANALYSES.resolve(RunSettings(samples=("llll",)))))

    assert store.is_settled("run")
    assert store.problems("run") == ["llll: the loader crashed"]


# --- the end of a run -------------------------------------------------------


def test_a_complete_run_keeps_its_result_and_no_partial_histograms(store: Store) -> None:
    for step in steps("run"):
        step(store)
    result = json.loads(final(store))
    store.finish("run", result)

    assert store.result("run") == result
    assert store.database.row("SELECT count(*) FROM chunks WHERE sums IS NOT NULL OR weights IS NOT NULL") == (0,)
    assert store.add(ZEE, partial(ZEE), spans(ZEE)) is False
    assert store.result("run") == result


def test_an_incomplete_result_keeps_what_a_late_chunk_needs(store: Store) -> None:
    without(ZEE, store)
    store.fail(ZEE, "lost")
    store.finish("run", json.loads(final(store)))

    store.add(ZEE, partial(ZEE), spans(ZEE))

    assert final(store) == EXPECTED


def test_several_runs_at_once_are_kept_apart(store: Store) -> None:
    names = [f"run-{n}" for n in range(4)]
    todo = [step for name in names for step in steps(name)]
    random.Random(4).shuffle(todo)
    for step in todo[:-1]:
        step(store)
    assert sum(store.is_settled(name) for name in names) == 3
    todo[-1](store)

    assert [final(store, name).replace(name, "run") for name in names] == [EXPECTED] * 4


def test_a_run_is_unfinished_until_its_complete_result_is_stored(store: Store) -> None:
    assert store.unfinished() == []
    without(ZEE, store)
    store.begin(RunPlan("earlier", 900.0, SETTINGS))
    assert store.unfinished() == ["run", "earlier"]  # in the order of their plans, whatever the clocks said

    store.fail(ZEE, "lost")
    store.finish("run", json.loads(final(store)))
    assert store.unfinished() == ["run", "earlier"]

    store.add(ZEE, partial(ZEE), spans(ZEE))
    store.finish("run", json.loads(final(store)))
    assert store.unfinished() == ["earlier"]


# --- the file ---------------------------------------------------------------


def test_every_row_survives_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "new" / "analysis.sqlite"
    todo = steps("run")
    crashed = Store(path)
    for step in todo[:9]:
        step(crashed)
    for statement in ("BEGIN IMMEDIATE", "DELETE FROM chunks"):  # a transaction that the crash interrupts
        list(crashed.database.rows(statement))
    crashed.close()

    with closing(Store(path)) as store:
        for step in todo[9:]:
            step(store)
        assert store.is_settled("run")
        assert final(store) == EXPECTED
        store.finish("run", json.loads(EXPECTED))

    with closing(Store(path)) as store:
        assert store.result("run") == json.loads(EXPECTED)


def test_a_database_in_use_is_refused_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "analysis.sqlite"
    program = "import sys; from pathlib import Path; from workers.analysis.store import Store; " + (
        "store = Store(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"open\n"
        with pytest.raises(SettingsError, match=r"analysis\.sqlite': another analysis service uses this file"):
            Store(path)
        link = tmp_path / "link.sqlite"
        link.symlink_to(path)
        with pytest.raises(SettingsError, match=r"link\.sqlite': another analysis service uses this file"):
            Store(link)
        user.kill()

    Store(link).close()


def test_a_complete_result_is_never_replaced(store: Store) -> None:
    for step in steps("run"):
        step(store)
    result = json.loads(final(store))
    store.finish("run", result)

    store.finish("run", {**result, "complete": False, "problems": ["late"]})
    store.finish("run", {**result, "samples": {}})

    assert store.result("run") == result


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE chunks SET sums = NULL WHERE sample = 'Zee' AND start = 30",
        "UPDATE chunks SET sums = zeroblob(length(sums)) WHERE sample = 'Zee' AND start = 30",
        "UPDATE chunks SET weights = substr(weights, 1, 8) WHERE sample = 'Zee' AND start = 30",
        "DELETE FROM chunks WHERE sample = 'Zee' AND start = 30",
    ],
)
def test_a_sum_over_fewer_chunks_than_planned_is_an_error(store: Store, damage: str) -> None:
    for step in steps("run"):
        step(store)
    list(store.database.rows(damage))

    with pytest.raises(DamagedError, match=r"Zee"):
        final(store)


def a_directory(path: Path) -> None:
    path.mkdir()


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


def not_a_database(path: Path) -> None:
    path.write_text("run_id,result\n" * 100)


def of_another_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize("make", [a_directory, below_a_file, not_a_database, of_another_version])
def test_a_database_that_cannot_be_used_is_a_wrong_setting(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "data" / "analysis.sqlite"
    path.parent.mkdir()
    make(path)

    with pytest.raises(SettingsError, match=r"DATABASE='.*analysis\.sqlite'"):
        Store(path)


def test_a_locked_database_is_tried_again_and_nothing_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path / "analysis.sqlite", lock_timeout_s=0.01)
    other = sqlite3.connect(tmp_path / "analysis.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    for step in steps("run"):
        with pytest.raises(Unavailable, match="locked"):
            step(store)
    other.execute("ROLLBACK")
    other.close()
    for step in steps("run"):
        step(store)

    assert final(store) == EXPECTED
    store.close()


def test_an_error_that_a_retry_cannot_fix_is_not_waited_for(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "analysis.sqlite")) as store:
        list(store.database.rows("DROP TABLE samples"))

        with pytest.raises(DatabaseError, match=r"DATABASE='.*analysis\.sqlite': no such table: samples"):
            store.begin(RunPlan("run", 1000.0, SETTINGS))
        with pytest.raises(DatabaseError, match="no such table: samples"):
            store.is_settled("run")


def test_a_python_with_a_sqlite_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 22, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.22.0")

    with pytest.raises(SettingsError, match=r"SQLite 3\.22\.0; install 3\.24\.0 or later"):
        Store(None)


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_nothing_is_added_to_a_database_file_that_is_gone(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "analysis.sqlite"
    with closing(Store(path)) as store:
        store.begin(RunPlan("run", 1000.0, SETTINGS))
        path.unlink()
        if replaced:
            path.touch()

        for use in (store.check_file, lambda: store.add(ZEE, partial(ZEE), spans(ZEE))):
            with pytest.raises(DatabaseError, match=r"analysis\.sqlite': the file was deleted or replaced"):
                use()


@pytest.mark.parametrize("size", [0, 8192])
def test_nothing_is_added_to_a_database_file_that_was_shortened(tmp_path: Path, size: int) -> None:
    path = tmp_path / "analysis.sqlite"
    with closing(Store(path)) as store:
        store.begin(RunPlan("run", 1000.0, SETTINGS))
        list(store.database.rows("PRAGMA wal_checkpoint"))
        store.add(ZEE, partial(ZEE), spans(ZEE))
        os.truncate(path, size)

        for use in (store.check_file, lambda: store.add(ZEE, partial(ZEE), spans(ZEE))):
            with pytest.raises(DatabaseError, match=rf"another program shortened the file from \d+ to {size} bytes"):
                use()


def test_a_database_file_that_shrinks_with_its_content_stays_in_use(tmp_path: Path) -> None:
    path = tmp_path / "analysis.sqlite"
    with closing(Store(path)) as store, closing(sqlite3.connect(path)) as other:
        store.begin(RunPlan("run", 1000.0, SETTINGS))
        for start in range(100):
            store.add(Chunk("run", "Zee", start, start + 1), partial(ZEE))
        store.note_failure("run", "lost")
        other.execute("PRAGMA wal_checkpoint")
        before = path.stat().st_size
        store.delete_ended(0)
        other.execute("PRAGMA wal_checkpoint")
        assert path.stat().st_size < before / 3

        store.begin(RunPlan("next", 1000.0, SETTINGS))
        assert store.unfinished() == ["next"]


def test_a_full_disk_is_tried_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "analysis.sqlite")) as store:
        without(ZEE, store)
        ((pages,),) = store.database.rows("PRAGMA page_count")
        list(store.database.rows(f"PRAGMA max_page_count = {pages}"))
        others = [Chunk("other", "Zee", start, start + 1) for start in range(100)]
        with pytest.raises(Unavailable, match="full"):
            collections.deque((store.add(chunk, partial(ZEE)) for chunk in others), maxlen=0)

        list(store.database.rows("PRAGMA max_page_count = 1000000"))
        store.add(ZEE, partial(ZEE), spans(ZEE))

        assert final(store) == EXPECTED


def test_a_limit_of_the_file_size_is_waited_for_like_a_full_disk(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Store(tmp_path / "analysis.sqlite")) as store:
        without(ZEE, store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, hard))
        try:
            with pytest.raises(Unavailable, match="disk I/O error"):
                store.add(ZEE, partial(ZEE), spans(ZEE))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.add(ZEE, partial(ZEE), spans(ZEE))

        assert final(store) == EXPECTED


def test_a_second_plan_with_another_file_is_a_problem_of_the_run() -> None:
    first = FileIdentity("/data/Zee.root", 1000, "8bdc6dd8", "922a7153-123b-4dff-afaa-c2b7ee784372")
    with closing(Store(None)) as store:
        store.begin(RunPlan("run", 0.0, ANALYSES.resolve(RunSettings(samples=("Zee",)))))
        store.plan(SamplePlan("run", "Zee", 10, (0, 10), file=first))
        store.plan(SamplePlan("run", "Zee", 10, (0, 10), file=replace(first, location="https://host/Zee.root")))
        assert store.problems("run") == []
        assert store.files("run") == {"Zee": first}

        store.plan(SamplePlan("run", "Zee", 10, (0, 10), file=replace(first, adler32="00000001")))
        (problem,) = store.problems("run")
        assert "replaced while the run was planned" in problem
        assert "00000001, before 1000 bytes with 8bdc6dd8" in problem
