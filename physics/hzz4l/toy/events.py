"""Toy four-lepton events of the toy releases: pure functions from a random generator to arrays.

The events are not a prediction. Masses, widths and decay chains are physical;
yields, fractions and spectra are toy numbers chosen close to those of the real
2020 release, so that a plot of the demo looks like one of the real data.

Momenta are arrays of shape (4, n, k): (px, py, pz, E) in GeV of k particles in n events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from physics.hzz4l.constants import SIMULATED_HIGGS_MASS_GEV

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# The Z's mass and width of the Particle Data Group, Phys. Rev. D 98 (2018) 030001: with newer values, the same seed
# would make other demo files.
Z_MASS_GEV, Z_WIDTH_GEV = 91.1876, 2.4952
HIGGS_MASS_GEV = SIMULATED_HIGGS_MASS_GEV
#: The width that the Standard Model predicts (LHC Higgs Cross Section Working Group, CERN-2017-002-M).
HIGGS_WIDTH_GEV = 0.0041
ELECTRON, MUON = 11, 13

# Acceptance: limits of lepton pT and |η| in the real release, and the threshold of its single-lepton trigger.
MIN_PT_GEV, TRIGGER_PT_GEV = 7.0, 25.0
MAX_ABS_ETA: Mapping[int, float] = MappingProxyType({ELECTRON: 2.47, MUON: 2.7})
LIGHTEST_PAIR_GEV = 5.0


class Leptons(NamedTuple):
    """Leptons of n events: each column of shape (n, k); charge is ±1, flavour 11 (e) or 13 (μ)."""

    pt_gev: Array
    eta: Array
    phi: Array
    charge: Indices
    flavour: Indices


def rows_of(leptons: Leptons, rows: Indices | npt.NDArray[np.bool_]) -> Leptons:
    """Return the leptons of the events ``rows``, in this order."""
    return Leptons._make(column[rows] for column in leptons)


def shuffled(rng: np.random.Generator, parts: list[Leptons]) -> Leptons:
    """Return the events of all parts in random order; all have the same number of leptons."""
    together = concatenated(parts)
    return rows_of(together, rng.permutation(len(together.charge)))


def concatenated(parts: list[Leptons]) -> Leptons:
    """Return the events of all parts in sequence; all have the same number of leptons."""
    return Leptons._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


def breit_wigner(rng: np.random.Generator, low_gev: Array, high_gev: Array, mass_gev: float, width_gev: float) -> Array:
    """Draw masses [GeV] from the relativistic Breit-Wigner of fixed width, one between each low and high.

    They are drawn by inversion: with m² = M² + MΓ·tan θ the angle θ is uniform.
    """
    scale = mass_gev * width_gev
    start, stop = (np.arctan((edge**2 - mass_gev**2) / scale) for edge in (low_gev, high_gev))
    squared = mass_gev**2 + scale * np.tan(start + (stop - start) * rng.random(np.shape(low_gev)))
    return np.asarray(np.sqrt(np.clip(squared, low_gev**2, high_gev**2)))


def phase_space(m4l: Array, m12: Array, m34: Array) -> Array:
    """Return √λ(1, m12²/m4l², m34²/m4l²), between 0 and 1: twice the momentum of the pairs divided by m4l."""
    first, second = (m12 / m4l) ** 2, (m34 / m4l) ** 2
    return np.asarray(np.sqrt(np.maximum((1 - first - second) ** 2 - 4 * first * second, 0.0)))


PairMasses = Callable[[np.random.Generator, Array], tuple[Array, Array, Array]]


def higgs_pairs(rng: np.random.Generator, m4l: Array) -> tuple[Array, Array, Array]:
    """Draw m12 and m34 [GeV] of H→ZZ*; return them with the acceptance probability β(β² + 12·m12²·m34²/m4l⁴).

    This is the matrix element summed over polarisations, A. Djouadi, Phys. Rept. 457 (2008) 1, eq. 2.29.
    """
    m12 = breit_wigner(rng, m4l / 2, m4l - LIGHTEST_PAIR_GEV, Z_MASS_GEV, Z_WIDTH_GEV)
    m34 = breit_wigner(rng, np.full_like(m4l, LIGHTEST_PAIR_GEV), m4l - m12, Z_MASS_GEV, Z_WIDTH_GEV)
    beta = phase_space(m4l, m12, m34)
    return m12, m34, beta * (beta**2 + 12 * (m12 * m34 / m4l**2) ** 2)


def single_z_pairs(rng: np.random.Generator, m4l: Array) -> tuple[Array, Array, Array]:
    """Draw Z→ℓℓ with a γ*→ℓℓ radiated off a lepton: m34 from dm34/m34, m12 mostly close to its maximum."""
    m34 = LIGHTEST_PAIR_GEV * (m4l / (2 * LIGHTEST_PAIR_GEV)) ** rng.random(m4l.shape)
    m12 = m34 + (m4l - 2 * m34) * np.sqrt(rng.random(m4l.shape))
    return m12, m34, phase_space(m4l, m12, m34)


def z_photon_pairs(rng: np.random.Generator, m4l: Array) -> tuple[Array, Array, Array]:
    """Draw Zγ* below the ZZ threshold: m12 from the Breit-Wigner of the Z, m34 from dm34/m34."""
    m12 = breit_wigner(rng, m4l / 2, m4l - LIGHTEST_PAIR_GEV, Z_MASS_GEV, Z_WIDTH_GEV)
    m34 = LIGHTEST_PAIR_GEV * ((m4l - m12) / LIGHTEST_PAIR_GEV) ** rng.random(m4l.shape)
    return m12, m34, phase_space(m4l, m12, m34)


def double_z_pairs(rng: np.random.Generator, m4l: Array) -> tuple[Array, Array, Array]:
    """Draw ZZ: both masses from the Breit-Wigner of the Z, their sum at most m4l."""
    low = np.full_like(m4l, 40.0)
    m12 = breit_wigner(rng, low, m4l - 40.0, Z_MASS_GEV, Z_WIDTH_GEV)
    m34 = breit_wigner(rng, low, m4l - m12, Z_MASS_GEV, Z_WIDTH_GEV)
    return m12, m34, phase_space(m4l, m12, m34)


def boost(momenta: Array, parent: Array, mass_gev: Array) -> Array:
    """Boost momenta (4, n, k) from the rest frame of ``parent`` (4, n), of mass (n,), to the frame of ``parent``."""
    flight, mass = parent[:, :, np.newaxis], mass_gev[:, np.newaxis]
    along = flight[0] * momenta[0] + flight[1] * momenta[1] + flight[2] * momenta[2]
    energy = (flight[3] * momenta[3] + along) / mass
    boosted = np.empty_like(momenta)
    boosted[:3] = momenta[:3] + flight[:3] * ((momenta[3] + energy) / (flight[3] + mass))
    boosted[3] = energy
    return boosted


def isotropic(rng: np.random.Generator, momentum_gev: Array) -> Array:
    """Draw momenta (3, n) of the given magnitudes [GeV], with directions uniform on the sphere."""
    cosine = rng.uniform(-1, 1, momentum_gev.shape)
    azimuth = rng.uniform(-np.pi, np.pi, momentum_gev.shape)
    sine = np.sqrt(1 - cosine**2)
    direction: Array = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine])
    return momentum_gev * direction


def two_leptons(rng: np.random.Generator, mass_gev: Array) -> Array:
    """Draw momenta (4, n, 2) of two massless leptons from an isotropic decay, in the rest frame of the parent."""
    one = isotropic(rng, mass_gev / 2)
    energy = mass_gev[np.newaxis] / 2
    return np.stack([np.concatenate([one, energy]), np.concatenate([-one, energy])], axis=-1)


def in_flight(rng: np.random.Generator, mass_gev: Array, median_pt_gev: float, pt_spread: float) -> Array:
    """Draw momenta (4, n) [GeV] of produced systems: pT log-normal, rapidity Gaussian of width 1.2."""
    pt = median_pt_gev * np.exp(pt_spread * rng.standard_normal(mass_gev.shape))
    rapidity = 1.2 * rng.standard_normal(mass_gev.shape)
    azimuth = rng.uniform(-np.pi, np.pi, mass_gev.shape)
    transverse = np.hypot(mass_gev, pt)
    return np.stack(
        [
            pt * np.cos(azimuth),
            pt * np.sin(azimuth),
            transverse * np.sinh(rapidity),
            transverse * np.cosh(rapidity),
        ]
    )


def detected(rng: np.random.Generator, momenta: Array, charge: Indices, flavour: Indices) -> Leptons:
    """Return leptons of momenta (4, n, k) as measured by a detector: pT smeared, angles exact.

    The resolution is 16 %/√pT ⊕ 1.5 % for electrons and 2.4 % ⊕ 0.02 %·pT for muons (pT in GeV):
    toy numbers for which the m4l peak of a 125 GeV Higgs has a width of about 2 GeV.
    """
    pt = np.hypot(momenta[0], momenta[1])
    spread = np.where(flavour == ELECTRON, np.hypot(0.16 / np.sqrt(pt), 0.015), np.hypot(0.024, 0.0002 * pt))
    measured = pt * np.maximum(1 + spread * rng.standard_normal(pt.shape), 0.1)
    return Leptons(measured, np.arcsinh(momenta[2] / pt), np.arctan2(momenta[1], momenta[0]), charge, flavour)


def accepted(leptons: Leptons) -> npt.NDArray[np.bool_]:
    """Return which events (n,) have all leptons in the acceptance and the leading one above the trigger threshold."""
    limit = np.where(leptons.flavour == ELECTRON, MAX_ABS_ETA[ELECTRON], MAX_ABS_ETA[MUON])
    inside = (leptons.pt_gev > MIN_PT_GEV) & (np.abs(leptons.eta) < limit)
    return np.asarray(inside.all(axis=1) & (leptons.pt_gev.max(axis=1) > TRIGGER_PT_GEV))


def until_accepted(n: int, draw: Callable[[Indices], tuple[Indices, Leptons]]) -> Leptons:
    """Draw n events of four leptons, each repeatedly until it is accepted.

    ``draw`` takes the indices of the events that are missing, and returns the indices
    of those that it has drawn (all or some of them) with their leptons.
    """
    kept = Leptons._make(np.empty((n, 4), dtype) for dtype in (float, float, float, np.int64, np.int64))
    missing = np.ones(n, dtype=np.bool_)
    while missing.any():
        indices, trial = draw(np.flatnonzero(missing))
        good = accepted(trial)
        for column, values in zip(kept, trial, strict=True):
            column[indices[good]] = values[good]
        missing[indices[good]] = False
    return kept


def four_prompt(
    rng: np.random.Generator, m4l: Array, pairs: PairMasses, median_pt_gev: float, pt_spread: float
) -> Leptons:
    """Draw four leptons in two pairs for each m4l (n,) [GeV], with 4e : 4μ : 2e2μ = 1 : 1 : 2.

    m4l and the flavours are fixed while the other variables are drawn until the event is
    accepted, so that the acceptance does not change the m4l spectrum.
    """
    flavour = np.repeat(rng.choice([ELECTRON, MUON], (m4l.size, 2)), 2, axis=1)
    signs = np.array([1, -1, 1, -1])

    def draw(wanted: Indices) -> tuple[Indices, Leptons]:
        m12, m34, keep = pairs(rng, m4l[wanted])
        possible = rng.random(wanted.size) < keep
        wanted, m12, m34 = wanted[possible], m12[possible], m34[possible]
        mass = m4l[wanted]
        back = isotropic(rng, mass / 2 * phase_space(mass, m12, m34))
        leptons = [
            boost(two_leptons(rng, m), np.concatenate([p, np.sqrt(m**2 + (p**2).sum(axis=0))[np.newaxis]]), m)
            for m, p in ((m12, back), (m34, -back))
        ]
        momenta = boost(np.concatenate(leptons, axis=2), in_flight(rng, mass, median_pt_gev, pt_spread), mass)
        return wanted, detected(rng, momenta, np.broadcast_to(signs, (mass.size, 4)), flavour[wanted])

    return until_accepted(m4l.size, draw)


def with_mistakes(rng: np.random.Generator, leptons: Leptons, fraction: float) -> Leptons:
    """Give one lepton a wrong charge or flavour in a fraction of the events, which then fail the selection."""
    n = len(leptons.charge)
    wrong = np.arange(4) == rng.integers(4, size=n)[:, np.newaxis]
    wrong &= (rng.random(n) < fraction)[:, np.newaxis]
    # A muon outside the |η| range of electrons gets a wrong charge, never a wrong flavour.
    wrong_flavour = wrong & (rng.random(n) < 0.5)[:, np.newaxis] & (np.abs(leptons.eta) < MAX_ABS_ETA[ELECTRON])
    return leptons._replace(
        charge=np.where(wrong & ~wrong_flavour, -leptons.charge, leptons.charge),
        flavour=np.where(wrong_flavour, ELECTRON + MUON - leptons.flavour, leptons.flavour),
    )
