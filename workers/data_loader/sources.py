"""The file of a sample on this machine: in a directory, downloaded into the cache, or generated for the demo."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from common.analyses import Analysis, Sample
from common.errors import DataError, FetchError, SettingsError
from common.messages import FileIdentity
from common.settings import RunSettings, address_in, is_url
from workers.data_loader import root_file
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Address, Fetcher

# What identifies the file among the copies that replicas have, apart from its location. Each replica makes its own
# files of the demo, with the same events and another UUID.
_FETCHED = ("bytes", "adler32")
_LOCAL = ("bytes", "uuid")
_GENERATED = ()

_PROPERTIES: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "bytes": ("size in bytes", lambda path: path.stat().st_size),
    "adler32": ("Adler-32", root_file.checksum_of),
    "uuid": ("UUID", root_file.uuid_of),
}


@dataclass(frozen=True)
class SampleFile:
    """The file of a sample, at ``path`` on this machine and at ``location`` for every replica (without credentials).

    ``compared`` names the properties that identify the file. ``is_confirmed`` is False for a cached copy of a file
    whose server could not be asked for its version.
    """

    path: Path
    location: str
    compared: tuple[str, ...]
    is_confirmed: bool = True

    def identity(self, cache: Path | None = None) -> FileIdentity:
        """Return what identifies the file; raises DataError if it cannot be read.

        Its checksum is kept in ``cache`` if its directory is read-only.
        """
        with _readable(self.path):
            size, adler32 = self.path.stat().st_size, root_file.checksum_of(self.path, cache)
            return FileIdentity(self.location, size, adler32, root_file.uuid_of(self.path), self.is_confirmed)

    def differences(self, planned: FileIdentity) -> list[str]:
        """Return how this differs from the file that the run was planned with; raises DataError if it is not read."""
        with _readable(self.path):
            found = {"location": self.location, **{name: _PROPERTIES[name][1](self.path) for name in self.compared}}
        return [
            f"{_PROPERTIES[name][0] if name in _PROPERTIES else name} {value} instead of {getattr(planned, name)}"
            for name, value in found.items()
            if value != getattr(planned, name)
        ]

    def check(self, planned: FileIdentity) -> None:
        """Raise DataError if this is not the file that the run was planned with."""
        if differences := self.differences(planned):
            raise DataError(
                f"{self.path}: this is not the file that the run was planned with: {', '.join(differences)}; "
                "leave the files as they are during a run, and run again"
            )


def locate(
    sample: Sample,
    analysis: Analysis,
    settings: RunSettings,
    fetcher: Fetcher,
    control: FetchControl | None = None,
    *,
    planned: FileIdentity | None = None,
    run_id: str = "",
) -> SampleFile:
    """Return a sample's file, downloading or generating it if necessary.

    With ``planned``, it is the file that the run ``run_id`` was planned with. Raises DataError (FetchError for a
    remote file), which names the file and what to do, and Unavailable if ``control`` stops the download.
    """
    if analysis.toy:
        file = _generated(sample, analysis, settings, fetcher.cache)
    elif settings.data is None or is_url(settings.data):
        found = _addresses_of(sample, analysis, settings, planned)
        if planned is None:
            file = _fetched(found, fetcher, control, may_change=settings.data is not None)
        else:
            file = _fetched_as_planned(found, fetcher, control, planned, run_id)
    else:
        file = _local(sample, Path(settings.data), planned)
    if planned is not None:
        file.check(planned)
    return file


def _fetched(
    found: tuple[Address, ...], fetcher: Fetcher, control: FetchControl | None, *, may_change: bool
) -> SampleFile:
    """Return a file in the cache; where it may change on its server, that was asked for its version.

    If that server cannot be reached, the cached copy is used and marked as not confirmed.
    """
    try:
        path, address = fetcher.fetch_first(found, control, confirm=may_change)
    except FetchError as error:
        cached = fetcher.cached(found)
        if not error.unreachable or cached is None:
            raise
        path, address = cached
        return SampleFile(path, address.location, _FETCHED, is_confirmed=False)
    return SampleFile(path, address.location, _FETCHED)


def _fetched_as_planned(
    found: tuple[Address, ...], fetcher: Fetcher, control: FetchControl | None, planned: FileIdentity, run_id: str
) -> SampleFile:
    """Return a file in the cache; if it is another one than planned, the server was asked for its version once a run.

    The cache of this data-loader may hold an older version than the one that the run was planned with.
    """
    path, address = fetcher.fetch_first(found, control)
    file = SampleFile(path, address.location, _FETCHED)
    if file.differences(planned):
        fetcher.update(address, run_id, control)
    return file


def _generated(sample: Sample, analysis: Analysis, settings: RunSettings, cache: Path) -> SampleFile:
    make_file = analysis.make_file
    if make_file is None:
        raise DataError(f"release {analysis.release} is marked as a toy, but has no function that makes its files")
    try:
        path = make_file(analysis, sample, settings.demo_events, cache / analysis.release)
        if _delete_if_incomplete(path):
            path = make_file(analysis, sample, settings.demo_events, cache / analysis.release)
    except SettingsError as error:
        raise DataError(f"sample {sample.name}: its events cannot be made: {error}") from error
    except OSError as error:
        raise DataError(
            f"the demo release cannot be written in {cache}: {error}; set CACHE to another directory"
        ) from error
    return SampleFile(path, path.relative_to(cache).as_posix(), _GENERATED)


def _delete_if_incomplete(path: Path) -> bool:
    """Delete a toy file that is incomplete, as after a crash of the machine; returns whether it has to be made again.

    The lock keeps a process from deleting the file that another one has made since.
    """
    try:
        if root_file.fault(path) is None:
            return False
        with FileLock(f"{path}.check.lock"):
            if root_file.fault(path) is not None:
                path.unlink()
    except FileNotFoundError:  # another process has deleted it
        pass
    return True


def _addresses_of(
    sample: Sample, analysis: Analysis, settings: RunSettings, planned: FileIdentity | None
) -> tuple[Address, ...]:
    """Return the addresses of a sample's file; with ``planned`` only the one that the run was planned with."""
    found = addresses(sample, analysis, settings)
    if planned is None:
        return found
    chosen = tuple(address for address in found if address.location == planned.location)
    if not chosen:
        raise DataError(
            f"{planned.location}: the run was planned with this file, which is not at an address of the sample; "
            "run the same version of all data-loaders"
        )
    return chosen


def addresses(sample: Sample, analysis: Analysis, settings: RunSettings) -> tuple[Address, ...]:
    """Return the addresses of a sample's file, and what the file from each of them must be.

    From the record's own locations it is the file with the record's size and Adler-32, from the others a complete
    ROOT file with the record's number of entries, and from an address that the user gives a complete ROOT file.
    """
    if settings.data is not None:
        return (Address(address_in(settings.data, sample.file)),)
    entries = partial(root_file.entries_fault, tree=analysis.tree, entries=sample.entries)
    record: Callable[[Path], str | None] = entries
    if sample.bytes is not None and sample.adler32 is not None:
        record = partial(root_file.record_fault, size=sample.bytes, adler32=sample.adler32)
    return (
        *(Address(address_in(base, sample.file), record, sample.bytes) for base in analysis.record_urls),
        *(Address(address_in(base, sample.file), entries) for base in analysis.other_urls),
    )


def _local(sample: Sample, directory: Path, planned: FileIdentity | None) -> SampleFile:
    path = in_directory(sample, directory) if planned is None else Path(planned.location)
    if path not in _candidates(sample, directory):
        raise DataError(f"{path}: the run was planned with this file, which is not in {directory}; check DATA (--data)")
    check_local(path, sample)
    return SampleFile(path, str(path), _LOCAL)


def check_local(path: Path, sample: Sample) -> None:
    """Raise DataError if a file of a directory is not a complete ROOT file, nor that of the record."""
    with _readable(path):
        fault = root_file.fault(path)
        if fault is not None and not _is_of_the_record(path, sample):
            raise DataError(f"{path}: {fault}; check DATA (--data)")


def _is_of_the_record(path: Path, sample: Sample) -> bool:
    if sample.bytes is None or sample.adler32 is None:
        return False
    return root_file.record_fault(path, sample.bytes, sample.adler32) is None


def check_directory(analysis: Analysis, settings: RunSettings) -> None:
    """Raise SettingsError if ``settings.data`` is a directory that has none of the run's files, or cannot be read."""
    if settings.data is None or is_url(settings.data):
        return
    directory = Path(settings.data)
    samples = analysis.in_order(settings.samples or analysis.sample_names)
    try:
        if not stat.S_ISDIR(_mode(directory) or 0):
            raise SettingsError(f"DATA={settings.data!r}: no such directory; give the one that holds {samples[0].file}")
        if any(_is_file(path) for sample in samples for path in _candidates(sample, directory)):
            return
    except OSError as error:
        raise SettingsError(
            f"DATA={settings.data!r}: {error.filename or directory}: {error.strerror or error}; "
            "give a directory that can be read"
        ) from None
    raise SettingsError(
        f"DATA={settings.data!r}: the directory has none of the run's files, for example {samples[0].file}; "
        "give the directory that holds them"
    )


def _candidates(sample: Sample, directory: Path) -> tuple[Path, Path]:
    """Return where a sample's file may be: in the release's layout, or flat as a browser saves it."""
    return directory / sample.file, directory / Path(sample.file).name


def in_directory(sample: Sample, directory: Path) -> Path:
    """Return the path of a sample's file; raises DataError if it is not there, or the directory cannot be read."""
    paths = _candidates(sample, directory)
    for path in paths:
        with _readable(path):
            if _is_file(path):
                return path
    with _readable(paths[0]):
        cause = "a directory, not a ROOT file" if _mode(paths[0]) is not None else "no such file"
    raise DataError(f"{paths[0]}: {cause}; check DATA (--data)")


def _is_file(path: Path) -> bool:
    """Return whether ``path`` is a file; raises OSError if that cannot be found out, unlike Path.is_file."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    """Return the mode of a file, None if there is none; raises OSError if that cannot be found out."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise an OSError as a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; this user must be able to read the file") from error
