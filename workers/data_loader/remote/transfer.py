"""One transfer of a remote file over HTTP or XRootD into a partial file, which a later transfer can resume."""

from __future__ import annotations

import errno
import importlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from io import FileIO
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from common.errors import FetchError
from common.settings import without_credentials
from workers.data_loader import root_file
from workers.data_loader.remote.control import POLL_S, Deadline, FetchControl
from workers.data_loader.remote.policy import RetryPolicy

CHUNK_BYTES = 1 << 18
#: How many received chunks may wait until they are written.
_CHUNKS_AHEAD = 8
# XRootD's codes of errors that do not pass: not authorised, not found.
_XROOTD_FINAL = {"3010": "not authorised", "3011": "not found"}


class TransferError(FetchError):
    """A transfer failed in a way that may not happen again, though not before ``retry_after_s``, if that is known.

    ``no_ranges`` is set if the server refused to send a part of the file: only the whole file can be requested.
    """

    def __init__(
        self,
        url: str,
        reason: str,
        *,
        unreachable: bool = False,
        retry_after_s: float = 0.0,
        no_ranges: bool = False,
    ) -> None:
        super().__init__(url, reason, unreachable=unreachable)
        self.retry_after_s = retry_after_s
        self.no_ranges = no_ranges


class WrongFileError(FetchError):
    """The server sent a file, but not the one that is wanted."""


class CacheError(FetchError):
    """The cache directory cannot be written, so that no other address would help."""


@contextmanager
def writing(url: str, directory: Path) -> Iterator[None]:
    """Raise an OSError of the file system as a CacheError that names the cache's directory."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write in {directory}: {error.strerror or error}; free space or choose another cache"
        raise CacheError(without_credentials(url), reason) from error


@dataclass(frozen=True)
class PartialFile:
    """The bytes of a file received so far, and in a file beside it the version of the remote file."""

    path: Path

    @property
    def _version_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.version")

    def begin(self, version: str) -> None:
        """Record the version (an ETag or a date) of the bytes to come; call with the file empty."""
        self._version_path.write_text(version, encoding="utf-8")

    def resumable(self) -> tuple[int, str]:
        """Return the number of bytes from which a transfer can be resumed, and their version; (0, "") for none."""
        try:
            size, version = self.path.stat().st_size, self._version_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return 0, ""
        return (size, version) if size and version else (0, "")

    def discard(self) -> None:
        """Remove the bytes, then their version."""
        self.path.unlink(missing_ok=True)
        self._version_path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Body:
    """The body of a response: the bytes from ``offset`` on of a file of ``total`` bytes (None if unknown)."""

    chunks: Iterator[bytes]
    offset: int
    total: int | None
    version: str


class _AbandonedError(Exception):
    """The bytes of a body are not wanted any more."""


class _Reception:
    """A body that is received in a thread of its own, because a read from a socket cannot be interrupted.

    The thread ends after its current read if the reception is closed before the body is complete.
    """

    def __init__(self, url: str, body: AbstractContextManager[_Body]) -> None:
        self._url = url
        self._items: queue.Queue[_Body | bytes | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
        self._closed = threading.Event()
        threading.Thread(target=self._receive, args=(body,), name="fetch", daemon=True).start()

    def close(self) -> None:
        """Receive no more."""
        self._closed.set()

    def body(self, control: FetchControl, timeout_s: float) -> _Body:
        """Return the body, with its first chunk still to come; raises TransferError if it takes too long."""
        deadline = Deadline(timeout_s)
        while deadline.remaining_s:
            control.check()
            item = self._next()
            if isinstance(item, _Body):
                return item
        raise TransferError(without_credentials(self._url), f"no response within {timeout_s:g} s")

    def chunks(self, control: FetchControl, policy: RetryPolicy, deadline: Deadline) -> Iterator[bytes]:
        """Yield the chunks of the body; raises TransferError if they arrive too slowly, or not until the deadline."""
        waited_s, received = 0.0, 0
        while True:
            began_s = time.monotonic()
            item = self._next()
            waited_s += time.monotonic() - began_s  # without the time in which the caller writes the bytes
            control.check()
            if item is None:
                return
            if not deadline.remaining_s:
                raise TransferError(without_credentials(self._url), "the bytes arrive too slowly")
            if waited_s >= policy.least_rate_over_s:
                if received < policy.least_rate_bytes_per_s * policy.least_rate_over_s:
                    reason = (
                        f"the server sent {received} bytes in {policy.least_rate_over_s:g} s, "
                        f"less than {policy.least_rate_bytes_per_s:g} bytes a second"
                    )
                    raise TransferError(without_credentials(self._url), reason)
                waited_s, received = 0.0, 0
            if isinstance(item, bytes) and item:
                received += len(item)
                yield item

    def _next(self) -> _Body | bytes | None:
        """Return the next item, no bytes if none arrives soon and None at the end; raises the error of the thread."""
        try:
            item = self._items.get(timeout=POLL_S)
        except queue.Empty:
            return b""
        if isinstance(item, BaseException):
            raise item
        return item

    def _receive(self, body: AbstractContextManager[_Body]) -> None:
        try:
            try:
                with body as opened:
                    self._put(opened)
                    for chunk in opened.chunks:
                        self._put(chunk)
                self._put(None)
            except _AbandonedError:
                raise
            except BaseException as error:
                self._put(error)
        except _AbandonedError:
            return

    def _put(self, item: _Body | bytes | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return
        raise _AbandonedError


def transfer(
    url: str,
    part: PartialFile,
    policy: RetryPolicy,
    control: FetchControl,
    *,
    deadline: Deadline,
    resume: bool = True,
    size: int | None = None,
) -> None:
    """Transfer ``url`` into ``part`` until it is complete, resuming where that is possible and ``resume`` is set.

    Raises TransferError if another attempt may succeed, WrongFileError if the server's file has more or fewer than
    ``size`` bytes, Unavailable if ``control`` stops the fetch, CacheError if the cache cannot be written and
    another FetchError if no other attempt would help. An exception of ``control.progress`` is passed on.
    """
    directory = part.path.parent
    if url.startswith("root:"):
        reception = _Reception(url, _xrootd(url, policy.read_timeout_s))
    else:
        with writing(url, directory):
            resumable = part.resumable() if resume else (0, "")
        reception = _Reception(url, _http(url, resumable, (policy.connect_timeout_s, policy.read_timeout_s)))
    try:
        body = reception.body(control, policy.connect_timeout_s + policy.read_timeout_s)
        if size is not None and body.total not in (None, size):
            raise WrongFileError(without_credentials(url), f"the file has {body.total} bytes instead of {size}")
        with writing(url, directory):
            file = part.path.open("ab" if body.offset else "wb", buffering=0)
        with file:
            if not body.offset:
                with writing(url, directory):
                    part.begin(body.version)
            received = body.offset
            for chunk in reception.chunks(control, policy, deadline):
                received += len(chunk)
                if size is not None and received > size:
                    raise WrongFileError(without_credentials(url), f"the file has more than {size} bytes")
                with writing(url, directory):
                    _write(file, chunk)
                control.received(received, body.total)
            with writing(url, directory):
                os.fsync(file.fileno())
    finally:
        reception.close()
    with writing(url, directory):
        _check_complete(url, part, body.total)


def _write(file: FileIO, chunk: bytes) -> None:
    remaining = memoryview(chunk)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def is_full(error: CacheError) -> bool:
    """Return whether the cache cannot be written because there is no space for more bytes."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _check_complete(url: str, part: PartialFile, total: int | None) -> None:
    """Raise TransferError unless ``part`` has ``total`` bytes or, for None, not fewer than its ROOT header says."""
    size = part.path.stat().st_size
    header = root_file.read_header(part.path)
    if total is None and header is not None:
        total = max(size, header.end)
    if total is not None and size != total:
        if size > total:
            part.discard()
        raise TransferError(without_credentials(url), f"received {size} bytes instead of {total}")


@contextmanager
def _http(url: str, resumable: tuple[int, str], timeouts_s: tuple[float, float]) -> Iterator[_Body]:
    resumable_bytes, version = resumable
    headers = {"Accept-Encoding": "identity"}
    if resumable_bytes:
        headers |= {"Range": f"bytes={resumable_bytes}-", "If-Range": version}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeouts_s) as response:
            yield _body_of(url, response, resumable)
    except (requests.RequestException, HTTPError) as error:
        raise _error_of(url, error) from None  # the original may quote the URL with its credentials


def _body_of(url: str, response: requests.Response, resumable: tuple[int, str]) -> _Body:
    """Return the body of a response with status 200 or 206; raises TransferError or FetchError for any other."""
    status, headers = response.status_code, response.headers
    etag = headers.get("ETag", "W/")
    version = headers.get("Last-Modified", "") if etag.startswith("W/") else etag  # If-Range takes no weak ETag
    # read1 returns what has arrived; iter_content would wait until a whole chunk has.
    chunks: Iterator[bytes] = iter(lambda: response.raw.read1(CHUNK_BYTES, decode_content=True), b"")
    if status == HTTPStatus.OK:
        if headers.get("Content-Encoding", "identity") != "identity":  # Content-Length is not the file's then
            return _Body(chunks, 0, None, "")
        length = headers.get("Content-Length", "")
        return _Body(chunks, 0, int(length) if length.isdecimal() else None, version)
    resumable_bytes, part_version = resumable
    if status == HTTPStatus.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", headers.get("Content-Range", ""))
        if span and int(span[1]) == resumable_bytes and version in ("", part_version):
            return _Body(chunks, resumable_bytes, int(span[2]), part_version)
    reason = f"HTTP {status} {_phrase(status)}".rstrip()
    if status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        # Another range than requested, or more bytes are here than the file has.
        reason += " does not continue the bytes received before"
        raise TransferError(without_credentials(url), reason, no_ranges=True)
    if status in (408, 425, 429) or status >= 500:
        retry_after_s = _retry_after_s(headers.get("Retry-After", ""))
        no_ranges = status == HTTPStatus.TOO_MANY_REQUESTS and resumable_bytes > 0
        raise TransferError(without_credentials(url), reason, retry_after_s=retry_after_s, no_ranges=no_ranges)
    raise FetchError(without_credentials(url), reason)


def _phrase(status: int) -> str:
    """Return the standard text of an HTTP status, not the server's own."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _retry_after_s(value: str) -> float:
    """Return the delay that a Retry-After header asks for, in seconds or as a date; 0 if it is neither."""
    if value.isdecimal():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date - datetime.now(date.tzinfo and UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _error_of(url: str, error: Exception) -> FetchError:
    """Return what an exception of requests or urllib3 means, without the credentials that its text may hold."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    never_connected = isinstance(error, (requests.ConnectTimeout, requests.exceptions.ProxyError))
    if never_connected or isinstance(cause, NewConnectionError):
        return TransferError(without_credentials(url), "no connection to the server", unreachable=True)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return FetchError(without_credentials(url), "the server's TLS certificate cannot be verified")
    dropped = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, HTTPError)
    if isinstance(error, dropped):
        return TransferError(without_credentials(url), "the connection was lost or timed out")
    return FetchError(without_credentials(url), f"the request failed ({type(error).__name__})")


@contextmanager
def _xrootd(url: str, timeout_s: float) -> Iterator[_Body]:
    try:
        importlib.import_module("fsspec_xrootd")
        client = importlib.import_module("XRootD.client")
    except ImportError:
        missing = "root:// addresses need two more packages: pip install fsspec-xrootd xrootd"
        raise FetchError(without_credentials(url), missing) from None
    timeout = round(timeout_s) or 1
    for setting in ("ConnectionWindow", "RequestTimeout", "StreamTimeout", "StreamErrorWindow"):
        client.EnvPutInt(setting, timeout)  # XRootD's defaults are up to half an hour
    try:
        files, path = importlib.import_module("fsspec").core.url_to_fs(url, timeout=timeout)
        with files.open(path, "rb") as remote:
            yield _Body(iter(lambda: remote.read(CHUNK_BYTES), b""), 0, remote.size, "")
    except OSError as error:
        found = re.search(r"\[([0-9]{4})\]", str(error))  # the rest of the text is the server's
        code = found[1] if found else ""
        reason = "the transfer by XRootD failed" + (f" (error {code})" if code else "")
        if code in _XROOTD_FINAL:
            raise FetchError(without_credentials(url), f"{reason}: {_XROOTD_FINAL[code]}") from None
        raise TransferError(without_credentials(url), reason) from None
