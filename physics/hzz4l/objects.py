"""The objects of the analysis: the leptons of an event, their four-momenta and the Z candidates.

All are pure functions from arrays to arrays, in numpy on arrays of shape (events, 4): the
same formulas in awkward and vector give the same numbers and take several times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from common import lazy_numpy as np
from common.analyses import Columns, FloatArray, Mask
from common.errors import DataError
from common.schema import Schema
from physics.hzz4l.constants import Z_MASS_GEV

if TYPE_CHECKING:
    import awkward as ak
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"

#: The number of leptons of an event.
FOUR = 4
#: The values that the columns of whole numbers have: charges in units of e, electrons (11) and muons (13).
_VALUES: Mapping[str, tuple[int, int]] = MappingProxyType({"lep_charge": (-1, 1), "lep_type": (11, 13)})
#: No simulated event has such a weight. Larger ones would make sums of float32 weights overflow.
_MAX_WEIGHT = 1e30
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
        """Calculate them from pT, η, φ and E; one GeV is ``per_gev`` of the columns' energy units."""
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

    def pt(self, leptons: tuple[int, ...]) -> FloatArray:
        """Return the transverse momentum in GeV of the sum of the leptons with these indices, shape (events,)."""
        px, py = (reduce(np.add, (component[one] for one in leptons)) for component in (self.px, self.py))
        return np.asarray(np.hypot(px, py))


@dataclass(frozen=True)
class FourLeptons:
    """The four leptons of n events, and what is calculated from them.

    ``columns`` has ``lep_pt``, ``lep_eta``, ``lep_phi``, ``lep_energy``, ``lep_charge`` and
    ``lep_type`` (11: electron, 13: muon), each of shape (n, 4) in the order of the file, and
    ``weight``, shape (n,). ``per_gev`` of the file's energy units make one GeV.
    """

    columns: Columns
    per_gev: float

    @cached_property
    def momenta(self) -> FourMomenta:
        """The four-momenta, in GeV."""
        return FourMomenta.of(self.columns, self.per_gev)

    @cached_property
    def mass(self) -> FloatArray:
        """The invariant mass of the four leptons in GeV, shape (n,)."""
        return self.momenta.mass((0, 1, 2, 3))

    @property
    def total_charge(self) -> npt.NDArray[np.int16]:
        """The sum of the charges, shape (n,)."""
        return _sum(self.columns["lep_charge"])

    @property
    def type_sum(self) -> npt.NDArray[np.int16]:
        """The sum of the lepton types, shape (n,): 44 for 4e, 48 for 2e2μ, 52 for 4μ."""
        return _sum(self.columns["lep_type"])

    def pt_gev(self, lepton: int) -> FloatArray:
        """The pT in GeV of the lepton with this index, shape (n,)."""
        return np.asarray(self.columns["lep_pt"][:, lepton].astype(np.float64) / self.per_gev)

    @property
    def z_masses(self) -> tuple[FloatArray, FloatArray]:
        """The masses in GeV of the Z candidates Z1 and Z2, each of shape (n,).

        Z1 is the pair of equal flavour and opposite charge that is closest to the Z mass, among those whose other
        two leptons are such a pair, too; these are Z2. Both masses are NaN if there is no such pair.
        """
        return self._z_candidates[:2]

    @property
    def leading_z_pt(self) -> FloatArray:
        """The pT in GeV of the Z candidate that has more of it, shape (n,); NaN if there are no Z candidates."""
        _, _, pairing = self._z_candidates
        pt = np.full(len(pairing), np.nan)
        for number, (first, second) in enumerate(_PAIRINGS):
            indices = np.flatnonzero(pairing == number)
            chosen = self.momenta.take(indices)
            pt[indices] = np.maximum(chosen.pt(first), chosen.pt(second))
        return pt

    @cached_property
    def _z_candidates(self) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int8]]:
        """The masses of Z1 and Z2, and the number of the pairing that they are, -1 for none; each of shape (n,)."""
        charge, types = (np.ascontiguousarray(self.columns[name].T) for name in ("lep_charge", "lep_type"))
        n = charge.shape[1]
        z1, z2, smallest = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.inf)
        pairing = np.full(n, -1, dtype=np.int8)
        for number, (first, second) in enumerate(_PAIRINGS):
            allowed = np.ones(n, dtype=bool)
            for a, b in (first, second):
                allowed &= (charge[a] == -charge[b]) & (types[a] == types[b])
            indices = np.flatnonzero(allowed)
            chosen = self.momenta.take(indices)
            one, other = chosen.mass(first), chosen.mass(second)
            other_is_closer = np.abs(other - Z_MASS_GEV) < np.abs(one - Z_MASS_GEV)
            closer, farther = np.where(other_is_closer, other, one), np.where(other_is_closer, one, other)
            deviation = np.abs(closer - Z_MASS_GEV)
            better = deviation < smallest[indices]
            indices = indices[better]
            z1[indices], z2[indices], smallest[indices] = closer[better], farther[better], deviation[better]
            pairing[indices] = number
        return z1, z2, pairing


def first_four(arrays: ak.Array, branches: Mapping[str, str]) -> tuple[dict[str, Array], Mask]:
    """Return the first four leptons of the events that have at least four, and which events these are.

    ``branches`` gives the branch of each column. The columns have shape (n, 4) for the n
    events, the mask has the shape (events,). Raises DataError for an event whose branches have lists of
    different lengths.
    """
    jagged = {ours: _offsets_and_content(arrays[theirs]) for ours, theirs in branches.items()}
    first, *others = jagged
    offsets, _ = jagged[first]
    counts = np.diff(offsets)
    for other in others:
        if not np.array_equal(jagged[other][0], offsets):
            lengths = np.diff(jagged[other][0])
            entry = int(np.argmax(lengths != counts))
            raise DataError(
                f"{branches[first]} has {counts[entry]} values and {branches[other]} {lengths[entry]} "
                f"in entry {entry} of the chunk; the lists of an event must be equally long"
            )
    four = counts >= FOUR
    indices = _indices_of_four(offsets, four)
    return {name: np.take(content, indices) for name, (_, content) in jagged.items()}, four


def lengths(values: ak.Array) -> npt.NDArray[np.int64]:
    """Return the length of each list, shape (lists,)."""
    return np.diff(_offsets_and_content(values)[0])


def check_finite(name: str, values: Array) -> None:
    """Raise DataError, which gives ``name``, the value and its entry, unless all values are finite."""
    finite = np.isfinite(values)
    if not finite.all():
        index = tuple(int(one) for one in np.argwhere(~finite)[0])
        raise DataError(f"{name} is {values[index]} in entry {index[0]} of the chunk; it must be a finite number")


def check_weights(weights: npt.NDArray[np.floating[Any]], arrays: ak.Array, factors: Iterable[str]) -> None:
    """Raise DataError unless all weights are finite and small enough to be added up.

    ``factors`` are the branches whose product they are; the error names the one that is not finite.
    """
    valid = np.abs(weights) <= _MAX_WEIGHT
    if not valid.all():
        for factor in factors:
            check_finite(factor, arrays[factor].to_numpy())
        entry = int(np.argmin(valid))
        raise DataError(
            f"the event weight is {weights[entry]} in entry {entry} of the chunk; "
            f"its absolute value must be at most {_MAX_WEIGHT:g}"
        )


def as_declared(columns: Columns, schema: Schema) -> dict[str, Array]:
    """Convert columns to their declared types; floats that are out of range become infinite.

    Columns that are not declared stay as they are. Raises DataError for an integer that is out of range, for a
    charge other than ±1 and for a lepton type other than 11 and 13.
    """
    return {
        name: _converted(name, values, np.dtype(schema[name].dtype)) if name in schema else values
        for name, values in columns.items()
    }


def _converted(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    if name in _VALUES:
        one, other = _VALUES[name]
        valid = (values == one) | (values == other)
        if not valid.all():
            raise DataError(
                f"{name} has the value {values[~valid][0]}, which is neither {one} nor {other}; "
                "the branch holds something else, or was written with another type"
            )
    elif dtype.kind == "i" and values.dtype != dtype and len(values):
        bounds = np.iinfo(dtype)
        for value in (values.min(), values.max()):
            if not bounds.min <= value <= bounds.max:
                raise DataError(
                    f"{name} has the value {value}, which lies outside {bounds.min} to {bounds.max}; "
                    "the branch holds something else, or was written with another type"
                )
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def _indices_of_four(offsets: npt.NDArray[np.int64], chosen: Mask) -> npt.NDArray[np.int64]:
    """Return the indices in the content of the first four elements of each chosen list, shape (lists, 4)."""
    return np.asarray(np.compress(chosen, offsets[:-1])[:, np.newaxis] + np.arange(FOUR))


def _offsets_and_content(values: ak.Array) -> tuple[npt.NDArray[np.int64], Array]:
    layout = values.layout.to_ListOffsetArray64(True)
    return np.asarray(layout.offsets.data), np.asarray(layout.content.data)


def _sum(leptons: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """Return the sum over the leptons of each event, shape (events,)."""
    return reduce(np.add, leptons.T.astype(np.int16))  # eight times as fast as sum(axis=1) for four columns
