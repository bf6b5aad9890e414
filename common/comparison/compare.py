"""Compares two results: what is known about them, their samples, categories and bins, and what follows from these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.comparison.derived import DerivedDifference, derived_differences
from common.comparison.document import LEVELS, Document, Key, Level, Sums, kind
from common.comparison.explanations import Explanation, explain
from common.errors import SettingsError


@dataclass(frozen=True)
class Change:
    """Something about both results, for example a setting, that is not the same."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Difference:
    """A number that is not the same in both results, or whose error is not.

    ``name`` is a sample or category, or a bin; ``relative`` is the difference b - a over |a|. ``standard_deviations``
    is the difference over both errors in quadrature, as if the events were independent; results of the same
    events differ by less. They are None where the divisor is 0 or not known.
    """

    level: Level
    name: str
    quantity: str
    a: float
    b: float
    error_a: float | None
    error_b: float | None
    difference: float
    relative: float | None
    standard_deviations: float | None


@dataclass(frozen=True)
class Comparison:
    """What differs between two results, whose labels are ``a`` and ``b``.

    ``same`` is True if all numbers that both may have are the same, and those of the fit within its tolerance.
    ``same_bits`` is True if no tolerance was needed. ``rounded`` is True if some numbers are written with a few digits,
    and are compared to these. The explanation is that of ``differences``, ``binnings`` and what only one of them has.
    ``compared`` counts the yields and bins compared. ``parts`` names what else is compared, for example the fit, and
    ``derived`` is what differs in it, also within the tolerance. ``not_compared`` is what one of the results does not
    have at all. Differences are sorted by level and size.
    """

    a: str
    b: str
    same: bool
    same_bits: bool
    rounded: bool
    explanation: Explanation | None
    settings: list[Change]
    inputs: list[Change]
    versions: list[Change]
    only_in_a: list[str]
    only_in_b: list[str]
    binnings: list[Change]
    differences: list[Difference]
    derived: list[DerivedDifference]
    compared: dict[Level, int]
    parts: list[str]
    not_compared: list[str]


def compare(a: Document, b: Document) -> Comparison:
    """Compare two results; settings, inputs and versions do not count as differences.

    Raises SettingsError if they have no numbers of the same kind, or are nested too deeply.
    """
    left, right = a.shared_with(b), b.shared_with(a)
    if not left.sums:
        kinds = (" and ".join(LEVELS[level] for level in LEVELS if level in one.levels) for one in (a, b))
        raise SettingsError(f"there is nothing to compare: {a.path} has {next(kinds)}, {b.path} has {next(kinds)}")
    common = [key for key in left.sums if key in right.sums]
    keys = [key for key in common if left.sums[key].same_bins(right.sums[key])]
    binnings = {key[1]: (_bins(left.sums[key]), _bins(right.sums[key])) for key in common if key not in keys}
    differences = [one for key in keys for one in _differences(key, left.sums[key], right.sums[key])]
    counts = [(key, events, right.counts[key]) for key, events in left.counts.items() if key in right.counts]
    differences += [_difference(key, n, m) for key, n, m in counts if n != m]
    only_in_a, only_in_b = _only_in(left, right), _only_in(right, left)
    differ = bool(differences or binnings or only_in_a or only_in_b)
    only_in_a += _numbers_only_in(left, right)
    only_in_b += _numbers_only_in(right, left)
    parts = list({**a.derived, **b.derived}) if a.derived and b.derived else []
    try:
        derived = list(derived_differences(a.derived, b.derived)) if parts else []
    except RecursionError:
        raise SettingsError(f"{a.path}, {b.path}: window, fit or workspace is nested too deeply") from None
    same = not (differ or only_in_a or only_in_b) and all(one.allowed for one in derived)
    rounded = any(one.digits for document in (left, right) for one in document.sums.values())
    about = {"settings": (a.settings, b.settings), "inputs": (a.inputs, b.inputs), "versions": (a.versions, b.versions)}
    return Comparison(
        a.label,
        b.label,
        same=same,
        same_bits=same and not rounded and not derived,
        rounded=rounded,
        explanation=explain(a, b) if differ else None,
        **{name: list(_changes(*both)) for name, both in about.items()},
        only_in_a=only_in_a,
        only_in_b=only_in_b,
        binnings=[Change(name, *both) for name, both in binnings.items()],
        differences=sorted(differences, key=_order),
        derived=derived,
        compared={level: sum(len(left.sums[key].values) for key in keys if key[0] == level) for level in LEVELS},
        parts=parts,
        not_compared=[
            *(plural for level, plural in LEVELS.items() if level in a.levels ^ b.levels),
            *(f"{quantity} of {LEVELS[level]}" for level, quantity in _kinds_of_one(a, b)),
            *(name for name, both in about.items() if not all(both)),
        ],
    )


def _differences(key: Key, a: Sums, b: Sums) -> Iterator[Difference]:
    """Return the sums that differ; a bin is named by its edges."""
    edges = b.edges if a.edges is None else a.edges
    for index in np.flatnonzero(~a.agree(b)):
        level, name, quantity = key
        if level == "histogram":
            name += f" bin {index}" if edges is None else f" {edges[index]:g} to {edges[index + 1]:g}"
        errors = (float(one.errors[index]) if one.has_errors else None for one in (a, b))
        yield _difference((level, name, quantity), float(a.values[index]), float(b.values[index]), *errors)


def _difference(key: Key, a: float, b: float, error_a: float | None = None, error_b: float | None = None) -> Difference:
    difference, error = b - a, math.hypot(error_a or 0.0, error_b or 0.0)
    relative, deviations = (difference / divisor if divisor else None for divisor in (abs(a), error))
    return Difference(*key, a, b, error_a, error_b, difference, relative, deviations)


def _order(one: Difference) -> tuple[int, float]:
    """Sort differences by level, then from the largest on; NaN comes first."""
    size = max(abs(one.standard_deviations or 0.0), abs(one.relative or 0.0))
    return list(LEVELS).index(one.level), -math.inf if math.isnan(one.difference) else -size


def _only_in(a: Document, b: Document) -> list[str]:
    """Return what a has and b has not: samples, categories, histograms, and categories of the other histograms."""
    found = dict.fromkeys(
        f"{level} {name}" for level in LEVELS for name in a.names(level) if name not in b.names(level)
    )
    for level, name, category in a.sums:
        if level == "histogram" and name in b.names(level) and (level, name, category) not in b.sums:
            found[f"category {category} of histogram {name}"] = None
    return list(found)


def _numbers_only_in(a: Document, b: Document) -> Iterator[str]:
    """Yield the numbers of samples and categories that only a has; a cell of a CSV may be empty."""
    for (level, name, quantity), one in a.sums.items():
        other = b.sums.get((level, name, quantity))
        if other is not None and one.has_errors and not other.has_errors and not other.digits:
            yield f"error of {quantity} of {level} {name}"
    if not any(one.digits for one in b.sums.values()):
        for level, name, quantity in a.counts:
            if name in b.names(level) and (level, name, quantity) not in b.counts:
                yield f"{quantity} of {level} {name}"


def _kinds_of_one(a: Document, b: Document) -> Iterator[tuple[Level, str]]:
    """Yield the level and quantity of numbers that one of the documents has for no sample or category."""
    ours, others = ({kind(key): None for key in (*one.sums, *one.counts)} for one in (a, b))
    for level, quantity in {**ours, **others}:
        if level in a.levels & b.levels and ((level, quantity) in ours) != ((level, quantity) in others):
            yield level, quantity


def _bins(histogram: Sums) -> str:
    edges = histogram.edges
    where = "" if edges is None else f" from {edges[0]:g} to {edges[-1]:g}"
    return f"{len(histogram.values)} bins{where}"


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    """Return what both have and is not the same; of two lists of names, the names that the other lacks."""
    for name in a:
        ours, others = a[name], b.get(name, a[name])
        if isinstance(ours, list) and isinstance(others, list) and all(isinstance(one, str) for one in ours + others):
            ours, others = [one for one in ours if one not in others], [one for one in others if one not in ours]
        if ours != others:
            yield Change(name, ours, others)
