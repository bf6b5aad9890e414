"""Finds the one cause that reproduces all differences of yields and bins between two results, if there is one."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np

from common.comparison.document import LEVELS, Document, FloatArray, Key, Level, Sums

#: Relative tolerances: of sums that are added in another order; of sums of other weights, or of more weights, in
#: float32; of sums with and without a part of the events; of all events less those in the bins of a histogram.
ROUNDING, FLOAT32, PART, OUTSIDE = 1e-9, 1e-6, 1e-12, 1e-11
#: Stands for a number of events that is not known.
_MANY = 1e30
_NOTHING = Sums.of_yield(0.0, 0.0)

Kind = Literal["histograms missing", "rounding", "luminosity", "binning", "missing", "twice", "chunk"]


@dataclass(frozen=True)
class Explanation:
    """A cause, in words, and the relative tolerance within which it reproduces every yield and bin.

    ``reproduces_bins`` is False if bins are only compatible with the cause, because they are those of a category, and
    not of its samples.
    """

    kind: Kind
    text: str
    tolerance: float
    reproduces_bins: bool = True


def explain(a: Document, b: Document) -> Explanation | None:
    """Return the cause that reproduces all differences of yields and bins; None if no single one does."""
    left, right = a.shared_with(b), b.shared_with(a)
    return (
        _histograms_missing(left, right)
        or _rounding(left, right)
        or _luminosity(left, right)
        or _binning(left, right)
        or _binning(right, left)
        or _events("sample", left, right)
        or _samples_of_one(a, b)
        or _samples_of_one(b, a)
        or _events("category", left, right)
        or _data_and_luminosity(left, right)
    )


def _differing(a: Document, b: Document, tolerance: float) -> list[Key]:
    """Return the keys whose counts or bins are not the same, or whose sums do not agree."""
    counts = [key for key in a.counts if b.counts.get(key, a.counts[key]) != a.counts[key]]
    return counts + [
        key
        for key in {**a.sums, **b.sums}
        if key not in a.sums
        or key not in b.sums
        or not a.sums[key].same_bins(b.sums[key])
        or not a.sums[key].agree(b.sums[key], tolerance, in_float32=tolerance == FLOAT32).all()
    ]


def _histograms_missing(a: Document, b: Document) -> Explanation | None:
    ours, others = set(a.names("histogram")), set(b.names("histogram"))
    names = ours ^ others
    if (ours <= others) == (others <= ours) or any(key[1] not in names for key in _differing(a, b, 0.0)):
        return None
    lacking = a if ours < others else b
    text = f"{lacking.label} lacks {_listed('histogram', names)}; all other yields and bins are the same"
    return Explanation("histograms missing", text, 0.0)


def _rounding(a: Document, b: Document) -> Explanation | None:
    text = "only the rounding of sums differs, as with another division into chunks"
    return None if _differing(a, b, ROUNDING) else Explanation("rounding", text, ROUNDING)


# --- luminosity -------------------------------------------------------------------


def _luminosity(a: Document, b: Document) -> Explanation | None:
    keys = [k for k, one in a.sums.items() if k in b.sums and not _is_data(k, a, b) and one.same_bins(b.sums[k])]
    keys = [k for k in keys if not a.sums[k].rounding and not b.sums[k].rounding] or keys
    ours, others = (float(sum(document.sums[key].values.sum() for key in keys)) for document in (a, b))
    if not (ours > 0 and others > 0):
        return None
    factor = others / ours
    error = sum(a.sums[key].digits / ours + b.sums[key].digits / others for key in keys)
    if abs(factor - 1) <= FLOAT32 or _differing(_scaled(a, b, factor, error), b, FLOAT32):
        return None
    text = f"another luminosity: all simulation of {b.label} is {factor:.6g} times that of {a.label}, data are equal"
    ratio = _ratio_of_settings(a, b)
    if ratio is not None and not math.isclose(ratio, factor, rel_tol=FLOAT32 + error):
        text += f"; but the ratio of the luminosities in the settings is {ratio:.6g}"
    return Explanation("luminosity", text, FLOAT32)


def _ratio_of_settings(a: Document, b: Document) -> float | None:
    ours, others = a.settings.get("lumi"), b.settings.get("lumi")
    return others / ours if isinstance(ours, int | float) and isinstance(others, int | float) and ours else None


def _is_data(key: Key, a: Document, b: Document) -> bool:
    """Return True if the events weigh 1 in one of the results; where no error is known, if both have the same sum."""
    found = [document.sums[key] for document in (a, b) if key in document.sums]
    known = [one for one in found if one.has_errors]
    return any(one.is_data for one in known) if known else bool(found[0].agree(found[-1]).all())


def _scaled(a: Document, b: Document, factor: float, error: float = 0.0) -> Document:
    """Return a with all its simulation times a factor, which has a relative error."""
    return replace(a, sums={k: one if _is_data(k, a, b) else one.times(factor, error) for k, one in a.sums.items()})


# --- binning ----------------------------------------------------------------------


def _binning(fine: Document, coarse: Document) -> Explanation | None:
    changed = {k for k in fine.sums if k in coarse.sums and not fine.sums[k].same_bins(coarse.sums[k])}
    merged = {k: _merged(one, coarse.sums[k].edges) if k in changed else one for k, one in fine.sums.items()}
    if not changed or _differing(replace(fine, sums=merged), coarse, ROUNDING):
        return None
    names = _listed("histogram", {key[1] for key in changed})
    text = f"another binning: the bins of {fine.label}, merged, give those of {coarse.label}, in {names}"
    return Explanation("binning", text, ROUNDING)


def _merged(fine: Sums, edges: FloatArray | None) -> Sums:
    """Return a histogram with the bins between other edges; as it is if one of them is not among its own."""
    if fine.edges is None or edges is None:
        return fine
    found = [np.flatnonzero(np.isclose(fine.edges, edge, rtol=1e-12, atol=0)) for edge in edges]
    if not all(map(len, found)):
        return fine
    bounds = [int(index[0]) for index in found]
    values, variances = (np.add.reduceat(one[: bounds[-1]], bounds[:-1]) for one in (fine.values, fine.variances))
    return Sums(values, variances, edges)


# --- samples, categories and chunks ---------------------------------------------------


def _events(level: Level, a: Document, b: Document, tolerance: float = PART) -> Explanation | None:
    """Explain the differences by samples or categories without events, or by one that is counted twice, or in part."""
    if not all(one.same_bins(b.sums[key]) for key, one in a.sums.items() if key in b.sums):
        return None
    differing = _differing(a, b, tolerance)
    names = sorted({name for key in differing if (name := _owner(key, level)) is not None})
    categories = {one.category_of.get(name) for one in (a, b) for name in names if level == "sample"} - {None}
    if not names or not all(_owner(key, level) in names or _owner(key, "category") in categories for key in differing):
        return None
    for more, less in ((a, b), (b, a)):
        if _is_empty(less, level, names) and (level == "category" or _differ_by(names, more, less, more, tolerance)):
            text = f"{less.label} lacks {_listed(level, names)}"
            return Explanation("missing", text, max(tolerance, ROUNDING), _has_bins(level, names, more))
        if len(names) > 1:
            continue
        if _is_double(more, less, level, names):
            if level == "category" or _differ_by(names, more, less, less, tolerance):
                text = f"{more.label} counts {_listed(level, names)} twice"
                return Explanation("twice", text, FLOAT32, _has_bins(level, names, more))
        elif level == "sample" and (found := _chunk(names, more, less, tolerance)):
            return found
    return None


def _chunk(names: Sequence[str], more: Document, less: Document, tolerance: float) -> Explanation | None:
    read: Key = ("sample", names[0], "events_read")
    events = more.counts.get(read, 0) - less.counts.get(read, 0)
    sizes = (document.settings.get("chunk_entries") for document in (more, less))
    size = next((one for one in sizes if isinstance(one, int) and one > 0), events)
    chunks = "a chunk" if events <= size else f"at least {math.ceil(events / size)} chunks"
    lost = f"lost in {less.label}"
    for whole, how in ((less, f"counted twice in {more.label}, or {lost}"), (more, lost)):
        if events > 0 and _differ_by(names, more, less, whole, tolerance):
            text = f"{chunks} of {_listed('sample', names)}, {events:,} events, {how}"
            return Explanation("chunk", text, max(tolerance, ROUNDING), "histogram" not in more.levels)
    return None


def _has_bins(level: Level, names: Sequence[str], document: Document) -> bool:
    """Return True unless the samples share their category with others, so that their own bins are not known."""
    categories = {document.category_of.get(name) for name in names}
    shared = any(name not in names and of in categories for name, of in document.category_of.items())
    return level == "category" or not shared or "histogram" not in document.levels


def _samples_of_one(a: Document, b: Document) -> Explanation | None:
    """Explain the differences from a result without samples by the one sample that it lacks, or counts twice."""
    found = []
    for name in a.names("sample") if "sample" not in b.levels else ():
        for sign in (-1, 1):
            counts = {k: n + sign * n * (k[1] == name) for k, n in a.counts.items() if k[0] == "sample"}
            sums = {k: one.plus(one, sign) if k[1] == name else one for k, one in a.sums.items() if k[0] == "sample"}
            completed = replace(b, counts={**b.counts, **counts}, sums={**b.sums, **sums}, category_of=a.category_of)
            found.append(_events("sample", a.shared_with(completed), completed.shared_with(a)))
    known = [one for one in found if one is not None]
    return known[0] if len(known) == 1 else None


def _data_and_luminosity(a: Document, b: Document) -> Explanation | None:
    """Explain a run without some of the data, whose simulation is scaled to the luminosity of the others."""
    ratio = _ratio_of_settings(a, b)
    found = None if ratio is None else _events("sample", _scaled(a, b, ratio), b, FLOAT32)
    missing = set(a.names("sample")) ^ set(b.names("sample"))
    if (
        found is None
        or found.kind != "missing"
        or not all(_is_data(("sample", name, "yield"), a, b) for name in missing)
    ):
        return None
    text = f"{found.text}; all simulation of {b.label} is {ratio:.6g} times that of {a.label}, as the luminosity"
    return replace(found, text=text)


def _owner(key: Key, level: Level) -> str | None:
    """Return the sample or category that a key belongs to; a category has its histograms."""
    if key[0] == level:
        return key[1]
    return key[2] if level == "category" and key[0] == "histogram" else None


def _is_empty(document: Document, level: Level, names: Sequence[str]) -> bool:
    counts = [count for key, count in document.counts.items() if _owner(key, level) in names]
    sums = [one for key, one in document.sums.items() if _owner(key, level) in names]
    return not any(counts) and not any(one.values.any() or one.variances.any() for one in sums)


def _is_double(more: Document, less: Document, level: Level, names: Sequence[str]) -> bool:
    counts = {key: 2 * count for key, count in less.counts.items()}
    doubled = replace(less, counts=counts, sums={key: one.plus(one) for key, one in less.sums.items()})
    return not any(_owner(key, level) in names for key in _differing(doubled, more, FLOAT32))


def _differ_by(names: Sequence[str], more: Document, less: Document, whole: Document, tolerance: float) -> bool:
    """Return True if a part of the events of these samples in ``whole`` makes all differences of their categories.

    The yields of samples and categories are reproduced. The part's own histograms are not known, as histograms are
    those of categories: their differences are tested for what is true of any part of the events, see ``_is_part``.
    """
    counts = {k: more.counts.get(k, 0) - less.counts.get(k, 0) for k in {**more.counts, **less.counts}}
    parts = {k: more.sums.get(k, _NOTHING).plus(less.sums.get(k, _NOTHING), -1) for k in {**more.sums, **less.sums}}
    exact = _exact(whole)
    for name in names:
        events = [count for key, count in counts.items() if key[:2] == ("sample", name)]
        # The events read come first, and those of them that are selected last.
        if events and not 0 <= events[-1] == min(events) <= max(events) == events[0]:
            return False
        if not parts["sample", name, "yield"].agree(parts["sample", name, exact], ROUNDING, in_float32=True).all():
            return False
    category_of = {**less.category_of, **more.category_of}
    for category in {category_of.get(name, "") for name in names}:
        keys: list[Key] = [("sample", name, exact) for name in names if category_of.get(name) == category]
        part = reduce(Sums.plus, (parts[key] for key in keys), _NOTHING)
        key: Key = ("category", category, "yield")
        added = reduce(
            Sums.plus, (parts[level, name, "yield"] for level, name, _ in keys), less.sums.get(key, _NOTHING)
        )
        if key in parts and not added.agree(more.sums.get(key, _NOTHING), ROUNDING).all():
            return False
        selected = sum(counts.get((level, name, "events_selected"), _MANY) for level, name, _ in keys)
        key = ("category", category, "events_selected")
        known = key in more.counts and (key in less.counts or category not in less.names("category"))
        if known and counts[key] != selected:
            return False
        of_category = [name for name in whole.names("sample") if category_of.get(name) == category]
        everything = reduce(Sums.plus, (whole.sums["sample", name, exact] for name in of_category), _NOTHING)
        all_selected = sum(whole.counts.get(("sample", name, "events_selected"), 2 * _MANY) for name in of_category)
        for key in [key for key in parts if key[0] == "histogram" and key[2] == category]:
            bins = whole.sums.get(key, _NOTHING).plus(parts[key].times(0.0))
            if not _is_part((parts[key], part, selected), (bins, everything, all_selected), tolerance):
                return False
    return True


def _exact(document: Document) -> str:
    """Return the name of the yields that are added in float64, as the bins of histograms are."""
    return "sum_of_weights" if any(key[2] == "sum_of_weights" for key in document.sums) else "yield"


def _is_part(part: tuple[Sums, Sums, float], whole: tuple[Sums, Sums, float], tolerance: float) -> bool:
    """Return True if a part of the events may have these bins, this total and this number of events.

    What a total has more than its bins lies outside of them, which counts as one bin more. If n events of N have the
    sum of weights w of W and of squared weights v of V in a bin, 0 ≤ v ≤ V, and by the Cauchy–Schwarz inequality
    w² ≤ n·v and (W - w)² ≤ (N - n)·(V - v). If each event weighs 1, w = v.
    """
    (w, v), (all_w, all_v) = (
        [np.append(x, y - x.sum()) for x, y in ((bins.values, total.values), (bins.variances, total.variances))]
        for bins, total, _ in (part, whole)
    )
    slack = np.append(np.full(len(w) - 1, tolerance), max(tolerance, OUTSIDE))
    bins, total, _ = whole
    off_w, off_v = (
        slack * np.abs(np.append(bins.values, total.values)),
        slack * np.append(bins.variances, total.variances),
    )
    n, rest = part[2], whole[2] - part[2]
    if rest < 0:
        return False
    inside = (v >= -off_v) & (v <= all_v + off_v)
    inside &= np.abs(w) <= np.sqrt(n * np.maximum(v + off_v, 0)) + off_w
    inside &= np.abs(all_w - w) <= np.sqrt(rest * np.maximum(all_v - v + off_v, 0)) + off_w
    return bool(inside.all()) and (not total.is_data or bool((np.abs(w - v) <= off_w).all()))


def _listed(level: Level, names: Collection[str]) -> str:
    return f"{LEVELS[level] if len(names) > 1 else level} {', '.join(sorted(names))}"
