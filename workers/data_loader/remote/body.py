"""What a server sends of a file, and the error of a transfer that may succeed later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import FetchError


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


@dataclass(frozen=True)
class Body:
    """The bytes from ``offset`` on of a remote file of ``total`` bytes (None if unknown).

    ``version`` is a text that differs between versions of the file: an ETag or a date over HTTP. It is empty if the
    server does not state one; the file cannot be resumed then.
    """

    chunks: Iterator[bytes]
    offset: int
    total: int | None
    version: str
