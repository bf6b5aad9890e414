"""The finished runs in the output folder: which there are, what they hold, and which must go."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.names import is_name

log = logging.getLogger(__name__)

RESULT = "result.json"
#: A folder that changed so recently may change again without its time telling so.
_UNSURE_NS = 2_000_000_000
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Entry:
    """A finished run: its folder holds a result.json, written at ``written_ns`` (nanoseconds since 1970)."""

    run_id: str
    written_ns: int


@dataclass(frozen=True)
class File:
    """A file of a result: its name, and its size in bytes."""

    name: str
    size: int


class Archive:
    """The result folders under ``output``. Safe to use from several threads.

    What is asked for comes from addresses and messages: only names that a run
    or a file can have reach the file system, and no symbolic link is followed.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._lock = threading.Lock()
        self._scanned: tuple[int, tuple[Entry, ...]] | None = None

    def entries(self) -> tuple[Entry, ...]:
        """Every finished run, the newest first. The folders are looked through only when one has come or gone."""
        with self._lock:
            try:
                changed_ns = self.output.stat().st_mtime_ns
            except OSError:
                return ()
            if self._scanned is None or self._scanned[0] != changed_ns:
                entries = self._scan()
                is_sure = time.time_ns() - changed_ns > _UNSURE_NS
                self._scanned = (changed_ns if is_sure else 0, entries)
            return self._scanned[1]

    def find(self, run_id: str) -> Entry | None:
        """The finished run of that id, if there is one."""
        return _entry(self.output, run_id)

    def files(self, run_id: str) -> Sequence[File]:
        """The files of a run's folder, by name; none where there is no such run."""
        if _entry(self.output, run_id) is None:
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
        """A file of a run's folder; None where there is no such run or file."""
        if not is_name(name) or _entry(self.output, run_id) is None:
            return None
        try:
            descriptor = os.open(self.output / run_id / name, _READ)
            with open(descriptor, "rb") as file:
                return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        except OSError:
            return None

    def prune(self, keep: int, spare: Collection[str]) -> list[str]:
        """Delete all but the ``keep`` newest runs, and return their ids; runs in ``spare`` stay whatever their age."""
        gone = []
        for entry in sorted(self._scan(), key=lambda entry: entry.run_id in spare, reverse=True)[keep:]:
            if entry.run_id not in spare and self._delete(entry.run_id):
                gone.append(entry.run_id)
        return gone

    def _scan(self) -> tuple[Entry, ...]:
        try:
            names = os.listdir(self.output)
        except OSError:
            return ()
        entries = [entry for name in names if (entry := _entry(self.output, name))]
        return tuple(sorted(entries, key=lambda entry: (entry.written_ns, entry.run_id), reverse=True))

    def _delete(self, run_id: str) -> bool:
        """Rename a run's folder out of sight, then delete it: whoever looks finds a whole folder there or none."""
        away = self.output / f".{run_id}.{secrets.token_hex(6)}.old"
        try:
            (self.output / run_id).rename(away)
        except OSError as error:
            log.warning("%s cannot be pruned: %s", self.output / run_id, error)
            return False
        shutil.rmtree(away, ignore_errors=True)
        return True


def _entry(output: Path, run_id: str) -> Entry | None:
    """The run of that id, if its name can be a run's and its folder, no link, holds a result.json, no link."""
    if not is_name(run_id):
        return None
    try:
        folder = f"{output}/{run_id}"
        result = os.lstat(f"{folder}/{RESULT}")
        if stat.S_ISREG(result.st_mode) and stat.S_ISDIR(os.lstat(folder).st_mode):
            return Entry(run_id, result.st_mtime_ns)
    except OSError:
        pass
    return None
