"""The numbers of a result: counts of events, yields and histograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Level = Literal["sample", "category", "histogram"]
LEVELS: tuple[Level, ...] = ("sample", "category", "histogram")
#: ("sample" or "category", NAME, QUANTITY), or ("histogram", NAME, CATEGORY).
Key = tuple[Level, str, str]


@dataclass(frozen=True)
class Sums:
    """Sums of weights, shape (n,), with errors and variances: the n bins of a histogram, or a yield, where n is 1.

    ``has_errors`` is False where the document gives none. ``digits`` and ``error_digits`` are half a unit of the last
    digit of numbers that are written with a few digits, else 0. ``rounding`` is how much a yield that was added in
    float32 differs from its sum in float64.
    """

    values: FloatArray
    errors: FloatArray
    variances: FloatArray
    has_errors: bool = True
    digits: float = 0.0
    error_digits: float = 0.0
    rounding: float = 0.0

    @classmethod
    def of_yield(cls, value: float, error: float | None, **known: float) -> Sums:
        """Return a yield with its error, if that is known."""
        errors = np.array([0.0 if error is None else error])
        return cls(np.array([value], dtype=np.float64), errors, errors * errors, has_errors=error is not None, **known)  # type: ignore[arg-type]

    @classmethod
    def of_bins(cls, values: npt.ArrayLike, variances: npt.ArrayLike) -> Sums:
        """Return the bins of a histogram with their variances."""
        given = np.asarray(variances, dtype=np.float64)
        return cls(np.asarray(values, dtype=np.float64), np.sqrt(np.where(given < 0, np.nan, given)), given)

    @property
    def is_data(self) -> bool:
        """True if each event weighs 1: the variances are the values."""
        return np.allclose(self.values, self.variances, rtol=1e-12, atol=0)

    def times(self, factor: float, error: float = 0.0) -> Sums:
        """Return the sums of weights that are multiplied by a factor with a relative error."""
        return replace(
            self,
            values=self.values * factor,
            errors=self.errors * factor,
            variances=self.variances * factor**2,
            digits=factor * (self.digits + error * float(np.abs(self.values).max(initial=0.0))),
            error_digits=self.error_digits * factor,
            rounding=self.rounding * factor,
        )

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """Return the sums with the events of another added, or taken away if ``sign`` is -1."""
        variances = self.variances + sign * other.variances
        return Sums(
            self.values + sign * other.values,
            np.sqrt(np.maximum(variances, 0.0)),
            variances,
            has_errors=self.has_errors and other.has_errors,
            digits=self.digits + other.digits,
            error_digits=self.error_digits + other.error_digits,
            rounding=self.rounding + other.rounding,
        )

    def merged(self, bounds: list[int]) -> Sums:
        """Return the sums of the bins from each bound up to the next."""
        kept = (array[: bounds[-1]] for array in (self.values, self.variances))
        return Sums.of_bins(*(np.add.reduceat(array, bounds[:-1]) for array in kept))

    def same(self, other: Sums) -> npt.NDArray[np.bool_]:
        """Return which sums and errors are the same, shape (n,): to the bit, or to the digits that are written.

        0 and -0 are the same, and so are NaN and NaN. Errors are not compared where one of them is not known.
        """
        same = _same(self.values, other.values, self.digits + other.digits)
        if self.has_errors and other.has_errors:
            digits = self.error_digits + other.error_digits
            same &= _same(self.errors, other.errors, digits)
            same &= bool(digits) | _same(self.variances, other.variances, 0.0)
        return same

    def is_close(self, found: Sums, tolerance: float) -> bool:
        """Return True if other sums agree within the tolerance, relative to the value and its error together."""
        if self.values.shape != found.values.shape:
            return False
        slack = self.digits + found.digits + (self.rounding + found.rounding if tolerance else 0.0)
        close = np.abs(self.values - found.values) <= tolerance * (np.abs(self.values) + self.errors) + slack
        if self.has_errors and found.has_errors:
            slack = self.error_digits + found.error_digits
            close &= np.abs(self.errors - found.errors) <= tolerance * self.errors + slack
        return bool(close.all())


def _same(a: FloatArray, b: FloatArray, digits: float) -> npt.NDArray[np.bool_]:
    # Half a unit of a decimal digit is not exact in binary.
    near = np.abs(a - b) <= digits * (1 + 1e-9) if digits else False
    same: npt.NDArray[np.bool_] = (a == b) | (np.isnan(a) & np.isnan(b)) | near
    return same


@dataclass(frozen=True)
class Document:
    """The numbers of a result, and what is known of its settings, input files and versions.

    ``label`` names the result in texts. ``counts`` are numbers of events, ``sums`` yields and histograms. ``edges`` are
    those of each histogram, NaN where they are not known. ``category_of`` is the category of each sample. ``derived``
    holds the numbers of the window and the fit.
    """

    path: str
    counts: Mapping[Key, int]
    sums: Mapping[Key, Sums]
    edges: Mapping[str, FloatArray] = field(default_factory=dict)
    category_of: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, float] = field(default_factory=dict)
    label: str = ""

    @property
    def levels(self) -> set[Level]:
        """What the document has: samples, categories, histograms."""
        return {level for level, *_ in self.sums}

    def names(self, level: Level) -> list[str]:
        """Return the names of the samples, categories or histograms."""
        return list(dict.fromkeys(name for of, name, _ in self.sums if of == level))

    def same_edges(self, other: Document, histogram: str) -> bool:
        """Return True if a histogram has the same edges in both, or as many if they are not known in one of them."""
        edges = [document.edges[histogram] for document in (self, other) if histogram in document.edges]
        unknown = any(np.isnan(one).any() for one in edges)
        return all(len(one) == len(edges[0]) and (unknown or np.array_equal(one, edges[0])) for one in edges)

    def shared_with(self, other: Document) -> Document:
        """Return the part of which the other document has the same kind: its levels, and their quantities."""
        kinds = {(level, "" if level == "histogram" else what) for level, _, what in (*other.sums, *other.counts)}

        def is_shared(key: Key) -> bool:
            return (key[0], "" if key[0] == "histogram" else key[2]) in kinds

        return replace(
            self,
            sums={key: one for key, one in self.sums.items() if is_shared(key)},
            counts={key: one for key, one in self.counts.items() if is_shared(key)},
        )
