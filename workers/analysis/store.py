"""What the analysis service stores: runs, their plans, and one row of partial histograms per (run, chunk).

A row is committed before its message is acknowledged, so that a message which
is delivered twice changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from common.errors import DamagedError, SettingsError
from common.messages import Chunk, FileIdentity, RunPlan, SamplePlan, Software, Span
from common.settings import RunSettings
from workers.analysis.database import Database

#: How many problems of a run a message lists, and with how many characters each.
MAX_PROBLEMS, MAX_PROBLEM = 100, 1_000
#: Why a run is deleted: it had ended before enough later ones, or it was cancelled.
_ENDED, _CANCELLED = 1, 2

T = TypeVar("T")


@dataclass(frozen=True)
class PartialSums:
    """What one chunk adds to its run.

    ``cutflow`` counts events by step. ``sums`` has the values and variances of all
    histograms and variations, shape (2, bins). ``weights`` has the weights of the
    selected simulated events in their order, shape (events,); it is empty for data.
    """

    cutflow: dict[str, int]
    sums: npt.NDArray[np.float64]
    weights: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Run:
    """A run with a plan: when it was submitted, and when its plan arrived here, in seconds since 1970."""

    run_id: str
    submitted: float
    begun: float
    settings: RunSettings


class Store:
    """The store, in a database file or, if ``path`` is None, in memory.

    Every method commits before it returns, except within ``transaction``. Raises Unavailable if the
    database stays locked for longer than ``lock_timeout_s`` or its disk is full, DamagedError if what is
    stored of a run is not what was written, and DatabaseError if the database cannot be used.
    """

    def __init__(self, path: Path | None, lock_timeout_s: float = 10.0) -> None:
        self.database = Database(path, lock_timeout_s)

    def transaction(self) -> AbstractContextManager[object]:
        """Make the calls in the block one transaction."""
        return self.database.transaction()

    def check_file(self) -> None:
        """Raise DatabaseError if another program deleted, replaced or shortened the database file."""
        self.database.check_file()

    def digest(self, run_id: str, given: str) -> str:
        """Return the digest of a run's settings: that of the first message about the run.

        If this is the first one, ``given`` is stored; it is kept for ever.
        """
        row = self.database.row("SELECT digest FROM requests WHERE run_id = ?", run_id)
        if row is None:
            with self.database.transaction() as db:
                db.execute("INSERT INTO requests (run_id, digest) VALUES (?, ?)", (run_id, given))
        return given if row is None else str(row[0])

    def is_deleted(self, run_id: str) -> bool:
        """Whether a run was deleted: because it was cancelled, or because enough later ones have ended."""
        return self.database.row("SELECT 1 FROM requests WHERE run_id = ? AND deleted", run_id) is not None

    def is_cancelled(self, run_id: str) -> bool:
        """Whether a run was cancelled; it is deleted, too."""
        row = self.database.row("SELECT 1 FROM requests WHERE run_id = ? AND deleted = ?", run_id, _CANCELLED)
        return row is not None

    def cancel(self, run_id: str, problem: str) -> None:
        """Delete what is stored of a run, except its settings and that it was cancelled, which is its failure."""
        with self.database.transaction() as db:
            _delete(db, run_id, _CANCELLED, keep_settings=True)
            db.execute("INSERT INTO failures VALUES (?, ?)", (run_id, problem))

    def begin(self, plan: RunPlan, begun: float | None = None) -> None:
        """Store a run's settings and the samples it consists of; ``begun`` is now, in seconds since 1970."""
        settings = json.dumps(asdict(plan.settings))
        with self.database.transaction() as db:
            is_new = db.execute(
                "INSERT OR IGNORE INTO runs (run_id, submitted, begun, settings, complete) VALUES (?, ?, ?, ?, 0)",
                (plan.run_id, plan.submitted, plan.submitted if begun is None else begun, settings),
            ).rowcount
            if is_new:
                db.execute("DELETE FROM failures WHERE run_id = ?", (plan.run_id,))
            samples = [(plan.run_id, sample) for sample in plan.settings.samples]
            db.executemany("INSERT OR IGNORE INTO samples VALUES (?, ?, 0, 0, NULL, NULL, NULL)", samples)

    def plan(self, plan: SamplePlan) -> None:
        """Store a sample's chunks, or its problem. The first plan with chunks is kept.

        A later plan with another file is a problem of the sample: its chunks have the same names.
        """
        file = None if plan.file is None else json.dumps(asdict(plan.file))
        with self.database.transaction() as db:
            row = db.execute(
                "SELECT planned AND problem IS NULL, lost, file FROM samples WHERE run_id = ? AND sample = ?",
                (plan.run_id, plan.sample),
            ).fetchone()
            is_planned, lost, planned_file = row or (False, None, None)
            if is_planned:
                replaced = (
                    None if planned_file is None else _replaced(FileIdentity(**json.loads(planned_file)), plan.file)
                )
                if replaced is not None:
                    db.execute(
                        "UPDATE samples SET problem = ? WHERE run_id = ? AND sample = ?",
                        (replaced, plan.run_id, plan.sample),
                    )
                return
            db.execute(
                "INSERT INTO samples (run_id, sample, planned, chunks, problem, file) VALUES (?, ?, 1, ?, ?, ?) "
                "ON CONFLICT (run_id, sample) DO UPDATE "
                "SET planned = 1, chunks = excluded.chunks, problem = excluded.problem, file = excluded.file",
                (plan.run_id, plan.sample, len(plan.chunks), plan.problem, file),
            )
            db.executemany(
                "INSERT INTO chunks (run_id, sample, start, stop, planned, problem) "
                "VALUES (:run_id, :sample, :start, :stop, 1, :lost) "
                "ON CONFLICT (run_id, sample, start, stop) DO UPDATE SET planned = 1, "
                "problem = CASE WHEN cutflow IS NULL THEN coalesce(problem, :lost) END",
                [{**asdict(chunk), "lost": lost} for chunk in plan.chunks],
            )

    def add(
        self,
        chunk: Chunk,
        partial: PartialSums,
        spans: Sequence[Span] = (),
        software: Mapping[str, Software] | None = None,
    ) -> bool:
        """Store what a chunk adds and what happened to it, in place of an earlier failure of it.

        ``software`` is what the services are that worked on it, by their names. Returns False if the chunk was stored
        before or its run is complete.
        """
        cutflow, dtype = json.dumps(partial.cutflow), partial.weights.dtype.str
        sums, weights = partial.sums.astype("<f8").tobytes(), partial.weights.tobytes()
        row = {
            **asdict(chunk),
            "cutflow": cutflow,
            "sums": sums,
            "weights": weights,
            "dtype": dtype,
            "checksum": _checksum(cutflow, sums, weights, dtype),
            "spans": msgspec.json.encode(spans),
        }
        with self.database.transaction() as db:
            changed = db.execute(
                "INSERT INTO chunks "
                "SELECT :run_id, :sample, :start, :stop, 0, :cutflow, :sums, :weights, :dtype, :checksum, NULL, :spans "
                "WHERE NOT EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id AND complete) "
                "ON CONFLICT (run_id, sample, start, stop) DO UPDATE SET cutflow = :cutflow, sums = :sums, "
                "weights = :weights, dtype = :dtype, checksum = :checksum, problem = NULL, spans = :spans "
                "WHERE cutflow IS NULL",
                row,
            ).rowcount
            if changed and software:
                described = [(chunk.run_id, name, msgspec.json.encode(one)) for name, one in software.items()]
                db.executemany("INSERT OR IGNORE INTO software VALUES (?, ?, ?)", described)
        return changed > 0

    def fail(self, chunk: Chunk, problem: str, spans: Sequence[Span] = ()) -> bool:
        """Store why a chunk failed, unless it has been added or has failed before, or its run is complete.

        ``spans`` is what happened to it. Returns whether it was stored.
        """
        with self.database.transaction() as db:
            stored = db.execute(
                "INSERT INTO chunks (run_id, sample, start, stop, planned, problem, spans) "
                "SELECT :run_id, :sample, :start, :stop, 0, :problem, :spans "
                "WHERE NOT EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id AND complete) "
                "ON CONFLICT (run_id, sample, start, stop) DO UPDATE SET problem = :problem, spans = :spans "
                "WHERE cutflow IS NULL AND problem IS NULL",
                {**asdict(chunk), "problem": problem, "spans": msgspec.json.encode(spans)},
            )
            return stored.rowcount > 0

    def mark_lost(self, run_id: str, sample: str, problem: str) -> bool:
        """Store why the chunks of a sample may never be sent; chunks that were added, or still arrive, count.

        Nothing is stored of a run that is complete, nor of a sample that is lost already or waits for no chunk.
        Returns whether it was stored.
        """
        with self.database.transaction() as db:
            stored = db.execute(
                "INSERT INTO samples SELECT ?1, ?2, 0, 0, NULL, ?3, NULL "
                "WHERE NOT EXISTS (SELECT 1 FROM runs WHERE run_id = ?1 AND complete) "
                "ON CONFLICT (run_id, sample) DO UPDATE SET lost = excluded.lost WHERE lost IS NULL AND (NOT planned "
                "OR EXISTS (SELECT 1 FROM chunks "
                "WHERE run_id = ?1 AND sample = ?2 AND cutflow IS NULL AND problem IS NULL))",
                (run_id, sample, problem),
            )
            if stored.rowcount < 1:
                return False
            db.execute(
                "UPDATE chunks SET problem = ? WHERE run_id = ? AND sample = ? AND cutflow IS NULL AND problem IS NULL",
                (problem, run_id, sample),
            )
            return True

    def reopen(self, notice_id: str, run_id: str, sample: str | None = None, chunk: Chunk | None = None) -> bool:
        """Wait again for a chunk, a sample or a run that was lost, unless the run is complete.

        A second call with the same ``notice_id`` changes nothing, and returns False.
        """
        with self.database.transaction() as db:
            if not db.execute("INSERT OR IGNORE INTO requeues VALUES (?, ?)", (notice_id, run_id)).rowcount:
                return False
            db.execute("UPDATE runs SET result = NULL WHERE run_id = ? AND NOT complete", (run_id,))
            db.execute("DELETE FROM failures WHERE run_id = ?", (run_id,))
            if chunk is not None:
                db.execute(
                    "UPDATE chunks SET problem = NULL WHERE run_id = :run_id AND sample = :sample "
                    "AND start = :start AND stop = :stop",
                    asdict(chunk),
                )
                return True
            db.execute(
                "UPDATE chunks SET problem = NULL WHERE run_id = :run AND (:sample IS NULL OR sample = :sample) "
                "AND problem = (SELECT lost FROM samples WHERE run_id = chunks.run_id AND sample = chunks.sample)",
                {"run": run_id, "sample": sample},
            )
            db.execute(
                "UPDATE samples SET lost = NULL WHERE run_id = :run AND (:sample IS NULL OR sample = :sample)",
                {"run": run_id, "sample": sample},
            )
            return True

    def orphaned(self) -> set[str]:
        """The runs that have chunks or lost samples, but no plan, and have not failed."""
        rows = self.database.rows(
            "SELECT run_id FROM chunks UNION SELECT run_id FROM samples "
            "EXCEPT SELECT run_id FROM runs EXCEPT SELECT run_id FROM failures"
        )
        return {run_id for (run_id,) in rows}

    def drop_orphaned(self, run_id: str, problem: str) -> list[str]:
        """Delete the chunks of a run without a plan, and return their names.

        Their samples are marked as lost, in case the plan arrives later.
        """
        with self.database.transaction() as db:
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
                    "INSERT INTO samples "
                    "SELECT DISTINCT run_id, sample, 0, 0, NULL, ?, NULL FROM chunks WHERE run_id = ? "
                    "ON CONFLICT (run_id, sample) DO UPDATE SET lost = excluded.lost",
                    (problem, run_id),
                )
                db.execute("DELETE FROM chunks WHERE run_id = ?", (run_id,))
        return names

    def note_failure(self, run_id: str, problem: str) -> None:
        """Store why a run failed; the first plan of the run deletes this if it arrives later."""
        with self.database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?)", (run_id, problem))

    def failure(self, run_id: str) -> str | None:
        """Why a run failed; None if it has not."""
        row = self.database.row("SELECT problem FROM failures WHERE run_id = ?", run_id)
        return None if row is None else row[0]

    def failures(self) -> list[tuple[str, str]]:
        """Return the ids and problems of the latest 50 failed runs, the oldest first."""
        return list(self.database.rows("SELECT run_id, problem FROM failures ORDER BY rowid DESC LIMIT 50"))[::-1]

    def finish(self, run_id: str, result: dict[str, Any], timeline: bytes = b"") -> None:
        """Store a run's final result and its compressed timeline, unless it has a complete one.

        The chunks of a complete run are deleted.
        """
        with self.database.transaction() as db:
            is_stored = db.execute(
                "UPDATE runs SET result = ?, timeline = ?, complete = ? WHERE run_id = ? AND NOT complete",
                (json.dumps(result), timeline, bool(result["complete"]), run_id),
            ).rowcount
            if is_stored and result["complete"]:
                db.execute("DELETE FROM chunks WHERE run_id = ?", (run_id,))

    def run(self, run_id: str) -> Run | None:
        """The run with this id; None if it has no plan."""
        row = self.database.row("SELECT submitted, begun, settings FROM runs WHERE run_id = ?", run_id)
        if row is None:
            return None
        submitted, begun, settings = row
        try:
            return Run(run_id, submitted, begun, RunSettings.from_json(_json(settings, "settings")))
        except SettingsError as error:
            raise DamagedError(f"the settings of the run cannot be read from the database: {error}") from None

    def result(self, run_id: str) -> dict[str, Any] | None:
        """A run's final result; None if it is not finished."""
        row = self.database.row("SELECT result FROM runs WHERE run_id = ?", run_id)
        return None if row is None or row[0] is None else _json(row[0], "result")

    def unfinished(self) -> list[str]:
        """The runs that are neither complete nor given up, in the order in which their plans arrived."""
        rows = self.database.rows(
            "SELECT run_id FROM runs WHERE NOT complete AND run_id NOT IN (SELECT run_id FROM failures) "
            "ORDER BY sequence"
        )
        return [run_id for (run_id,) in rows]

    def files(self, run_id: str) -> dict[str, FileIdentity]:
        """What identifies the file of each planned sample of a run."""
        rows = self.database.rows("SELECT sample, file FROM samples WHERE run_id = ? AND file IS NOT NULL", run_id)
        return {sample: FileIdentity(**json.loads(file)) for sample, file in rows}

    def planned(self, run_id: str) -> list[Chunk]:
        """The entry range of each planned sample of a run."""
        rows = self.database.rows(
            "SELECT sample, max(stop) FROM chunks WHERE run_id = ? AND planned GROUP BY sample ORDER BY sample", run_id
        )
        return [Chunk(run_id, sample, 0, stop) for sample, stop in rows]

    def done(self, run_id: str) -> list[Chunk]:
        """The chunks of a run that have been added."""
        rows = self.database.rows(
            "SELECT sample, start, stop FROM chunks WHERE run_id = ? AND cutflow IS NOT NULL ORDER BY sample, start",
            run_id,
        )
        return [Chunk(run_id, *row) for row in rows]

    def timeline(self, run_id: str) -> bytes:
        """The compressed timeline of a run; empty if it has not ended."""
        row = self.database.row("SELECT timeline FROM runs WHERE run_id = ?", run_id)
        return (row and row[0]) or b""

    def spans(self, run_id: str) -> Iterator[tuple[Chunk, tuple[Span, ...]]]:
        """What happened to each planned chunk of a run, in the order of samples and entries."""
        rows = self.database.rows(
            "SELECT sample, start, stop, spans FROM chunks WHERE run_id = ? AND planned AND spans IS NOT NULL "
            "ORDER BY sample, start",
            run_id,
        )
        decoder = msgspec.json.Decoder(tuple[Span, ...])
        for sample, start, stop, spans in rows:
            yield Chunk(run_id, sample, start, stop), _decoded(decoder, spans)

    def software(self, run_id: str) -> list[tuple[str, Software]]:
        """What the services are that worked on a run, by their names; a service may be there more than once."""
        rows = self.database.rows(
            "SELECT service, description FROM software WHERE run_id = ? ORDER BY service, description", run_id
        )
        decoder = msgspec.json.Decoder(Software)
        return [(service, _decoded(decoder, description)) for service, description in rows]

    def is_settled(self, run_id: str) -> bool:
        """Whether every sample of a run is planned or lost, and every planned chunk added or failed."""
        settled = self.database.row(
            "SELECT run_id FROM runs WHERE run_id = ?1 "
            "AND NOT EXISTS (SELECT 1 FROM samples WHERE run_id = ?1 AND NOT planned AND lost IS NULL) AND NOT EXISTS "
            "(SELECT 1 FROM chunks WHERE run_id = ?1 AND planned AND cutflow IS NULL AND problem IS NULL)",
            run_id,
        )
        return settled is not None

    def partials(self, run_id: str, sample: str) -> Iterator[PartialSums]:
        """The partial histograms of a sample's planned chunks, in the order of their entries.

        Raises DamagedError unless these are all of the planned chunks that have been added, as they were added.
        """
        rows = self.database.rows(
            "SELECT start, stop, cutflow, sums, weights, dtype, checksum FROM chunks WHERE run_id = ? AND sample = ? "
            "AND planned ORDER BY start, stop",
            run_id,
            sample,
        )
        found = 0
        for start, stop, cutflow, sums, weights, dtype, checksum in rows:
            found += 1
            if cutflow is None:
                continue
            parts = (cutflow, sums, weights, dtype)
            if [type(part) for part in parts] != [str, bytes, bytes, str] or _checksum(*parts) != checksum:
                raise DamagedError(f"the histograms of {Chunk(run_id, sample, start, stop)} are not as they were added")
            yield PartialSums(
                _json(cutflow, "cutflow"),
                np.frombuffer(sums, "<f8").reshape(2, -1),
                np.frombuffer(weights, dtype),
            )
        row = self.database.row("SELECT chunks FROM samples WHERE run_id = ? AND sample = ?", run_id, sample)
        planned = 0 if row is None else row[0]
        if found != planned:
            raise DamagedError(f"{found} of the {planned} planned chunks of {sample} are in the database")

    def problems(self, run_id: str) -> list[str]:
        """The reasons why a run is not complete, as text, in a fixed order.

        Of more than MAX_PROBLEMS, the first and the number of the others; a longer one than MAX_PROBLEM characters
        is cut. The database has all of them.
        """
        samples = self.database.rows(
            "SELECT sample, CASE WHEN planned THEN problem ELSE lost END AS why FROM samples "
            "WHERE run_id = ? AND why IS NOT NULL ORDER BY sample",
            run_id,
        )
        chunks = self.database.rows(
            "SELECT sample || '[' || start || ':' || stop || ']', problem FROM chunks "
            "WHERE run_id = ? AND planned AND problem IS NOT NULL ORDER BY sample, start",
            run_id,
        )
        everything = chain(samples, chunks)
        found = [_cut(f"{what}: {problem}") for what, problem in islice(everything, MAX_PROBLEMS)]
        more = sum(1 for _ in everything)
        return [*found, f"and {more:,} more, which are in the database of the analysis"] if more else found

    def delete_ended(self, keep: int) -> None:
        """Delete all but the ``keep`` latest of the runs that ended with a result, and of those that failed.

        The order is that of the plans, or of the failures. The id of a run and the digest of its settings are kept.
        """
        old = {
            run_id
            for ended in (
                "SELECT run_id FROM runs WHERE result IS NOT NULL ORDER BY sequence DESC",
                "SELECT run_id FROM failures ORDER BY rowid DESC",
            )
            for (run_id,) in self.database.rows(f"{ended} LIMIT -1 OFFSET ?", keep)
        }
        with self.database.transaction() as db:
            for run_id in old:
                _delete(db, run_id, _ENDED)
        self.database.vacuum()

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def _delete(db: sqlite3.Connection, run_id: str, why: int, *, keep_settings: bool = False) -> None:
    db.execute("UPDATE requests SET deleted = ? WHERE run_id = ? AND NOT deleted", (why, run_id))
    for table in ("samples", "chunks", "failures", "requeues", "software", *(() if keep_settings else ("runs",))):
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))  # noqa: S608  a constant


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PROBLEM else text[: MAX_PROBLEM - 1] + "…"


def _checksum(cutflow: str, sums: bytes, weights: bytes, dtype: str) -> int:
    return zlib.crc32(weights, zlib.crc32(sums, zlib.crc32(f"{dtype} {cutflow}".encode())))


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise DamagedError(f"the {what} of the run cannot be read from the database: {error}") from None


def _decoded(decoder: msgspec.json.Decoder[T], content: bytes) -> T:
    try:
        return decoder.decode(content)
    except (TypeError, msgspec.MsgspecError) as error:
        raise DamagedError(f"what happened to the run cannot be read from the database: {error}") from None


def _replaced(planned: FileIdentity, found: FileIdentity | None) -> str | None:
    """Return how the file of a second plan differs from the planned one; None if it has the same content.

    Each data-loader makes its own files of a toy, of the same size and with another UUID, at a relative location.
    """
    is_made = not planned.location.startswith("/") and "://" not in planned.location
    if found is None or (planned.bytes == found.bytes and (is_made or planned.adler32 == found.adler32)):
        return None
    return (
        f"{found.location} was replaced while the run was planned: {found.bytes} bytes with the Adler-32 "
        f"{found.adler32}, before {planned.bytes} bytes with {planned.adler32}"
    )
