"""The version of the project and the commit of its source."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

#: The version of this source; that of the installed package, too (pyproject.toml).
VERSION = "0.2.0"
_ROOT = Path(__file__).resolve().parents[1]
_GIT_TIMEOUT_S = 5.0


def commit(environment: Mapping[str, str]) -> str | None:
    """Return the commit of this source in hexadecimal; None if it is not known.

    Images have it in the environment variable SOURCE_COMMIT. A clone asks git, which
    appends ``-dirty`` if tracked files were changed.
    """
    return environment.get("SOURCE_COMMIT") or _commit_of_clone()


@cache
def _commit_of_clone() -> str | None:
    if not (_ROOT / ".git").exists():
        return None
    describe = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def text(environment: Mapping[str, str]) -> str:
    """Return the version and, if it is known, the commit: ``0.2.0 (commit 23c0dba…)``."""
    found = commit(environment)
    return VERSION if found is None else f"{VERSION} (commit {found})"
