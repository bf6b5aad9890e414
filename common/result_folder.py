"""A run's result folder, written in one step."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from common.errors import MessageError
from common.names import MAX_NAME, NAME_IS, is_name

MAX_FILES = 64
MAX_BYTES = 64 * 2**20

#: A folder that is being written or deleted: the run's id, and what makes the name its writer's own.
_HIDDEN = re.compile(r"\.(.+)\.[0-9a-f]{12}(?:\.old)?")


def write_folder(files: Mapping[str, bytes], output: Path, run_id: str) -> Path:
    """Write ``output/run_id`` and return it; whoever looks finds a whole folder there or none.

    The files are brought to the disk in a hidden sibling, which is then
    renamed; an older folder of the run is renamed away first. A folder that
    holds these files already is left as it is. Siblings that a killed writer
    left behind are deleted. Raises MessageError for a run
    id or file name that could lead elsewhere, OSError where the disk refuses.
    """
    _check(run_id, "run id")
    _check_files(files)
    target = output / run_id
    output.mkdir(parents=True, exist_ok=True)
    _delete_what_was_left(output)
    if _holds(target, files):
        return target
    with _new_sibling(target) as new:
        for name, content in files.items():
            with (new / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(new)
        _replace(new, target)
    _sync(output)
    return target


@contextmanager
def _new_sibling(target: Path) -> Iterator[Path]:
    """A hidden folder to write in, locked meanwhile: nobody takes it for one that was left. Deleted in the end."""
    new = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    with ExitStack() as held:
        with _locked(target.parent):  # or somebody sees it before its own lock is there
            new.mkdir()
            held.callback(shutil.rmtree, new, ignore_errors=True)
            held.enter_context(_locked(new))
        yield new


def _delete_what_was_left(output: Path) -> None:
    """Delete the hidden siblings that nobody writes any more: their writer was killed, which ended its lock."""
    with _locked(output):
        for left in output.iterdir():
            hidden = _HIDDEN.fullmatch(left.name)
            if hidden is None or not is_name(hidden[1]):
                continue
            with suppress(OSError), _opened(left) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Renamed first: should somebody write there after all, they fail, and put no half folder in place.
                away = left.with_name(f".{hidden[1]}.{secrets.token_hex(6)}.old")
                left.rename(away)
                shutil.rmtree(away, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; on a file system without locks nothing is held, and what a killed writer leaves stays."""
    with _opened(folder) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_files(files: Mapping[str, bytes]) -> None:
    for name in files:
        _check(name, "file name")
    _check_size(len(files), sum(len(content) for content in files.values()))


def _check(name: str, what: str) -> None:
    if not is_name(name):
        raise MessageError(f"{what} {name[:MAX_NAME]!r} is refused: {NAME_IS}")


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
    with _opened(folder) as descriptor:
        os.fsync(descriptor)
