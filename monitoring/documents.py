"""Measurements as tables with notes: printed in the terminal, and written as Markdown and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from monitoring.sources.base import MonitorError


@dataclass(frozen=True)
class TextTable:
    """A table of text; the first ``names`` columns are aligned to the left, the others to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int
    title: str
    note: str = ""


@dataclass(frozen=True)
class Document:
    """Tables, notes, how they were made, and ``numbers``: further keys of the JSON document."""

    title: str
    caption: str
    tables: Sequence[TextTable]
    notes: Sequence[str]
    made: Mapping[str, Any]
    recordings: Sequence[str]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def print(self, console: Console) -> None:
        """Print the tables and notes."""
        console.print(self.caption, soft_wrap=True)
        for table in self.tables:
            shown = Table(box=SIMPLE_HEAD, title=table.title, title_justify="left", pad_edge=False)
            for number, name in enumerate(table.columns):
                shown.add_column(name, justify="left" if number < table.names else "right", no_wrap=True)
            for row in table.rows:
                if row[0] and table.names > 1 and shown.row_count:
                    shown.add_section()
                shown.add_row(*row)
            console.print(shown)
        for note in self.notes:
            console.print(note, soft_wrap=True)

    def markdown(self) -> str:
        """Return a Markdown page."""
        lines = [f"# {self.title}", "", f"{self.caption}."]
        for table in self.tables:
            alignment = [":--"] * table.names + ["--:"] * (len(table.columns) - table.names)
            rows = [table.columns, alignment, *table.rows]
            lines += ["", f"## {table.title}", ""]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            lines += ["", table.note] if table.note else []
        lines += ["", *(f"- {note}" for note in self.notes)]
        made = [f"{name}: {value}" for name, value in self.made.items()]
        for title, items in (("How it was made", made), ("Recordings", self.recordings)):
            lines += ["", f"## {title}", "", *(f"- {item}" for item in items)] if items else []
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """Return a JSON document; ``tables`` are texts, the other keys numbers."""
        parts = {key: value for key, value in asdict(self).items() if key != "numbers"}
        return json.dumps({**parts, **self.numbers}, indent=1, ensure_ascii=False)


def publish(document: Document, path: Path, draw: Callable[[Path], None], console: Console) -> None:
    """Print a document and write ``path``.md and .json, and with ``draw`` .png and .pdf; raises MonitorError."""
    # Figures are written to files only; matplotlib cannot be imported with a backend that it does not have.
    os.environ["MPLBACKEND"] = "agg"
    document.print(console)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(document.markdown(), encoding="utf-8")
        draw(path)
        # Written last: readers find a folder by this file.
        path.with_suffix(".json").write_text(document.json(), encoding="utf-8")
    except OSError as error:
        raise MonitorError(f"--output {path.parent}: {error.strerror}") from None
    console.print(f"{path}.png, .pdf, .md and .json", soft_wrap=True)
