"""The simulated samples of the toy releases: toy yields, spectra and lepton multiplicities.

The yields of ``demo`` are the rounded ones of the real 2020 release at 10 fb⁻¹ after the charge
and flavour steps; the spectra are adjusted by eye to the Zee, tt̄, WH and data files
of the real release. The yields of ``demo-2025`` follow, roughly, from the numbers of events that the
HZZAnalysis notebook selects of each file of the real 2025 release. All are toy numbers, not predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from physics.hzz4l.toy.events import (
    ELECTRON,
    HIGGS_MASS_GEV,
    HIGGS_WIDTH_GEV,
    MAX_ABS_ETA,
    MIN_PT_GEV,
    MUON,
    Z_MASS_GEV,
    Z_WIDTH_GEV,
    Array,
    Indices,
    Leptons,
    boost,
    breit_wigner,
    detected,
    double_z_pairs,
    four_prompt,
    higgs_pairs,
    in_flight,
    shuffled,
    single_z_pairs,
    two_leptons,
    until_accepted,
    with_mistakes,
    z_photon_pairs,
)

# Standard deviation of the scale factors of simulation about 1.
SCALE_FACTOR_SPREAD = 0.03


@dataclass(frozen=True)
class ToySample:
    """The toy of one simulated sample.

    ``yield_10_ifb`` is the expected number of selected events at 10 fb⁻¹; ``passing`` is
    the fraction of events that are selected; ``draw`` draws n accepted events of four leptons,
    of which the first ``prompt`` are prompt and the others fakes. ``entries`` is the number of
    simulated events relative to that of the other samples (None: that of the release).
    For ``demo``, selected is what passes the charge and flavour steps, known by construction.
    """

    yield_10_ifb: float
    passing: float
    draw: Callable[[np.random.Generator, int], Leptons]
    fifth_lepton: float = 0.005
    negative_weights: float = 0.0
    prompt: int = 4
    entries: int | None = None

    @property
    def events_per_ifb(self) -> float:
        """Expected number of accepted events per fb⁻¹, before the selection."""
        return self.yield_10_ifb / 10 / self.passing


def higgs(rng: np.random.Generator, n: int, median_pt_gev: float, pt_spread: float, mistaken: float) -> Leptons:
    """Draw n events of H→ZZ*→4ℓ with a Higgs mass of 125 GeV."""
    around = np.full(n, HIGGS_MASS_GEV)
    m4l = breit_wigner(rng, around - 1, around + 1, HIGGS_MASS_GEV, HIGGS_WIDTH_GEV)
    return with_mistakes(rng, four_prompt(rng, m4l, higgs_pairs, median_pt_gev, pt_spread), mistaken)


# Fractions of Z→4ℓ, of Zγ* below the ZZ threshold and of ZZ above it.
_DIBOSON_SHARES = (0.255, 0.16, 0.585)


def diboson(rng: np.random.Generator, n: int, mistaken: float) -> Leptons:
    """Draw n events of non-resonant 4ℓ: the Z→4ℓ peak, the Zγ* continuum and ZZ with its threshold at 2·m_Z."""
    single, continuum, double = rng.multinomial(n, _DIBOSON_SHARES)
    z_peak = breit_wigner(rng, np.full(single, 66.0), np.full(single, 116.0), Z_MASS_GEV, Z_WIDTH_GEV)
    # Uniform from the Z mass to the ZZ threshold, with smeared ends; near the Z mass it decays like a Z.
    below = np.clip(rng.uniform(90, 180, continuum) + 5 * rng.standard_normal(continuum), 80.0, 200.0)
    like_single = below < 115
    four = shuffled(
        rng,
        [
            four_prompt(rng, np.concatenate([z_peak, below[like_single]]), single_z_pairs, 20.0, 0.9),
            four_prompt(rng, below[~like_single], z_photon_pairs, 22.0, 1.0),
            four_prompt(rng, zz_masses(rng, double), double_z_pairs, 27.0, 1.0),
        ],
    )
    return with_mistakes(rng, four, mistaken)


def zz_masses(rng: np.random.Generator, n: int) -> Array:
    """Draw m4l (n,) [GeV] of ZZ: the sum of two Breit-Wigner masses plus a beta-prime excess of scale 150 GeV."""
    around = np.full((n, 2), Z_MASS_GEV)
    sums = breit_wigner(rng, around - 15, around + 15, Z_MASS_GEV, Z_WIDTH_GEV).sum(axis=1)
    return np.asarray(sums + 150 * rng.gamma(1.2, size=n) / rng.gamma(3.3, size=n))


def fakes(rng: np.random.Generator, n: int, log_median: float, spread: float) -> tuple[Array, Array]:
    """Draw pT [GeV] and η, each (n, 2), of soft leptons from jets: log-normal above the pT threshold, central."""
    pt = MIN_PT_GEV + np.exp(log_median + spread * rng.standard_normal((n, 2)))
    return pt, np.clip(1.2 * rng.standard_normal((n, 2)), -2.4, 2.4)


def with_fakes(
    rng: np.random.Generator, real: Leptons, fake: tuple[Array, Array], flavour: Indices, opposite: float
) -> Leptons:
    """Add two fakes to two leptons; ``opposite`` is the fraction of events whose fakes have opposite charges."""
    n = len(real.charge)
    first = rng.choice([-1, 1], n)
    second = np.where(rng.random(n) < opposite, -first, first)
    return Leptons(
        np.hstack([real.pt_gev, fake[0]]),
        np.hstack([real.eta, fake[1]]),
        np.hstack([real.phi, rng.uniform(-np.pi, np.pi, (n, 2))]),
        np.hstack([real.charge, np.stack([first, second], axis=1)]),
        np.hstack([real.flavour, flavour]),
    )


def z_jets(rng: np.random.Generator, n: int, flavour: int, fake_muons: float, opposite: float) -> Leptons:
    """Draw n events of a Z decaying to two leptons of one flavour, and two fakes, each a muon or an electron."""
    fake_flavour = np.where(rng.random((n, 2)) < fake_muons, MUON, ELECTRON)

    def draw(wanted: Indices) -> tuple[Indices, Leptons]:
        k = wanted.size
        mass = breit_wigner(rng, np.full(k, 66.0), np.full(k, 116.0), Z_MASS_GEV, Z_WIDTH_GEV)
        momenta = boost(two_leptons(rng, mass), in_flight(rng, mass, 18.0, 1.0), mass)
        real = detected(rng, momenta, np.broadcast_to(np.array([1, -1]), (k, 2)), np.full((k, 2), flavour))
        return wanted, with_fakes(rng, real, fakes(rng, k, 0.8, 1.25), fake_flavour[wanted], opposite)

    return until_accepted(n, draw)


def top_pairs(rng: np.random.Generator, n: int, fake_muons: float, opposite: float) -> Leptons:
    """Draw n events of tt̄ decaying to two leptons of any flavours, with broad pT, and two fakes from the b jets."""
    flavour = rng.choice([ELECTRON, MUON], (n, 2))
    fake_flavour = np.where(rng.random((n, 2)) < fake_muons, MUON, ELECTRON)

    def draw(wanted: Indices) -> tuple[Indices, Leptons]:
        k = wanted.size
        real = Leptons(
            47 * np.exp(0.62 * rng.standard_normal((k, 2))),
            1.05 * rng.standard_normal((k, 2)),
            rng.uniform(-np.pi, np.pi, (k, 2)),
            np.broadcast_to(np.array([1, -1]), (k, 2)),
            flavour[wanted],
        )
        return wanted, with_fakes(rng, real, fakes(rng, k, 1.13, 0.95), fake_flavour[wanted], opposite)

    return until_accepted(n, draw)


def same_flavour(fake_muons: float) -> float:
    """Return the probability that two fakes, each a muon with probability ``fake_muons``, have the same flavour."""
    return fake_muons**2 + (1 - fake_muons) ** 2


# In the real release 27 % of the Z+jets events and 32 % of the tt̄ events pass the charge and
# flavour steps (243 of 898, 334 of 1031); the opposite-charge fractions follow from this.
# In tt̄ the number of muons is even with probability 1/2 for any fakes.
TOY_SAMPLES: Mapping[str, ToySample] = MappingProxyType(
    {
        "Zee": ToySample(
            43.0, 0.53 * same_flavour(0.57), partial(z_jets, flavour=ELECTRON, fake_muons=0.57, opposite=0.53)
        ),
        "Zmumu": ToySample(
            30.0, 0.53 * same_flavour(0.57), partial(z_jets, flavour=MUON, fake_muons=0.57, opposite=0.53)
        ),
        "ttbar_lep": ToySample(28.0, 0.65 / 2, partial(top_pairs, fake_muons=0.43, opposite=0.65), fifth_lepton=0.015),
        "llll": ToySample(310.0, 0.95, partial(diboson, mistaken=0.05), negative_weights=0.015),
        "ggH125_ZZ4lep": ToySample(8.7, 0.95, partial(higgs, median_pt_gev=25.0, pt_spread=1.0, mistaken=0.05)),
        "VBFH125_ZZ4lep": ToySample(0.9, 0.95, partial(higgs, median_pt_gev=65.0, pt_spread=0.7, mistaken=0.05)),
        # The leptons of the associated W or Z are often among the four leading ones: 9772 of 15379 pass.
        "WH125_ZZ4lep": ToySample(
            0.22, 0.64, partial(higgs, median_pt_gev=78.0, pt_spread=0.7, mistaken=0.36), fifth_lepton=0.07
        ),
        "ZH125_ZZ4lep": ToySample(
            0.02, 0.64, partial(higgs, median_pt_gev=78.0, pt_spread=0.7, mistaken=0.36), fifth_lepton=0.1
        ),
    }
)


def _of_2025(
    events: float,
    passing: float,
    draw: Callable[[np.random.Generator, int], Leptons],
    *,
    prompt: int = 4,
    entries: int | None = None,
    negative_weights: float = 0.0,
) -> ToySample:
    """Return the toy of a sample that gives so many selected events at the 36.6 fb⁻¹ of 2015 and 2016."""
    return ToySample(events / 3.66, passing, draw, prompt=prompt, entries=entries, negative_weights=negative_weights)


_Z_TO_EE = partial(z_jets, flavour=ELECTRON, fake_muons=0.4, opposite=0.55)
_Z_TO_MUMU = partial(z_jets, flavour=MUON, fake_muons=0.4, opposite=0.55)
_TOPS = partial(top_pairs, fake_muons=0.43, opposite=0.65)
_TOPS_AND_EE = partial(top_pairs, fake_muons=0.0, opposite=1.0)
_TOPS_AND_MUMU = partial(top_pairs, fake_muons=1.0, opposite=1.0)
_BOSONS = partial(diboson, mistaken=0.05)
_HIGGS = partial(higgs, median_pt_gev=25.0, pt_spread=1.0, mistaken=0.05)
_HIGGS_AND_JETS = partial(higgs, median_pt_gev=65.0, pt_spread=0.7, mistaken=0.05)
_HIGGS_AND_BOSON = partial(higgs, median_pt_gev=78.0, pt_spread=0.7, mistaken=0.36)

# The fractions that pass are those of half a million events of each process. Rare samples have more events than in
# the real release, so that some are selected.
TOY_SAMPLES_2025: Mapping[str, ToySample] = MappingProxyType(
    {
        "ttbar": _of_2025(2.5, 0.0076, _TOPS, prompt=2),
        "ttW": _of_2025(0.2, 0.0215, _TOPS, prompt=3, entries=2_000),
        "ttee": _of_2025(10.0, 0.1, _TOPS_AND_EE, negative_weights=0.25),
        "ttmumu": _of_2025(10.0, 0.1996, _TOPS_AND_MUMU, negative_weights=0.25),
        "tttt": _of_2025(0.2, 0.0615, _TOPS, prompt=4, negative_weights=0.25),
        "WWZ": _of_2025(3.7, 0.55, _BOSONS),
        "WWW": _of_2025(0.02, 0.0215, _TOPS, prompt=3, entries=2_000),
        "WZZ": _of_2025(0.01, 0.55, _BOSONS, entries=1_000),
        "ZZZ": _of_2025(0.5, 0.55, _BOSONS),
        "Zee_b": _of_2025(8.0, 0.01293, _Z_TO_EE, prompt=2, negative_weights=0.1),
        "Zee_c": _of_2025(20.0, 0.01293, _Z_TO_EE, prompt=2, negative_weights=0.1),
        "Zee_light": _of_2025(88.0, 0.01293, _Z_TO_EE, prompt=2, negative_weights=0.1),
        "Zmumu_b": _of_2025(1.0, 0.00375, _Z_TO_MUMU, prompt=2, negative_weights=0.1),
        "Zmumu_c": _of_2025(3.0, 0.00375, _Z_TO_MUMU, prompt=2, negative_weights=0.1),
        "Zmumu_light": _of_2025(30.0, 0.00375, _Z_TO_MUMU, prompt=2, negative_weights=0.1),
        # Ten times the events of the real release, so that the demo's ZZ* has small statistical uncertainties.
        "llll": _of_2025(1080.0, 0.55, _BOSONS, entries=112_600, negative_weights=0.1),
        "ggH125_ZZ4l": _of_2025(21.0, 0.44, _HIGGS),
        "VBFH125_ZZ4l": _of_2025(2.0, 0.4726, _HIGGS_AND_JETS),
        "ZH125": _of_2025(0.01, 0.329, _HIGGS_AND_BOSON, entries=1_000),
        "WpH125": _of_2025(0.02, 0.329, _HIGGS_AND_BOSON, entries=1_000),
        "WmH125": _of_2025(0.01, 0.329, _HIGGS_AND_BOSON, entries=1_000),
        "ttH125_ZZ4l_allhad": _of_2025(0.08, 0.329, _HIGGS_AND_BOSON, negative_weights=0.02),
        "ttH125_ZZ4l_semilep": _of_2025(0.08, 0.329, _HIGGS_AND_BOSON, negative_weights=0.02),
        "ttH125_ZZ4l_dilep": _of_2025(0.02, 0.329, _HIGGS_AND_BOSON, negative_weights=0.02),
    }
)


def with_fifth(rng: np.random.Generator, four: Leptons, fraction: float | Array) -> tuple[Leptons, Indices]:
    """Add a fifth lepton in a ``fraction``, shape () or (n,), of the events.

    Returns leptons (n, 5) sorted by falling pT, and how many of them are valid, 4 or 5, shape (n,).
    The fifth is softer than the fourth, so that it never enters the selection.
    """
    n = len(four.charge)
    order = np.argsort(-four.pt_gev, axis=1)
    four = Leptons._make(np.take_along_axis(column, order, axis=1) for column in four)
    softest = four.pt_gev[:, 3:]
    limit = MAX_ABS_ETA[ELECTRON]
    fifth = Leptons(
        softest - (softest - MIN_PT_GEV) * rng.random((n, 1)),
        rng.uniform(-limit, limit, (n, 1)),
        rng.uniform(-np.pi, np.pi, (n, 1)),
        rng.choice([-1, 1], (n, 1)),
        rng.choice([ELECTRON, MUON], (n, 1)),
    )
    leptons = Leptons._make(np.hstack(columns) for columns in zip(four, fifth, strict=True))
    return leptons, np.where(rng.random(n) < fraction, 5, 4)
