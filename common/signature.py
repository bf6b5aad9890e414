"""Signed messages: what was not written by a holder of the key is not even decoded.

With MESSAGE_KEY set, every message carries an HMAC-SHA256 of where it goes, of
what kind it is, of the headers a dead letter is known by, and of its body. Who
can publish to the broker but has not the key cannot make, change or redirect
one. An old message sent again is believed, and changes nothing.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common import topology
from common.transport import Delivery

SIGNATURE = "signature"
#: A dead letter keeps the signature of its message; the worker's word on why it died has one of its own.
NOTICE_SIGNATURE = "notice-signature"

_IDENTITY = ("run_id", "sample", "start", "stop")
_NOTICE = (*_IDENTITY, "queue", "problem", "died")
_REFUSED = "its signature is missing or wrong (MESSAGE_KEY must be the same everywhere)"


class Signer:
    """Signs and checks with a key; with an empty one nothing is signed and nothing refused."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def sign(self, route: str, kind: str, body: bytes, headers: Mapping[str, Any]) -> dict[str, Any]:
        """The headers of a message to the queue or exchange ``route``, with its signature."""
        if not self._key:
            return dict(headers)
        return {**headers, SIGNATURE: self._digest(route, kind, body, headers, _IDENTITY)}

    def sign_notice(self, kind: str, body: bytes, headers: Mapping[str, Any]) -> dict[str, Any]:
        """The headers of a dead letter, with the signature of why it died."""
        if not self._key:
            return dict(headers)
        notice = self._digest(topology.DEAD_NOTICES.name, kind, body, headers, _NOTICE)
        return {**headers, NOTICE_SIGNATURE: notice}

    def problem(self, delivery: Delivery) -> str | None:
        """Why a delivery must not be believed; None where its signature is right for where it arrived.

        Missing and wrong are told alike, so that nobody learns from the answer.
        """
        if not self._key:
            return None
        kind, body, headers = delivery.kind, delivery.body, delivery.headers
        right = False
        for header, route, names in _expected(delivery.queue, headers):
            given = str(headers.get(header, ""))
            wanted = self._digest(route, kind, body, headers, names)
            right |= hmac.compare_digest(given.encode(), wanted.encode())
        return None if right else _REFUSED

    def _digest(self, route: str, kind: str, body: bytes, headers: Mapping[str, Any], names: Sequence[str]) -> str:
        signed = {name: headers[name] for name in names if name in headers}
        head = json.dumps([route, kind, signed], sort_keys=True, default=str).encode()
        return hmac.digest(self._key, len(head).to_bytes(8, "big") + head + body, "sha256").hex()


def _expected(queue: str, headers: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """By which header, for which route and with which headers a message that arrived in ``queue`` is signed."""
    if queue == topology.DEAD_NOTICES.name and NOTICE_SIGNATURE in headers:
        yield NOTICE_SIGNATURE, queue, _NOTICE
        return
    # What the broker itself dead-lettered keeps the signature for the queue that it was in.
    origin = str(headers.get("x-first-death-queue", queue)) if queue == topology.DEAD_NOTICES.name else queue
    for route in topology.routes_to(origin):
        yield SIGNATURE, route, _IDENTITY
