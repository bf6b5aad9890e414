"""The analysis service's database: one row of partial histograms per (run, chunk).

A row is committed before its message is acknowledged, so a message that comes
a second time changes nothing. What a run still lacks is asked of the rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import SettingsError, Unavailable
from common.messages import Chunk, RunPlan, SamplePlan
from common.settings import RunSettings

_VERSION = 4

_SCHEMA = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    submitted REAL NOT NULL,
    settings TEXT NOT NULL,
    result TEXT,
    complete INTEGER NOT NULL
);
CREATE TABLE samples (
    run_id TEXT, sample TEXT,
    planned INTEGER NOT NULL,
    problem TEXT,
    lost TEXT,
    PRIMARY KEY (run_id, sample)
);
CREATE TABLE chunks (
    run_id TEXT, sample TEXT, start INTEGER, stop INTEGER,
    planned INTEGER NOT NULL,
    cutflow TEXT,
    sums BLOB,
    weights BLOB,
    problem TEXT,
    PRIMARY KEY (run_id, sample, start, stop)
);
CREATE TABLE failures (
    run_id TEXT PRIMARY KEY,
    problem TEXT NOT NULL
);
CREATE INDEX missing ON chunks (run_id) WHERE planned AND cutflow IS NULL AND problem IS NULL;
"""


@dataclass(frozen=True)
class Partial:
    """What one chunk adds to its run.

    ``cutflow`` counts events by step; ``sums`` are the values and variances of
    the histograms and their variations, shape (2, bins); ``weights`` those of the selected simulated
    events in their order, shape (events,), empty for data.
    """

    cutflow: dict[str, int]
    sums: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """A run that the service knows."""

    run_id: str
    submitted: float
    settings: RunSettings


class Store:
    """The database, in a file; ``None`` keeps it in memory.

    Every method commits before it returns. Raises Unavailable where the
    database stays locked for longer than ``lock_timeout_s``, or its disk is full.
    """

    def __init__(self, path: Path | None, lock_timeout_s: float = 10.0) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path or ":memory:", timeout=lock_timeout_s, check_same_thread=False, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(
                f"DATABASE={str(path)!r}: {error}; give a file in a directory we may write to"
            ) from None
        if version not in (0, _VERSION):
            raise SettingsError(f"DATABASE={str(path)!r}: made by another version ({version}); move it away")

    def begin(self, plan: RunPlan) -> None:
        """A run begins: note its settings and the samples it waits for."""
        settings = json.dumps(asdict(plan.settings))
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, NULL, 0)", (plan.run_id, plan.submitted, settings))
            samples = [(plan.run_id, sample) for sample in plan.settings.samples]
            db.executemany("INSERT OR IGNORE INTO samples VALUES (?, ?, 0, NULL, NULL)", samples)
            db.execute("DELETE FROM failures WHERE run_id = ?", (plan.run_id,))

    def plan(self, plan: SamplePlan) -> None:
        """Note a sample's chunks, or its problem. The first plan with chunks holds, whatever comes after it."""
        with self._transaction() as db:
            known = db.execute(
                "SELECT planned AND problem IS NULL, lost FROM samples WHERE run_id = ? AND sample = ?",
                (plan.run_id, plan.sample),
            ).fetchone()
            holds, lost = known or (False, None)
            if holds:
                return
            db.execute(
                "INSERT INTO samples VALUES (?, ?, 1, ?, NULL) "
                "ON CONFLICT DO UPDATE SET planned = 1, problem = excluded.problem",
                (plan.run_id, plan.sample, plan.problem),
            )
            db.executemany(
                "INSERT INTO chunks VALUES (:run_id, :sample, :start, :stop, 1, NULL, NULL, NULL, :lost) "
                "ON CONFLICT DO UPDATE SET planned = 1, "
                "problem = CASE WHEN cutflow IS NULL THEN coalesce(problem, :lost) END",
                [{**asdict(chunk), "lost": lost} for chunk in plan.chunks],
            )

    def add(self, chunk: Chunk, partial: Partial) -> bool:
        """Keep what a chunk adds, and make good an earlier failure of it.

        False where it was there already, or the run is complete.
        """
        row = {
            **asdict(chunk),
            "cutflow": json.dumps(partial.cutflow),
            "sums": partial.sums.astype("<f8").tobytes(),
            "weights": partial.weights.astype("<f4").tobytes(),
        }
        with self._transaction() as db:
            changed = db.execute(
                "INSERT INTO chunks SELECT :run_id, :sample, :start, :stop, 0, :cutflow, :sums, :weights, NULL "
                "WHERE NOT EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id AND complete) "
                "ON CONFLICT DO UPDATE SET cutflow = :cutflow, sums = :sums, weights = :weights, problem = NULL "
                "WHERE cutflow IS NULL",
                row,
            ).rowcount
        return changed > 0

    def fail(self, chunk: Chunk, problem: str) -> None:
        """Note why a chunk is lost, unless it is there."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO chunks VALUES (:run_id, :sample, :start, :stop, 0, NULL, NULL, NULL, :problem) "
                "ON CONFLICT DO UPDATE SET problem = :problem WHERE cutflow IS NULL",
                {**asdict(chunk), "problem": problem},
            )

    def mark_lost(self, run_id: str, sample: str, problem: str) -> None:
        """Note why a sample's chunks may never be asked for; those that are there, or still come, do count."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO samples VALUES (?, ?, 0, NULL, ?) ON CONFLICT DO UPDATE SET lost = excluded.lost",
                (run_id, sample, problem),
            )
            db.execute(
                "UPDATE chunks SET problem = ? WHERE run_id = ? AND sample = ? AND cutflow IS NULL AND problem IS NULL",
                (problem, run_id, sample),
            )

    def reopen(self, run_id: str, sample: str | None = None, chunk: Chunk | None = None) -> None:
        """What was lost is under way again: wait for the chunk, the sample or the whole run, unless it is complete."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET result = NULL WHERE run_id = ? AND NOT complete", (run_id,))
            db.execute("DELETE FROM failures WHERE run_id = ?", (run_id,))
            if chunk is not None:
                db.execute(
                    "UPDATE chunks SET problem = NULL WHERE run_id = :run_id AND sample = :sample "
                    "AND start = :start AND stop = :stop",
                    asdict(chunk),
                )
                return
            db.execute(
                "UPDATE chunks SET problem = NULL WHERE run_id = :run AND (:sample IS NULL OR sample = :sample) "
                "AND problem = (SELECT lost FROM samples WHERE run_id = chunks.run_id AND sample = chunks.sample)",
                {"run": run_id, "sample": sample},
            )
            db.execute(
                "UPDATE samples SET lost = NULL WHERE run_id = :run AND (:sample IS NULL OR sample = :sample)",
                {"run": run_id, "sample": sample},
            )

    def orphaned(self) -> set[str]:
        """The runs of which chunks have come, and no plan yet."""
        return {run_id for (run_id,) in self._all("SELECT DISTINCT run_id FROM chunks EXCEPT SELECT run_id FROM runs")}

    def drop_orphaned(self, run_id: str, problem: str) -> list[str]:
        """Forget the chunks of a run that nobody has planned, and return their names.

        Should its plan come after all, the samples that they were of are lost.
        """
        with self._transaction() as db:
            names = [
                name
                for (name,) in db.execute(
                    "SELECT sample || '[' || start || ':' || stop || ']' FROM chunks WHERE run_id = ? "
                    "AND run_id NOT IN (SELECT run_id FROM runs) ORDER BY sample, start",
                    (run_id,),
                )
            ]
            if names:
                db.execute(
                    "INSERT INTO samples SELECT DISTINCT run_id, sample, 0, NULL, ? FROM chunks WHERE run_id = ? "
                    "ON CONFLICT DO UPDATE SET lost = excluded.lost",
                    (problem, run_id),
                )
                db.execute("DELETE FROM chunks WHERE run_id = ?", (run_id,))
        return names

    def note_failure(self, run_id: str, problem: str) -> None:
        """Note why a run that nobody has planned came to nothing; a plan that comes after all removes the note."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?)", (run_id, problem))

    def failure(self, run_id: str) -> str | None:
        """Why a run came to nothing, None where nothing is known of it or it is planned."""
        row = self._one("SELECT problem FROM failures WHERE run_id = ?", run_id)
        return None if row is None else row[0]

    def finish(self, run_id: str, result: dict[str, Any]) -> None:
        """Keep a run's final result; of a complete run, the partial histograms have done their duty."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET result = ?, complete = ? WHERE run_id = ?",
                (json.dumps(result), bool(result["complete"]), run_id),
            )
            if result["complete"]:
                db.execute("DELETE FROM chunks WHERE run_id = ? AND NOT planned", (run_id,))
                db.execute("UPDATE chunks SET sums = NULL, weights = NULL WHERE run_id = ?", (run_id,))

    def run(self, run_id: str) -> Run | None:
        """The run of that id, None where it is not known (yet)."""
        row = self._one("SELECT submitted, settings FROM runs WHERE run_id = ?", run_id)
        return None if row is None else Run(run_id, row[0], RunSettings.from_json(json.loads(row[1])))

    def result(self, run_id: str) -> dict[str, Any] | None:
        """A run's final result, None where it is not finished."""
        row = self._one("SELECT result FROM runs WHERE run_id = ?", run_id)
        return None if row is None or row[0] is None else json.loads(row[0])

    def unfinished(self) -> list[str]:
        """The runs without the result of a complete run, oldest first."""
        return [run_id for (run_id,) in self._all("SELECT run_id FROM runs WHERE NOT complete ORDER BY submitted")]

    def planned(self, run_id: str) -> list[Chunk]:
        """Of each sample of a run that is planned, all its entries."""
        rows = self._all(
            "SELECT sample, max(stop) FROM chunks WHERE run_id = ? AND planned GROUP BY sample ORDER BY sample", run_id
        )
        return [Chunk(run_id, sample, 0, stop) for sample, stop in rows]

    def done(self, run_id: str) -> list[Chunk]:
        """The chunks of a run that are there."""
        rows = self._all(
            "SELECT sample, start, stop FROM chunks WHERE run_id = ? AND cutflow IS NOT NULL ORDER BY sample, start",
            run_id,
        )
        return [Chunk(run_id, *row) for row in rows]

    def is_settled(self, run_id: str) -> bool:
        """Whether each of a run's samples is planned and each of their chunks there, or known to be lost."""
        return (
            self._one("SELECT 1 FROM runs WHERE run_id = ?", run_id) is not None
            and self._one("SELECT 1 FROM samples WHERE run_id = ? AND NOT planned AND lost IS NULL", run_id) is None
            and self._one(
                "SELECT 1 FROM chunks WHERE run_id = ? AND planned AND cutflow IS NULL AND problem IS NULL", run_id
            )
            is None
        )

    def partials(self, run_id: str, sample: str) -> Iterator[Partial]:
        """What a sample's planned chunks add, in the order of their entries."""
        rows = self._all(
            "SELECT cutflow, sums, weights FROM chunks WHERE run_id = ? AND sample = ? AND planned "
            "AND sums IS NOT NULL ORDER BY start, stop",
            run_id,
            sample,
        )
        for cutflow, sums, weights in rows:
            yield Partial(
                json.loads(cutflow),
                np.frombuffer(sums, "<f8").reshape(2, -1),
                np.frombuffer(weights, "<f4"),
            )

    def problems(self, run_id: str) -> list[str]:
        """What keeps a run from being complete, in words, in a fixed order."""
        samples = self._all(
            "SELECT sample, CASE WHEN planned THEN problem ELSE lost END AS why FROM samples "
            "WHERE run_id = ? AND why IS NOT NULL ORDER BY sample",
            run_id,
        )
        chunks = self._all(
            "SELECT sample || '[' || start || ':' || stop || ']', problem FROM chunks "
            "WHERE run_id = ? AND planned AND problem IS NOT NULL ORDER BY sample, start",
            run_id,
        )
        return [f"{what}: {problem}" for what, problem in (*samples, *chunks)]

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _one(self, sql: str, run_id: str) -> Any:
        return next(self._all(sql + " LIMIT 1", run_id), None)

    def _all(self, sql: str, *parameters: str) -> Iterator[Any]:
        try:
            yield from self._db.execute(sql, parameters)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"the database: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise Unavailable(f"the database: {error}") from error
        finally:
            if self._db.in_transaction:  # a full disk ends it of itself
                self._db.execute("ROLLBACK")
