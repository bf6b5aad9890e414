"""Brings a remote file whole into the local cache, because streaming overwhelms the open data server."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import random
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock
from urllib3.exceptions import NewConnectionError

from common.errors import FetchError
from workers.data_loader.reach import address_of, check_reachable, shown

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, where the server says so, the bytes there will be."""

CHUNK_BYTES = 1 << 18
WAY_OUT = (
    "Way out: give a local directory that has the files with --data DIR, or run without any network with --release demo"
)


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a fetch is; all times in seconds.

    ``connect_s`` bounds the first contact with a server, names and all its addresses
    included; ``read_s`` is the longest silence of a server that was reached.
    """

    attempts: int = 5
    first_delay_s: float = 1.0
    max_delay_s: float = 15.0
    connect_s: float = 3.0
    read_s: float = 30.0

    def delay_s(self, failures: int) -> float:
        """Wait after so many failures: doubled each time, bounded, with jitter."""
        backoff_s = self.first_delay_s * float(2 ** (failures - 1))
        return min(backoff_s, self.max_delay_s) * random.uniform(0.5, 1.0)


PATIENT = RetryPolicy()


class CacheError(FetchError):
    """The cache directory cannot take the file: no other address would mend that."""


class _TransferError(FetchError):
    """A transfer failed in a way that another attempt may mend."""


def fetch_first(
    urls: Sequence[str], cache_dir: Path, *, progress: Progress | None = None, policy: RetryPolicy = PATIENT
) -> Path:
    """Fetch one file from the first of its addresses that has it; any of them already cached will do.

    Raises FetchError naming every address with its reason and the way out; ``unreachable``
    if no server could be reached. Raises CacheError at once where ``cache_dir`` is the trouble.
    """
    for path in (cache_path(url, cache_dir) for url in urls):
        if os.path.isfile(path):
            return path
    failures: list[FetchError] = []
    for url in urls:
        try:
            return fetch(url, cache_dir, progress=progress, policy=policy)
        except CacheError:
            raise
        except FetchError as error:
            failures.append(error)
    if not failures:
        raise FetchError("(no address)", f"no address is known for this file. {WAY_OUT}")
    reasons = [failures[0].reason, *(str(error) for error in failures[1:])]
    all_unreachable = all(error.unreachable for error in failures)
    raise FetchError(failures[0].url, f"{'; '.join(reasons)}. {WAY_OUT}", unreachable=all_unreachable)


def fetch(url: str, cache_dir: Path, *, progress: Progress | None = None, policy: RetryPolicy = PATIENT) -> Path:
    """Return the path of the whole file in the cache, downloading it where it is not yet there.

    Processes and threads that ask for one file fetch it once. An interrupted download is
    resumed, also by a later process, if the server can say that the file is unchanged.
    Raises FetchError; its subclass CacheError where ``cache_dir`` cannot be written.
    """
    target = cache_path(url, cache_dir)
    if os.path.isfile(target):  # unlike Path.is_file, False also where the directory cannot be read
        return target
    part = _Part(target.with_name(f"{target.name}.part"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not os.path.isfile(target):
                check_reachable(url, policy.connect_s)
                _download(url, part, progress, policy)
                os.replace(part.path, target)
                part.discard()
    except OSError as error:
        why = f"cannot write in {target.parent}: {error.strerror or error}; make room or choose another cache"
        raise CacheError(shown(url), why) from error
    return target


def cache_path(url: str, cache_dir: Path) -> Path:
    """Where the file of ``url`` lies in the cache: ``host/path`` as in the address.

    An address that this does not spell exactly (another scheme or port, a query, '..') has
    a digest of it added to the host, so that different addresses never share a path.
    """
    host, _ = address_of(url)
    names = re.sub(r"[^A-Za-z0-9._/-]", "_", urlsplit(url).path).split("/")
    below = [name for name in (name.lstrip(".")[-150:] for name in names) if name]
    top = re.sub(r"[^a-z0-9.-]", "_", host)
    exact = url == "/".join(("https:/", top, *below)) and url.endswith(".root") and ".root/" not in url
    digest = "" if exact else f"~{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    return cache_dir.joinpath(top + digest, *below)


@dataclass(frozen=True)
class _Part:
    """The bytes of a file that are there so far; a note beside them says of which version of the file."""

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.version")

    def begin(self, version: str) -> None:
        """Note the version (an ETag or a date) of the bytes to come; call with the part empty."""
        self._note.write_text(version, encoding="utf-8")

    def resumable(self) -> tuple[int, str]:
        """Number of bytes that a transfer can go on from, and their version; (0, "") for none."""
        try:
            size, version = self.path.stat().st_size, self._note.read_text(encoding="utf-8")
        except FileNotFoundError:
            return 0, ""
        return (size, version) if size and version else (0, "")

    def discard(self) -> None:
        """Remove the bytes, then the note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Body:
    """What a server sends: a file of ``total`` bytes from byte ``offset`` on."""

    chunks: Iterator[bytes]
    offset: int
    total: int | None
    version: str


def _download(url: str, part: _Part, progress: Progress | None, policy: RetryPolicy) -> None:
    """Fill the part until it is whole, with as many attempts as the policy has."""
    for attempt in itertools.count(1):
        try:
            _attempt(url, part, progress, policy)
            return
        except _TransferError as error:
            never_connected = error.unreachable and attempt == 1
            if attempt >= policy.attempts or never_connected:
                if not part.resumable()[0]:
                    part.discard()
                reason = f"{error.reason} (given up after attempt {attempt})"
                raise FetchError(error.url, reason, unreachable=never_connected) from None
            time.sleep(policy.delay_s(attempt))
        except (FetchError, OSError):  # nothing to go on from, or the disk is full
            part.discard()
            raise


def _attempt(url: str, part: _Part, progress: Progress | None, policy: RetryPolicy) -> None:
    source: AbstractContextManager[_Body]
    source = _xrootd(url, policy) if url.startswith("root:") else _http(url, part, policy)
    with source as body, part.path.open("ab" if body.offset else "wb") as file:
        if not body.offset:
            part.begin(body.version)
        done = body.offset
        for chunk in body.chunks:
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, body.total)
        file.flush()
        os.fsync(file.fileno())
    _check_whole(url, part, body.total)


def _check_whole(url: str, part: _Part, total: int | None) -> None:
    """Raise unless the part is a ROOT file of ``total`` bytes; for None, of the length in its own header."""
    size = part.path.stat().st_size
    with part.path.open("rb") as file:
        head = file.read(20)
    if total is None and head[:4] == b"root" and len(head) == 20:
        # TFile's header: version at byte 4, end of file at byte 12, 64 bits wide from version 1000000 on.
        (version,) = struct.unpack_from(">i", head, 4)
        total = max(size, struct.unpack_from(">q" if version >= 1_000_000 else ">i", head, 12)[0])
    if total is not None and size != total:
        if size > total:
            part.discard()
        raise _TransferError(shown(url), f"{size} bytes came instead of {total}")
    if head[:4] != b"root":
        what = "an HTML page" if head.lstrip().lower().startswith((b"<!doctype", b"<html")) else "something"
        reason = f"the server sent {what} that is not a ROOT file: it begins {head[:15]!r} and not b'root'"
        raise FetchError(shown(url), reason)


@contextmanager
def _http(url: str, part: _Part, policy: RetryPolicy) -> Iterator[_Body]:
    held, version = part.resumable()
    headers = {"Accept-Encoding": "identity"}
    if held:
        headers |= {"Range": f"bytes={held}-", "If-Range": version}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(policy.connect_s, policy.read_s)) as response:
            yield _body(url, response, part)
    except requests.RequestException as error:
        raise _diagnosis(url, error) from None  # the original may quote the address with its credentials


def _body(url: str, response: requests.Response, part: _Part) -> _Body:
    """Read from status and headers what the answer is; raises for an answer without the bytes asked for."""
    status, headers = response.status_code, response.headers
    etag = headers.get("ETag", "W/")
    version = headers.get("Last-Modified", "") if etag.startswith("W/") else etag  # If-Range: no weak ETag
    chunks: Iterator[bytes] = response.iter_content(CHUNK_BYTES)
    if status == 200:
        if headers.get("Content-Encoding", "identity") != "identity":  # the length is then not the file's
            return _Body(chunks, 0, None, "")
        length = headers.get("Content-Length", "")
        return _Body(chunks, 0, int(length) if length.isdecimal() else None, version)
    if status == 206:
        held, held_version = part.resumable()
        span = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", headers.get("Content-Range", ""))
        if span and int(span[1]) == held and version in ("", held_version):
            return _Body(chunks, held, int(span[2]), held_version)
    reason = f"HTTP {status} {response.reason}"
    if status in (206, 416):  # not the range asked for, or more is held than the file has: begin afresh
        part.discard()
        raise _TransferError(shown(url), f"{reason} does not continue the bytes that are there")
    if status in (408, 425, 429) or status >= 500:
        raise _TransferError(shown(url), reason)
    raise FetchError(shown(url), reason)


def _diagnosis(url: str, error: requests.RequestException) -> FetchError:
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    never_connected = isinstance(error, (requests.ConnectTimeout, requests.exceptions.ProxyError))
    if never_connected or isinstance(cause, NewConnectionError):
        return _TransferError(shown(url), "no connection to the server", unreachable=True)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return FetchError(shown(url), "the server's TLS certificate cannot be verified")
    dropped = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    if isinstance(error, dropped):
        return _TransferError(shown(url), "the connection dropped or fell silent")
    return FetchError(shown(url), f"the request failed ({type(error).__name__})")


@contextmanager
def _xrootd(url: str, policy: RetryPolicy) -> Iterator[_Body]:
    try:
        importlib.import_module("fsspec_xrootd")
        client = importlib.import_module("XRootD.client")
    except ImportError:
        needs = "root:// needs two more packages: pip install fsspec-xrootd xrootd"
        raise FetchError(shown(url), needs) from None
    silence_s = round(policy.read_s) or 1
    for limit in ("ConnectionWindow", "RequestTimeout", "StreamTimeout", "StreamErrorWindow"):
        client.EnvPutInt(limit, silence_s)  # XRootD's own are up to half an hour
    try:
        files, path = importlib.import_module("fsspec").core.url_to_fs(url, timeout=silence_s)
        with files.open(path, "rb") as remote:
            yield _Body(iter(lambda: remote.read(CHUNK_BYTES), b""), 0, remote.size, "")
    except OSError as error:
        if error.errno is not None:  # the cache directory's: those of XRootD have words only
            raise
        words = str(error).strip() if shown(url) == url else "the transfer by XRootD failed"
        final = any(code in str(error) for code in ("[3010]", "[3011]"))  # not authorised, not found
        raise (FetchError if final else _TransferError)(shown(url), words) from None
