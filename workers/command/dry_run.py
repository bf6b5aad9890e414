"""``analysis.py --dry-run``: list the files that a run would read."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console

from common.analyses import Analysis
from common.display import new_table, print_problem, print_table
from common.rounding import MISSING
from common.settings import Settings
from workers.data_loader.inputs import input_files

COMPLETE, INCOMPLETE = 0, 1


def show(analysis: Analysis, read: Settings, console: Console, *, as_json: bool) -> int:
    """Print the files of a run and their sizes, events and chunks; returns 1 if one is missing or damaged."""
    files = input_files(analysis, read.run, read.cache)
    if as_json:
        print(json.dumps([asdict(file) for file in files], indent=2))
        return INCOMPLETE if any(file.problem for file in files) else COMPLETE
    table = new_table(f"Files of {analysis.title}")
    for column in ("sample", ""):
        table.add_column(column, no_wrap=True)
    for column in ("MB", "events", "chunks"):
        table.add_column(column, justify="right", no_wrap=True)
    for file in files:
        size_mb = MISSING if file.bytes is None else f"{file.bytes / 1e6:,.1f}"
        counts = [MISSING if count is None else f"{count:,}" for count in (file.events, file.chunks)]
        table.add_row(file.sample, file.state, size_mb, *counts)
    print_table(table, console)
    for state in dict.fromkeys(file.state for file in files):
        those = [file for file in files if file.state == state]
        size = sum(file.bytes or 0 for file in those)
        of = f", {size / 1e6:,.1f} MB" if size else ""
        console.print(f"{len(those)} files {state}{of}, the first is {those[0].location}", soft_wrap=True)
    if analysis.toy:
        console.print(f"they have {read.run.demo_events:,} simulated events, and are made once")
    problems = [file.problem for file in files if file.problem]
    if problems:
        print_problem(f"{len(problems)} files are missing or damaged, for example {problems[0]}")
    return INCOMPLETE if problems else COMPLETE
