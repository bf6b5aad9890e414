"""List the finished runs in the output folder, read their files, and delete the oldest runs."""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
import time
import zipfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.names import is_name
from common.result_folder import delete_folder

log = logging.getLogger(__name__)

RESULT = "result.json"
#: An empty file ``.unwritten-RUN_ID`` marks a run whose folder could not be written. It needs no room on a full disk.
UNWRITTEN = ".unwritten-"
#: The coarsest resolution of modification times; a second change within it may not be visible.
_MTIME_RESOLUTION_NS = 2_000_000_000
#: The finest resolution of modification times on the file systems in use is at least this.
_STEP_NS = 1_000
#: The first time that a zip file can hold, 1980.
_ZIP_EPOCH_S = 315_532_800
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Entry:
    """A finished run; ``written_ns`` is when its result.json was written, in nanoseconds since 1970.

    If the clock is set back, it is later than that: it also gives the order in which the runs were written.
    """

    run_id: str
    written_ns: int


@dataclass(frozen=True)
class File:
    """A file of a result; ``size`` in bytes."""

    name: str
    size: int


class Archive:
    """The folders under ``output`` that have the file ``document``: results. Safe to use from several threads.

    Run ids and file names come from requests and messages: they are checked before
    they are used in a path, and symbolic links are not followed.
    """

    def __init__(self, output: Path, document: str = RESULT) -> None:
        self.output = output
        self._document = document
        self._lock = threading.Lock()
        self._scanned: tuple[int, tuple[Entry, ...]] | None = None

    def entries(self) -> tuple[Entry, ...]:
        """Return the finished runs, the newest first; the output folder is scanned only if it has changed."""
        with self._lock:
            try:
                changed_ns = self.output.stat().st_mtime_ns
            except OSError:
                return ()
            if self._scanned is None or self._scanned[0] != changed_ns:
                entries = self._scan()
                is_old = time.time_ns() - changed_ns > _MTIME_RESOLUTION_NS
                self._scanned = (changed_ns if is_old else 0, entries)
            return self._scanned[1]

    def next_written_ns(self) -> int:
        """Return the time for the next run to be written: now, or just after the newest one if the clock is behind."""
        newest = max((entry.written_ns for entry in self.entries()[:1]), default=0)
        return max(time.time_ns(), newest + _STEP_NS)

    def find(self, run_id: str) -> Entry | None:
        """Return a finished run; None if there is none with this id."""
        return self._entry(run_id)

    def files(self, run_id: str) -> Sequence[File]:
        """Return the files of a run's folder, sorted by name; empty if there is no such run."""
        if self._entry(run_id) is None:
            return []
        try:
            with os.scandir(self.output / run_id) as found:
                files = [
                    File(file.name, file.stat().st_size)
                    for file in found
                    if is_name(file.name) and file.is_file(follow_symlinks=False)
                ]
        except OSError:
            return []
        return sorted(files, key=lambda file: file.name)

    def read(self, run_id: str, name: str) -> bytes | None:
        """Return the content of a file of a run's folder; None if there is no such run or file."""
        if not is_name(name) or self._entry(run_id) is None:
            return None
        try:
            descriptor = os.open(self.output / run_id / name, _READ)
            with open(descriptor, "rb") as file:
                return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        except OSError:
            return None

    def zipped(self, run_id: str) -> bytes | None:
        """Return a zip file of a run's folder; None if there is no such run."""
        if (entry := self.find(run_id)) is None:
            return None
        written = time.gmtime(max(entry.written_ns / 1e9, _ZIP_EPOCH_S))[:6]
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in self.files(run_id):
                if (found := self.read(run_id, file.name)) is not None:
                    archive.writestr(zipfile.ZipInfo(f"{run_id}/{file.name}", written), found, zipfile.ZIP_DEFLATED)
        return content.getvalue()

    def mark_unwritten(self, run_id: str) -> None:
        """Note on the disk that the folder of a run could not be written, if the disk allows that."""
        with suppress(OSError):
            (self.output / f"{UNWRITTEN}{run_id}").touch()

    def unmark_unwritten(self, run_id: str) -> None:
        """Remove the note, if there is one."""
        with suppress(OSError):
            (self.output / f"{UNWRITTEN}{run_id}").unlink()

    def unwritten(self) -> list[str]:
        """Return the ids of the runs whose folder could not be written."""
        try:
            names = sorted(os.listdir(self.output))
        except OSError:
            return []
        found = [name.removeprefix(UNWRITTEN) for name in names if name.startswith(UNWRITTEN)]
        return [run_id for run_id in found if is_name(run_id)]

    def prune(self, keep: int, protected: Collection[str]) -> list[str]:
        """Delete all but the ``keep`` newest runs, and return their ids; runs in ``protected`` are not deleted."""
        deleted = []
        for entry in sorted(self._scan(), key=lambda entry: entry.run_id in protected, reverse=True)[keep:]:
            if entry.run_id not in protected and self._delete(entry.run_id):
                deleted.append(entry.run_id)
        return deleted

    def _scan(self) -> tuple[Entry, ...]:
        try:
            names = os.listdir(self.output)
        except OSError:
            return ()
        entries = [entry for name in names if (entry := self._entry(name))]
        return tuple(sorted(entries, key=lambda entry: (entry.written_ns, entry.run_id), reverse=True))

    def _delete(self, run_id: str) -> bool:
        try:
            delete_folder(self.output / run_id)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", self.output / run_id, error)
            return False
        return True

    def _entry(self, run_id: str) -> Entry | None:
        """Return the run of a folder; None if the name is not valid, it has no document, or one of these is a link."""
        if not is_name(run_id):
            return None
        try:
            folder = f"{self.output}/{run_id}"
            document = os.lstat(f"{folder}/{self._document}")
            if stat.S_ISREG(document.st_mode) and stat.S_ISDIR(os.lstat(folder).st_mode):
                return Entry(run_id, document.st_mtime_ns)
        except OSError:
            pass
        return None
