"""Tables of numbers that show themselves in a terminal and in a notebook."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable

from common.display import MAX_TABLE_WIDTH, print_table

if TYPE_CHECKING:
    import pandas


class Table(Mapping[str, Mapping[str, float]]):
    """Numbers by row and column: ``table[row][column]``. What is shown of them is rounded.

    Parameters
    ----------
    rows
        The numbers, with all their digits.
    shown
        The same table as the terminal shows it.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, float]], shown: RichTable) -> None:
        self._rows, self._shown = rows, shown

    def __getitem__(self, row: str) -> Mapping[str, float]:
        return self._rows[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        text = io.StringIO()
        print_table(self._shown, Console(file=text, width=MAX_TABLE_WIDTH, color_system=None, force_jupyter=False))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _repr_html_(self) -> str:
        columns = self._shown.columns
        heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
            for cells in zip(*(column.cells for column in columns), strict=True)
        )
        return f"<table><caption>{escape(str(self._shown.title))}</caption><tr>{heads}</tr>{rows}</table>"

    def to_pandas(self) -> pandas.DataFrame:
        """Return the numbers as a DataFrame; raises ImportError if pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError:
            raise ImportError("to_pandas() needs pandas, which is not installed: pip install pandas") from None
        return DataFrame.from_dict(self._rows, orient="index")
