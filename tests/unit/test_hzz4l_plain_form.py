"""The selection written with awkward, vector and hist gives the same events, masses and histograms as the numpy one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from itertools import permutations
from pathlib import Path
from typing import Any

import awkward as ak
import hist
import numpy as np
import pytest
import vector

from common.analyses import Analysis, Sample
from common.columns import columns_of
from common.settings import RunSettings
from physics import ANALYSES
from physics.hzz4l import release_2020e, release_2025e
from tests.support.real_data import real_data
from workers.analysis.histograms import fill, split
from workers.data_loader import reading
from workers.data_processor.service import select

Z_MASS_GEV = 91.188
#: The sums of the lepton types of 4e, 2e2μ and 4μ.
TYPE_SUMS = (44, 48, 52)
R2020, R2025 = ANALYSES["2020e-13tev"], ANALYSES["2025e-13tev-beta"]


def resolved(analysis: Analysis) -> RunSettings:
    return ANALYSES.resolve(RunSettings(release=analysis.release))


# --- the plain form ---------------------------------------------------------


def momenta(arrays: ak.Array, energy: str, per_gev: float) -> ak.Array:
    """The leptons of each event as four-momenta in GeV, in double precision, with their charges and types."""
    wide = {name: ak.values_astype(arrays[name], np.float64) for name in ("lep_pt", "lep_eta", "lep_phi", energy)}
    return vector.zip(
        {
            "pt": wide["lep_pt"] / per_gev, "eta": wide["lep_eta"], "phi": wide["lep_phi"],
            "E": wide[energy] / per_gev, "charge": arrays.lep_charge, "flavour": arrays.lep_type,
        }
    )[:, :4]  # fmt: skip


def in_2020(arrays: ak.Array, sample: Sample, run: RunSettings) -> tuple[ak.Array, ak.Array]:
    """Momenta and weights of the events that pass the steps of the 2020 release before charge and flavour."""
    arrays = arrays[ak.num(arrays.lep_pt) >= 4]
    weight = np.ones(len(arrays), np.float32)
    if not sample.is_data:
        sigma, total = sample.cross_section_pb, sample.sum_of_weights
        weight = weight * np.float32(run.luminosity_ifb * 1000 * sigma / total)
        for factor in release_2020e.WEIGHTS:
            weight = weight * ak.to_numpy(arrays[factor])
    found = momenta(arrays, "lep_E", 1000.0)
    finite = np.isfinite(found.pt) & np.isfinite(found.phi) & np.isfinite(found.E)
    good = ak.all(finite & (found.pt > 0) & (found.E > 0) & (abs(found.eta) <= 100), axis=1)
    for lepton, cut in enumerate(run.cuts_gev):
        good = good & (found.pt[:, lepton] > cut)
    return found[good], weight[good]


def in_2025(arrays: ak.Array, sample: Sample, run: RunSettings) -> tuple[ak.Array, ak.Array]:
    """Momenta and weights of the events that pass the steps of the 2025 release before flavour and charge."""
    weight = np.ones(len(arrays))
    if not sample.is_data:
        weight = run.luminosity_ifb * 1000 / ak.to_numpy(arrays.sum_of_weights)
        for factor in release_2025e.WEIGHTS:
            weight = weight * abs(ak.to_numpy(arrays[factor]))
    found = momenta(arrays, "lep_e", 1.0)
    identified = ((found.flavour == 11) & arrays.lep_isLooseID) | ((found.flavour == 13) & arrays.lep_isMediumID)
    good = (arrays.trigE | arrays.trigM) & ak.any(arrays.lep_isTrigMatched, axis=1)
    good = good & ak.all(identified & arrays.lep_isLooseIso, axis=1)
    for lepton, cut in enumerate(run.cuts_gev):
        good = good & (found.pt[:, lepton] > cut)
    return found[good], weight[good]


def z_masses(leptons: ak.Array) -> Any:
    """The masses of the pair closest to the Z mass and of the other pair, shape (2, events); NaN if there are none."""
    orders = np.array([order for order in permutations(range(4)) if order[0] < order[1] and order[2] < order[3]])
    a, b, c, d = (leptons[:, orders[:, place]] for place in range(4))
    allowed = (a.flavour == b.flavour) & (a.charge == -b.charge) & (c.flavour == d.flavour) & (c.charge == -d.charge)
    allowed, first, second = (ak.to_numpy(one) for one in (allowed, (a + b).mass, (c + d).mass))
    best = np.argmin(np.where(allowed, abs(first - Z_MASS_GEV), np.inf), axis=1)[:, np.newaxis]
    z1, z2 = (np.take_along_axis(masses, best, axis=1)[:, 0] for masses in (first, second))
    return np.where(allowed.any(axis=1), (z1, z2), np.nan)


def plain(arrays: ak.Array, analysis: Analysis, sample: Sample, run: RunSettings) -> dict[str, Any]:
    """The observables, channels and weights of the selected events."""
    leptons, weight = (in_2025 if analysis is R2025 else in_2020)(arrays, sample, run)
    types = ak.sum(leptons.flavour, axis=1)
    chosen = (ak.sum(leptons.charge, axis=1) == 0) & reduce(np.logical_or, [types == one for one in TYPE_SUMS])
    leptons, types, weight = leptons[chosen], types[chosen], weight[chosen]
    z1, z2 = z_masses(leptons)
    return {
        "m4l": ak.to_numpy((leptons[:, 0] + leptons[:, 1] + leptons[:, 2] + leptons[:, 3]).mass),
        "m_z1": z1,
        "m_z2": z2,
        "lead_pt": ak.to_numpy(leptons.pt[:, 0]),
        "channel": np.searchsorted(TYPE_SUMS, ak.to_numpy(types)),
        "weight": ak.to_numpy(weight),
    }


def plain_histograms(found: Mapping[str, Any], analysis: Analysis) -> dict[str, Any]:
    """The weighted histograms of all events and of each channel."""
    filled = {}
    for name, observable in analysis.histograms.items():
        channels = [place for place, one in enumerate(analysis.channels) if name.endswith(f"_{one.name}")]
        chosen = np.isin(found["channel"], channels or range(len(analysis.channels)))
        histogram = hist.Hist(hist.axis.Variable(observable.axis.edges), storage=hist.storage.Weight())
        values = found[observable.name].astype(observable.dtype)
        histogram.fill(values[chosen], weight=found["weight"][chosen].astype(np.float64))
        filled[name] = histogram
    return filled


# --- the comparison ---------------------------------------------------------


def assert_the_same(arrays: ak.Array, analysis: Analysis, sample: Sample) -> int:
    """Compare the two forms; returns the number of selected events."""
    run = resolved(analysis)
    with np.errstate(all="ignore"):
        expected = plain(arrays, analysis, sample, run)
    events, _ = reading.select(arrays, analysis, sample, run)
    chosen, _ = select(events, analysis, run)
    found = columns_of(chosen)

    assert len(found["m4l"]) == len(expected["m4l"])
    for name in ("channel", "weight"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    for observable in analysis.observables:
        rounding = max(1e-12, float(np.finfo(observable.dtype).eps))
        name = observable.name
        np.testing.assert_allclose(found[name], expected[name], rtol=rounding, err_msg=name)
    leptons = analysis.objects(columns_of(events))
    selected = np.logical_and.reduce([step.passes(leptons, run) for step in analysis.processor_steps])
    for name, masses in zip(("m_z1", "m_z2"), leptons.z_masses, strict=True):
        # E² - p² of two leptons that fly side by side is a small difference of large numbers.
        for chosen_pairs, tolerance in ((expected[name] < 20, 1e-9), (~(expected[name] < 20), 1e-12)):
            np.testing.assert_allclose(
                masses[selected][chosen_pairs], expected[name][chosen_pairs], rtol=tolerance, err_msg=name
            )

    histograms = split(fill(chosen, analysis, sample.category), analysis, sample.category)
    for name, histogram in plain_histograms(expected, analysis).items():
        for row, wanted in zip(histograms[name], (histogram.values(), histogram.variances()), strict=True):
            np.testing.assert_allclose(row, wanted, rtol=1e-12, atol=1e-12 * max(1e-300, np.abs(wanted).max()))
    return len(chosen)


@pytest.mark.parametrize("name", ["data_A", "data_B", "data_C", "Zee", "ttbar_lep", "WH125_ZZ4lep"])
def test_both_forms_agree_on_the_real_files_of_2020(name: str) -> None:
    sample = R2020.sample(name)
    path = real_data() / "4lep" / sample.file
    entries = reading.chunk_bounds(path, R2020, sample, RunSettings())[-1]

    assert assert_the_same(reading.read(path, R2020, sample, 0, entries), R2020, sample) > 0


def test_both_forms_agree_on_a_real_file_of_2025_as_the_notebook_printed() -> None:
    sample = R2025.sample("data15_periodD")
    path = real_data() / "exactly4lep" / Path(sample.file).name
    arrays = reading.read(path, R2025, sample, 0, 3424)

    assert assert_the_same(arrays, R2025, sample) == 2


def random_leptons(rng: np.random.Generator, n: int, counts: Any, per_gev: float) -> dict[str, Any]:
    """The lepton branches of n events, each sorted by falling pT."""
    total = int(np.sum(counts))
    event = np.repeat(np.arange(n), counts)
    pt = rng.uniform(8, 90, total)
    pt = pt[np.lexsort((-pt, event))] * per_gev
    eta = rng.uniform(-2.5, 2.5, total)
    flat = {
        "lep_pt": pt,
        "lep_eta": eta,
        "lep_phi": rng.uniform(-np.pi, np.pi, total),
        "energy": np.hypot(pt * np.cosh(eta), 0.1057 * per_gev),
    }
    found = {name: ak.unflatten(values.astype(np.float32), counts) for name, values in flat.items()}
    return found | {
        "lep_charge": ak.unflatten(rng.choice([-1, 1], total).astype(np.int32), counts),
        "lep_type": ak.unflatten(rng.choice([11, 13], total), counts),
    }


def random_2020(rng: np.random.Generator, n: int) -> ak.Array:
    """Events of the 2020 release of which a half has a wrong input: too few leptons, NaN, infinity, no energy."""
    counts = rng.choice([0, 1, 3, 4, 5], n, p=[0.05, 0.05, 0.1, 0.6, 0.2])
    found = random_leptons(rng, n, counts, 1000.0)
    found["lep_E"] = found.pop("energy")
    wrong = {
        "lep_pt": (np.nan, np.inf, -np.inf, 0.0, -2e4),
        "lep_eta": (np.nan, np.inf, -np.inf, 1e3, -101.0),
        "lep_phi": (np.nan, np.inf, -np.inf),
        "lep_E": (np.nan, np.inf, -np.inf, 0.0, -5e4),
    }
    for name, values in wrong.items():
        flat = ak.to_numpy(ak.flatten(found[name])).copy()
        places = rng.choice(len(flat), len(flat) // 60, replace=False)
        flat[places] = rng.choice(values, len(places))
        found[name] = ak.unflatten(flat, counts)
    weights = {name: rng.normal(1, 0.3, n).astype(np.float32) for name in release_2020e.WEIGHTS}
    found["lep_type"] = ak.values_astype(found["lep_type"], np.uint32)
    return ak.zip(found | weights, depth_limit=1)


def random_2025(rng: np.random.Generator, n: int) -> ak.Array:
    """Events of the 2025 release, whose flags are true more often than not."""
    counts = np.full(n, 4)
    found = random_leptons(rng, n, counts, 1.0)
    found["lep_e"] = found.pop("energy")
    for name in ("lep_isTrigMatched", "lep_isLooseID", "lep_isMediumID", "lep_isLooseIso"):
        found[name] = ak.unflatten(rng.random(4 * n) < 0.97, counts)
    flags = {name: rng.random(n) < 0.8 for name in ("trigE", "trigM")}
    weights = {name: rng.normal(0, 1, n).astype(np.float32) for name in release_2025e.WEIGHTS}
    found["lep_type"] = ak.values_astype(found["lep_type"], np.int32)
    return ak.zip(found | flags | weights | {"sum_of_weights": rng.uniform(1e5, 1e7, n)}, depth_limit=1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["data_A", "llll", "ggH125_ZZ4lep"])
def test_both_forms_agree_on_random_events_with_wrong_inputs(name: str, seed: int) -> None:
    arrays = random_2020(np.random.default_rng(seed), 20_000)

    assert assert_the_same(arrays, R2020, R2020.sample(name)) > 500


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["data16_periodL", "llll", "ZH125"])
def test_both_forms_agree_on_random_events_of_2025(name: str, seed: int) -> None:
    arrays = random_2025(np.random.default_rng(seed), 20_000)

    assert assert_the_same(arrays, R2025, R2025.sample(name)) > 500
