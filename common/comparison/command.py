"""The command that compares results: ``analysis.py compare A B [..]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.arguments import Parser
from common.comparison.compare import Comparison, Difference, compare
from common.comparison.derived import FIT_TOLERANCE, DerivedDifference
from common.comparison.document import LEVELS
from common.comparison.explanations import Explanation
from common.comparison.reading import read
from common.display import print_table
from common.rounding import number, rounded

SAME, DIFFERENT = 0, 1
#: How many differences of each kind are printed.
SHOWN = 10


def run(arguments: Sequence[str], console: Console) -> int:
    """Compare results with the first one, print what differs, and return the exit code.

    Raises SettingsError for a path that is not a result, and for results that have nothing in common.
    """
    parser = Parser(
        "compare",
        description="Compare results with the first one: yields of samples and categories, histograms bin by bin, "
        "and of result.json the window, the fit and the workspace.",
        epilog=f"Exit code 0: all numbers are the same, whatever the settings are, and those of the fit within a "
        f"relative {FIT_TOLERANCE:g}; 1: some differ; 2: wrong usage.",
    )
    what = "a result folder, a result.json, a histograms.root, or a .csv with the columns sample (or category), yield, "
    parser.add_argument("first", metavar="A", type=Path, help=what + "yield_error, events")
    parser.add_argument("others", metavar="B", type=Path, nargs="+", help="a result to compare with A")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    flags = parser.parse(arguments)
    paths = [flags.first, *flags.others]
    labels = [chr(ord("A") + index) if len(paths) <= 26 else f"[{index + 1}]" for index in range(len(paths))]
    first, *others = map(read, paths, labels)
    comparisons = [compare(first, other) for other in others]
    if flags.json:
        results = {one.label: one.path for one in (first, *others)}
        document = msgspec.json.encode({"results": results, "comparisons": comparisons})
        print(msgspec.json.format(document).decode())
    else:
        for one in (first, *others):
            console.print(f"{one.label}  {one.path}", soft_wrap=True)
        for part in (part for comparison in comparisons for part in report(comparison)):
            if isinstance(part, Table):
                print_table(part, console)
            else:
                console.print(part, soft_wrap=True)
    return SAME if all(comparison.same for comparison in comparisons) else DIFFERENT


def report(comparison: Comparison) -> Iterator[str | Table]:
    """Return the lines, and a table for each level that has differences."""
    a, b = comparison.a, comparison.b
    numbers = [
        f"{n:,} {'bins' if of == 'histogram' else f'yields of {LEVELS[of]}'}"
        for of, n in comparison.compared.items()
        if n
    ]
    if comparison.same:
        same = "the same bits" if comparison.same_bits else "the same but for the last digits of the fit"
        same = "the same to the digits given" if comparison.rounded else same
        parts = f"; {', '.join(comparison.parts)} are compared, too" if comparison.parts else ""
        yield f"\n{a} and {b}: {same} ({', '.join(numbers)}){parts}"
    else:
        differing = len(comparison.differences)
        numbers_differ = f" in {differing:,} number{'s' * (differing != 1)}" if differing else ""
        yield f"\n{a} and {b} differ{numbers_differ} ({', '.join([*numbers, *comparison.parts])} are compared)"
        sums_differ = comparison.differences or comparison.binnings or comparison.only_in_a or comparison.only_in_b
        yield _reason(comparison.explanation) if sums_differ else "all yields and bins are the same"
    for part in comparison.parts:
        yield from _part(part, [one for one in comparison.derived if one.part == part], a, b)
    for what in ("settings", "inputs", "versions", "binnings"):
        changes = getattr(comparison, what)
        name = "histogram" if what == "binnings" else what.removesuffix("s")
        for change in changes[:SHOWN]:
            yield f"{name} {change.name}: {_text(change.a)} in {a}, {_text(change.b)} in {b}"
        yield from _more(len(changes), what)
    for label, names in ((a, comparison.only_in_a), (b, comparison.only_in_b)):
        if names:
            yield f"only in {label}: {', '.join(names)}"
    not_compared = [*comparison.not_compared, *([] if comparison.parts else ["window, fit and workspace"])]
    if not_compared:
        yield f"not compared, as {a} or {b} does not have them: {', '.join(not_compared)}"
    for level, plural in LEVELS.items():
        differences = [one for one in comparison.differences if one.level == level]
        if differences:
            yield _table(f"Largest differences of {plural}", differences[:SHOWN], a, b)
        yield from _more(len(differences), f"differences of {plural}")


def _part(part: str, found: Sequence[DerivedDifference], a: str, b: str) -> Iterator[str]:
    """Return the lines of the window, the fit or the workspace."""
    allowed = [one for one in found if one.allowed]
    larger = [one for one in found if not one.allowed]
    for one in larger[:SHOWN]:
        how_many = ""
        if one.compared > 1:
            how_many = f"{one.differing:,} of {one.compared:,} values differ; the largest difference: "
        yield f"{one.name}: {how_many}{_text(one.a)} in {a}, {_text(one.b)} in {b}"
    yield from _more(len(larger), f"differences of the {part}")
    if allowed:
        differing = sum(one.differing for one in allowed)
        values = f"{differing:,} {'other ' * bool(larger)}value{'s' * (differing != 1)}"
        largest = max(one.relative or 0.0 for one in allowed)
        yield (
            f"{part}: {values} differ{'s' * (differing == 1)} by at most {largest:.2g} (relative), "
            f"within the {FIT_TOLERANCE:g} that is allowed"
        )


def _more(found: int, what: str) -> Iterator[str]:
    if found > SHOWN:
        yield f"and {found - SHOWN:,} more {what}; --json lists all of them"


def _reason(explanation: Explanation | None) -> str:
    if explanation is None:
        return "no single explanation"
    if not explanation.tolerance:
        return explanation.text
    what = "all yields and bins are reproduced"
    if not explanation.reproduces_bins:
        what = "yields are reproduced, and bins of the category are compatible; those of a sample are not known"
    return f"{explanation.text} ({what}; tolerance {explanation.tolerance:g}, relative)"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return " ".join(f"{name} {one}" for name, one in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _table(title: str, differences: Sequence[Difference], a: str, b: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("", "", a, "±", b, "±", f"{b} - {a}", "relative", "std. dev."):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for one in differences:
        difference = number(one.difference, 3)
        if not one.difference and one.error_a is not None and one.error_b is not None:
            difference = f"± {number(one.error_b - one.error_a, 3)}"
        table.add_row(
            one.name,
            one.quantity,
            *rounded(one.a, one.error_a),
            *rounded(one.b, one.error_b),
            difference,
            "–" if one.relative is None else f"{100 * one.relative:.3g} %",
            number(one.standard_deviations, 2),
        )
    return table
