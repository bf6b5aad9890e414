"""Fixtures for downloads from a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.file_server import ScriptedServer


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send requests to this machine without the proxy that the environment names."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that answers as the test's script says."""
    from tests.support.file_server import serving

    with serving() as running:
        yield running
