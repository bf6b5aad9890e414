"""Compares two results: what is known about them, then the numbers of samples, categories and bins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.comparison.document import LEVELS, Document, Key, Level
from common.comparison.explanations import Explanation, explain
from common.errors import SettingsError

#: The levels in the plural.
LEVEL_NAMES: Mapping[Level, str] = {"sample": "samples", "category": "categories", "histogram": "histograms"}
#: Fits are minimised numerically, so that their last digits depend on the machine.
DERIVED_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Change:
    """Something about a result, for example a setting, that is not the same in both; None where it is not known."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Difference:
    """A number that is not the same in both results, or whose error is not.

    ``difference`` is b - a, ``relative`` that over |a|. ``standard_deviations`` is the difference over the errors of both
    in quadrature, as if the events were independent; results of the same events differ by less. They are
    None where the divisor is 0 or not known.
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
    """What differs between two results, which ``a`` and ``b`` label.

    ``same`` is True if all numbers that both may have are the same, ``to_the_digits`` if some of them are written with
    a few digits and agree within these. ``compared`` counts the numbers compared, bins one by one. ``not_compared`` is
    what one of the results does not have at all. The differences of a level are in the order of their size.
    """

    a: str
    b: str
    same: bool
    to_the_digits: bool
    explanation: Explanation | None
    settings: list[Change]
    inputs: list[Change]
    versions: list[Change]
    only_in_a: list[str]
    only_in_b: list[str]
    binnings: list[Change]
    differences: list[Difference]
    derived: list[Change]
    compared: Mapping[Level, int]
    not_compared: list[str]


def compare(a: Document, b: Document) -> Comparison:
    """Compare two results; settings, inputs and versions do not count as differences of the numbers.

    Raises SettingsError if they have no numbers of the same kind.
    """
    left, right = a.shared_with(b), b.shared_with(a)
    if not left.sums:
        kinds = [", ".join(LEVEL_NAMES[level] for level in LEVELS if level in one.levels) for one in (a, b)]
        raise SettingsError(f"{a.path} has {kinds[0]}, {b.path} has {kinds[1]}: there is nothing to compare")
    binnings = [
        Change(name, _binning(left, name), _binning(right, name))
        for name in left.names("histogram")
        if not left.same_edges(right, name)
    ]
    rebinned = {change.name for change in binnings}
    keys = [key for key in left.sums if key in right.sums and (key[0] != "histogram" or key[1] not in rebinned)]
    differences = [one for key in keys for one in _differences(left, right, key)]
    for key, events in left.counts.items():
        if right.counts.get(key, events) != events:
            differences.append(_difference(*key, events, right.counts[key]))
    only_in_a, only_in_b = list(_only_in(left, right)), list(_only_in(right, left))
    differ = bool(binnings or differences or only_in_a or only_in_b)
    derived = (
        []
        if differ
        else [
            one for one in _changes(a.derived, b.derived) if not math.isclose(one.a, one.b, rel_tol=DERIVED_TOLERANCE)
        ]
    )
    same = not (differ or derived)
    about = {"settings": (a.settings, b.settings), "inputs": (a.inputs, b.inputs), "versions": (a.versions, b.versions)}
    changes = {name: list(_changes(*both)) for name, both in about.items()}
    return Comparison(
        a.label,
        b.label,
        same,
        to_the_digits=any(one.digits for document in (left, right) for one in document.sums.values()),
        explanation=None if same else explain(a, b),
        **changes,
        only_in_a=only_in_a,
        only_in_b=only_in_b,
        binnings=binnings,
        differences=sorted(differences, key=_size),
        derived=derived,
        compared={level: sum(len(left.sums[key].values) for key in keys if key[0] == level) for level in LEVELS},
        not_compared=[
            *(LEVEL_NAMES[level] for level in LEVELS if level in a.levels ^ b.levels),
            *(name for name, both in about.items() if not all(both)),
        ],
    )


def _differences(a: Document, b: Document, key: Key) -> Iterator[Difference]:
    """Return the sums of a key that differ; bins are named by their edges."""
    ours, others = a.sums[key], b.sums[key]
    level, name, quantity = key
    for index in np.flatnonzero(~ours.same(others)):
        where = name
        if level == "histogram":
            low, high = a.edges[name][index : index + 2]
            where = f"{name} {low:g} to {high:g}" if low < high else f"{name} bin {index}"
        errors = [float(one.errors[index]) if one.has_errors else None for one in (ours, others)]
        yield _difference(level, where, quantity, float(ours.values[index]), float(others.values[index]), *errors)


def _difference(
    level: Level,
    name: str,
    quantity: str,
    a: float,
    b: float,
    error_a: float | None = None,
    error_b: float | None = None,
) -> Difference:
    difference, error = b - a, math.hypot(error_a or 0.0, error_b or 0.0)
    relative = difference / abs(a) if a else None
    return Difference(
        level, name, quantity, a, b, error_a, error_b, difference, relative, difference / error if error else None
    )


def _size(difference: Difference) -> tuple[int, float]:
    """Return what differences are sorted by: the level, then the size, from the largest on; NaN comes first."""
    sizes = (difference.standard_deviations or 0.0, difference.relative or 0.0)
    size = math.inf if math.isnan(difference.difference) else max(map(abs, sizes))
    return LEVELS.index(difference.level), -size


def _only_in(a: Document, b: Document) -> list[str]:
    """Return the samples, categories and histograms that a has and b has not, and those categories of common histograms."""
    names = [f"{level} {name}" for level in LEVELS for name in a.names(level) if name not in b.names(level)]
    common = set(a.names("histogram")) & set(b.names("histogram"))
    lacking = [key for key in a.sums if key[0] == "histogram" and key[1] in common and key not in b.sums]
    return names + [f"histogram {name}, category {category}" for _, name, category in lacking]


def _binning(document: Document, name: str) -> str:
    edges = document.edges[name]
    return f"{len(edges) - 1} bins from {edges[0]:g} to {edges[-1]:g}"


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    """Return what both have and is not the same. Of lists of names, it is the names that the other lacks."""
    for name, ours in a.items():
        others = b.get(name, ours)
        if isinstance(ours, list) and isinstance(others, list) and all(isinstance(one, str) for one in ours + others):
            ours, others = [one for one in ours if one not in others], [one for one in others if one not in ours]
        if ours != others:
            yield Change(name, ours, others)
