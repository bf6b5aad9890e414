"""Signed messages: a message without a valid signature is not decoded.

With MESSAGE_KEY set, every message carries an HMAC-SHA256 of its route, its
kind, the headers that identify it, and its body. Somebody who can publish to
the broker but does not have the key cannot make, change or redirect a message.
A replayed message has a valid signature, but changes no result.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common import topology
from common.delivery import Delivery

SIGNATURE = "signature"
#: A dead letter keeps the signature of its message; the reason that the worker added has a signature of its own.
NOTICE_SIGNATURE = "notice-signature"

_IDENTITY = ("run_id", "sample", "start", "stop", "digest")
_NOTICE = (*_IDENTITY, "queue", "problem", "died")
_INVALID = "its signature is missing or wrong (MESSAGE_KEY must be the same everywhere)"


class Signer:
    """Signs and checks messages with a key; with an empty key, no message is signed and none is rejected."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def sign(self, route: str, kind: str, body: bytes, headers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the headers of a message to the queue or exchange ``route``, with its signature."""
        if not self._key:
            return dict(headers)
        return {**headers, SIGNATURE: self._digest(route, kind, body, headers, _IDENTITY)}

    def sign_notice(self, kind: str, body: bytes, headers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the headers of a dead letter, with the signature of its reason."""
        if not self._key:
            return dict(headers)
        notice = self._digest(topology.DEAD_NOTICES.name, kind, body, headers, _NOTICE)
        return {**headers, NOTICE_SIGNATURE: notice}

    def problem(self, delivery: Delivery) -> str | None:
        """Return why a delivery must not be decoded; None where its signature is valid for its queue.

        A missing and a wrong signature give the same answer, so that nothing can be learned from it.
        """
        if not self._key:
            return None
        kind, body, headers = delivery.kind, delivery.body, delivery.headers
        valid = False
        for header, route, names in _expected(delivery.queue, headers):
            given = str(headers.get(header, ""))
            wanted = self._digest(route, kind, body, headers, names)
            valid |= hmac.compare_digest(given.encode(), wanted.encode())
        return None if valid else _INVALID

    def _digest(self, route: str, kind: str, body: bytes, headers: Mapping[str, Any], names: Sequence[str]) -> str:
        signed = {name: headers[name] for name in names if name in headers}
        head = json.dumps([route, kind, signed], sort_keys=True, default=str).encode()
        return hmac.digest(self._key, len(head).to_bytes(8, "big") + head + body, "sha256").hex()


def _expected(queue: str, headers: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """The signatures that are valid in ``queue``: the header of each, and the route and headers that it signs."""
    if queue == topology.DEAD_NOTICES.name and NOTICE_SIGNATURE in headers:
        yield NOTICE_SIGNATURE, queue, _NOTICE
        return
    # A message that the broker dead-lettered keeps the signature for the queue that it was in.
    origin = str(headers.get("x-first-death-queue", queue)) if queue == topology.DEAD_NOTICES.name else queue
    for route in topology.routes_to(origin):
        yield SIGNATURE, route, _IDENTITY
