"""Selection, masses, channels and weights agree with a slow reference event by event, and with published yields."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from common.messages import RunPlan
from common.settings import RunSettings, read
from physics import ANALYSES
from physics.hzz4l.release_2020e import LEPTONS, WEIGHTS
from tests.support.real_data import ANALYSIS, DATA, NO_CUTS, SIMULATION, Processed, process, random_events, real_data
from tests.support.waiting import wait_until
from workers.analysis.histograms import fill
from workers.analysis.service import AnalysisService
from workers.analysis.store import Store
from workers.data_processor.service import select

REAL_SAMPLES = ("data_A", "data_B", "data_C", "Zee", "ttbar_lep", "WH125_ZZ4lep")
Z_MASS_GEV = 91.188  # Particle Data Group 2024
CHANNELS = {44: 0, 48: 1, 52: 2}  # 4e, 2e2μ, 4μ


# --- slow reference -------------------------------------------------------


@dataclass(frozen=True)
class Lepton:
    pt: float
    eta: float
    phi: float
    energy: float
    charge: int
    type: int


def invariant_mass(leptons: tuple[Lepton, ...]) -> float:
    """Return the mass in GeV from pT, η, φ and E in MeV, with exact sums."""
    px = math.fsum(one.pt * math.cos(one.phi) for one in leptons)
    py = math.fsum(one.pt * math.sin(one.phi) for one in leptons)
    pz = math.fsum(one.pt * math.sinh(one.eta) for one in leptons)
    energy = math.fsum(one.energy for one in leptons)
    m2 = math.fsum((energy**2, -(px**2), -(py**2), -(pz**2)))
    return math.copysign(math.sqrt(abs(m2)), m2) / 1000


def z_candidates(leptons: tuple[Lepton, ...]) -> tuple[float, float]:
    """Return the masses of the pairs whose first is closest to the Z mass, among all orders of the leptons."""
    found = [
        (invariant_mass((a, b)), invariant_mass((c, d)))
        for a, b, c, d in permutations(leptons)
        if a.type == b.type and c.type == d.type and a.charge == -b.charge and c.charge == -d.charge
    ]
    return min(found, key=lambda pair: abs(pair[0] - Z_MASS_GEV), default=(math.nan, math.nan))


def reference(events: ak.Array) -> list[dict[str, Any]]:
    """Select the events one by one."""
    chosen = []
    columns = ("lep_pt", "lep_eta", "lep_phi", "lep_energy", "lep_charge", "lep_type")
    for event in events.to_list():
        leptons = tuple(Lepton(*values) for values in zip(*(event[name] for name in columns), strict=True))
        channel = CHANNELS.get(sum(one.type for one in leptons))
        if sum(one.charge for one in leptons) != 0 or channel is None:
            continue
        z1, z2 = z_candidates(leptons)
        chosen.append(
            {
                "m4l": invariant_mass(leptons),
                "channel": channel,
                "weight": event["weight"],
                "m_z1": z1,
                "m_z2": z2,
                "lead_pt": leptons[0].pt / 1000,
            }
        )
    return chosen


def assert_as_reference(events: ak.Array, chosen: ak.Array) -> None:
    expected = reference(events)
    assert len(chosen) == len(expected) > 0
    for name, tolerance in {"m4l": 1e-12, "weight": 0, "m_z1": 2e-7, "m_z2": 2e-7, "lead_pt": 1e-7}.items():
        wanted = np.array([event[name] for event in expected])
        np.testing.assert_allclose(ak.to_numpy(chosen[name]), wanted, rtol=tolerance)
    assert ak.to_numpy(chosen.channel).tolist() == [event["channel"] for event in expected]


@pytest.mark.parametrize("sample", [SIMULATION, DATA], ids=lambda sample: sample.name)
def test_random_events_are_selected_and_measured_as_by_the_reference(sample: Any) -> None:
    events = random_events(np.random.default_rng(7), 600, sample)

    chosen, cutflow = select(events, ANALYSIS, NO_CUTS)

    assert_as_reference(events, chosen)
    neutral = sum(sum(charges) == 0 for charges in events.lep_charge.to_list())
    assert cutflow == {"charge": neutral, "flavour": len(chosen)}
    assert 0 < cutflow["flavour"] < cutflow["charge"] < 600


def one_event(charges: tuple[int, ...], types: tuple[int, ...]) -> ak.Array:
    events = random_events(np.random.default_rng(3), 1, DATA)
    return ak.Array(
        {
            **{name: ak.to_numpy(events[name]) for name in events.fields},
            "lep_charge": np.array([charges], np.int8),
            "lep_type": np.array([types], np.int8),
        }
    )


def test_selected_2e2mu_events_with_like_charged_pairs_have_no_z_candidates() -> None:
    chosen, _ = select(one_event((1, 1, -1, -1), (11, 11, 13, 13)), ANALYSIS, NO_CUTS)

    assert chosen.channel.to_list() == [1]
    assert math.isfinite(chosen.m4l[0])
    assert math.isnan(chosen.m_z1[0])
    assert math.isnan(chosen.m_z2[0])


@pytest.mark.parametrize(
    ("charges", "types", "cutflow"),
    [
        ((1, -1, 1, -1), (11, 11, 11, 11), {"charge": 1, "flavour": 1}),
        ((1, -1, 1, -1), (13, 13, 13, 13), {"charge": 1, "flavour": 1}),
        ((1, -1, 1, -1), (11, 13, 13, 11), {"charge": 1, "flavour": 1}),
        ((1, -1, 1, -1), (11, 11, 11, 13), {"charge": 1, "flavour": 0}),
        ((1, -1, 1, -1), (13, 13, 13, 11), {"charge": 1, "flavour": 0}),
        ((1, 1, 1, -1), (11, 11, 11, 11), {"charge": 0, "flavour": 0}),
        ((1, 1, 1, 1), (11, 11, 11, 13), {"charge": 0, "flavour": 0}),
        ((100, 100, 56, 0), (13, 13, 13, 13), {"charge": 0, "flavour": 0}),  # 256 is 0 in eight bits
    ],
)
def test_the_charge_step_is_applied_before_the_flavour_step(
    charges: tuple[int, ...], types: tuple[int, ...], cutflow: dict[str, int]
) -> None:
    assert select(one_event(charges, types), ANALYSIS, NO_CUTS)[1] == cutflow


def test_no_events_give_no_selected_events() -> None:
    events = random_events(np.random.default_rng(1), 5)[:0]

    chosen, cutflow = select(events, ANALYSIS, NO_CUTS)

    assert len(chosen) == 0
    assert cutflow == {"charge": 0, "flavour": 0}
    assert fill(chosen, ANALYSIS, SIMULATION.category).sum() == 0


def test_a_z_at_rest_has_the_mass_of_its_leptons() -> None:
    """Two back-to-back pairs of massless leptons of 45.594 and 14 GeV, at η = 0."""
    event = one_event((1, -1, 1, -1), (11, 11, 13, 13))
    pts = np.array([[45594.0, 45594.0, 14000.0, 14000.0]], np.float32)
    columns = {name: ak.to_numpy(event[name]) for name in event.fields} | {
        "lep_pt": pts,
        "lep_energy": pts,
        "lep_eta": np.zeros((1, 4), np.float32),
        "lep_phi": np.array([[0, np.pi, 0.5, 0.5 - np.pi]], np.float32),
    }

    chosen, _ = select(ak.Array(columns), ANALYSIS, NO_CUTS)

    assert chosen.m_z1[0] == pytest.approx(91.188)
    assert chosen.m_z2[0] == pytest.approx(28.0)
    assert chosen.m4l[0] == pytest.approx(91.188 + 28.0)
    assert chosen.lead_pt[0] == pytest.approx(45.594)


# --- the real files ---------------------------------------------------------


def run_of(settings: RunSettings, processed: dict[str, Processed]) -> dict[str, Any]:
    """Return the final result of the data-processor's messages."""
    store = Store(None)
    service = AnalysisService(read({}), store)
    service.handle(RunPlan("run", 0.0, ANALYSES.resolve(settings)))
    for one in processed.values():
        service.handle(one.plan)
        for message in one.messages:
            service.handle(message)
    result = wait_until(lambda: service.poll() or store.result("run"), "the fit is done and the run finished")
    service.close()
    return result


@pytest.fixture(scope="module")
def results() -> dict[int, tuple[dict[str, Any], dict[str, Processed]]]:
    """The results of the six real files, in chunks of 50000, 1000 and 37 entries."""
    directory = real_data()
    found = {}
    for size in (50_000, 1000, 37):
        settings = replace(NO_CUTS, samples=REAL_SAMPLES, chunk_entries=size)
        samples = [ANALYSIS.sample(name) for name in REAL_SAMPLES]
        processed = {s.name: process("run", directory / "4lep" / s.file, s, settings) for s in samples}
        found[size] = run_of(settings, processed), processed
    return found


def test_the_published_yields_are_reproduced_digit_for_digit(results: Any) -> None:
    published = json.loads((real_data() / "reference.json").read_text())["samples"]
    found = results[50_000][0]["samples"]
    assert found.keys() == published.keys()
    for name, expected in published.items():
        assert found[name]["events_selected"] == expected["events_selected"], name
        assert found[name]["events_read"] == expected.get("events_read", found[name]["events_read"]), name
        assert found[name]["yield"] == pytest.approx(expected["yield"], rel=1e-6), name
        digits = len(str(expected["yield"]).partition(".")[2])
        assert f"{found[name]['yield']:.{digits}f}" == str(expected["yield"]), name
    assert {found[name]["yield"] for name in ("data_A", "data_B", "data_C")} == {27, 86, 146}


def test_the_chunk_size_does_not_change_a_bit_of_the_yields(results: Any) -> None:
    unsplit = results[50_000][0]
    for result, processed in results.values():
        assert {n: s["yield"].hex() for n, s in result["samples"].items()} == {
            n: s["yield"].hex() for n, s in unsplit["samples"].items()
        }
        assert {n: s["cutflow"] for n, s in result["samples"].items()} == {
            n: s["cutflow"] for n, s in unsplit["samples"].items()
        }
        assert all(one.plan.entries == unsplit["samples"][name]["events_read"] for name, one in processed.items())


def test_the_histograms_of_many_chunks_equal_those_of_all_events(results: Any) -> None:
    for result, processed in results.values():
        for category in ("data", "z_ttbar", "signal"):
            events = ak.concatenate(
                [
                    message.events
                    for name, one in processed.items()
                    if ANALYSIS.sample(name).category == category
                    for message in one.messages
                ]
            )
            weight = ak.to_numpy(events.weight).astype(float)
            for name, observable in ANALYSIS.histograms.items():
                _, _, channel = name.partition("m4l_")
                chosen: Any = slice(None)
                if channel:
                    chosen = ak.to_numpy(events.channel) == [one.name for one in ANALYSIS.channels].index(channel)
                axis = observable.axis
                values = ak.to_numpy(events[observable.name])[chosen]
                inside = (values >= axis.low) & (values < axis.high)
                for key, w in {"values": weight[chosen], "variances": weight[chosen] ** 2}.items():
                    expected = np.histogram(values[inside], axis.edges, weights=w[inside])[0]
                    np.testing.assert_allclose(
                        result["histograms"][name][category][key], expected, rtol=1e-12, atol=1e-12 * expected.max()
                    )


def test_real_events_are_selected_and_measured_as_by_the_reference(results: Any) -> None:
    """The first entries of each real file are read with uproot alone for comparison."""
    for sample in (ANALYSIS.sample(name) for name in REAL_SAMPLES):
        tree = uproot.open(real_data() / "4lep" / sample.file)["mini"]
        arrays = tree.arrays(entry_stop=400, filter_name=[*LEPTONS.values(), *WEIGHTS])
        arrays = arrays[ak.num(arrays.lep_pt) >= 4]
        leptons = {ours: ak.to_regular(arrays[theirs][:, :4]) for ours, theirs in LEPTONS.items()}
        events = ak.Array({**leptons, "weight": np.ones(len(arrays), np.float32)})
        found = ak.concatenate([message.events for message in results[37][1][sample.name].messages])
        expected = reference(events)
        m4l = np.array([event["m4l"] for event in expected])
        np.testing.assert_allclose(ak.to_numpy(found.m4l)[: len(m4l)], m4l, rtol=1e-12)
        for name in ("m_z1", "m_z2"):
            wanted = [event[name] for event in expected]
            np.testing.assert_allclose(ak.to_numpy(found[name])[: len(m4l)], wanted, rtol=1e-5, atol=1e-2)


def test_a_run_of_data_alone_gives_a_result_without_significance() -> None:
    samples = [ANALYSIS.sample(name) for name in REAL_SAMPLES if name.startswith("data")]
    settings = replace(NO_CUTS, samples=tuple(sample.name for sample in samples))
    processed = {s.name: process("run", real_data() / "4lep" / s.file, s, settings) for s in samples}
    result = run_of(settings, processed)

    assert result["categories"] == {"data": {"events_selected": 259, "yield": 259.0, "yield_error": math.sqrt(259)}}
    assert result["window"]["significance"] is None
