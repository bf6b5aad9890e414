"""The selection of four-lepton events, and their masses: plain functions from arrays to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.columns import columns_of, records
from common.releases import Release

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: The fields of ``Events``: of shape (events, leptons), and (events,) for the weight.
Columns = Mapping[str, npt.NDArray[Any]]

#: Mass of the Z boson in GeV (Particle Data Group, Review of Particle Physics 2024).
Z_MASS_GEV = 91.188

#: The three ways to make two pairs of four leptons.
_PAIRINGS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))


@dataclass(frozen=True)
class FourMomenta:
    """Cartesian four-momenta in GeV, each of shape (leptons, events)."""

    px: FloatArray
    py: FloatArray
    pz: FloatArray
    energy: FloatArray

    @classmethod
    def of(cls, columns: Columns, per_gev: float) -> FourMomenta:
        """From (pT, η, φ, E), with ``per_gev`` of the file's energy units in one GeV."""
        pt, eta, phi, energy = (
            columns[name].T.astype(np.float64, order="C") for name in ("lep_pt", "lep_eta", "lep_phi", "lep_energy")
        )
        pt /= per_gev
        # Of the half angle's tangent: numpy has it vectorised, sine and cosine of doubles not; 1e-16 as exact.
        tangent = np.tan(phi / 2)
        norm = 1 + tangent * tangent
        cos, sin = (2 - norm) / norm, 2 * tangent / norm
        return cls(px=pt * cos, py=pt * sin, pz=pt * np.sinh(eta), energy=energy / per_gev)

    def take(self, places: npt.NDArray[np.intp]) -> FourMomenta:
        """Those of some of the events."""
        return FourMomenta(*(np.take(one, places, axis=1) for one in (self.px, self.py, self.pz, self.energy)))

    def mass(self, leptons: tuple[int, ...]) -> FloatArray:
        """Invariant mass in GeV, shape (events,), of the leptons at these places.

        m² = E² - p²; where rounding makes it negative, the mass is -√(-m²), as the
        vector library has it.
        """
        px, py, pz, energy = (
            reduce(np.add, (component[one] for one in leptons))
            for component in (self.px, self.py, self.pz, self.energy)
        )
        m2 = energy * energy - px * px - py * py - pz * pz
        return np.asarray(np.copysign(np.sqrt(np.abs(m2)), m2))


def neutral(columns: Columns, release: Release) -> Mask:
    """Which events have four leading leptons of total charge 0."""
    return np.asarray(_sum(columns["lep_charge"]) == 0)


def flavour(columns: Columns, release: Release) -> Mask:
    """Which events are 4e, 2e2μ or 4μ, by the sum of the leptons' types."""
    return channel(columns, release) >= 0


#: The selection steps of the processor, by the catalogue's names.
STEPS: Mapping[str, Callable[[Columns, Release], Mask]] = {"charge": neutral, "flavour": flavour}


def channel(columns: Columns, release: Release) -> npt.NDArray[np.int8]:
    """The channel of each event as its place among the release's channels; -1 for none."""
    types = _sum(columns["lep_type"])
    found = np.full(len(types), -1, dtype=np.int8)
    for place, type_sum in enumerate(release.channels.values()):
        found += (types == type_sum) * np.int8(place + 1)  # ten times as fast as a mask
    return found


def z_masses(columns: Columns, momenta: FourMomenta) -> tuple[FloatArray, FloatArray]:
    """Masses in GeV of the two Z candidates, each of shape (events,).

    Of the pairings into two pairs of equal flavour and opposite charge, the one
    is taken whose pair lies nearest to the Z mass: that pair is Z1, the other
    Z2. Both are NaN where no such pairing exists.
    """
    charge, types = (np.ascontiguousarray(columns[name].T) for name in ("lep_charge", "lep_type"))
    n = charge.shape[1]
    z1, z2, distance = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.inf)
    for first, second in _PAIRINGS:
        allowed = np.ones(n, dtype=bool)
        for a, b in (first, second):
            allowed &= (charge[a] == -charge[b]) & (types[a] == types[b])
        places = np.flatnonzero(allowed)
        chosen = momenta.take(places)
        one, other = chosen.mass(first), chosen.mass(second)
        other_is_nearer = np.abs(other - Z_MASS_GEV) < np.abs(one - Z_MASS_GEV)
        near, far = np.where(other_is_nearer, other, one), np.where(other_is_nearer, one, other)
        away = np.abs(near - Z_MASS_GEV)
        better = away < distance[places]
        places = places[better]
        z1[places], z2[places], distance[places] = near[better], far[better], away[better]
    return z1, z2


def select(events: ak.Array, release: Release) -> tuple[ak.Array, dict[str, int]]:
    """Apply the processor's steps; returns the columns of ``Selected`` and how many events each step left."""
    columns = columns_of(events)
    passed = np.ones(len(events), dtype=np.bool_)
    cutflow: dict[str, int] = {}
    for step in release.processor_steps:
        passed &= STEPS[step](columns, release)
        cutflow[step] = int(passed.sum())
    columns = {name: np.compress(passed, values, axis=0) for name, values in columns.items()}
    momenta = FourMomenta.of(columns, release.per_gev)
    z1, z2 = z_masses(columns, momenta)
    selected: dict[str, npt.NDArray[Any]] = {
        "m4l": momenta.mass((0, 1, 2, 3)),
        "channel": channel(columns, release),
        "weight": columns["weight"],
        "m_z1": _float32(z1),
        "m_z2": _float32(z2),
        "lead_pt": _float32(columns["lep_pt"][:, 0].astype(np.float64) / release.per_gev),
    }
    return records(selected), cutflow


def _sum(leptons: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """The sum over an event's leptons, shape (events,)."""
    return reduce(np.add, leptons.T.astype(np.int16))  # eight times as fast as sum(axis=1) on so few columns


def _float32(values: FloatArray) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # an absurd mass becomes infinite, and falls out of its histogram
        return values.astype(np.float32)
