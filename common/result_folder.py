"""Write a run's result folder in one step."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import MessageError, PipelineError, SettingsError
from common.names import MAX_NAME, NAME_IS, is_name

MAX_FILES = 64
MAX_BYTES = 64 * 2**20

#: Temporary folders in the output folder begin with this, which no run id does.
TEMPORARY = ".writing-"
#: A temporary folder of this age was left by a killed process: writing a result takes seconds.
ABANDONED_AFTER_S = 3600.0
#: The files of a result usually take 1 to 3 MB.
ROOM_BYTES = 4 * 2**20


def check_output(output: Path) -> None:
    """Create the directory ``output`` if it does not exist; raises SettingsError if no result can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(output) as temporary:
            _write(temporary / "room", secrets.token_bytes(ROOM_BYTES))
    except OSError as error:
        cause = "this is not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise SettingsError(
            f"OUTPUT={str(output)!r}: no result can be written there: {cause}; "
            "give a directory that can be written to, with 4 MB of room (--output DIR)"
        ) from None


def write_folder(files: Mapping[str, bytes], output: Path, run_id: str, *, written_ns: int | None = None) -> Path:
    """Write ``output/run_id`` and return it; readers find a complete folder or none.

    The files are written to a temporary folder in ``output``, synced to the disk,
    and renamed. An older folder of the run is renamed away first, and then deleted.
    A folder that has these files already is not touched. ``written_ns`` is the
    modification time of the files in nanoseconds since 1970, by default now. Several
    processes may write the same run. Raises MessageError if the run id or a file name is not
    valid, or if the files are too many or too large, and OSError if the disk refuses.
    """
    _check(run_id, "run id")
    _check_files(files)
    target = output / run_id
    output.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(output)
    if _has(target, files):
        return target
    with _temporary_folder(output) as temporary:
        new = temporary / "new"
        new.mkdir()
        for name, content in files.items():
            _write(new / name, content)
            if written_ns is not None:
                os.utime(new / name, ns=(written_ns, written_ns))
        _sync(new)
        _replace(new, target, temporary)
    _sync(output)
    return target


def write_folder_or_temporary(files: Mapping[str, bytes], output: Path, run_id: str) -> tuple[Path, str | None]:
    """Write ``output/run_id``, or a folder in a new temporary directory if that fails.

    Returns the folder, and the problem if it is the temporary one. Raises
    MessageError as ``write_folder`` does, and PipelineError if no folder can be written.
    """
    try:
        return write_folder(files, output, run_id), None
    except OSError as error:
        problem = f"{output / run_id} cannot be written: {error.strerror or error}"
    try:
        return write_folder(files, Path(tempfile.mkdtemp(prefix="atlas-open-data-")), run_id), problem
    except OSError as error:
        raise PipelineError(
            f"{problem}; nor can a temporary directory: {error}; the result of {run_id} is lost"
        ) from None


def delete_folder(folder: Path) -> None:
    """Delete a folder in one step: readers find a complete folder or none. Raises OSError if it cannot be renamed."""
    with _temporary_folder(folder.parent) as temporary:
        folder.rename(temporary / "old")


@contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=output, ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _delete_abandoned(output: Path) -> None:
    """Delete the temporary folders of processes that were killed."""
    with suppress(OSError):
        os.utime(output)  # now, by the clock of the file system: that of this machine may differ
    now = output.stat().st_mtime
    for left in output.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if now - left.lstat().st_mtime > ABANDONED_AFTER_S:
                # Renamed first: a process that was only suspended fails, and does not rename a folder half deleted.
                delete_folder(left)


def _replace(new: Path, target: Path, temporary: Path) -> None:
    """Rename ``new`` to ``target``; a folder that exists is moved to the temporary folder, and back after an error."""
    moved: list[Path] = []
    try:
        while not _renamed(new, target):
            with suppress(FileNotFoundError):  # another process has moved it
                moved.append(target.rename(temporary / f"old-{len(moved)}"))
    except OSError:
        if moved and not target.exists():
            moved[-1].rename(target)
        raise


def _renamed(new: Path, target: Path) -> bool:
    """Rename ``new``; returns False if ``target`` is a folder with files."""
    try:
        new.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True


def _check_files(files: Mapping[str, bytes]) -> None:
    for name in files:
        _check(name, "file name")
    size = sum(len(content) for content in files.values())
    if len(files) > MAX_FILES:
        raise MessageError(f"a result folder of {len(files)} files is refused: at most {MAX_FILES}")
    if size > MAX_BYTES:
        raise MessageError(f"a result folder of {size} bytes is refused: at most {MAX_BYTES}")


def _check(name: str, what: str) -> None:
    if not is_name(name):
        raise MessageError(f"{what} {name[:MAX_NAME]!r} is refused: {NAME_IS}")


def _has(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Return True if the folder has these files with these contents, and nothing else."""
    try:
        return {path.name for path in folder.iterdir()} == set(files) and all(
            (folder / name).read_bytes() == content for name, content in files.items()
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _write(path: Path, content: bytes) -> None:
    """Write a new file, and sync it to the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Sync a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
