"""Checks that a file is a complete ROOT file, and what identifies it: its size, its Adler-32 and ROOT's UUID."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import tempfile
import time
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

# TFile's header, big-endian: "root", fVersion, fBEGIN; then fEND, fSeekFree, fNbytesFree, nfree, fNbytesName, fUnits,
# fCompress, fSeekInfo, fNbytesInfo and the version of TUUID, where the positions have 64 bits from version 1000000 on.
_MAGIC = b"root"
_BEGINNING = struct.Struct(">4sii")
_SMALL, _LARGE = struct.Struct(">iiiiiBiiih"), struct.Struct(">qqiiiBiqih")
_LARGE_VERSION = 1_000_000
_UUID_BYTES = 16
_HEADER_BYTES = _BEGINNING.size + _LARGE.size + _UUID_BYTES
# Beginning of a TKey: fNbytes, fVersion, fObjLen, fDatime, fKeylen.
_KEY = struct.Struct(">ihiIh")
# A TFree: version, first and last byte of a free segment; the positions have 64 bits if the version is above 1000.
_SMALL_FREE, _LARGE_FREE = struct.Struct(">hii"), struct.Struct(">hqq")
_LARGE_FREE_VERSION = 1000
_READ_BYTES = 1 << 20

#: From which size on the checksum of a file is kept: to read a smaller one takes a few milliseconds.
_KEPT_FROM_BYTES = 16 * 2**20
#: The coarsest resolution of modification times.
_SETTLED_NS = 2_000_000_000


class Version(NamedTuple):
    """Numbers that change if a file is replaced or modified; the time of modification is in nanoseconds since 1970."""

    device: int
    inode: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Header:
    """What the header of a ROOT file says: its end, its list of free segments (position, size), and its UUID."""

    end: int
    free_list: int
    free_list_bytes: int
    uuid: str


def header(beginning: bytes) -> Header | None:
    """Return the header at the beginning of a file's content; None if it is not a ROOT file's."""
    try:
        magic, version, _ = _BEGINNING.unpack_from(beginning)
        layout = _LARGE if version >= _LARGE_VERSION else _SMALL
        end, free_list, free_list_bytes, *_ = layout.unpack_from(beginning, _BEGINNING.size)
    except struct.error:
        return None
    at = _BEGINNING.size + layout.size
    identity = beginning[at : at + _UUID_BYTES]
    if magic != _MAGIC or len(identity) < _UUID_BYTES:
        return None
    return Header(end, free_list, free_list_bytes, str(uuid.UUID(bytes=identity)))


def read_header(path: Path) -> Header | None:
    """Return the header of a file, None if it is not a ROOT file; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return header(file.read(_HEADER_BYTES))


def fault(path: Path) -> str | None:
    """Return why a file is not a complete ROOT file; None if it is one.

    TFile::Close writes the list of free segments, whose last one begins at the end of the file, and then the
    header with the position of both. If the program ended before that, or if bytes are missing or were
    added, they do not agree with each other or with the size of the file. Raises OSError if the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(_HEADER_BYTES)
        found = header(beginning)
        if found is None:
            is_page = beginning.lstrip().lower().startswith((b"<!doctype", b"<html"))
            return "an HTML page, not a ROOT file" if is_page else "not a ROOT file"
        if found.end > size:
            return f"the ROOT file is truncated: it has {size} bytes instead of the {found.end} that its header says"
        if found.free_list <= 0:
            return "the ROOT file was not closed by the program that wrote it: it has no list of free segments"
        if found.end != size:
            return f"the ROOT file was not closed: its header says that it ends at byte {found.end}, but it has {size}"
        file.seek(found.free_list)
        last = _last_free_segment(file.read(max(0, min(found.free_list_bytes, size))))
    if last != size:
        return "the ROOT file was not closed: its list of free segments does not end where the file does"
    return None


def _last_free_segment(record: bytes) -> int | None:
    """Return where the last free segment begins, from the record of the list; None if the record is damaged."""
    try:
        at, last = _KEY.unpack_from(record)[4], None
        if at < _KEY.size:
            return None
        while at < len(record):
            (version,) = struct.unpack_from(">h", record, at)
            segment = _LARGE_FREE if version > _LARGE_FREE_VERSION else _SMALL_FREE
            last = int(segment.unpack_from(record, at)[1])
            at += segment.size
    except struct.error:
        return None
    return last


def entries_fault(path: Path, tree: str, entries: int | None) -> str | None:
    """Return why a file is not a complete ROOT file with so many entries in a tree; None if it is one."""
    return fault(path) or _entries_fault(path, version_of(path), tree, entries)


@lru_cache(maxsize=256)
def _entries_fault(path: Path, version: Version, tree: str, entries: int | None) -> str | None:
    import uproot  # here, because it takes 0.1 s and a command checks its settings before its first line

    try:
        with uproot.open(path) as file:
            found = file[tree].num_entries
    except Exception as error:  # uproot raises many types of exception on a damaged file
        return f"tree {tree!r} of the ROOT file cannot be read ({type(error).__name__})"
    return None if entries in (None, found) else f"tree {tree!r} has {found} entries; the record says {entries}"


def record_fault(path: Path, size: int, adler32: str) -> str | None:
    """Return how a file differs from the size and the Adler-32 of its record; None if it has both."""
    found = path.stat().st_size
    if found != size:
        return f"the file has {found} bytes; the record says {size} bytes (Adler-32 {adler32})"
    if (checksum := checksum_of(path)) != adler32:
        return f"the file has {found} bytes and Adler-32 {checksum}; the record says {size} bytes and {adler32}"
    return None


def uuid_of(path: Path) -> str:
    """Return the UUID in the header of a ROOT file, empty if it is not one; raises OSError if it cannot be read."""
    found = read_header(path)
    return found.uuid if found else ""


def checksum_of(path: Path, cache: Path | None = None) -> str:
    """Return the Adler-32 of a file as 8 hexadecimal digits; raises OSError if the file cannot be read.

    That of a large file is kept in a hidden file beside it, or in the directory ``cache`` if the file's own directory
    is read-only, so that the file is read for this once, and again after it was replaced or modified.
    """
    return _checksum(path, version_of(path), cache)


def version_of(path: Path) -> Version:
    """Return numbers that change if this process finds the file at a path replaced or modified."""
    status = os.stat(path)
    return Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _checksum(path: Path, version: Version, cache: Path | None) -> str:
    places = _places(path, version, cache)
    for place in places:
        if (kept := _kept(place, version)) is not None:
            return kept
    value = 1
    with path.open("rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            value = zlib.adler32(block, value)
    checksum = f"{value:08x}"
    # A file that was written just now may change again without another time of modification.
    if time.time_ns() - version.modified_ns > _SETTLED_NS and version_of(path) == version:
        for place in places:
            with suppress(OSError):
                _keep(place, version, checksum)
                break
    return checksum


def _places(path: Path, version: Version, cache: Path | None) -> list[Path]:
    """Return where the checksum of a file may be kept: nowhere for a small or a partial file."""
    if version.size < _KEPT_FROM_BYTES or path.suffix == ".part":
        return []
    is_read_only = not stat.S_IMODE(path.parent.stat().st_mode) & 0o222  # which would not stop root
    beside = [] if is_read_only else [path.with_name(f".{path.name}.adler32")]
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    return beside if cache is None else [*beside, cache / "checksums" / f"{name}.adler32"]


def _kept(place: Path, version: Version) -> str | None:
    """Return the checksum that is kept in a file, None if there is none for this version."""
    try:
        *kept, checksum = place.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    is_valid = kept == _stated(version) and re.fullmatch("[0-9a-f]{8}", checksum)
    return checksum if is_valid else None


def _keep(place: Path, version: Version, checksum: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=".", delete=False) as file:
        file.write(" ".join([*_stated(version), checksum]) + "\n")
    try:
        os.chmod(file.name, 0o644)
        os.replace(file.name, place)
    except OSError:
        os.unlink(file.name)
        raise


def _stated(version: Version) -> list[str]:
    """Return what identifies the version of a file, without its device: other containers see another one."""
    return [f"{version.size}", f"{version.modified_ns}", f"{version.inode}"]
