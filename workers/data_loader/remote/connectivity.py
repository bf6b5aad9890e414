"""The connectivity check before a download, and the parts of an address that it needs."""

from __future__ import annotations

import queue
import re
import socket
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from common.errors import FetchError

DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443, "root": 1094}


class ConnectivityCheck:
    """Checks that a server accepts connections, so that a machine without a network gets its error in seconds.

    A server that did not accept a connection is not tried again for ``retry_after_s`` seconds.
    """

    def __init__(self, timeout_s: float, retry_after_s: float) -> None:
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._failures: dict[tuple[str, int], tuple[float, str]] = {}

    def check(self, url: str) -> None:
        """Raise FetchError with ``unreachable`` set unless the server of ``url`` accepts a connection.

        Does nothing where the environment names a proxy for ``url``: only the proxy can be connected to then.
        """
        if not url.startswith("root:") and get_environ_proxies(url):
            return
        address = address_of(url)
        failed_s, failure = self._failures.pop(address, (0.0, ""))
        if not failure or time.monotonic() - failed_s > self._retry_after_s:
            failed_s, failure = time.monotonic(), _connect_failure(address, self._timeout_s)
        if failure:
            self._failures[address] = failed_s, failure
            raise FetchError(redacted(url), failure, unreachable=True)


def _connect_failure(address: tuple[str, int], timeout_s: float) -> str:
    """Return why two attempts to connect within ``timeout_s`` failed; an empty text if one succeeded.

    The attempts run in threads, because the time-out of ``create_connection`` covers neither
    the name look-up nor a list of several addresses.
    """
    outcome: queue.SimpleQueue[str] = queue.SimpleQueue()
    no_connection = f"no connection to {address[0]} port {address[1]}"

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=timeout_s / 2).close()
            outcome.put("")
        except TimeoutError:
            return  # the caller waits no longer than this
        except (OSError, UnicodeError) as error:
            outcome.put(f"{no_connection} ({error})")

    for _ in range(2):
        threading.Thread(target=connect, daemon=True).start()
        try:
            failure = outcome.get(timeout=timeout_s / 2)
        except queue.Empty:
            failure = f"{no_connection} within {timeout_s:g} s"
        if not failure:
            break
    return failure


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of a URL; raises FetchError if it is not an http, https or root URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        host, port = "", 0
    if not host:
        raise FetchError(redacted(url), "not an address of the form https://…, http://… or root://…")
    return host, port


def redacted(url: str) -> str:
    """Return a URL without user name, password, query and fragment, for messages."""
    return re.sub(r"[?#].*", "", re.sub(r"^([^/]*//)[^/?#]*@", r"\1", url), flags=re.DOTALL)
