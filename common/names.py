"""Valid names of runs, samples and result files, which become parts of paths, queue names and URLs."""

from __future__ import annotations

import re

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\Z"
MAX_NAME = 100
NAME_IS = f"use up to {MAX_NAME} letters, digits, '-', '_' and single dots between them"


def is_name(text: str) -> bool:
    """Whether ``text`` is a valid name, which as part of a path does not lead to another directory."""
    return len(text) <= MAX_NAME and re.match(NAME, text) is not None
