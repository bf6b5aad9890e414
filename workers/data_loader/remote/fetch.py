"""Download files completely into a local cache: reading them remotely sends the open data server too many requests."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from common.errors import FetchError
from workers.data_loader.remote.connectivity import ConnectivityCheck, address_of, redacted
from workers.data_loader.remote.transfer import PartialFile, ProgressCallback, TransferError, transfer

ADVICE = "Give a local directory that has the files with --data DIR, or run without a network with --release demo"


@dataclass(frozen=True)
class RetryPolicy:
    """Number of attempts, delays and time-outs of a download; all times in seconds.

    ``connect_timeout_s`` covers the connectivity check of a server, name look-up and all its
    addresses included; ``read_timeout_s`` is the longest wait for the next bytes.
    """

    attempts: int = 5
    first_delay_s: float = 1.0
    max_delay_s: float = 15.0
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 30.0
    retry_unreachable_after_s: float = 30.0

    def delay_s(self, failures: int) -> float:
        """Return the delay after so many failures: doubled each time up to the maximum, with jitter."""
        backoff_s = self.first_delay_s * float(2 ** (failures - 1))
        return min(backoff_s, self.max_delay_s) * random.uniform(0.5, 1.0)


DEFAULT_POLICY = RetryPolicy()


class CacheError(FetchError):
    """The cache directory cannot be written, so that no other address would help."""


class Fetcher:
    """Downloads files into the directory ``cache``; several processes may share the directory."""

    def __init__(self, cache: Path, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        self.cache = cache
        self._policy = policy
        self._connectivity = ConnectivityCheck(policy.connect_timeout_s, policy.retry_unreachable_after_s)

    def fetch_first(self, urls: Sequence[str], progress: ProgressCallback | None = None) -> Path:
        """Return the local path of a file, downloading it from the first of its addresses that works.

        A file that is in the cache under any of the addresses is not downloaded. Raises FetchError,
        which names every address with its reason and what to do, with ``unreachable`` set if no server
        could be reached; raises CacheError at once if the cache cannot be written.
        """
        for path in (cache_path(url, self.cache) for url in urls):
            if os.path.isfile(path):
                return path
        failures: list[FetchError] = []
        for url in urls:
            try:
                return self.fetch(url, progress)
            except CacheError:
                raise
            except FetchError as error:
                failures.append(error)
        if not failures:
            raise FetchError("(no address)", f"no address is known for this file. {ADVICE}")
        reasons = "; ".join([failures[0].reason, *(str(error) for error in failures[1:])])
        all_unreachable = all(error.unreachable for error in failures)
        raise FetchError(failures[0].url, f"{reasons}. {ADVICE}", unreachable=all_unreachable)

    def fetch(self, url: str, progress: ProgressCallback | None = None) -> Path:
        """Return the path of the complete file in the cache, downloading it if it is not there.

        Processes and threads that fetch the same file download it once. An interrupted download is
        resumed, also by a later process, if the server confirms that the file is unchanged.
        Raises FetchError; its subclass CacheError if the cache cannot be written.
        """
        target = cache_path(url, self.cache)
        if os.path.isfile(target):  # unlike Path.is_file, also False if the directory cannot be read
            return target
        part = PartialFile(target.with_name(f"{target.name}.part"))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not os.path.isfile(target):
                    self._connectivity.check(url)
                    self._download(url, part, progress)
                    os.replace(part.path, target)
                    part.discard()
        except OSError as error:
            reason = f"cannot write in {target.parent}: {error.strerror or error}; free space or choose another cache"
            raise CacheError(redacted(url), reason) from error
        return target

    def _download(self, url: str, part: PartialFile, progress: ProgressCallback | None) -> None:
        """Repeat the transfer until it is complete; each attempt resumes the one before.

        urllib3's Retry covers a request up to its headers; most failures of large files come later, in the body.
        """
        policy = self._policy
        for attempt in itertools.count(1):
            try:
                transfer(url, part, progress, policy.connect_timeout_s, policy.read_timeout_s)
                return
            except TransferError as error:
                never_connected = error.unreachable and attempt == 1
                if attempt >= policy.attempts or never_connected:
                    if not part.resumable()[0]:
                        part.discard()
                    reason = f"{error.reason} (the last of {attempt} attempts)"
                    raise FetchError(error.url, reason, unreachable=never_connected) from None
                time.sleep(policy.delay_s(attempt))
            except (FetchError, OSError):  # the file is not there, or the disk is full
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
