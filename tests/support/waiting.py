"""Waiting for a condition with a deadline, and free ports."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait until a condition is true, and return its value; fails the test after the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError, subprocess.CalledProcessError):
            if value := condition():
                return value
        time.sleep(0.05)
    pytest.fail(f"not within {timeout_s:g} s: {what}")
