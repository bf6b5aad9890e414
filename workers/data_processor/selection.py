"""The selection of four-lepton events and their masses: pure functions from arrays to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.columns import columns_of, records
from common.constants import Z_MASS_GEV
from common.releases import Release

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: The fields of ``Events``: arrays of shape (events, leptons), and (events,) for the weight.
Columns = Mapping[str, npt.NDArray[Any]]

#: The three ways to divide four leptons into two pairs.
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
        """Calculate them from pT, η, φ and E; one GeV is ``per_gev`` of the file's energy units."""
        pt, eta, phi, energy = (
            columns[name].T.astype(np.float64, order="C") for name in ("lep_pt", "lep_eta", "lep_phi", "lep_energy")
        )
        pt /= per_gev
        # Sine and cosine from the tangent of half the angle, which numpy vectorises for doubles, to within 1e-16.
        tangent = np.tan(phi / 2)
        norm = 1 + tangent * tangent
        cos, sin = (2 - norm) / norm, 2 * tangent / norm
        return cls(px=pt * cos, py=pt * sin, pz=pt * np.sinh(eta), energy=energy / per_gev)

    def take(self, indices: npt.NDArray[np.intp]) -> FourMomenta:
        """Return the four-momenta of the events with these indices."""
        return FourMomenta(*(np.take(one, indices, axis=1) for one in (self.px, self.py, self.pz, self.energy)))

    def mass(self, leptons: tuple[int, ...]) -> FloatArray:
        """Return the invariant mass in GeV of the leptons with these indices, shape (events,).

        m² = E² - p². If rounding makes m² negative, the mass is -√(-m²), as in the vector library.
        """
        px, py, pz, energy = (
            reduce(np.add, (component[one] for one in leptons))
            for component in (self.px, self.py, self.pz, self.energy)
        )
        m2 = energy * energy - px * px - py * py - pz * pz
        return np.asarray(np.copysign(np.sqrt(np.abs(m2)), m2))


def neutral(columns: Columns, release: Release) -> Mask:
    """Return which events have a total charge of 0."""
    return np.asarray(_sum(columns["lep_charge"]) == 0)


def flavour(columns: Columns, release: Release) -> Mask:
    """Return which events are 4e, 2e2μ or 4μ, by the sum of the lepton types."""
    return channel(columns, release) >= 0


#: The data-processor's selection steps, by their names in the release.
STEPS: Mapping[str, Callable[[Columns, Release], Mask]] = {"charge": neutral, "flavour": flavour}


def channel(columns: Columns, release: Release) -> npt.NDArray[np.int8]:
    """Return the index of each event's channel among those of the release, -1 for no channel."""
    types = _sum(columns["lep_type"])
    found = np.full(len(types), -1, dtype=np.int8)
    for index, type_sum in enumerate(release.channels.values()):
        found += (types == type_sum) * np.int8(index + 1)  # ten times as fast as a mask
    return found


def z_masses(columns: Columns, momenta: FourMomenta) -> tuple[FloatArray, FloatArray]:
    """Return the masses in GeV of the Z candidates Z1 and Z2, each of shape (events,).

    Z1 is the pair of equal flavour and opposite charge that is closest to the Z mass, among those whose other two
    leptons are such a pair, too; these are Z2. Both masses are NaN if there is no such pair.
    """
    charge, types = (np.ascontiguousarray(columns[name].T) for name in ("lep_charge", "lep_type"))
    n = charge.shape[1]
    z1, z2, smallest = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.inf)
    for first, second in _PAIRINGS:
        allowed = np.ones(n, dtype=bool)
        for a, b in (first, second):
            allowed &= (charge[a] == -charge[b]) & (types[a] == types[b])
        indices = np.flatnonzero(allowed)
        chosen = momenta.take(indices)
        one, other = chosen.mass(first), chosen.mass(second)
        other_is_closer = np.abs(other - Z_MASS_GEV) < np.abs(one - Z_MASS_GEV)
        closer, farther = np.where(other_is_closer, other, one), np.where(other_is_closer, one, other)
        deviation = np.abs(closer - Z_MASS_GEV)
        better = deviation < smallest[indices]
        indices = indices[better]
        z1[indices], z2[indices], smallest[indices] = closer[better], farther[better], deviation[better]
    return z1, z2


def select(events: ak.Array, release: Release) -> tuple[ak.Array, dict[str, int]]:
    """Apply the data-processor's steps; returns the records of ``Selected`` and the cutflow."""
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
    """Return the sum over the leptons of each event, shape (events,)."""
    return reduce(np.add, leptons.T.astype(np.int16))  # eight times as fast as sum(axis=1) for four columns


def _float32(values: FloatArray) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # a mass out of range becomes infinite and is not in its histogram
        return values.astype(np.float32)
