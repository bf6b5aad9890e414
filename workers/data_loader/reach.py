"""Is a server there at all? Asked before a fetch, so that a machine without a network hears of it in seconds."""

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

PORTS: Mapping[str, int] = {"http": 80, "https": 443, "root": 1094}
#: For so long a server that took no connection is not asked again.
UNREACHABLE_S = 30.0

_unreachable: dict[tuple[str, int], tuple[float, str]] = {}


def check_reachable(url: str, connect_s: float) -> None:
    """Raise FetchError(unreachable=True) if the server takes no connection, or took none a moment ago."""
    if not url.startswith("root:") and get_environ_proxies(url):
        return  # the proxy is then the one that must be reached
    address = address_of(url)
    noticed_s, reason = _unreachable.get(address, (0.0, ""))
    if not reason or time.monotonic() - noticed_s > UNREACHABLE_S:
        reason = _connect_failure(address, connect_s)
        _unreachable[address] = time.monotonic(), reason
    if reason:
        raise FetchError(shown(url), reason, unreachable=True)


def _connect_failure(address: tuple[str, int], timeout_s: float) -> str:
    """Why no connection came about in two tries within ``timeout_s``; empty where one did.

    Threads try, because neither the look-up of a name nor a list of dead addresses keeps to a time-out.
    """
    outcome: queue.SimpleQueue[str] = queue.SimpleQueue()
    place = f"no connection to {address[0]} port {address[1]}"

    def knock() -> None:
        try:
            socket.create_connection(address, timeout=timeout_s / 2).close()
            outcome.put("")
        except TimeoutError:
            return  # the wait below has its own
        except (OSError, UnicodeError) as error:
            outcome.put(f"{place} ({error})")

    for _ in range(2):
        threading.Thread(target=knock, daemon=True).start()
        try:
            failure = outcome.get(timeout=timeout_s / 2)
        except queue.Empty:
            failure = f"{place} within {timeout_s:g} s"
        if not failure:
            break
    return failure


def address_of(url: str) -> tuple[str, int]:
    """Host and port of an address; raises FetchError where it is not one."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        host, port = "", 0
    if not host:
        raise FetchError(shown(url), "not an address of the form https://…, http://… or root://…")
    return host, port


def shown(url: str) -> str:
    """The address as it may be shown: without user name, password, query and fragment."""
    return re.sub(r"[?#].*", "", re.sub(r"^([^/]*//)[^/?#]*@", r"\1", url), flags=re.DOTALL)
