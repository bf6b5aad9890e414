"""The toy release demo-2025: files of the layout of 2025e-13tev-beta, and the expected yields, on any machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from common.analyses import Sample
from common.messages import Selected
from common.settings import RunSettings
from physics import ANALYSES
from physics.hzz4l.toy import files as demo
from physics.hzz4l.toy.samples import TOY_SAMPLES_2025
from tests.support.real_data import process
from tests.support.release_2025 import BRANCHES, dtype_of, is_jagged
from workers.data_loader import reading
from workers.data_processor.service import select

EVENTS = 60_000
DEMO = ANALYSES["demo-2025"]
REAL = ANALYSES["2025e-13tev-beta"]
RUN = ANALYSES.resolve(RunSettings(release="demo-2025"))
SIMULATED = [sample for sample in DEMO.samples if not sample.is_data]
DATA = [sample for sample in DEMO.samples if sample.is_data]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo-2025")


def events_of(name: str, cache: Path) -> ak.Array:
    return tree_of(demo.demo_file(DEMO.sample(name), DEMO, EVENTS, cache)).arrays()


def tree_of(path: Path) -> uproot.TTree:
    return uproot.open(path)["analysis"]


def selected(sample: Sample, cache: Path) -> tuple[Selected, ...]:
    """Return the messages of the data-processor for all chunks of a sample."""
    return process("run", demo.demo_file(sample, DEMO, EVENTS, cache), sample, RUN, DEMO).messages


def test_it_is_labelled_as_a_toy_of_the_real_release() -> None:
    assert DEMO.toy
    assert "TOY" in DEMO.title
    assert DEMO.record_urls + DEMO.other_urls == ()
    assert DEMO.samples == REAL.samples
    assert (DEMO.steps, DEMO.periods, DEMO.model, DEMO.lumi_ifb) == (REAL.steps, REAL.periods, REAL.model, 36.6)


def test_every_simulated_sample_of_the_release_has_a_toy() -> None:
    assert list(TOY_SAMPLES_2025) == [sample.name for sample in SIMULATED]


@pytest.mark.parametrize("events", [40, 200_000, 5_000_000])
def test_the_entries_of_the_samples_add_up_to_the_requested_events(events: int) -> None:
    shares = demo.shares(DEMO, events)
    assert sum(shares.values()) == events
    assert min(shares.values()) >= 1


@pytest.mark.parametrize("name", ["data15_periodD", "llll"])
def test_the_branches_have_the_names_and_types_of_the_release(name: str, cache: Path) -> None:
    tree = tree_of(demo.demo_file(DEMO.sample(name), DEMO, EVENTS, cache))
    found = {name: str(branch.array().type.content) for name, branch in tree.items()}
    assert found == {branch: ("var * " if is_jagged(branch) else "") + dtype_of(branch) for branch in found}
    assert found.keys() >= {*DEMO.branches, "lep_n", "runNumber", "eventNumber", "channelNumber"}
    assert found.keys() <= BRANCHES.keys()


@pytest.mark.parametrize("name", ["data15_periodE", "Zee_light", "llll", "ttmumu"])
def test_four_leptons_are_stored_electrons_first_and_mostly_not_by_pt(name: str, cache: Path) -> None:
    events = events_of(name, cache)
    assert ak.all(events.lep_n == 4)
    assert ak.all(ak.num(events.lep_pt) == 4)
    assert ak.all(events.lep_type[:, :-1] <= events.lep_type[:, 1:])
    assert np.mean(ak.all(events.lep_pt[:, :-1] >= events.lep_pt[:, 1:], axis=1)) < 0.5
    flat = {field: ak.to_numpy(ak.flatten(events[field])) for field in events.fields if events[field].ndim == 2}
    assert all(np.isfinite(values).all() for values in flat.values())
    assert 7 <= flat["lep_pt"].min() < np.median(flat["lep_pt"]) < 100
    assert set(flat["lep_type"]) <= {11, 13}
    assert set(flat["lep_charge"]) == {-1, 1}
    assert flat["lep_e"] == pytest.approx(flat["lep_pt"] * np.cosh(flat["lep_eta"]), rel=1e-5)


def test_prompt_leptons_are_isolated_more_often_than_fakes(cache: Path) -> None:
    prompt, mixed = (np.mean(ak.flatten(events_of(name, cache).lep_isLooseIso)) for name in ("llll", "Zee_light"))
    assert prompt == pytest.approx(0.96, abs=0.01)
    assert mixed == pytest.approx((0.96 + 0.55) / 2, abs=0.01)


def test_data_have_no_cross_section_and_weigh_one(cache: Path) -> None:
    events = events_of("data15_periodJ", cache)
    for name in ("xsec", "kfac", "filteff"):
        assert set(events[name]) == {0.0}
    (message,) = selected(DEMO.sample("data15_periodJ"), cache)
    assert set(ak.to_numpy(message.events.weight)) == {1.0}


@pytest.mark.parametrize(("name", "fraction"), [("llll", 0.1), ("ttee", 0.25), ("ggH125_ZZ4l", 0.0)])
def test_some_samples_have_negative_weights(name: str, fraction: float, cache: Path) -> None:
    weights = ak.to_numpy(events_of(name, cache).mcWeight)
    assert np.mean(weights < 0) == pytest.approx(fraction, abs=4 * math.sqrt(0.25 / len(weights)))


def passing_of(name: str, n: int) -> float:
    """Return the fraction of n new events of a sample that are selected."""
    sample = DEMO.sample(name)
    columns = demo.simulated_block(np.random.default_rng(1), DEMO, sample, n, first=0, entries=n)
    events, _ = reading.select(ak.Array(columns), DEMO, sample, RUN)
    return len(select(events, DEMO, RUN)[0]) / n


@pytest.mark.parametrize(
    "name",
    [
        "ttbar", "ttW", "ttee", "ttmumu", "tttt", "Zee_light", "Zmumu_light", "llll", "ggH125_ZZ4l", "VBFH125_ZZ4l",
        "ZH125",
    ],
)  # fmt: skip
def test_the_passing_fraction_that_normalises_weights_is_that_of_the_events(name: str) -> None:
    toy, n = TOY_SAMPLES_2025[name], 30_000
    assert passing_of(name, n) == pytest.approx(toy.passing, abs=4 * math.sqrt(toy.passing / n))


@pytest.mark.parametrize("name", ["llll", "ggH125_ZZ4l", "VBFH125_ZZ4l", "ttmumu", "Zee_light"])
def test_the_weights_of_selected_events_add_up_to_the_expected_yield(name: str, cache: Path) -> None:
    sample = DEMO.sample(name)
    weight = np.concatenate([ak.to_numpy(message.events.weight) for message in selected(sample, cache)])
    expected = TOY_SAMPLES_2025[name].yield_10_ifb * 3.66
    assert (weight > 0).all()
    assert abs(weight.sum() - expected) < 4 * math.sqrt(float(np.square(weight).sum()))


@pytest.mark.parametrize("events", [1_000, 500_000])
def test_the_expected_yield_does_not_depend_on_the_number_of_events(events: int) -> None:
    for name in ("llll", "ZH125"):
        sample, entries = DEMO.sample(name), demo.shares(DEMO, events)[name]
        columns = demo.simulated_block(np.random.default_rng(1), DEMO, sample, 2000, first=0, entries=entries)
        weights = DEMO.columns(ak.Array(columns), sample, DEMO.lumi_ifb)["weight"]
        toy = TOY_SAMPLES_2025[name]
        assert weights.mean() * entries * toy.passing == pytest.approx(toy.yield_10_ifb * 3.66, rel=0.03)


def test_the_data_of_a_year_share_its_luminosity_by_their_entries() -> None:
    lumi = {sample.name: demo.lumi_ifb(DEMO, sample) for sample in DATA}
    assert math.fsum(value for name, value in lumi.items() if name.startswith("data15")) == pytest.approx(3.24)
    assert math.fsum(value for name, value in lumi.items() if name.startswith("data16")) == pytest.approx(33.4)
    assert lumi["data15_periodJ"] / lumi["data15_periodD"] == pytest.approx(67_630 / 3_424)


def test_data_have_the_expected_number_of_selected_events(cache: Path) -> None:
    found: Mapping[str, int] = {
        sample.name: sum(len(message.events) for message in selected(sample, cache)) for sample in DATA
    }
    per_ifb = sum(toy.yield_10_ifb for toy in TOY_SAMPLES_2025.values()) / 10
    for year, lumi in (("data15", 3.24), ("data16", 33.4)):
        number = sum(events for name, events in found.items() if name.startswith(year))
        assert abs(number - per_ifb * lumi) < 3.5 * math.sqrt(per_ifb * lumi)


def test_the_same_seed_gives_the_same_events(cache: Path, tmp_path: Path) -> None:
    for name in ("data15_periodD", "ttbar"):
        again = tree_of(demo.demo_file(DEMO.sample(name), DEMO, EVENTS, tmp_path)).arrays()
        assert ak.array_equal(events_of(name, cache), again)


def test_a_file_of_all_branches_has_those_of_the_release_and_the_same_events(cache: Path, tmp_path: Path) -> None:
    full = tree_of(demo.demo_file(DEMO.sample("ttbar"), DEMO, EVENTS, tmp_path, all_branches=True)).arrays()
    short = events_of("ttbar", cache)
    assert ak.array_equal(full[short.fields], short)
    assert set(full.fields) == BRANCHES.keys() - {"category"}  # a branch of strings, which uproot does not write


def test_the_higgs_peak_is_at_125_gev(cache: Path) -> None:
    mass = np.concatenate([ak.to_numpy(message.events.m4l) for message in selected(DEMO.sample("ggH125_ZZ4l"), cache)])
    assert mass.mean() == pytest.approx(125, abs=0.5)
    assert 1.5 < mass.std() < 2.7
