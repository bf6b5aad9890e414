"""Compares what follows from the histograms: window, fit and workspace, with all numbers and texts in them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: The relative tolerance of a fit: it is minimised numerically, so that its last digits depend on the machine and on
#: the versions of packages. The numbers of window and workspace are sums, and have none.
FIT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DerivedDifference:
    """A value of window, fit or workspace, or a list of them, that is not the same.

    ``name`` is for example ``fit.mass.interval_gev``; ``differing`` of its ``compared`` values differ. ``a`` and ``b``
    are those that differ most. ``relative`` is their difference over the largest absolute number of both lists; it is
    None if one of them is not a finite number. A part that only one result has, and lists of two lengths, count as one
    value.
    """

    name: str
    a: Any
    b: Any
    differing: int
    compared: int
    relative: float | None = None

    @property
    def part(self) -> str:
        """The first part of the name, for example ``fit``."""
        return self.name.partition(".")[0]

    @property
    def allowed(self) -> bool:
        """True if only the last digits of a fit differ."""
        return self.part == "fit" and self.relative is not None and self.relative <= FIT_TOLERANCE


def derived_differences(a: Any, b: Any, name: str = "") -> Iterator[DerivedDifference]:
    """Return what differs between two JSON values, in their order; a key that is missing is None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from derived_differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and any(isinstance(one, dict) for one in a):
        for index, both in enumerate(zip(a, b, strict=True)):
            yield from derived_differences(*both, f"{name}[{index}]")
    else:
        yield from _values_differ(name, a, b)


def _values_differ(name: str, a: Any, b: Any) -> Iterator[DerivedDifference]:
    ours, others = _values(a), _values(b)
    if len(ours) != len(others) or isinstance(a, dict | list) != isinstance(b, dict | list):
        yield DerivedDifference(name, _short(a), _short(b), 1, 1)
        return
    unequal = [both for both in zip(ours, others, strict=True) if not _same(*both)]
    if unequal:
        largest = max((abs(one) for one in ours + others if _is_number(one)), default=1.0)
        sizes = [abs(x - y) / largest if _is_number(x) and _is_number(y) else math.inf for x, y in unequal]
        worst = sizes.index(max(sizes))
        relative = sizes[worst] if sizes[worst] < math.inf else None
        yield DerivedDifference(name, *unequal[worst], len(unequal), len(ours), relative)


def _values(value: Any) -> list[Any]:
    """Return the values of nested lists and mappings as one list."""
    if isinstance(value, dict | list):
        nested = value.values() if isinstance(value, dict) else value
        return [one for part in nested for one in _values(part)]
    return [value]


def _same(a: Any, b: Any) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or bool(a == b)


def _is_number(value: Any) -> bool:
    """Return True for a finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _short(value: Any) -> Any:
    if not isinstance(value, dict | list):
        return value
    values = len(_values(value))
    return f"{values:,} value{'s' * (values != 1)}"
