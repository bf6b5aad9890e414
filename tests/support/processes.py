"""The child processes of the tests."""

from __future__ import annotations

from contextlib import suppress

import psutil


def running_children() -> dict[psutil.Process, list[str]]:
    """The child processes of this one that have not exited, and their command lines."""
    found = {}
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # of one that has just exited, too, and that nobody has waited for
            found[child] = child.cmdline()
    return found
