"""A run's result folder: written in one step, and packed into one archive to be sent."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.errors import MessageError

MAX_FILES = 64
MAX_BYTES = 64 * 2**20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*", re.ASCII)
_MAX_NAME = 128
_PACKED_AT = (1980, 1, 1, 0, 0, 0)  # zip's earliest time: the same files make the same archive
_ENCRYPTED = 0x1


def write_folder(files: Mapping[str, bytes], output: Path, run_id: str) -> Path:
    """Write ``output/run_id`` and return it; whoever looks finds a whole folder there or none.

    The files are brought to the disk in a hidden sibling, which is then
    renamed; an older folder of the run is renamed away first. A folder that
    holds these files already is left as it is. Raises MessageError for a run
    id or file name that could lead elsewhere, OSError where the disk refuses.
    """
    _check(run_id, "run id")
    _check_files(files)
    target = output / run_id
    if _holds(target, files):
        return target
    output.mkdir(parents=True, exist_ok=True)
    new = output / f".{run_id}.{secrets.token_hex(6)}"
    try:
        new.mkdir()
        for name, content in files.items():
            with (new / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(new)
        _replace(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _sync(output)
    return target


def pack(files: Mapping[str, bytes]) -> bytes:
    """The files as one zip archive; the same files in the same order make the same bytes."""
    _check_files(files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _PACKED_AT)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of an archive that ``pack`` made.

    Raises MessageError, before anything large is unpacked, for an archive that
    is broken or encrypted, has a name twice or one that could lead elsewhere,
    more than 64 files, or more than 64 MiB of them.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise MessageError(f"the archive of a result folder is broken: {error}") from None


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    _check_size(len(entries), sum(entry.file_size for entry in entries))
    seen: set[str] = set()
    for entry in entries:
        _check(entry.filename, "file name")
        if entry.filename in seen:
            raise MessageError(f"the archive of a result folder has {entry.filename} twice")
        if entry.flag_bits & _ENCRYPTED:
            raise MessageError(f"{entry.filename} in the archive of a result folder is encrypted")
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise MessageError(f"{entry.filename} in the archive of a result folder is not deflated")
        seen.add(entry.filename)


def _check_files(files: Mapping[str, bytes]) -> None:
    for name in files:
        _check(name, "file name")
    _check_size(len(files), sum(len(content) for content in files.values()))


def _check(name: str, what: str) -> None:
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise MessageError(
            f"{what} {name[:_MAX_NAME]!r} is refused: use up to {_MAX_NAME} letters, digits, '-', '_' "
            "and single dots between them"
        )


def _check_size(count: int, size: int) -> None:
    if count > MAX_FILES:
        raise MessageError(f"a result folder of {count} files is refused: at most {MAX_FILES}")
    if size > MAX_BYTES:
        raise MessageError(f"a result folder of {size} bytes is refused: at most {MAX_BYTES}")


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """True where the folder has these files with these contents, and nothing else."""
    try:
        return {path.name for path in folder.iterdir()} == set(files) and all(
            (folder / name).read_bytes() == content for name, content in files.items()
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _replace(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; a folder that is there is renamed away, and deleted last."""
    away: list[Path] = []
    try:
        while not _renamed(new, target):
            old = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
            with suppress(FileNotFoundError):
                target.rename(old)
                away.append(old)
    except OSError:
        if away and not target.exists():
            away.pop().rename(target)
        raise
    finally:
        for old in away:
            shutil.rmtree(old, ignore_errors=True)


def _renamed(new: Path, target: Path) -> bool:
    """Rename ``new``, unless a folder with files is in the way."""
    try:
        new.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True


def _sync(folder: Path) -> None:
    """Bring the folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
