"""``analysis.py check``: check the file of an own analysis, and try it on events of the demo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common import settings
from common.arguments import Parser
from common.display import print_problem
from common.errors import AnalysisError
from workers.check import check

CORRECT, MISTAKEN = 0, 1


def run(arguments: Sequence[str], console: Console) -> int:
    """Check a file, and print its mistakes; returns the exit code."""
    parser = Parser(
        "check",
        description="Check the file of an own analysis: import it, and try its functions on events of the demo.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the Python file")
    file = parser.parse(arguments).file
    try:
        checked = check(file, settings.read(os.environ).cache)
    except AnalysisError as error:
        print_problem(str(error))
        return MISTAKEN
    for one in checked:
        if one.tried_on is None:
            console.print(f"{one.release}: its functions were not tried, because no toy release has its samples")
        elif not one.mistakes:
            counts = ", ".join(f"{step} {events:,}" for step, events in one.cutflow.items())
            tried = f"tried on {', '.join(one.samples)} of {one.tried_on}"
            console.print(f"{one.release}, {tried}: {counts}", soft_wrap=True)
    mistakes = dict.fromkeys(mistake for one in checked for mistake in one.mistakes)  # each once for all releases
    for mistake in mistakes:
        print_problem(str(mistake))
    if mistakes:
        return MISTAKEN
    console.print(f"{file}: no mistakes found", soft_wrap=True)
    return CORRECT
