"""The partial histograms of one chunk, with their systematic variations: plain functions from arrays to arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.catalogue import Release

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """Regular bins of a column of ``Selected``, in GeV: ``low <= x < high``."""

    column: str
    bins: int
    low: float
    high: float

    @property
    def edges(self) -> FloatArray:
        """The bins + 1 edges."""
        return np.linspace(self.low, self.high, self.bins + 1)


@dataclass(frozen=True)
class Variation:
    """The m4l histogram with every event's m4l multiplied by ``scale`` and moved by ``shift_gev``."""

    scale: float = 1.0
    shift_gev: float = 0.0


M4L = Axis("m4l", 34, 80.0, 250.0)
#: The Higgs boson's mass in the signal samples, in GeV.
SIMULATED_MASS_GEV = 125.0
#: The masses that signal templates are filled for, in GeV: finer than the 2 GeV of the m4l resolution.
TEMPLATE_MASSES_GEV = tuple(float(mass) for mass in range(112, 139))
#: Relative uncertainty of the m4l scale, up and down.
M4L_SCALE = 0.01

_SCALES = MappingProxyType({"m4l_scale_up": Variation(1 + M4L_SCALE), "m4l_scale_down": Variation(1 - M4L_SCALE)})
_MASSES = MappingProxyType(
    {f"m_h_{mass:g}": Variation(shift_gev=mass - SIMULATED_MASS_GEV) for mass in TEMPLATE_MASSES_GEV}
)
_ALL_CHANNELS = MappingProxyType(
    {
        "m4l": M4L,
        "m_z1": Axis("m_z1", 30, 40.0, 115.0),
        "m_z2": Axis("m_z2", 30, 0.0, 120.0),
        "lead_pt": Axis("lead_pt", 30, 0.0, 150.0),
    }
)


def axes(release: Release) -> Mapping[str, Axis]:
    """Every histogram of a release and its axis, in the order of the partial histograms."""
    return {**_ALL_CHANNELS, **{f"m4l_{channel}": M4L for channel in release.channels}}


def variations(category: str) -> Mapping[str, Variation]:
    """The variations of m4l that are filled for a category's samples, in the order of the partial histograms.

    None for data. Simulation has the m4l scale up and down, the signal also its
    peak at other masses. Variations of the normalisation alone need no histogram.
    """
    if category == "data":
        return {}
    return {**_SCALES, **_MASSES} if category == "signal" else _SCALES


def fill(events: ak.Array, release: Release, category: str) -> FloatArray:
    """Fill every histogram and variation with a chunk's selected events, of a sample of ``category``.

    Returns the values and variances (Σw and Σw² per bin, in float64) of all
    histograms and then all variations, one after the other: shape (2, all bins).
    """
    weight = ak.to_numpy(events.weight).astype(np.float64)
    channel = ak.to_numpy(events.channel)
    filled = []
    for name, axis in axes(release).items():
        place = list(release.channels).index(name.removeprefix("m4l_")) if name.startswith("m4l_") else None
        chosen = slice(None) if place is None else channel == place
        filled.append(_sums(ak.to_numpy(events[axis.column])[chosen], weight[chosen], axis))
    m4l = ak.to_numpy(events.m4l)
    for variation in variations(category).values():
        filled.append(_sums(m4l * variation.scale + variation.shift_gev, weight, M4L))
    return np.concatenate(filled, axis=1)


def split(sums: FloatArray, release: Release, category: str) -> Mapping[str, FloatArray]:
    """The inverse of ``fill``'s layout: (values, variances) of shape (2, bins) for each histogram and variation."""
    named = _layout(release, category)
    ends = np.cumsum([axis.bins for axis in named.values()])
    return dict(zip(named, np.split(sums, ends[:-1], axis=1), strict=True))


def empty(release: Release, category: str) -> FloatArray:
    """What ``fill`` gives for no events."""
    return np.zeros((2, sum(axis.bins for axis in _layout(release, category).values())))


def _layout(release: Release, category: str) -> Mapping[str, Axis]:
    return {**axes(release), **dict.fromkeys(variations(category), M4L)}


def _sums(values: npt.NDArray[np.floating[Any]], weight: FloatArray, axis: Axis) -> FloatArray:
    at = np.searchsorted(axis.edges, values, side="right")  # 0 is underflow, bins + 1 overflow and NaN
    return np.stack([np.bincount(at, w, axis.bins + 2)[1:-1] for w in (weight, weight * weight)])


class PublishedSum:
    """A sum of weights in the arithmetic of the published yields.

    The ATLAS outreach group's HZZAnalysis notebook adds the float32 weights of
    a file one after the other in float32, and prints what comes out. Only the
    same additions in the same order give its digits: the exact sum of
    WH125_ZZ4lep, say, is lower by 1.3e-6 of it. Since float32 stops counting
    equal weights at 2²⁴ of them, a sum starts anew after a million events, as
    the notebook's does with each batch it reads; batches add up in float64.
    """

    BATCH = 1_000_000

    def __init__(self) -> None:
        self._batches = 0.0
        self._running = np.float32(0)
        self._count = 0

    def add(self, weights: npt.NDArray[np.float32]) -> None:
        """Add the next weights, shape (events,), in their order."""
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


def published_sum(parts: Iterable[npt.NDArray[np.float32]]) -> float:
    """The published arithmetic's sum of weights that come in parts."""
    total = PublishedSum()
    for part in parts:
        total.add(part)
    return total.total
