"""The SQLite database of the analysis service: its tables, transactions and queries."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import SettingsError, Unavailable

_VERSION = 5

#: ``samples.lost`` says why the chunks of a sample may never be sent. A chunk with a ``cutflow`` has been added.
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
    dtype TEXT,
    problem TEXT,
    PRIMARY KEY (run_id, sample, start, stop)
);
CREATE TABLE failures (
    run_id TEXT PRIMARY KEY,
    problem TEXT NOT NULL
);
CREATE INDEX missing ON chunks (run_id) WHERE planned AND cutflow IS NULL AND problem IS NULL;
"""


class Database:
    """A database in a file, or in memory if ``path`` is None; created if it does not exist.

    Raises SettingsError if the file cannot be used. Later methods raise Unavailable if
    the database stays locked for longer than ``lock_timeout_s`` or its disk is full.
    """

    def __init__(self, path: Path | None, lock_timeout_s: float) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=lock_timeout_s, check_same_thread=False, isolation_level=None
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(
                f"DATABASE={str(path)!r}: {error}; give a file in a directory that this user may write to"
            ) from None
        if version not in (0, _VERSION):
            raise SettingsError(f"DATABASE={str(path)!r}: made by another version ({version}); move the file elsewhere")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end of the block; roll back if it raises."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise Unavailable(f"the database: {error}") from error
        finally:
            if self._connection.in_transaction:  # not if a full disk has ended the transaction
                self._connection.execute("ROLLBACK")

    def rows(self, sql: str, *parameters: str) -> Iterator[Any]:
        """The rows of a query."""
        try:
            yield from self._connection.execute(sql, parameters)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"the database: {error}") from error

    def row(self, sql: str, *parameters: str) -> Any:
        """The first row of a query; None if there is none."""
        return next(self.rows(sql + " LIMIT 1", *parameters), None)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
