"""One transfer of a remote file over HTTP or XRootD into a partial file, which a later transfer can resume."""

from __future__ import annotations

import importlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from urllib3.exceptions import NewConnectionError

from common.errors import FetchError
from workers.data_loader.remote.connectivity import redacted

#: Called with the number of bytes received so far and the size of the file, None if the server does not say it.
ProgressCallback = Callable[[int, int | None], None]

CHUNK_BYTES = 1 << 18


class TransferError(FetchError):
    """A transfer failed in a way that may not happen again."""


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


def transfer(
    url: str, part: PartialFile, progress: ProgressCallback | None, connect_timeout_s: float, read_timeout_s: float
) -> None:
    """Transfer ``url`` into ``part`` until it is complete, resuming where that is possible.

    Raises TransferError if another attempt may succeed, FetchError if not.
    """
    body_of: AbstractContextManager[_Body]
    if url.startswith("root:"):
        body_of = _xrootd(url, read_timeout_s)
    else:
        body_of = _http(url, part, (connect_timeout_s, read_timeout_s))
    with body_of as body, part.path.open("ab" if body.offset else "wb") as file:
        if not body.offset:
            part.begin(body.version)
        received = body.offset
        for chunk in body.chunks:
            file.write(chunk)
            received += len(chunk)
            if progress:
                progress(received, body.total)
        file.flush()
        os.fsync(file.fileno())
    _check_complete(url, part, body.total)


def _check_complete(url: str, part: PartialFile, total: int | None) -> None:
    """Raise unless ``part`` is a ROOT file of ``total`` bytes or, for None, of the length in its header."""
    size = part.path.stat().st_size
    with part.path.open("rb") as file:
        head = file.read(20)
    if total is None and head[:4] == b"root" and len(head) == 20:
        # Header of a TFile: version at byte 4, end of file (fEND) at byte 12, 64 bits wide from version 1000000 on.
        (version,) = struct.unpack_from(">i", head, 4)
        total = max(size, struct.unpack_from(">q" if version >= 1_000_000 else ">i", head, 12)[0])
    if total is not None and size != total:
        if size > total:
            part.discard()
        raise TransferError(redacted(url), f"received {size} bytes instead of {total}")
    if head[:4] != b"root":
        content = "an HTML page" if head.lstrip().lower().startswith((b"<!doctype", b"<html")) else "a file"
        reason = f"the server sent {content} that is not a ROOT file: it begins with {head[:15]!r} instead of b'root'"
        raise FetchError(redacted(url), reason)


@contextmanager
def _http(url: str, part: PartialFile, timeouts_s: tuple[float, float]) -> Iterator[_Body]:
    resumable_bytes, version = part.resumable()
    headers = {"Accept-Encoding": "identity"}
    if resumable_bytes:
        headers |= {"Range": f"bytes={resumable_bytes}-", "If-Range": version}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeouts_s) as response:
            yield _body_of(url, response, part)
    except requests.RequestException as error:
        raise _error_of(url, error) from None  # the original may quote the URL with its credentials


def _body_of(url: str, response: requests.Response, part: PartialFile) -> _Body:
    """Return the body of a response with status 200 or 206; raises TransferError or FetchError for any other."""
    status, headers = response.status_code, response.headers
    etag = headers.get("ETag", "W/")
    version = headers.get("Last-Modified", "") if etag.startswith("W/") else etag  # If-Range takes no weak ETag
    chunks: Iterator[bytes] = response.iter_content(CHUNK_BYTES)
    if status == 200:
        if headers.get("Content-Encoding", "identity") != "identity":  # Content-Length is not the file's then
            return _Body(chunks, 0, None, "")
        length = headers.get("Content-Length", "")
        return _Body(chunks, 0, int(length) if length.isdecimal() else None, version)
    if status == 206:
        resumable_bytes, part_version = part.resumable()
        span = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", headers.get("Content-Range", ""))
        if span and int(span[1]) == resumable_bytes and version in ("", part_version):
            return _Body(chunks, resumable_bytes, int(span[2]), part_version)
    reason = f"HTTP {status} {response.reason}"
    if status in (206, 416):  # another range than requested, or more bytes are here than the file has
        part.discard()
        raise TransferError(redacted(url), f"{reason} does not continue the bytes received before")
    if status in (408, 425, 429) or status >= 500:
        raise TransferError(redacted(url), reason)
    raise FetchError(redacted(url), reason)


def _error_of(url: str, error: requests.RequestException) -> FetchError:
    """Return what an exception of requests means, without the credentials that its text may hold."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    never_connected = isinstance(error, (requests.ConnectTimeout, requests.exceptions.ProxyError))
    if never_connected or isinstance(cause, NewConnectionError):
        return TransferError(redacted(url), "no connection to the server", unreachable=True)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return FetchError(redacted(url), "the server's TLS certificate cannot be verified")
    dropped = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    if isinstance(error, dropped):
        return TransferError(redacted(url), "the connection was lost or timed out")
    return FetchError(redacted(url), f"the request failed ({type(error).__name__})")


@contextmanager
def _xrootd(url: str, timeout_s: float) -> Iterator[_Body]:
    try:
        importlib.import_module("fsspec_xrootd")
        client = importlib.import_module("XRootD.client")
    except ImportError:
        missing = "root:// addresses need two more packages: pip install fsspec-xrootd xrootd"
        raise FetchError(redacted(url), missing) from None
    timeout = round(timeout_s) or 1
    for setting in ("ConnectionWindow", "RequestTimeout", "StreamTimeout", "StreamErrorWindow"):
        client.EnvPutInt(setting, timeout)  # XRootD's defaults are up to half an hour
    try:
        files, path = importlib.import_module("fsspec").core.url_to_fs(url, timeout=timeout)
        with files.open(path, "rb") as remote:
            yield _Body(iter(lambda: remote.read(CHUNK_BYTES), b""), 0, remote.size, "")
    except OSError as error:
        if error.errno is not None:  # an error of the cache directory: those of XRootD have no number
            raise
        reason = str(error).strip() if redacted(url) == url else "the transfer by XRootD failed"
        final = any(code in str(error) for code in ("[3010]", "[3011]"))  # not authorised, not found
        raise (FetchError if final else TransferError)(redacted(url), reason) from None
