"""The histograms of one chunk, with their systematic variations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.columns import Array, columns_of
from common.releases import Release

FloatArray = npt.NDArray[np.float64]
Bins = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Axis:
    """Regular bins of a column of ``Selected``, in GeV: ``low <= x < high``."""

    column: str
    bins: int
    low: float
    high: float

    @property
    def edges(self) -> FloatArray:
        """The edges of the bins, shape (bins + 1,)."""
        return np.linspace(self.low, self.high, self.bins + 1)

    def bin_of(self, values: npt.NDArray[np.floating[Any]]) -> Bins:
        """The bin of each value, counted from 1; 0 for underflow and NaN, bins + 1 for overflow.

        Gives the result of ``np.searchsorted`` in a third of the time: the bin is
        calculated, and corrected where rounding moved it across an edge.
        """
        below, above = np.append(np.nan, self.edges), np.append(self.edges, np.nan)
        guess = (values - self.low) * (self.bins / (self.high - self.low))
        found: Bins = np.floor(np.fmin(np.fmax(guess, -1), self.bins)).astype(np.intp) + 1
        found -= values < below[found]
        found += values >= above[found]
        return found


M4L = Axis("m4l", 34, 80.0, 250.0)
#: For the mass measurement: bins of a quarter of the m4l resolution. The signal of another mass is shifted by whole
#: bins, so that the range is wider than the fitted one.
M4L_FINE = Axis("m4l", 150, 95.0, 170.0)
FINE = "m4l_fine"
#: Relative uncertainty of the m4l scale, up and down.
M4L_SCALE = 0.01

#: The variations of m4l, and the factor of m4l in each.
_SCALES = MappingProxyType({"m4l_scale_up": 1 + M4L_SCALE, "m4l_scale_down": 1 - M4L_SCALE})
#: The background is smooth, and has too few simulated events for fine bins.
_FINE_CATEGORIES = ("data", "signal")
_ALL_CHANNELS = MappingProxyType(
    {
        "m4l": M4L,
        "m_z1": Axis("m_z1", 30, 40.0, 115.0),
        "m_z2": Axis("m_z2", 30, 0.0, 120.0),
        "lead_pt": Axis("lead_pt", 30, 0.0, 150.0),
    }
)


def axes(release: Release) -> Mapping[str, Axis]:
    """Every histogram of a release and its axis, in the order of ``fill``."""
    return {**_ALL_CHANNELS, **{f"m4l_{channel}": M4L for channel in release.channels}}


def variations(category: str) -> Mapping[str, float]:
    """The variations of m4l for the samples of a category, and the factor of m4l in each; none for data.

    Variations of the normalisation alone need no histogram.
    """
    return {} if category == "data" else _SCALES


def fill(events: ak.Array, release: Release, category: str) -> FloatArray:
    """Fill all histograms and variations with the selected events of a chunk, whose sample is of ``category``.

    Returns values and variances (Σw and Σw² in each bin, float64) of the histograms,
    then the variations, then for data and signal the finely binned m4l,
    concatenated: shape (2, all bins).
    """
    columns = columns_of(events)
    weight = columns["weight"].astype(np.float64)
    weights = (weight, weight * weight)
    m4l = columns["m4l"]
    bins = {name: axis.bin_of(columns[axis.column]) for name, axis in _ALL_CHANNELS.items()}
    filled = [_sums(axis, bins[name], weights) for name, axis in _ALL_CHANNELS.items()]
    filled.append(_sums_by_channel(bins["m4l"], columns["channel"], len(release.channels), weights))
    for scale in variations(category).values():
        filled.append(_sums(M4L, M4L.bin_of(m4l * scale), weights))
    if category in _FINE_CATEGORIES:
        filled.append(_sums(M4L_FINE, M4L_FINE.bin_of(m4l), weights))
    return np.concatenate(filled, axis=1)


def split(sums: FloatArray, release: Release, category: str) -> Mapping[str, FloatArray]:
    """Split what ``fill`` returns: (values, variances), shape (2, bins), by histogram."""
    named = _layout(release, category)
    ends = np.cumsum([axis.bins for axis in named.values()])
    return dict(zip(named, np.split(sums, ends[:-1], axis=1), strict=True))


def empty(release: Release, category: str) -> FloatArray:
    """What ``fill`` returns for no events."""
    return np.zeros((2, sum(axis.bins for axis in _layout(release, category).values())))


def _layout(release: Release, category: str) -> Mapping[str, Axis]:
    fine = {FINE: M4L_FINE} if category in _FINE_CATEGORIES else {}
    return {**axes(release), **dict.fromkeys(variations(category), M4L), **fine}


def _sums(axis: Axis, bin_of: Bins, weights: Sequence[FloatArray]) -> FloatArray:
    """The sum of each weight in each bin, shape (weights, bins)."""
    return np.stack([np.bincount(bin_of, weight, axis.bins + 2)[1:-1] for weight in weights])


def _sums_by_channel(bin_of: Bins, channel: Array, channels: int, weights: Sequence[FloatArray]) -> FloatArray:
    """The sum of each weight in each channel's bins of m4l, shape (weights, channels * bins); channel -1 is none."""
    bins = M4L.bins + 2
    index = bin_of + bins * (channel.astype(np.intp) + 1)
    sums: FloatArray = np.stack([np.bincount(index, weight, bins * (channels + 1)) for weight in weights])
    return np.reshape(sums.reshape(len(weights), channels + 1, bins)[:, 1:, 1:-1], (len(weights), -1))


class PublishedSum:
    """A sum of weights with the arithmetic of the published yields.

    The ATLAS outreach group's HZZAnalysis notebook adds the float32 weights of
    a file one after the other in float32. Only the same additions in the same
    order reproduce its digits; the exact sum of WH125_ZZ4lep, for example, is
    lower by a fraction of 1.3e-6. A float32 sum of equal weights stops growing
    after 2²⁴ of them, so that a new sum is started after a million events, as the
    notebook does for each batch that it reads. The batches are added in float64.
    """

    BATCH = 1_000_000

    def __init__(self) -> None:
        self._batches = 0.0
        self._running = np.float32(0)
        self._count = 0

    def add(self, weights: npt.NDArray[np.float32]) -> None:
        """Add weights, shape (events,), in their order."""
        while len(weights):
            part, weights = np.split(weights, [self.BATCH - self._count])
            self._running = np.add.accumulate(np.concatenate(([self._running], part)), dtype=np.float32)[-1]
            self._count += len(part)
            if self._count == self.BATCH:
                self._batches += float(self._running)
                self._running, self._count = np.float32(0), 0

    @property
    def total(self) -> float:
        """The sum so far."""
        return self._batches + float(self._running)
