"""Finds the one cause that reproduces all differences between two results, if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np

from common.comparison.document import Document, FloatArray, Key, Level, Sums

#: Relative tolerances of sums: of sums that are added in another order; of weights that a luminosity multiplies in
#: float32; of sums with and without a part of the events.
ROUNDING_TOLERANCE, LUMINOSITY_TOLERANCE, PART_TOLERANCE = 1e-9, 1e-6, 1e-12
#: Sums of all events less those in the bins of a histogram, relative to all: the sums have rounding errors.
OUTSIDE_TOLERANCE = 1e-11
#: Stands for a number of events that is not known.
_MANY = 1e30

Kind = Literal["histograms missing", "rounding", "luminosity", "binning", "missing", "twice", "chunk"]


@dataclass(frozen=True)
class Explanation:
    """A cause, in words, and the relative tolerance within which it reproduces every number."""

    kind: Kind
    text: str
    tolerance: float


def explain(a: Document, b: Document) -> Explanation | None:
    """Return the cause that reproduces all differences between two results; None if no single one does."""
    left, right = a.shared_with(b), b.shared_with(a)
    return (
        _histograms_missing(left, right)
        or _rounding(left, right)
        or _luminosity(left, right)
        or _binning(left, right)
        or _binning(right, left)
        or _samples(left, right)
        or _samples_of_one(a, b)
        or _samples_of_one(b, a)
        or _categories(left, right)
        or _samples_and_luminosity(left, right)
    )


def _agree(a: Document, b: Document, tolerance: float, but: Callable[[Key], bool] = lambda key: False) -> bool:
    """Return True if counts and edges are the same and sums are close, except where ``but`` is true for the key."""
    keys = [key for key in {**a.sums, **b.sums} if not but(key)]
    return (
        all(a.counts[key] == b.counts[key] for key in a.counts if key in b.counts and not but(key))
        and all(key in a.sums and key in b.sums and a.same_edges(b, key[1]) for key in keys)
        and all(a.sums[key].is_close(b.sums[key], tolerance) for key in keys)
    )


def _histograms_missing(a: Document, b: Document) -> Explanation | None:
    ours, others = set(a.names("histogram")), set(b.names("histogram"))
    names = ours ^ others
    if (names != ours - others and names != others - ours) or not names:
        return None
    if not _agree(a, b, 0.0, lambda key: key[0] == "histogram" and key[1] in names):
        return None
    text = f"{(b if ours - others else a).label} lacks {listed('histogram', names)}; all else is the same"
    return Explanation("histograms missing", text, 0.0)


def _rounding(a: Document, b: Document) -> Explanation | None:
    if not _agree(a, b, ROUNDING_TOLERANCE):
        return None
    text = "only the rounding of sums differs, as with another division into chunks"
    return Explanation("rounding", text, ROUNDING_TOLERANCE)


# --- luminosity -------------------------------------------------------------------


def _luminosity(a: Document, b: Document) -> Explanation | None:
    factor, error = _factor(a, b)
    if not _agree(_scaled(a, b, factor, error), b, LUMINOSITY_TOLERANCE):
        return None
    text = f"another luminosity: all simulation of {b.label} is {factor:.6g} times that of {a.label}, data are equal"
    ratio = _ratio_of_settings(a, b)
    if ratio is not None and not math.isclose(ratio, factor, rel_tol=LUMINOSITY_TOLERANCE + error):
        text += f"; but the ratio of the luminosities in the settings is {ratio:.6g}"
    return Explanation("luminosity", text, LUMINOSITY_TOLERANCE)


def _ratio_of_settings(a: Document, b: Document) -> float | None:
    ours, others = a.settings.get("lumi"), b.settings.get("lumi")
    return others / ours if isinstance(ours, int | float) and isinstance(others, int | float) and ours else None


def _is_data(key: Key, a: Document, b: Document) -> bool:
    """Return True if the events weigh 1 in one of the results; where no error is known, if both have the same sum."""
    found = [document.sums[key] for document in (a, b) if key in document.sums]
    known = [one for one in found if one.has_errors]
    return any(one.is_data for one in known) if known else bool(found[0].same(found[-1]).all())


def _factor(a: Document, b: Document) -> tuple[float, float]:
    """Return the ratio of all simulation in b to that in a, and its relative error by the digits that are written."""
    keys = [key for key in a.sums if key in b.sums and a.same_edges(b, key[1]) and not _is_data(key, a, b)]
    keys = [key for key in keys if not a.sums[key].rounding and not b.sums[key].rounding] or keys
    ours, others = (float(sum(document.sums[key].values.sum() for key in keys)) for document in (a, b))
    if not (ours > 0 and others > 0):
        return math.nan, 0.0
    return others / ours, sum(a.sums[key].digits / ours + b.sums[key].digits / others for key in keys)


def _scaled(a: Document, b: Document, factor: float, error: float = 0.0) -> Document:
    """Return a with all its simulation times a factor, which has a relative error."""
    return replace(a, sums={k: one if _is_data(k, a, b) else one.times(factor, error) for k, one in a.sums.items()})


# --- binning ----------------------------------------------------------------------


def _binning(fine: Document, coarse: Document) -> Explanation | None:
    names = [name for name in fine.names("histogram") if not fine.same_edges(coarse, name)]
    bounds = {name: _bounds(fine.edges[name], coarse.edges[name]) for name in names}
    if not names or not all(bounds.values()):
        return None
    sums = {k: one.merged(bounds[k[1]]) if k[1] in names else one for k, one in fine.sums.items()}
    edges = {**fine.edges, **{name: coarse.edges[name] for name in names}}
    if not _agree(replace(fine, sums=sums, edges=edges), coarse, ROUNDING_TOLERANCE):
        return None
    text = f"another binning: the bins of {fine.label}, merged, give those of {coarse.label}, in {listed('histogram', names)}"
    return Explanation("binning", text, ROUNDING_TOLERANCE)


def _bounds(fine: FloatArray | None, coarse: FloatArray | None) -> list[int]:
    """Return the index of each coarse edge among the fine ones; empty if one is not there."""
    if fine is None or coarse is None:
        return []
    found = [np.flatnonzero(np.isclose(fine, edge, rtol=1e-12, atol=0)) for edge in coarse]
    return [int(index[0]) for index in found] if all(map(len, found)) else []


# --- samples, chunks and categories -------------------------------------------------


def _samples(a: Document, b: Document, tolerance: float = PART_TOLERANCE) -> Explanation | None:
    """Explain the differences by samples that are missing, or by one of which all or some events count twice."""
    names = _changed("sample", a, b, tolerance)
    touched = {a.category_of.get(name) or b.category_of.get(name) for name in names}

    def changed(key: Key) -> bool:
        return _belongs(key, "sample", names) or _belongs(key, "category", touched)

    if not names or not _agree(a, b, tolerance, changed):
        return None
    for more, less in ((a, b), (b, a)):
        if _is_empty(less, "sample", names):
            if _differ_by(names, more, less, more, tolerance):
                return Explanation("missing", f"{less.label} lacks {listed('sample', names)}", tolerance)
        elif len(names) > 1:
            continue
        elif _is_double(more, less, "sample", names, tolerance):
            if _differ_by(names, more, less, less, tolerance):
                return Explanation("twice", f"{more.label} counts {listed('sample', names)} twice", tolerance)
        else:
            for whole in (less, more):
                if _differ_by(names, more, less, whole, tolerance):
                    return _chunk(names[0], more, less, whole)
    return None


def _samples_of_one(a: Document, b: Document) -> Explanation | None:
    """Explain the differences of a result without samples by the only sample of the other that does."""
    if "sample" not in a.levels or "sample" in b.levels:
        return None
    found = []
    for name in a.names("sample"):
        for sign in (-1, 1):  # b lacks the sample, or counts it twice
            counts = {k: n + sign * n * (k[1] == name) for k, n in a.counts.items() if k[0] == "sample"}
            sums = {k: one.plus(one, sign) if k[1] == name else one for k, one in a.sums.items() if k[0] == "sample"}
            completed = replace(b, counts={**b.counts, **counts}, sums={**b.sums, **sums}, category_of=a.category_of)
            found.append(_samples(a.shared_with(completed), completed.shared_with(a)))
    known = [one for one in found if one is not None]
    return known[0] if len(known) == 1 else None


def _samples_and_luminosity(a: Document, b: Document) -> Explanation | None:
    """Explain a run of some data samples, whose simulation is scaled to their luminosity."""
    ratio = _ratio_of_settings(a, b)
    if ratio is None or ratio <= 0:
        return None
    found = _samples(_scaled(a, b, ratio), b, LUMINOSITY_TOLERANCE)
    if found is None or found.kind != "missing":
        return None
    text = f"{found.text}; all simulation of {b.label} is {ratio:.6g} times that of {a.label}, as its luminosity"
    return replace(found, text=text)


def _categories(a: Document, b: Document) -> Explanation | None:
    names = _changed("category", a, b, PART_TOLERANCE)
    if not names or not _agree(a, b, PART_TOLERANCE, lambda key: _belongs(key, "category", names)):
        return None
    for more, less in ((a, b), (b, a)):
        if _is_empty(less, "category", names):
            return Explanation("missing", f"{less.label} lacks {listed('category', names)}", PART_TOLERANCE)
        if len(names) == 1 and _is_double(more, less, "category", names, PART_TOLERANCE):
            return Explanation("twice", f"{more.label} counts {listed('category', names)} twice", PART_TOLERANCE)
    return None


def _chunk(name: str, more: Document, less: Document, whole: Document) -> Explanation | None:
    read: Key = ("sample", name, "events_read")
    events = more.counts.get(read, 0) - less.counts.get(read, 0)
    if events <= 0:
        return None
    size = more.settings.get("chunk_entries") or less.settings.get("chunk_entries") or events
    chunks = "a chunk" if events <= size else f"at least {math.ceil(events / size)} chunks"
    twice = f"counted twice in {more.label}, or " if whole is less else ""
    text = f"{chunks} of {listed('sample', [name])}, {events:,} events, {twice}lost in {less.label}"
    return Explanation("chunk", text, PART_TOLERANCE)


def _belongs(key: Key, level: Level, names: Collection[str | None]) -> bool:
    """Return True if a key is that of one of these samples, or of one of these categories or of its histograms."""
    return (key[0] == level and key[1] in names) or (level == "category" and key[0] == "histogram" and key[2] in names)


def _changed(level: Level, a: Document, b: Document, tolerance: float) -> list[str]:
    """Return the samples or categories that differ; the histograms of a category belong to it."""
    keys = [*a.sums, *b.sums]
    every = [key[1] for key in keys if key[0] == level]
    every += [key[2] for key in keys if key[0] == "histogram" and level == "category"]

    def agrees(name: str) -> bool:
        return _agree(a, b, tolerance, lambda key: not _belongs(key, level, [name]))

    return [name for name in dict.fromkeys(every) if not agrees(name)]


def _is_empty(document: Document, level: Level, names: Sequence[str]) -> bool:
    """Return True if the document has no event of these samples or categories."""
    counts = [count for key, count in document.counts.items() if _belongs(key, level, names)]
    sums = [one for key, one in document.sums.items() if _belongs(key, level, names)]
    return not any(counts) and not any(one.values.any() or one.variances.any() for one in sums)


def _is_double(more: Document, less: Document, level: Level, names: Sequence[str], tolerance: float) -> bool:
    """Return True if each count and sum of a sample or category is twice that of the other document."""

    def is_other(key: Key) -> bool:
        return not _belongs(key, level, names)

    counts = {key: 2 * count for key, count in less.counts.items()}
    return _agree(
        replace(less, counts=counts, sums={key: one.plus(one) for key, one in less.sums.items()}),
        more,
        tolerance,
        is_other,
    )


_NOTHING = Sums.of_yield(0.0, 0.0)


def _differ_by(names: Sequence[str], more: Document, less: Document, whole: Document, tolerance: float) -> bool:
    """Return True if a part of the events that ``whole`` has of these samples makes all differences of their categories.

    The yields of samples and categories are reproduced. The part's own histograms are not known, as histograms are
    those of categories: their differences are tested for what is true of any part of the events, see ``_is_part``.
    """
    counts = {k: more.counts.get(k, 0) - less.counts.get(k, 0) for k in {**more.counts, **less.counts}}
    parts = {k: more.sums.get(k, _NOTHING).plus(less.sums.get(k, _NOTHING), -1) for k in {**more.sums, **less.sums}}
    category_of = {**less.category_of, **more.category_of}
    exact = "sum_of_weights" if any(key[2] == "sum_of_weights" for key in parts) else "yield"
    for name in names:
        events = [count for key, count in counts.items() if key[:2] == ("sample", name)]
        # Of those read, which come first, some are selected, which come last.
        if events and not 0 <= events[-1] == min(events) <= max(events) == events[0]:
            return False
        if not parts["sample", name, "yield"].is_close(parts["sample", name, exact], ROUNDING_TOLERANCE):
            return False
    for category in {category_of.get(name, "") for name in names}:
        members = [name for name in names if category_of.get(name) == category]
        selected = sum(counts.get(("sample", name, "events_selected"), 0) for name in members)
        if counts.get(("category", category, "events_selected"), selected) != selected:
            return False
        total = reduce(Sums.plus, (parts["sample", name, "yield"] for name in members), _NOTHING)
        if not parts.get(("category", category, "yield"), total).is_close(total, ROUNDING_TOLERANCE):
            return False
        every = [name for name in whole.names("sample") if category_of.get(name) == category]
        totals = (
            reduce(Sums.plus, (parts["sample", name, exact] for name in members), _NOTHING),
            reduce(Sums.plus, (whole.sums["sample", name, exact] for name in every), _NOTHING),
        )
        keys = [("sample", name, "events_selected") for name in every]
        known = all(key in whole.counts for key in keys)
        in_whole = sum(whole.counts[key] for key in keys) if known else _MANY
        for key in [key for key in parts if key[0] == "histogram" and key[2] == category]:
            bins = (parts[key], whole.sums.get(key, _NOTHING).plus(parts[key].times(0.0)))
            if not more.same_edges(less, key[1]) or not _is_part(bins, totals, (selected, in_whole), tolerance):
                return False
    return True


def _is_part(bins: tuple[Sums, Sums], totals: tuple[Sums, Sums], events: tuple[float, float], tolerance: float) -> bool:
    """Return True if these may be the bins of a part of the events, and of all: with their totals, and their numbers.

    What a total has more than the bins lies outside of them, which counts as one bin more. If n events of N have the sum
    of weights w of W and of squared weights v of V in a bin, 0 ≤ v ≤ V, and by the Cauchy–Schwarz inequality w² ≤ n·v
    and (W - w)² ≤ (N - n)·(V - v). If each event weighs 1, w = v.
    """
    (w, v), (all_w, all_v) = (
        (
            np.append(one.values, total.values - one.values.sum()),
            np.append(one.variances, total.variances - one.variances.sum()),
        )
        for one, total in zip(bins, totals, strict=True)
    )
    whole, slack = totals[1], np.full(len(w), tolerance)
    slack[-1] = max(tolerance, OUTSIDE_TOLERANCE)
    off_w = slack * np.append(np.abs(bins[1].values), np.abs(whole.values))
    off_v = slack * np.append(bins[1].variances, whole.variances)
    n, of = events
    inside = (v >= -off_v) & (v <= all_v + off_v)
    inside &= np.abs(w) <= np.sqrt(n * np.maximum(v + off_v, 0)) + off_w
    inside &= np.abs(all_w - w) <= np.sqrt((of - n) * np.maximum(all_v - v + off_v, 0)) + off_w
    return bool(inside.all()) and (not whole.is_data or bool((np.abs(w - v) <= off_w).all()))


def listed(what: str, names: Collection[str]) -> str:
    """Return for example "sample A" or "samples A, B"."""
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}"
