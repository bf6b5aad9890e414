"""The connectivity check before a download, and the parts of an address that it needs."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from common.errors import FetchError
from common.settings import without_credentials
from workers.data_loader.remote.control import POLL_S, Deadline, FetchControl

DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443, "root": 1094}


class ConnectivityCheck:
    """Checks that a server accepts connections, so that a machine without a network gets its error in seconds.

    A server that did not accept a connection is not tried again for ``retry_after_s`` seconds.
    """

    def __init__(self, timeout_s: float, retry_after_s: float) -> None:
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._failures: dict[tuple[str, int], tuple[float, str]] = {}

    def check(self, url: str, control: FetchControl) -> None:
        """Raise FetchError with ``unreachable`` set unless the server of ``url`` accepts a connection.

        Raises Unavailable if ``control`` stops the fetch. Does nothing where the environment names a proxy for
        ``url``: only the proxy can be connected to then.
        """
        if not url.startswith("root:") and get_environ_proxies(url):
            return
        address = address_of(url)
        failed_s, failure = self._failures.pop(address, (0.0, ""))
        if not failure or time.monotonic() - failed_s > self._retry_after_s:
            failed_s, failure = time.monotonic(), _connect_failure(address, self._timeout_s, control)
        if failure:
            self._failures[address] = failed_s, failure
            raise FetchError(without_credentials(url), failure, unreachable=True)


def _connect_failure(address: tuple[str, int], timeout_s: float, control: FetchControl) -> str:
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
        answer = _first(outcome, timeout_s / 2, control)
        failure = f"{no_connection} within {timeout_s:g} s" if answer is None else answer
        if not failure:
            break
    return failure


def _first(outcome: queue.SimpleQueue[str], timeout_s: float, control: FetchControl) -> str | None:
    """Return the first item of a queue, None if there is none within ``timeout_s``."""
    deadline = Deadline(timeout_s)
    while remaining_s := deadline.remaining_s:
        try:
            return outcome.get(timeout=min(POLL_S, remaining_s))
        except queue.Empty:
            control.check()
    return None


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of an address; raises FetchError if it is not an http, https or root address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        host, port = "", 0
    if not host:
        raise FetchError(without_credentials(url), "not an address of the form https://…, http://… or root://…")
    return host, port
