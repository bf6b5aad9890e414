"""Reads a result of any kind: a result folder, a result.json, a histograms.root or a CSV of yields."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import numpy as np

from common.comparison.document import Document, FloatArray, Key, Level, Sums
from common.errors import SettingsError

EXPECTED = "give a result folder, a result.json, a histograms.root or a .csv of yields"
#: Sums in float32 differ from those in float64 by at most this fraction.
MAX_ROUNDING = 1e-4


def read(path: Path) -> Document:
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
        what = "there is no result here" if path.exists() else "there is no such file or folder"
        raise SettingsError(f"{path}: {what}; {EXPECTED}")
    try:
        return reader(found)
    except OSError as error:
        raise SettingsError(f"{found}: it cannot be read: {error.strerror or error}; {EXPECTED}") from None
    except ValueError as error:  # of msgspec too
        raise SettingsError(f"{found}{error if str(error).startswith(', line') else f': {error}'}") from None


# --- result.json ------------------------------------------------------------------

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Category(msgspec.Struct):
    value: float = msgspec.field(name="yield")
    yield_error: float | None = None
    events_selected: _Count | None = None


class _Sample(_Category, kw_only=True):
    category: str = ""
    events_read: _Count | None = None
    sum_of_weights: float | None = None
    cutflow: dict[str, _Count] = {}


class _Contents(msgspec.Struct):
    values: list[float]
    variances: list[float]


#: ``edges`` and the contents of each category.
_Histogram = dict[str, list[float] | _Contents]


class _Provenance(msgspec.Struct):
    inputs: dict[str, dict[str, Any]] = {}


class _Result(msgspec.Struct):
    samples: dict[str, _Sample] = {}
    categories: dict[str, _Category] = {}
    histograms: dict[str, _Histogram] = {}
    variations: dict[str, _Histogram] = {}
    settings: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    window: dict[str, Any] | None = None
    fit: dict[str, Any] | None = None


def _read_json(path: Path) -> Document:
    raw = json.loads(path.read_bytes())
    result = msgspec.convert(raw, _Result)
    # The fine bins of a peak are a histogram beside the others, with a name of the analysis's own.
    fine = {name: one for name, one in raw.items() if isinstance(one, dict) and "edges" in one}
    histograms = {**result.histograms, **result.variations, **msgspec.convert(fine, dict[str, _Histogram])}
    if not (result.samples or result.categories or histograms):
        raise ValueError(f"it has no samples, categories or histograms; {EXPECTED}")
    counts: dict[Key, int] = {}
    sums: dict[Key, Sums] = {}
    rounding: dict[str, float] = {}
    for name, sample in result.samples.items():
        exact = sample.value if sample.sum_of_weights is None else sample.sum_of_weights
        rounded = min(abs(sample.value - exact), MAX_ROUNDING * abs(exact))
        rounding[sample.category] = rounding.get(sample.category, 0.0) + rounded
        sums["sample", name, "yield"] = Sums.of_yield(sample.value, sample.yield_error, rounding=rounded)
        if sample.sum_of_weights is not None:
            sums["sample", name, "sum_of_weights"] = Sums.of_yield(sample.sum_of_weights, sample.yield_error)
        events = {"events_read": sample.events_read, **sample.cutflow, "events_selected": sample.events_selected}
        counts |= {("sample", name, step): count for step, count in events.items() if count is not None}
    for name, category in result.categories.items():
        known = rounding.get(name, 0.0)
        sums["category", name, "yield"] = Sums.of_yield(category.value, category.yield_error, rounding=known)
        if category.events_selected is not None:
            counts["category", name, "events_selected"] = category.events_selected
    edges = {name: _edges(name, histogram, histograms) for name, histogram in histograms.items()}
    for name, histogram in histograms.items():
        for category_name, one in histogram.items():
            if isinstance(one, _Contents):
                sums["histogram", name, category_name] = Sums.of_bins(one.values, one.variances)
    about = {name: raw[name] for name in ("analysis", "release", "toy", "complete", "problems") if name in raw}
    # The same file may be read at several locations.
    inputs = msgspec.convert(result.provenance, _Provenance).inputs
    derived = flat({"window": result.window or {}, "fit": result.fit or {}})
    return Document(
        str(path),
        counts,
        sums,
        edges,
        category_of={name: sample.category for name, sample in result.samples.items()},
        settings={**about, **result.settings},
        inputs={name: {k: one for k, one in file.items() if k != "location"} or file for name, file in inputs.items()},
        versions=flat({k: one for k, one in result.provenance.items() if k not in ("inputs", "replicas")}),
        derived={name: one for name, one in derived.items() if isinstance(one, float | int)},
    )


def _edges(name: str, histogram: _Histogram, histograms: Mapping[str, _Histogram]) -> FloatArray:
    """Return the edges of a histogram, for a variation those of the histogram with as many bins.

    They are NaN where several histograms have as many bins, and other edges. Raises ValueError if a category has another number of bins.
    """
    lengths = {
        len(array) for one in histogram.values() if isinstance(one, _Contents) for array in (one.values, one.variances)
    }
    own = histogram.get("edges")
    known = {tuple(cast("list[float]", one["edges"])) for one in histograms.values() if "edges" in one}
    fitting = [one for one in known if {len(one) - 1} == lengths] if own is None else [tuple(cast("list[float]", own))]
    found = np.array(fitting[0]) if len(fitting) == 1 else np.full(max(lengths, default=0) + 1, np.nan)
    if lengths - {len(found) - 1}:
        raise ValueError(
            f"histogram {name}: values and variances have {sorted(lengths)} bins, the edges {len(found) - 1}"
        )
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one whose names are, for example, ``fit.signal_strength``."""
    found: dict[str, Any] = {}
    for name, one in values.items():
        found |= flat(one, f"{prefix}{name}.") if isinstance(one, Mapping) else {f"{prefix}{name}": one}
    return found


# --- histograms.root ----------------------------------------------------------------


def _read_root(path: Path) -> Document:
    import uproot

    sums: dict[Key, Sums] = {}
    edges: dict[str, FloatArray] = {}
    try:
        with uproot.open(path) as file:
            for key in file.keys(cycle=False, filter_classname="TH1*"):
                name, _, category = key.partition("/")
                histogram = file[key]
                found = np.asarray(histogram.axis().edges(), dtype=np.float64)
                if not category or "/" in category or not np.array_equal(edges.setdefault(name, found), found):
                    raise ValueError(
                        f"histogram {key}: give a directory per histogram, in it a TH1 per category, of the same edges"
                    )
                sums["histogram", name, category] = Sums.of_bins(histogram.values(), histogram.variances())
    except uproot.DeserializationError as error:
        raise ValueError(f"it is not a ROOT file: {str(error).splitlines()[0]}") from None
    if not sums:
        raise ValueError("it has no histogram; give a directory per histogram, and in it a TH1 per category")
    return Document(str(path), {}, sums, edges)


# --- CSV of yields ------------------------------------------------------------------


def _read_csv(path: Path) -> Document:
    counts: dict[Key, int] = {}
    sums: dict[Key, Sums] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            columns = rows.fieldnames or []
            level: Level = "sample" if "sample" in columns else "category"
            optional = {*columns} - {level, "yield"}
            if (
                len({*columns}) < len(columns)
                or not {level, "yield"} <= {*columns}
                or optional - {"yield_error", "events"}
            ):
                raise ValueError(
                    f"the columns are {','.join(columns) or 'missing'}; give sample or category, yield, and optionally "
                    "yield_error and events"
                )
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"the number of cells is not {len(columns)}, as in the header")
                key: Key = (level, row[level].strip(), "yield")
                if not key[1] or key in sums:
                    raise ValueError(f"{level} {key[1]!r} {'is repeated' if key[1] else 'has no name'}")
                value, digits = _number("yield", row["yield"])
                error, error_digits = _number("yield_error", row.get("yield_error") or "nan")
                given = error if row.get("yield_error") else None
                sums[key] = Sums.of_yield(value, given, digits=digits, error_digits=error_digits)
                if row.get("events"):
                    counts[level, key[1], "events_selected"] = int(_number("events", row["events"])[0])
            if not sums:
                raise ValueError("there is no row of yields")
        except (ValueError, csv.Error) as error:
            raise ValueError(f", line {max(rows.line_num, 1)}: {error}") from None
    return Document(str(path), counts, sums)


def _number(column: str, text: str) -> tuple[float, float]:
    """Return the number of a cell, and half a unit of its last digit."""
    try:
        exact = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{column} {text!r} is not a number; write for example 12.34") from None
    exponent = exact.as_tuple().exponent
    if column == "events" and exact != abs(exact.to_integral_value()):
        raise ValueError(f"events {text!r} is not a number of events; write for example 1234")
    return float(exact), 0.5 * 10.0**exponent if isinstance(exponent, int) else 0.0
