"""What may name a run, a sample or a file of a result: it becomes part of paths, queue names and addresses."""

from __future__ import annotations

import re

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\Z"
MAX_NAME = 100
NAME_IS = f"use up to {MAX_NAME} letters, digits, '-', '_' and single dots between them"


def is_name(text: str) -> bool:
    """Whether ``text`` may name something, and leads nowhere else."""
    return len(text) <= MAX_NAME and re.match(NAME, text) is not None
