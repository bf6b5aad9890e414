"""The numbers of a result: counts of events, yields and histograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Level = Literal["sample", "category", "histogram"]
#: The levels, from the coarsest on, and their plurals.
LEVELS: Mapping[Level, str] = {"sample": "samples", "category": "categories", "histogram": "histograms"}
#: ("sample" or "category", NAME, QUANTITY), or ("histogram", NAME, CATEGORY).
Key = tuple[Level, str, str]


@dataclass(frozen=True)
class Sums:
    """Sums of weights, shape (n,): the n bins of a histogram, or a yield, where n is 1.

    Where the document has no errors, ``variances`` are 0 and ``has_errors`` is False. ``edges``, shape (n + 1,), are
    None for a yield, and where they are not known. ``digits`` and ``error_digits`` are half a unit of the last digit of
    numbers that are written with a few digits, else 0. ``rounding`` is how much a yield that was added in float32
    differs from its sum in float64.
    """

    values: FloatArray
    variances: FloatArray
    edges: FloatArray | None = None
    has_errors: bool = True
    digits: float = 0.0
    error_digits: float = 0.0
    rounding: float = 0.0

    @classmethod
    def of_yield(
        cls, value: float, error: float | None, digits: float = 0.0, error_digits: float = 0.0, rounding: float = 0.0
    ) -> Sums:
        """Return a yield with its error, if that is known; the square of a float64 tells errors of other bits apart."""
        values, errors = np.array([value], dtype=np.float64), np.array([error or 0.0], dtype=np.float64)
        return cls(values, errors * errors, None, error is not None, digits, error_digits, rounding)

    @cached_property
    def errors(self) -> FloatArray:
        """The roots of the variances; 0 for a negative one."""
        return np.sqrt(np.maximum(self.variances, 0.0))

    @property
    def is_data(self) -> bool:
        """True if each event weighs 1: the variances are the values."""
        return np.allclose(self.values, self.variances, rtol=1e-12, atol=0)

    def times(self, factor: float, error: float = 0.0) -> Sums:
        """Return the sums of weights that are multiplied by a factor with a relative error."""
        return replace(
            self,
            values=self.values * factor,
            variances=self.variances * factor**2,
            digits=factor * (self.digits + error * float(np.abs(self.values).max(initial=0.0))),
            error_digits=self.error_digits * factor,
            rounding=self.rounding * factor,
        )

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """Return the sums with the events of another added, or taken away if ``sign`` is -1."""
        return Sums(
            self.values + sign * other.values,
            self.variances + sign * other.variances,
            other.edges if self.edges is None else self.edges,
            self.has_errors and other.has_errors,
            self.digits + other.digits,
            self.error_digits + other.error_digits,
            self.rounding + other.rounding,
        )

    def same_bins(self, other: Sums) -> bool:
        """Return True if the edges are the same; if they are not known in one of them, if there are as many bins."""
        if self.edges is None or other.edges is None:
            return self.values.shape == other.values.shape
        return np.array_equal(self.edges, other.edges)

    def agree(self, other: Sums, tolerance: float = 0.0, *, in_float32: bool = False) -> npt.NDArray[np.bool_]:
        """Return which sums and errors agree, shape (n,).

        The tolerance is relative to the value and its error together. If it is 0, sums and errors are the same to the
        bit, or to the digits that are written. 0 and -0 agree, and so do NaN and NaN. Errors are not compared where
        one of them is not known. With ``in_float32``, yields may differ by their rounding, too.
        """
        slack = self.digits + other.digits + in_float32 * (self.rounding + other.rounding)
        errors = np.nan_to_num(self.errors)
        agree = _agree(self.values, other.values, tolerance * (np.abs(self.values) + errors) + slack)
        if self.has_errors and other.has_errors:
            slack = self.error_digits + other.error_digits
            if tolerance or slack:
                agree &= _agree(self.errors, other.errors, tolerance * errors + slack)
            else:
                agree &= _agree(self.variances, other.variances, 0.0)
        return agree


def _agree(a: FloatArray, b: FloatArray, slack: FloatArray | float) -> npt.NDArray[np.bool_]:
    # Half a unit of a decimal digit is not exact in binary.
    agree: npt.NDArray[np.bool_] = (np.abs(a - b) <= slack * (1 + 1e-9)) | (a == b) | (np.isnan(a) & np.isnan(b))
    return agree


@dataclass(frozen=True)
class Document:
    """The numbers of a result, and what is known of its settings, input files and versions.

    ``counts`` are numbers of events, ``sums`` yields and histograms, ``category_of`` the category of each sample.
    ``derived`` has what follows from them: window, fit and workspace. ``label`` names the result in texts.
    """

    path: str
    counts: Mapping[Key, int]
    sums: Mapping[Key, Sums]
    category_of: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @cached_property
    def levels(self) -> set[Level]:
        """What the document has: samples, categories, histograms."""
        return {key[0] for key in self.sums}

    def names(self, level: Level) -> list[str]:
        """Return the names of the samples, categories or histograms."""
        return list(dict.fromkeys(key[1] for key in self.sums if key[0] == level))

    def shared_with(self, other: Document) -> Document:
        """Return the part whose levels and quantities the other document has, too."""
        kinds = {kind(key) for key in (*other.sums, *other.counts)}
        return replace(
            self,
            counts={key: one for key, one in self.counts.items() if kind(key) in kinds},
            sums={key: one for key, one in self.sums.items() if kind(key) in kinds},
        )


def kind(key: Key) -> tuple[Level, str]:
    """Return the level and quantity of a number; the contents of all histograms are of one kind."""
    level, _, quantity = key
    return level, "" if level == "histogram" else quantity
