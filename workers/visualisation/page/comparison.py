"""The comparison of two finished runs, as the command ``analysis.py compare`` makes it, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from common.comparison.command import report
from common.comparison.compare import compare
from common.comparison.reading import read
from workers.visualisation.page.text import Table


def in_words(output: Path, runs: Mapping[str, str]) -> tuple[list[str], list[Table]]:
    """Compare two runs of the output folder, given by label: the lines of the report, and its tables.

    Raises SettingsError if they have nothing in common or cannot be read.
    """
    a, b = (replace(read(output / run_id, label), path=run_id) for label, run_id in runs.items())
    lines, tables = [], []
    for part in report(compare(a, b)):
        if isinstance(part, str):
            lines.append(part.strip())
            continue
        cells = [[str(cell) for cell in column.cells] for column in part.columns]
        named = [(name, list(values)) for name, *values in zip(*cells, strict=True)]
        tables.append(Table(str(part.title), [str(column.header) for column in part.columns], named))
    return lines, tables
