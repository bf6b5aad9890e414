"""The files that a run would read, found out without fetching or writing anything."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.analyses import Analysis, Sample
from common.errors import DataError, FetchError
from common.settings import RunSettings, is_url, without_credentials
from workers.data_loader import root_file
from workers.data_loader.remote.connectivity import ConnectivityCheck, address_of
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Fetcher, cache_path
from workers.data_loader.remote.policy import DEFAULT_POLICY
from workers.data_loader.sources import addresses, check_local, in_directory

State = Literal["local", "cached", "to fetch", "to make", "made", "missing", "damaged"]


@dataclass(frozen=True)
class InputFile:
    """The file of a sample: where it is, or the address that it is fetched from first.

    ``events`` are those that the run would read. The size, events and chunks are None if they are not known yet;
    of a file that has to be fetched, they are those of the release. ``problem`` says why a file cannot be read.
    """

    sample: str
    state: State
    location: str
    bytes: int | None = None
    events: int | None = None
    chunks: int | None = None
    problem: str | None = None


def input_files(analysis: Analysis, settings: RunSettings, cache: Path) -> list[InputFile]:
    """Return the files of a run with these resolved settings."""
    return [_input_file(sample, analysis, settings, cache) for sample in analysis.in_order(settings.samples)]


def _input_file(sample: Sample, analysis: Analysis, settings: RunSettings, cache: Path) -> InputFile:
    if analysis.toy:
        return _toy(sample, analysis, settings, cache / analysis.release)
    if settings.data is not None and not is_url(settings.data):
        return _local(sample, analysis, settings, Path(settings.data))
    found = addresses(sample, analysis, settings)
    if cached := Fetcher(cache).cached(found):
        return _readable(sample, analysis, settings, "cached", cached[0])
    events = None if sample.entries is None else settings.entries_of(sample.entries)
    chunks = None if events is None else math.ceil(events / settings.chunk_entries)
    return InputFile(sample.name, "to fetch", found[0].location if found else "", sample.bytes, events, chunks)


def _toy(sample: Sample, analysis: Analysis, settings: RunSettings, directory: Path) -> InputFile:
    assert analysis.make_file is not None
    path = analysis.make_file(analysis, sample, settings.demo_events, directory, write=False)
    if path.is_file() and root_file.fault(path) is None:
        return _readable(sample, analysis, settings, "made", path)
    return InputFile(sample.name, "to make", str(path))


def _local(sample: Sample, analysis: Analysis, settings: RunSettings, directory: Path) -> InputFile:
    try:
        path = in_directory(sample, directory)
    except DataError as error:
        return InputFile(sample.name, "missing", str(directory / sample.file), problem=str(error))
    try:
        check_local(path, sample)
    except DataError as error:
        return InputFile(sample.name, "damaged", str(path), problem=str(error))
    return _readable(sample, analysis, settings, "local", path)


def _readable(sample: Sample, analysis: Analysis, settings: RunSettings, state: State, path: Path) -> InputFile:
    """Return a complete file with what it holds."""
    from workers.data_loader.reading import chunk_bounds  # here, because it imports uproot

    try:
        bounds = chunk_bounds(path, analysis, sample, settings)
    except DataError as error:
        return InputFile(sample.name, "damaged", str(path), problem=str(error))
    return InputFile(sample.name, state, str(path), path.stat().st_size, bounds[-1], len(bounds) - 1)


def check_network(analysis: Analysis, settings: RunSettings, cache: Path) -> None:
    """Raise DataError, of two lines, if files have to be fetched and none of their servers can be reached."""
    if analysis.toy or (settings.data is not None and not is_url(settings.data)):
        return
    found = [addresses(sample, analysis, settings) for sample in analysis.in_order(settings.samples)]
    missing = [those for those in found if not any(cache_path(one.url, cache).is_file() for one in those)]
    servers = {address_of(one.url): one.url for those in missing for one in those}
    reason = _unreachable(servers.values())
    if reason is None:
        return
    advice = "without a network, use --release demo, or --data DIR with files that you have"
    if settings.data is not None:
        raise DataError(f"{without_credentials(settings.data)} cannot be reached: {reason}\n{advice}")
    hosts = ", ".join(dict.fromkeys(host for host, _ in servers))
    raise DataError(f"no network: {hosts} cannot be reached, and {len(missing)} files have to be fetched\n{advice}")


def _unreachable(urls: Collection[str]) -> str | None:
    """Return why no server of these addresses can be reached; None if one can be, or if there is none."""
    outcomes: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    check = ConnectivityCheck(DEFAULT_POLICY.connect_timeout_s, 0.0)

    def connect(url: str) -> None:
        try:
            check.check(url, FetchControl())
            outcomes.put(None)
        except FetchError as error:
            outcomes.put(error.reason)

    for url in urls:  # all at the same time: one that does not answer takes seconds
        threading.Thread(target=connect, args=(url,), daemon=True).start()
    reason = None
    for _ in urls:
        reason = outcomes.get()
        if reason is None:
            break
    return reason
