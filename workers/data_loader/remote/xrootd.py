"""Read a file over XRootD, from its start or from where an earlier transfer ended."""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from common.errors import FetchError
from common.settings import without_credentials
from workers.data_loader.remote.body import Body, TransferError
from workers.data_loader.remote.policy import RetryPolicy

#: One read is one round trip to the server.
CHUNK_BYTES = 1 << 20
#: Error codes of the XRootD protocol that do not pass.
_FINAL = {3010: "not authorised", 3011: "not found", 3016: "a directory"}
#: Code of the XRootD client for a request without an answer in time.
_EXPIRED = 206


@contextmanager
def xrootd_body(url: str, resumable: tuple[int, str], policy: RetryPolicy) -> Iterator[Body]:
    """Yield the bytes of a file, resuming after ``resumable`` (bytes and version) if the file is unchanged.

    The version consists of the file's identifier, size and modification time as the server states them.
    Raises TransferError if another attempt may succeed, and another FetchError if none would.
    """
    try:
        client = importlib.import_module("XRootD.client")
    except ImportError:
        missing = "root:// addresses need one more package: pip install xrootd"
        raise FetchError(without_credentials(url), missing) from None
    timeout_s = max(1, round(policy.read_timeout_s))  # the client counts whole seconds
    settings = {
        "ConnectionWindow": timeout_s,
        "ConnectionRetry": 1,
        "RequestTimeout": timeout_s,
        "StreamTimeout": timeout_s,
        "StreamErrorWindow": 0,  # by default, a server that failed is not connected to again for half an hour
        "TimeoutResolution": 1,  # by default, time-outs are checked every 15 s
    }
    for name, value in settings.items():
        client.EnvPutInt(name, value)
    file = client.File()
    # The client itself would continue after an error without a check that the file is unchanged.
    file.set_property("ReadRecovery", "false")
    close = partial(file.close, timeout=1, callback=_ignore)
    # At the program's end the client closes open files and waits for the server's answer. This runs before it.
    atexit.register(close)
    try:
        _answer(url, file.open(url, timeout=timeout_s))
        info = _answer(url, file.stat(timeout=timeout_s))
        version = f"{info.id} {info.size} {info.modtime}"
        resumable_bytes, part_version = resumable
        offset = resumable_bytes if version == part_version and resumable_bytes <= info.size else 0
        yield Body(_chunks(url, file, offset, timeout_s), offset, info.size, version)
    finally:
        close()
        atexit.unregister(close)


def _chunks(url: str, file: Any, offset: int, timeout_s: int) -> Iterator[bytes]:
    while chunk := _answer(url, file.read(offset, CHUNK_BYTES, timeout=timeout_s)):
        yield chunk
        offset += len(chunk)


def _answer(url: str, answer: tuple[Any, Any]) -> Any:
    """Return the response to a request of the client; raises FetchError or TransferError for an error status."""
    status, response = answer
    if status.ok:
        return response
    if status.code == _EXPIRED:
        raise TransferError(without_credentials(url), "the XRootD server did not answer in time")
    code = status.errno or status.code  # the message of the status is the server's text
    reason = f"the transfer by XRootD failed (error {code})"
    if code in _FINAL:
        raise FetchError(without_credentials(url), f"{reason}: {_FINAL[code]}")
    raise TransferError(without_credentials(url), reason)


def _ignore(*_: object) -> None:
    pass
