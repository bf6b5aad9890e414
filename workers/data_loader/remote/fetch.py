"""Download files completely into a local cache: reading them remotely sends the open data server too many requests."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from common.errors import FetchError
from common.settings import without_credentials
from workers.data_loader import root_file
from workers.data_loader.remote.body import TransferError
from workers.data_loader.remote.connectivity import ConnectivityCheck, address_of
from workers.data_loader.remote.control import POLL_S, Deadline, FetchControl
from workers.data_loader.remote.policy import DEFAULT_POLICY, RetryPolicy
from workers.data_loader.remote.transfer import (
    CacheError,
    VersionedFile,
    WrongFileError,
    is_full,
    transfer,
    writing,
)

ADVICE = "Give a local directory that has the files with --data DIR, or run without a network with --release demo"
#: How often a file is downloaded from one address, if what arrives is another file than the one that is wanted.
_DOWNLOADS_OF_A_WRONG_FILE = 2
_LOCK_POLL_S = 0.05


@dataclass(frozen=True)
class Address:
    """An address of a file, and what the file must be.

    ``fault`` returns what is wrong with a file that was fetched from there, None if it is the one that is
    wanted; ``bytes`` is the size of that file, None if it is not known.
    """

    url: str
    fault: Callable[[Path], str | None] = root_file.fault
    bytes: int | None = None

    @property
    def location(self) -> str:
        """The address without credentials."""
        return without_credentials(self.url)


class Fetcher:
    """Downloads files into the directory ``cache``; several processes may share the directory.

    They send one request at a time to a server, for a whole file: the open data portal answers 429 to more.
    """

    def __init__(self, cache: Path, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        self.cache = cache
        self._policy = policy
        self._connectivity = ConnectivityCheck(policy.connect_timeout_s, policy.retry_unreachable_after_s)
        self._updated_for: dict[str, str] = {}  # the latest run for which an address was updated

    def cached(self, addresses: Sequence[Address]) -> tuple[Path, Address] | None:
        """Return the path in the cache of a file, and the first of its addresses under which it is there."""
        for address in addresses:
            path = cache_path(address.url, self.cache)
            if _is_cached(path, address):
                return path, address
        return None

    def fetch_first(
        self, addresses: Sequence[Address], control: FetchControl | None = None, *, confirm: bool = False
    ) -> tuple[Path, Address]:
        """Return the local path of a file, and the first of its addresses that works.

        A file that is in the cache under any of the addresses is not downloaded, unless there is something wrong
        with it or, with ``confirm``, the server has another version. Raises FetchError, which names every address
        with its reason and what to do, with ``unreachable`` set if no server could be reached; raises CacheError at
        once if the cache cannot be written.
        """
        if not confirm and (cached := self.cached(addresses)) is not None:
            return cached
        failures: list[FetchError] = []
        for address in addresses:
            try:
                return self.fetch(address, control, confirm=confirm), address
            except CacheError:
                raise
            except FetchError as error:
                failures.append(error)
        if not failures:
            raise FetchError("(no address)", f"no address is known for this file. {ADVICE}")
        reasons = "; ".join([failures[0].reason, *(str(error) for error in failures[1:])])
        all_unreachable = all(error.unreachable for error in failures)
        raise FetchError(failures[0].url, f"{reasons}. {ADVICE}", unreachable=all_unreachable)

    def update(self, address: Address, run_id: str, control: FetchControl | None = None) -> None:
        """Replace a file in the cache by the version that its server has now; does nothing if it was done for a run."""
        if self._updated_for.get(address.url) != run_id:
            self.fetch(address, control, confirm=True)
            self._updated_for[address.url] = run_id

    def fetch(self, address: Address, control: FetchControl | None = None, *, confirm: bool = False) -> Path:
        """Return the path of the complete file in the cache, downloading it if it is not there.

        With ``confirm``, the server is asked whether it has the version that is in the cache; if it has another one,
        or states none, the file is downloaded. Processes and threads that fetch the same file download it once. An
        interrupted download is resumed, also by a later process, if the server confirms that the file is unchanged. A
        file with a fault is downloaded once more. Raises FetchError (its subclass CacheError if the cache cannot be
        written), and Unavailable if ``control`` stops the fetch.
        """
        control = control or FetchControl()
        url = address.url
        target = cache_path(url, self.cache)
        if not confirm and _is_cached(target, address):
            return target
        part, complete = VersionedFile(target.with_name(f"{target.name}.part")), VersionedFile(target)
        with writing(url, target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(f"{target}.lock", url, control):
            is_cached = _is_cached(target, address)
            if confirm or not is_cached:
                with writing(url, target.parent):
                    cached = complete.received() if is_cached else (0, "")
                self._connectivity.check(url, control)
                host, port = address_of(url)
                name = re.sub(r"[^A-Za-z0-9.-]", "_", host)
                with _locked(str(self.cache / f"{name}~{port}.lock"), url, control):
                    is_new = self._download_checked(address, part, control, cached)
                with writing(url, target.parent):
                    if is_new:
                        part.replace(complete)
                    else:
                        part.discard()
        return target

    def _download_checked(
        self, address: Address, part: VersionedFile, control: FetchControl, cached: tuple[int, str]
    ) -> bool:
        """Download a file, again if it has a fault; raises WrongFileError if it has one again.

        Returns False if the file is the one of which ``cached`` are the bytes and the version; it is not downloaded.
        """
        for download in itertools.count(1):
            try:
                if not self._download(address, part, control, cached):
                    return False
                with writing(address.url, part.path.parent):
                    fault = address.fault(part.path)
            except WrongFileError as error:
                fault = error.reason
            if fault is None:
                break
            part.discard()
            if download == _DOWNLOADS_OF_A_WRONG_FILE:
                raise WrongFileError(address.location, f"{fault} (it was downloaded {download} times)")
        return True

    def _download(self, address: Address, part: VersionedFile, control: FetchControl, cached: tuple[int, str]) -> bool:
        """Repeat the transfer until it is complete; each attempt resumes the one before.

        Returns False if the file is the one of which ``cached`` are the bytes and the version.
        urllib3's Retry covers a request up to its headers; most failures of large files come later, in the body.
        """
        policy, resume, deadline = self._policy, True, Deadline(self._policy.total_s)
        attempt = 0
        while True:
            attempt += 1
            try:
                return transfer(
                    address.url,
                    part,
                    policy,
                    control,
                    deadline=deadline,
                    resume=resume,
                    size=address.bytes,
                    cached=cached,
                )
            except TransferError as error:
                never_connected = error.unreachable and attempt == 1
                resume = resume and not error.no_ranges
                delay_s = policy.delay_s(attempt, error.retry_after_s)
                reason = f"{error.reason} (the last of {attempt} attempts)"
                if delay_s > deadline.remaining_s:
                    reason = f"{error.reason}; the download is not complete after {policy.total_s:g} s"
                elif attempt < policy.attempts and not never_connected:
                    control.wait(delay_s)
                    continue
                if not part.received()[0]:
                    part.discard()
                raise FetchError(error.url, reason, unreachable=never_connected) from None
            except CacheError as error:
                if is_full(error):
                    part.discard()
                raise
            except FetchError:  # the file is not there
                part.discard()
                raise


def cache_path(url: str, cache: Path) -> Path:
    """Return the path of a URL's file in the cache: ``host/path`` as in the URL.

    A URL that this does not spell exactly (another scheme or port, a query, '..') has
    a digest of it added to the host, so that different URLs never share a path.
    """
    host, _ = address_of(url)
    names = re.sub(r"[^A-Za-z0-9._/-]", "_", urlsplit(url).path).split("/")
    below = [name for name in (name.lstrip(".")[-150:] for name in names) if name]
    top = re.sub(r"[^a-z0-9.-]", "_", host)
    exact = url == "/".join(("https:/", top, *below)) and url.endswith(".root") and ".root/" not in url
    digest = "" if exact else f"~{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    return cache.joinpath(top + digest, *below)


def _is_cached(path: Path, address: Address) -> bool:
    """Return whether the file at ``path`` is the one that is wanted."""
    try:
        return os.path.isfile(path) and address.fault(path) is None
    except OSError:
        return False


@contextlib.contextmanager
def _locked(path: str, url: str, control: FetchControl) -> Iterator[None]:
    """Hold a file lock, waiting for it as long as ``control`` does not stop the fetch."""
    lock = FileLock(path)
    while not _acquire(lock, url):
        control.heartbeat()
        control.check()
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, url: str) -> bool:
    """Return whether the lock was acquired before it was time to check whether to stop."""
    with writing(url, Path(lock.lock_file).parent):
        try:
            lock.acquire(timeout=POLL_S, poll_interval=_LOCK_POLL_S)
        except Timeout:  # an OSError, too
            return False
    return True
