"""The SQLite database of the analysis service: its tables, transactions and queries."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from common.errors import DamagedError, DatabaseError, SettingsError, Unavailable

_VERSION = 8
#: The first version with ``INSERT ... ON CONFLICT (...) DO UPDATE``.
OLDEST_SQLITE = (3, 24, 0)

#: ``requests.digest`` identifies the settings of a run and is kept for ever; ``deleted`` says why the rest of a
#: run was deleted. ``runs.sequence`` is the order in which the plans arrived, ``begun`` when (seconds since 1970).
#: ``samples.chunks`` is the number of planned chunks, ``file`` what identifies the sample's file, and ``lost`` says why
#: the chunks of a sample may never be sent. A chunk with a ``cutflow`` has been added; ``checksum`` is that of what it
#: adds, and ``spans`` is what happened to it. ``runs.timeline`` is the compressed timeline.json of a finished run, and
#: ``software`` what the services are that worked on a run.
_SCHEMA = """
CREATE TABLE requests (
    run_id TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE runs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    submitted REAL NOT NULL,
    begun REAL NOT NULL,
    settings TEXT NOT NULL,
    result TEXT,
    timeline BLOB,
    complete INTEGER NOT NULL
);
CREATE TABLE samples (
    run_id TEXT, sample TEXT,
    planned INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    problem TEXT,
    lost TEXT,
    file TEXT,
    PRIMARY KEY (run_id, sample)
);
CREATE TABLE chunks (
    run_id TEXT, sample TEXT, start INTEGER, stop INTEGER,
    planned INTEGER NOT NULL,
    cutflow TEXT,
    sums BLOB,
    weights BLOB,
    dtype TEXT,
    checksum INTEGER,
    problem TEXT,
    spans BLOB,
    PRIMARY KEY (run_id, sample, start, stop)
);
CREATE TABLE software (
    run_id TEXT, service TEXT,
    description BLOB,
    PRIMARY KEY (run_id, service, description)
);
CREATE TABLE failures (
    run_id TEXT PRIMARY KEY,
    problem TEXT NOT NULL
);
CREATE TABLE requeues (
    notice_id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL
);
CREATE INDEX missing ON chunks (run_id) WHERE planned AND cutflow IS NULL AND problem IS NULL;
"""

_WAITED_FOR = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
#: SQLite calls only ENOSPC "full"; a quota or a limit of the file size is an error of writing.
_NO_ROOM = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """A database in a file, or in memory if ``path`` is None; created if it does not exist.

    Until it is closed or its process ends, no other ``Database`` can open the file, also not by a symbolic link.

    Raises SettingsError if the file cannot be used. Later methods raise Unavailable if the database
    stays locked for longer than ``lock_timeout_s`` or there is no room for it, DamagedError if its content is
    not valid, and DatabaseError if it cannot be used for another reason.
    """

    def __init__(self, path: Path | None, lock_timeout_s: float) -> None:
        self._path = path
        self._opened = ExitStack()
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise SettingsError(f"this Python has SQLite {sqlite3.sqlite_version}; install {oldest} or later")
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._opened.enter_context(_locked(path))
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=lock_timeout_s, check_same_thread=False, isolation_level=None
            )
            self._opened.callback(self._connection.close)
            # Has an effect on a new file only. VACUUM instead would copy the whole file, and need room for the copy.
            self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            self._identity, self._size = _identity(path), _size(path)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise SettingsError(
                f"DATABASE={str(path)!r}: {error}; give a file on a local disk with room, "
                "in a directory that this user may write to"
            ) from None
        if version not in (0, _VERSION):
            self.close()
            raise SettingsError(f"DATABASE={str(path)!r}: made by another version ({version}); move the file elsewhere")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end of the block; roll back if it raises. Inside another transaction, it is a part of that."""
        if self._connection.in_transaction:
            yield self._connection
            return
        self.check_file()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
            self._size = _size(self._path)
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            raise self._reported(error) from error
        finally:
            if self._connection.in_transaction:  # not if a full disk has ended the transaction
                self._connection.execute("ROLLBACK")

    def vacuum(self) -> None:
        """Return the pages that deleted rows have left to the file system."""
        with self.transaction() as db:
            (pages,) = db.execute("PRAGMA freelist_count").fetchone()
            for _ in range(pages):
                db.execute("PRAGMA incremental_vacuum(1)")  # Python's sqlite3 frees one page a call

    def rows(self, sql: str, *parameters: str | int) -> Iterator[Any]:
        """The rows of a query."""
        try:
            yield from self._connection.execute(sql, parameters)
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            raise self._reported(error) from error

    def row(self, sql: str, *parameters: str | int) -> Any:
        """The first row of a query; None if there is none."""
        return next(self.rows(sql + " LIMIT 1", *parameters), None)

    def check_file(self) -> None:
        """Raise DatabaseError if another program deleted, replaced or shortened the file since it was last written."""
        if self._identity is not None and _identity(self._path) != self._identity:
            raise DatabaseError(
                f"DATABASE={str(self._path)!r}: the file was deleted or replaced while the service used it; the runs "
                "in it are lost, submit them again"
            )
        size = _size(self._path)
        if size < self._size and size < self._expected_size():
            raise DatabaseError(
                f"DATABASE={str(self._path)!r}: another program shortened the file from {self._size} to {size} bytes "
                "while the service used it; move it elsewhere, and submit its runs again"
            )

    def _expected_size(self) -> int:
        """The number of bytes of all pages; the file itself is smaller while pages are in the write-ahead log alone."""
        ((pages,),), ((page_size,),) = self.rows("PRAGMA page_count"), self.rows("PRAGMA page_size")
        return int(pages * page_size)

    def close(self) -> None:
        """Close the database."""
        self._opened.close()

    def _reported(self, error: sqlite3.DatabaseError) -> Exception:
        """Return the error to raise in place of one of SQLite; a mistake of the program stays as it is."""
        if type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
            return error
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        if primary in _WAITED_FOR or code in _NO_ROOM:
            return Unavailable(f"the database: {error}")
        where = "the database" if self._path is None else f"DATABASE={str(self._path)!r}"
        if primary in _DAMAGED or primary is None:  # no code: a text that is not UTF-8
            return DamagedError(f"{where}: {error}; the file is damaged, move it elsewhere")
        return DatabaseError(f"{where}: {error}")


def _locked(path: Path) -> IO[bytes]:
    """Lock a database for this process, in a file beside it; raises SettingsError if another one uses it.

    The system releases the lock when the process ends. SQLite's own locks are held during transactions only, and
    would be lost if this process opened and closed the database file itself.
    """
    lock = open(os.path.realpath(path) + "-lock", "ab")  # noqa: SIM115  open until the database is closed
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SettingsError(
            f"DATABASE={str(path)!r}: another analysis service uses this file; stop it first, or give another file"
        ) from None
    except OSError:
        lock.close()
        raise
    return lock


def _identity(path: Path | None) -> tuple[int, int] | None:
    """The device and the inode of a file; zeros if there is no such file, and None without a path."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _size(path: Path | None) -> int:
    """The size of a file in bytes; 0 if there is no such file, or no path."""
    try:
        return 0 if path is None else os.stat(path).st_size
    except FileNotFoundError:
        return 0
