"""The command that compares results: ``analysis.py compare A B [..]``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.comparison.compare import LEVEL_NAMES, Comparison, Difference, compare
from common.comparison.document import LEVELS
from common.comparison.reading import read
from common.display import MAX_TABLE_WIDTH
from common.rounding import number, rounded

SAME, DIFFERENT = 0, 1
#: How many differences of samples, of categories and of bins are printed; the JSON document has all of them.
SHOWN = 10


def run(arguments: Sequence[str], console: Console) -> int:
    """Compare results with the first one, print what differs, and return the exit code.

    Raises SettingsError for a path that is not a result, and for results that have nothing in common.
    """
    parser = argparse.ArgumentParser(
        prog="analysis.py compare",
        description="Compare results with the first one: yields of samples and categories, and histograms bin by bin.",
        epilog="Exit code 0: all numbers are the same, whatever the settings are; 1: some differ; 2: wrong usage.",
        allow_abbrev=False,
    )
    what = "result folder, result.json, histograms.root, or .csv with the columns sample or category, yield, yield_error, events"
    parser.add_argument("first", metavar="A", type=Path, help=what)
    parser.add_argument("others", metavar="B", type=Path, nargs="+", help="results to compare with A")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    flags = parser.parse_args(arguments)
    paths = [flags.first, *flags.others]
    first, *others = (replace(read(path), label=_label(index)) for index, path in enumerate(paths))
    comparisons = [compare(first, other) for other in others]
    if flags.json:
        results = {one.label: one.path for one in (first, *others)}
        document = msgspec.json.encode({"results": results, "comparisons": comparisons})
        print(msgspec.json.format(document, indent=2).decode())
    else:
        for one in (first, *others):
            console.print(f"{one.label}  {one.path}", soft_wrap=True)
        for comparison in comparisons:
            for part in report(comparison):
                if isinstance(part, Table):
                    wide = console.options.update(width=MAX_TABLE_WIDTH)
                    part.width = console.measure(part, options=wide).maximum
                console.print(part, soft_wrap=True)
    return SAME if all(comparison.same for comparison in comparisons) else DIFFERENT


def _label(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"result {index + 1}"


def report(comparison: Comparison) -> Iterator[str | Table]:
    """Return what is printed of a comparison: lines, and a table for each level that has differences."""
    a, b = comparison.a, comparison.b
    compared = ", ".join(f"{n:,} {'bins' if of == 'histogram' else f'yields of {LEVEL_NAMES[of]}'}"
                         for of, n in comparison.compared.items() if n)  # fmt: skip
    if comparison.same:
        yield f"\n{a} and {b}: the same {'to the digits given' if comparison.to_the_digits else 'bits'} ({compared})"
    else:
        yield f"\n{a} and {b} differ in {len(comparison.differences):,} numbers ({compared} compared)"
        found = comparison.explanation
        within = f" (reproduces every number, within {found.tolerance:g})" if found and found.tolerance else ""
        yield f"explanation: {found.text}{within}" if found else "no single explanation"
    for what in ("settings", "inputs", "versions", "binnings", "derived"):
        for change in getattr(comparison, what):
            name = {"binnings": "histogram", "derived": "result"}.get(what, what.removesuffix("s"))
            yield f"{name} {change.name}: {_text(change.a)} in {a}, {_text(change.b)} in {b}"
    for label, names in ((a, comparison.only_in_a), (b, comparison.only_in_b)):
        if names:
            yield f"only in {label}: {', '.join(names)}"
    if comparison.not_compared:
        yield f"not compared, as {a} or {b} does not have them: {', '.join(comparison.not_compared)}"
    for level in LEVELS:
        found = [one for one in comparison.differences if one.level == level]
        if found:
            yield _table(LEVEL_NAMES[level], found[:SHOWN], a, b)
        if len(found) > SHOWN:
            yield f"and {len(found) - SHOWN:,} more differences of {LEVEL_NAMES[level]}; --json lists all of them"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_text(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) or "–" if isinstance(value, list) else str(value)


def _table(title: str, differences: Sequence[Difference], a: str, b: str) -> Table:
    table = Table(title=f"Largest differences of {title}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for heading in (a, "±", b, "±", f"{b} - {a}", "relative", "std. dev."):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in differences:
        difference = number(one.difference, 3)
        if one.difference == 0 and one.error_a is not None and one.error_b is not None:
            difference = f"± {number(one.error_b - one.error_a, 3)}"
        relative = None if one.relative is None else 100 * one.relative
        cells = (*_rounded(one.a, one.error_a), *_rounded(one.b, one.error_b), difference)
        table.add_row(one.name, one.quantity, *cells, f"{number(relative, 3)} %", number(one.standard_deviations, 2))
    return table


def _rounded(value: float, error: float | None) -> tuple[str, str]:
    text, error_text = rounded(value, error)
    return text, "" if error is None else error_text
