"""Valid names, which become parts of paths, queue names and URLs, and the texts for names in messages to a user."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\Z"
MAX_NAME = 100
NAME_IS = f"use up to {MAX_NAME} letters, digits, '-', '_' and single dots between them"


def is_name(text: str) -> bool:
    """Whether ``text`` is a valid name, which as part of a path does not lead to another directory."""
    return len(text) <= MAX_NAME and re.match(NAME, text) is not None


def choices(name: str, known: Iterable[str]) -> str:
    """Return what to write instead of an unknown name: "did you mean 'demo'? Choose one of …"."""
    known = list(known)
    (close,) = difflib.get_close_matches(name, known, 1) or ("",)
    listed = f"hoose one of {', '.join(known)}"
    return f"did you mean {close!r}? C{listed}" if close else f"c{listed}"


def plain_text(mathtext: str) -> str:
    r"""Return a label in plain text: ``H→ZZ*`` for ``$H\to ZZ^{*}$``."""
    text = re.sub(r"\\bar\{(.)\}", "\\1\N{COMBINING MACRON}", mathtext)
    for command, character in ((r"\,", " "), (r"\to ", "→"), (r"\ell", "ℓ")):
        text = text.replace(command, character)
    return re.sub(r"[$^{}\\]", "", text)
