"""The histograms of one chunk, with their systematic variations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.analyses import Analysis, Array, Axis, FloatArray
from common.columns import columns_of

Bins = npt.NDArray[np.intp]


def variations(analysis: Analysis, category: str) -> Mapping[str, float]:
    """The varied histograms of the fitted observable for a category, and its factor in each; none for data.

    Variations of the normalisation alone need no histogram.
    """
    scale = analysis.model.scale
    return {} if scale is None or analysis.category(category).role == "data" else scale.factors


def fill(events: ak.Array, analysis: Analysis, category: str) -> FloatArray:
    """Fill all histograms and variations with the selected events of a chunk, whose sample is of ``category``.

    Returns values and variances (Σw and Σw² in each bin, float64) of the histograms, then
    the variations, then the fine bins of the peak, concatenated: shape (2, all bins).
    """
    columns = columns_of(events)
    weight = columns["weight"].astype(np.float64, copy=False)
    weights = (weight, weight * weight)
    bins = {one.name: one.axis.bin_of(columns[one.name]) for one in analysis.observables}
    filled = [_sums(one.axis, bins[one.name], weights) for one in analysis.observables]
    for one in analysis.observables:
        if one.per_channel:
            filled.append(
                _sums_by_channel(one.axis, bins[one.name], columns["channel"], len(analysis.channels), weights)
            )
    fitted = analysis.fitted
    for factor in variations(analysis, category).values():
        filled.append(_sums(fitted.axis, fitted.axis.bin_of(columns[fitted.name] * factor), weights))
    peak = _fine_axis(analysis, category)
    if peak is not None:
        filled.append(_sums(peak, peak.bin_of(columns[fitted.name]), weights))
    return np.concatenate(filled, axis=1)


def split(sums: FloatArray, analysis: Analysis, category: str) -> Mapping[str, FloatArray]:
    """Split what ``fill`` returns: (values, variances), shape (2, bins), by histogram."""
    named = _layout(analysis, category)
    ends = np.cumsum([axis.bins for axis in named.values()])
    return dict(zip(named, np.split(sums, ends[:-1], axis=1), strict=True))


def empty(analysis: Analysis, category: str) -> FloatArray:
    """What ``fill`` returns for no events."""
    return np.zeros((2, sum(axis.bins for axis in _layout(analysis, category).values())))


def _layout(analysis: Analysis, category: str) -> Mapping[str, Axis]:
    fitted = analysis.fitted
    peak = _fine_axis(analysis, category)
    return {
        **{name: one.axis for name, one in analysis.histograms.items()},
        **dict.fromkeys(variations(analysis, category), fitted.axis),
        **({} if peak is None else {analysis.model.fine: peak}),
    }


def _fine_axis(analysis: Analysis, category: str) -> Axis | None:
    """The fine bins of the peak; none for a background, which is smooth and has too few simulated events for them."""
    peak = analysis.model.peak
    return None if peak is None or analysis.category(category).role == "background" else peak.axis


def _sums(axis: Axis, bin_of: Bins, weights: Sequence[FloatArray]) -> FloatArray:
    """The sum of each weight in each bin, shape (weights, bins)."""
    return np.stack([np.bincount(bin_of, weight, axis.bins + 2)[1:-1] for weight in weights])


def _sums_by_channel(
    axis: Axis, bin_of: Bins, channel: Array, channels: int, weights: Sequence[FloatArray]
) -> FloatArray:
    """The sum of each weight in each channel's bins, shape (weights, channels * bins); channel -1 is none."""
    bins = axis.bins + 2
    index = bin_of + bins * (channel.astype(np.intp) + 1)
    sums: FloatArray = np.stack([np.bincount(index, weight, bins * (channels + 1)) for weight in weights])
    return np.reshape(sums.reshape(len(weights), channels + 1, bins)[:, 1:, 1:-1], (len(weights), -1))


class PublishedSum:
    """A sum of weights with the arithmetic of the published yields.

    The ATLAS outreach group's HZZAnalysis notebook adds the weights of a file one after
    the other in their own type, ``dtype``. Only the same additions in the same order reproduce its
    digits; the exact sum of ten thousand float32 weights, for example, differs by a fraction of
    1e-6. A float32 sum of equal weights stops growing after 2²⁴ of them, so that a
    new sum is started after a million events, as the notebook does for each batch that it reads.
    The batches are added in float64.
    """

    BATCH = 1_000_000

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._batches = 0.0
        self._dtype = np.dtype(dtype)
        self._running = self._dtype.type(0)
        self._count = 0

    def add(self, weights: npt.NDArray[np.floating[Any]]) -> None:
        """Add weights, shape (events,), in their order."""
        while len(weights):
            part, weights = np.split(weights, [self.BATCH - self._count])
            self._running = np.add.accumulate(np.concatenate(([self._running], part)), dtype=self._dtype)[-1]
            self._count += len(part)
            if self._count == self.BATCH:
                self._batches += float(self._running)
                self._running, self._count = self._dtype.type(0), 0

    @property
    def total(self) -> float:
        """The sum so far."""
        return self._batches + float(self._running)
