"""One transfer of a remote file over HTTP or XRootD into a partial file, which a later transfer can resume."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from common.errors import FetchError
from common.settings import without_credentials
from workers.data_loader import root_file
from workers.data_loader.remote.body import Body, TransferError
from workers.data_loader.remote.control import POLL_S, Deadline, FetchControl
from workers.data_loader.remote.http import http_body
from workers.data_loader.remote.policy import RetryPolicy
from workers.data_loader.remote.xrootd import xrootd_body

#: How many received chunks may wait until they are written.
_CHUNKS_AHEAD = 8
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        advice = "set CACHE to another directory, on a local disk"
        if error.errno in _NO_SPACE:
            advice = "free space, or set CACHE to another directory"
        reason = f"cannot write in {directory}: {error.strerror or error}; {advice}"
        raise CacheError(without_credentials(url), reason) from error


@dataclass(frozen=True)
class VersionedFile:
    """The bytes of a remote file, all or the first ones, and in a file beside it the version of the remote file."""

    path: Path

    @property
    def _version_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.version")

    def begin(self, version: str) -> None:
        """Record the version of the bytes to come; call with the file empty."""
        self._version_path.write_text(version, encoding="utf-8")

    def received(self) -> tuple[int, str]:
        """Return the number of bytes and their version; (0, "") if there are none or the version is not known."""
        try:
            size, version = self.path.stat().st_size, self._version_path.read_bytes().decode("ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return 0, ""
        # After a power failure, a file can hold null bytes.
        return (size, version) if size and version and version.isprintable() else (0, "")

    def replace(self, other: VersionedFile) -> None:
        """Take the place of another file; the other one has no version until that is done."""
        other._version_path.unlink(missing_ok=True)
        os.replace(self.path, other.path)
        if self._version_path.stat().st_size:
            os.replace(self._version_path, other._version_path)
        else:
            self._version_path.unlink()

    def discard(self) -> None:
        """Remove the bytes, then their version."""
        self.path.unlink(missing_ok=True)
        self._version_path.unlink(missing_ok=True)


class _AbandonedError(Exception):
    """The bytes of a body are not wanted any more."""


class _Reception:
    """A body that is received in a thread of its own, because a read from a socket cannot be interrupted.

    The thread ends after its current read if the reception is closed before the body is complete.
    """

    def __init__(self, url: str, body: AbstractContextManager[Body]) -> None:
        self._url = url
        self._items: queue.Queue[Body | bytes | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
        self._closed = threading.Event()
        threading.Thread(target=self._receive, args=(body,), name="fetch", daemon=True).start()

    def close(self) -> None:
        """Receive no more."""
        self._closed.set()

    def body(self, control: FetchControl, timeout_s: float) -> Body:
        """Return the body, with its first chunk still to come; raises TransferError if it takes too long."""
        deadline = Deadline(timeout_s)
        while deadline.remaining_s:
            control.check()
            item = self._next()
            if isinstance(item, Body):
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

    def _next(self) -> Body | bytes | None:
        """Return the next item, no bytes if none arrives soon and None at the end; raises the error of the thread."""
        try:
            item = self._items.get(timeout=POLL_S)
        except queue.Empty:
            return b""
        if isinstance(item, BaseException):
            raise item
        return item

    def _receive(self, body: AbstractContextManager[Body]) -> None:
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

    def _put(self, item: Body | bytes | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return
        raise _AbandonedError


def transfer(
    url: str,
    part: VersionedFile,
    policy: RetryPolicy,
    control: FetchControl,
    *,
    deadline: Deadline,
    resume: bool = True,
    size: int | None = None,
    cached: tuple[int, str] = (0, ""),
) -> bool:
    """Transfer ``url`` into ``part`` until it is complete, resuming where that is possible and ``resume`` is set.

    Returns False, without a transfer, if the remote file is the one of which ``cached`` are the bytes and the version.
    Raises TransferError if another attempt may succeed, WrongFileError if the server's file has more or fewer than
    ``size`` bytes, Unavailable if ``control`` stops the fetch, CacheError if the cache cannot be written and
    another FetchError if no other attempt would help. An exception of ``control.progress`` is passed on.
    """
    directory = part.path.parent
    with writing(url, directory):
        resumable = part.received() if resume else (0, "")
    if url.startswith("root:"):
        opened = xrootd_body(url, resumable, policy)
    else:
        opened = http_body(url, resumable, policy, cached_version=cached[1])
    reception = _Reception(url, opened)
    try:
        body = reception.body(control, policy.connect_timeout_s + policy.read_timeout_s)
        cached_bytes, cached_version = cached
        if cached_version and body.version == cached_version and body.total in (None, cached_bytes):
            return False
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
    return True


def _write(file: FileIO, chunk: bytes) -> None:
    remaining = memoryview(chunk)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def is_full(error: CacheError) -> bool:
    """Return whether the cache cannot be written because there is no space for more bytes."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_SPACE


def _check_complete(url: str, part: VersionedFile, total: int | None) -> None:
    """Raise TransferError unless ``part`` has ``total`` bytes or, for None, not fewer than its ROOT header says."""
    size = part.path.stat().st_size
    header = root_file.read_header(part.path)
    if total is None and header is not None:
        total = max(size, header.end)
    if total is not None and size != total:
        if size > total:
            part.discard()
        raise TransferError(without_credentials(url), f"received {size} bytes instead of {total}")
