"""Reads a result of any kind: a result folder, a result.json, a histograms.root or a CSV of yields."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from common.comparison.document import Document, FloatArray, Key, Level, Sums
from common.errors import SettingsError

EXPECTED = "give a result folder, a result.json, a histograms.root or a .csv of yields"
#: Sums in float32 differ from those in float64 by at most this fraction.
MAX_ROUNDING = 1e-4


def read(path: Path, label: str = "") -> Document:
    """Read a result.

    A CSV has a header and the columns ``sample`` or ``category``, ``yield`` and optionally ``yield_error`` and
    ``events``, of which a cell may be empty. A ROOT file has a directory per histogram, and in it a one-dimensional
    histogram per category. Raises SettingsError, which names the file, the line of a CSV, and what is expected.
    """
    found = path
    if path.is_dir():
        found = next((one for name in ("result.json", "histograms.root") if (one := path / name).is_file()), path)
    reader = {".json": _read_json, ".root": _read_root, ".csv": _read_csv}.get(found.suffix)
    if reader is None or not found.is_file():
        what = "this is not a result" if path.exists() else "there is no such file or folder"
        raise SettingsError(f"{path}: {what}; {EXPECTED}")
    try:
        return replace(reader(found), label=label)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise SettingsError(f"{found}: it cannot be read: {reason}; {EXPECTED}") from None
    except (ValueError, TypeError, RecursionError) as error:  # of JSON, msgspec and numpy, too
        raise SettingsError(f"{found}: this is not a result: {str(error).splitlines()[0]}") from None


# --- result.json ------------------------------------------------------------------

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Yield(msgspec.Struct):
    """A sample or a category."""

    value: float = msgspec.field(name="yield")
    yield_error: float | None = None
    sum_of_weights: float | None = None
    category: str = ""
    events_read: _Count | None = None
    cutflow: dict[str, _Count] = {}
    events_selected: _Count | None = None


class _Contents(msgspec.Struct):
    values: list[float]
    variances: list[float]


#: What follows from the histograms.
_DERIVED = ("window", "fit", "fit_problem", "workspace")
#: ``edges`` and the contents of each category.
_Histogram = dict[str, list[float] | _Contents]


class _Result(msgspec.Struct):
    samples: dict[str, _Yield] = {}
    categories: dict[str, _Yield] = {}
    histograms: dict[str, _Histogram] = {}
    variations: dict[str, _Histogram] = {}
    settings: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    window: dict[str, Any] | None = None
    fit: dict[str, Any] | None = None


# As in common/messages.py: the threads of the page must not derive this at the same time.
msgspec.json.Decoder(_Result)


def _read_json(path: Path) -> Document:
    raw = json.loads(path.read_bytes())
    result = msgspec.convert(raw, _Result)
    # The fine bins of a peak are a histogram beside the others, with a name of the analysis's own.
    fine = {name: one for name, one in raw.items() if isinstance(one, dict) and "edges" in one}
    counts: dict[Key, int] = {}
    sums: dict[Key, Sums] = {}
    rounding: dict[str, float] = {}
    levels: list[tuple[Level, dict[str, _Yield]]] = [("sample", result.samples), ("category", result.categories)]
    for level, yields in levels:
        exact = all(one.sum_of_weights is not None for one in yields.values())
        for name, one in yields.items():
            known = rounding.get(name, 0.0)
            if exact and one.sum_of_weights is not None:
                known = min(abs(one.value - one.sum_of_weights), MAX_ROUNDING * abs(one.sum_of_weights))
                rounding[one.category] = rounding.get(one.category, 0.0) + known
                sums[level, name, "sum_of_weights"] = Sums.of_yield(one.sum_of_weights, one.yield_error)
            sums[level, name, "yield"] = Sums.of_yield(one.value, one.yield_error, rounding=known)
            events = {"events_read": one.events_read, **one.cutflow, "events_selected": one.events_selected}
            counts |= {(level, name, step): count for step, count in events.items() if count is not None}
    histograms = {**result.histograms, **result.variations, **msgspec.convert(fine, dict[str, _Histogram])}
    edges = [np.array(one["edges"], dtype=np.float64) for one in histograms.values() if "edges" in one]
    for name, histogram in histograms.items():
        for category, contents in histogram.items():
            if isinstance(contents, _Contents):
                bins = _edges(histogram, len(contents.values), edges)
                if {len(contents.variances)} | ({len(bins) - 1} if bins is not None else set()) != {
                    len(contents.values)
                }:
                    raise ValueError(f"histogram {name}, {category}: edges, values and variances differ in length")
                sums["histogram", name, category] = Sums(
                    np.array(contents.values, dtype=np.float64), np.array(contents.variances, dtype=np.float64), bins
                )
    if not sums:
        raise ValueError(f"it has no samples, categories or histograms; {EXPECTED}")
    # The same file may be read at several locations.
    inputs = msgspec.convert(result.provenance.get("inputs") or {}, dict[str, dict[str, Any]])
    derived = {name: raw[name] for name in _DERIVED if name in raw}
    if result.fit is not None:
        derived["fit"] = {name: one for name, one in result.fit.items() if name != "software"}
    about = {name: raw[name] for name in ("analysis", "release", "toy", "complete", "problems") if name in raw}
    return Document(
        str(path),
        counts,
        sums,
        category_of={name: one.category for name, one in result.samples.items()},
        settings={**about, **result.settings},
        inputs={name: {k: one for k, one in file.items() if k != "location"} or file for name, file in inputs.items()},
        versions=_flat({k: one for k, one in result.provenance.items() if k not in ("inputs", "replicas")}),
        derived=derived,
    )


def _edges(histogram: _Histogram, bins: int, known: list[FloatArray]) -> FloatArray | None:
    """Return the edges of a histogram; a variation has those of the only ones with as many bins, else None."""
    if "edges" in histogram:
        return np.array(histogram["edges"], dtype=np.float64)
    fitting = [one for one in known if len(one) == bins + 1]
    return fitting[0] if fitting and all(np.array_equal(one, fitting[0]) for one in fitting) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one whose names are, for example, ``packages.numpy``."""
    found: dict[str, Any] = {}
    for name, one in values.items():
        found |= _flat(one, f"{prefix}{name}.") if isinstance(one, Mapping) else {f"{prefix}{name}": one}
    return found


# --- histograms.root ----------------------------------------------------------------


def _read_root(path: Path) -> Document:
    import uproot

    sums: dict[Key, Sums] = {}
    try:
        with uproot.open(path) as file:
            for key in file.keys(cycle=False, filter_classname="TH1*"):
                name, _, category = key.partition("/")
                if not category or "/" in category:
                    raise ValueError(f"histogram {key} is not in a directory; name it for example mass/signal")
                one = file[key]
                edges = np.asarray(one.axis().edges(), dtype=np.float64)
                sums["histogram", name, category] = Sums(one.values() + 0.0, one.variances() + 0.0, edges)
    except (OSError, ValueError):
        raise
    except Exception as error:  # uproot raises any error where a file is damaged
        raise ValueError(f"the file is damaged: {type(error).__name__}: {error}") from None
    if not sums:
        raise ValueError("it has no histogram; give a directory per histogram, and in it a TH1 per category")
    return Document(str(path), {}, sums)


# --- CSV of yields ------------------------------------------------------------------


def _read_csv(path: Path) -> Document:
    counts: dict[Key, int] = {}
    sums: dict[Key, Sums] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            columns = rows.fieldnames or []
            level: Level = "sample" if "sample" in columns else "category"
            others = {*columns} - {level, "yield"}
            if not others <= {"yield_error", "events"} or len(columns) != len(others) + 2:
                raise ValueError(
                    f"the columns are {', '.join(columns) or 'missing'}; give sample or category, yield, "
                    "and optionally yield_error and events"
                )
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"the row does not have {len(columns)} cells, as the header has")
                key: Key = (level, row[level].strip(), "yield")
                if not key[1] or key in sums:
                    raise ValueError(f"{level} {key[1]} is there twice" if key[1] else f"the {level} has no name")
                value, digits = _number("yield", row["yield"])
                error, error_digits = (
                    _number("yield_error", row["yield_error"]) if row.get("yield_error") else (None, 0.0)
                )
                sums[key] = Sums.of_yield(value, error, digits, error_digits)
                if row.get("events"):
                    counts[level, key[1], "events_selected"] = int(_number("events", row["events"])[0])
            if not sums:
                raise ValueError("there is no row of yields")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"line {max(rows.line_num, 1)}: {error}") from None
    return Document(str(path), counts, sums)


def _number(column: str, text: str) -> tuple[float, float]:
    """Return the number of a cell, and half a unit of its last digit."""
    try:
        exact = Decimal(text.strip())
        exponent = exact.as_tuple().exponent
        if column != "events" or exact == abs(exact.to_integral_value()):
            return float(exact), 0.5 * 10.0**exponent if isinstance(exponent, int) else 0.0
    except InvalidOperation:
        pass
    raise ValueError(f"{column} {text!r} is not a number{' of events' * (column == 'events')}; write for example 123")
