"""The demo release: reproducible toy files with the layout of the real ones, and the expected yields and shapes."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import numpy.typing as npt
import pytest
import uproot

from common.analyses import Analysis, Sample
from common.errors import SettingsError
from physics import ANALYSES
from physics.hzz4l.release_2020e import WEIGHTS, cross_section_weight
from physics.hzz4l.toy import files as demo
from physics.hzz4l.toy.layout_2020 import mean_weight
from physics.hzz4l.toy.samples import TOY_SAMPLES

EVENTS = 60_000
DEMO = ANALYSES["demo"]
SIMULATED = [sample for sample in DEMO.samples if not sample.is_data]
#: The sums of the lepton types of 4e, 2e2μ and 4μ.
TYPE_SUMS = (44, 48, 52)
DATA = [sample for sample in DEMO.samples if sample.is_data]

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def events_of(cache: Path) -> Callable[[str], ak.Array]:
    """Reads all events of a sample of the module's common release of EVENTS simulated events."""

    def read(name: str) -> ak.Array:
        return tree_of(demo.demo_file(DEMO.sample(name), DEMO, EVENTS, cache)).arrays()

    return read


def tree_of(path: Path) -> uproot.TTree:
    return uproot.open(path)[DEMO.tree]


def selected(events: ak.Array) -> npt.NDArray[np.bool_]:
    """Return which events pass the charge and flavour steps, calculated from the four leading leptons."""
    charge = ak.sum(events.lep_charge[:, :4], axis=1)
    flavours = ak.to_numpy(ak.sum(events.lep_type[:, :4], axis=1))
    return np.asarray(ak.to_numpy(charge == 0) & np.isin(flavours, TYPE_SUMS))


def weights(sample: Sample, events: ak.Array, lumi_ifb: float = 10.0) -> Array:
    product = np.full(len(events), cross_section_weight(sample, lumi_ifb))
    for name in WEIGHTS:
        product = product * ak.to_numpy(events[name])
    return product


def m4l_gev(events: ak.Array) -> Array:
    pt, eta, phi, energy = (
        ak.to_numpy(events[name][:, :4]).astype(np.float64) for name in ("lep_pt", "lep_eta", "lep_phi", "lep_E")
    )
    momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]).sum(axis=2)
    return np.asarray(np.sqrt(energy.sum(axis=1) ** 2 - (momentum**2).sum(axis=0)) / 1000)


@pytest.mark.parametrize("events", [12, 1_000, 200_000, 942_598, 20_000_000])
def test_the_entries_of_the_samples_add_up_to_the_requested_events(events: int) -> None:
    shares = demo.shares(DEMO, events)
    assert sum(shares.values()) == events
    assert min(shares.values()) >= 1


def test_the_release_s_number_of_events_gives_each_sample_its_own_number() -> None:
    assert demo.shares(DEMO, 942_598) == {sample.name: sample.entries for sample in SIMULATED}


def test_fewer_events_than_samples_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"events=7: .* 8 simulated samples"):
        demo.shares(DEMO, 7)


def test_every_file_has_its_number_of_entries_and_the_release_s_name(cache: Path) -> None:
    shares = demo.shares(DEMO, EVENTS)
    for sample in SIMULATED:
        path = demo.demo_file(sample, DEMO, EVENTS, cache)
        assert path == cache / f"v{demo.DEMO_VERSION}-{EVENTS}" / sample.file
        assert tree_of(path).num_entries == shares[sample.name]


@pytest.mark.parametrize("name", ["ttbar_lep", "llll", "data_C"])
def test_the_same_seed_gives_the_same_arrays(name: str, events_of: Callable[[str], ak.Array], tmp_path: Path) -> None:
    again = tree_of(demo.demo_file(DEMO.sample(name), DEMO, EVENTS, tmp_path)).arrays()
    assert ak.array_equal(events_of(name), again)


def test_another_seed_gives_other_events(
    events_of: Callable[[str], ak.Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = events_of("Zee")
    monkeypatch.setattr(demo, "DEMO_SEED", demo.DEMO_SEED + 1)
    other = tree_of(demo.demo_file(DEMO.sample("Zee"), DEMO, EVENTS, tmp_path)).arrays()
    assert not ak.array_equal(events, other)


def test_data_do_not_depend_on_the_number_of_simulated_events(
    events_of: Callable[[str], ak.Array], tmp_path: Path
) -> None:
    other = tree_of(demo.demo_file(DEMO.sample("data_D"), DEMO, 1_000, tmp_path)).arrays()
    assert ak.array_equal(events_of("data_D"), other)


@pytest.mark.parametrize("sample", SIMULATED, ids=lambda sample: sample.name)
def test_the_weights_of_selected_events_add_up_to_the_expected_yield(
    sample: Sample, events_of: Callable[[str], ak.Array]
) -> None:
    events = events_of(sample.name)
    weight = weights(sample, events)[selected(events)]
    expected = TOY_SAMPLES[sample.name].yield_10_ifb
    statistical = math.sqrt(float(np.square(weight).sum()))
    assert abs(weight.sum() - expected) < 3.5 * statistical
    if len(weight) > 5_000:
        assert weight.sum() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", list(TOY_SAMPLES))
def test_the_passing_fraction_that_normalises_weights_is_that_of_the_events(name: str) -> None:
    toy, n = TOY_SAMPLES[name], 20_000
    leptons = toy.draw(np.random.default_rng(1), n)
    flavours = leptons.flavour.sum(axis=1)
    passing = (leptons.charge.sum(axis=1) == 0) & np.isin(flavours, TYPE_SUMS)
    assert passing.mean() == pytest.approx(toy.passing, abs=4 * math.sqrt(toy.passing * (1 - toy.passing) / n))


@pytest.mark.parametrize("events", [1_000, 500_000])
def test_the_expected_sum_of_weights_does_not_depend_on_the_number_of_events(events: int) -> None:
    for sample in SIMULATED:
        entries = demo.shares(DEMO, events)[sample.name]
        total = entries * mean_weight(sample, entries) * cross_section_weight(sample, 10)
        toy = TOY_SAMPLES[sample.name]
        assert total * toy.passing == pytest.approx(toy.yield_10_ifb)


def test_only_the_zz_sample_has_a_few_negative_weights(events_of: Callable[[str], ak.Array]) -> None:
    for sample in SIMULATED:
        negative = float(np.mean(ak.to_numpy(events_of(sample.name).mcWeight) < 0))
        assert 0.01 < negative < 0.02 if sample.name == "llll" else negative == 0


@pytest.mark.parametrize("sample", DATA, ids=lambda sample: sample.name)
def test_data_have_the_expected_number_of_selected_events(sample: Sample, events_of: Callable[[str], ak.Array]) -> None:
    expected = sum(toy.yield_10_ifb for toy in TOY_SAMPLES.values()) * demo.lumi_ifb(DEMO, sample) / 10
    found = int(selected(events_of(sample.name)).sum())
    assert abs(found - expected) < 3.5 * math.sqrt(expected)


def test_the_higgs_peak_is_at_125_gev_with_the_detector_resolution(
    events_of: Callable[[str], ak.Array],
) -> None:
    events = events_of("ggH125_ZZ4lep")
    mass = m4l_gev(events)[selected(events)]
    assert mass.mean() == pytest.approx(125, abs=0.5)
    assert 1.5 < mass.std() < 2.5


def test_the_higgs_decays_to_4e_4mu_and_2e2mu_in_the_ratio_1_to_1_to_2(events_of: Callable[[str], ak.Array]) -> None:
    events = events_of("ggH125_ZZ4lep")
    flavours = ak.to_numpy(ak.sum(events.lep_type[:, :4], axis=1))[selected(events)]
    shares = [np.mean(flavours == type_sum) for type_sum in (44, 52, 48)]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.02)


def test_zz_has_a_peak_at_the_z_mass_and_a_threshold_at_twice_it(events_of: Callable[[str], ak.Array]) -> None:
    events = events_of("llll")
    counts, edges = np.histogram(m4l_gev(events)[selected(events)], bins=34, range=(80, 250))
    assert edges[counts.argmax()] == 90

    def between(low: int, high: int) -> float:
        return float(counts[(edges[:-1] >= low) & (edges[1:] <= high)].mean())

    assert between(90, 95) > 10 * between(105, 165)
    assert between(185, 215) > 3 * between(105, 165)
    assert between(240, 250) < between(185, 215)


def test_z_jets_have_a_falling_spectrum_of_low_masses(events_of: Callable[[str], ak.Array]) -> None:
    mass = m4l_gev(events_of("Zee"))
    assert 105 < np.median(mass) < 160
    assert np.mean(mass > 250) < 0.1


@pytest.mark.parametrize("name", ["data_D", "Zmumu", "ttbar_lep", "llll", "WH125_ZZ4lep"])
def test_leptons_are_finite_massless_sorted_and_within_acceptance(
    name: str, events_of: Callable[[str], ak.Array]
) -> None:
    events = events_of(name)
    assert ak.all((events.lep_n == 4) | (events.lep_n == 5))
    assert ak.all(ak.num(events.lep_pt) == events.lep_n)
    assert ak.all(events.lep_pt[:, :-1] >= events.lep_pt[:, 1:])
    flat = {field: ak.to_numpy(ak.flatten(events[field])) for field in events.fields if events[field].ndim == 2}
    assert all(np.isfinite(values).all() for values in flat.values())
    assert flat["lep_pt"].min() >= 7_000
    assert set(flat["lep_type"]) == {11, 13}
    assert set(flat["lep_charge"]) == {-1, 1}
    assert (np.abs(flat["lep_eta"]) < np.where(flat["lep_type"] == 11, 2.4701, 2.7001)).all()
    assert (np.abs(flat["lep_phi"]) <= np.pi).all()
    assert flat["lep_E"] == pytest.approx(flat["lep_pt"] * np.cosh(flat["lep_eta"]), rel=1e-5)


def test_a_few_events_have_a_fifth_lepton_most_of_all_in_wh(
    events_of: Callable[[str], ak.Array],
) -> None:
    assert np.mean(ak.to_numpy(events_of("WH125_ZZ4lep").lep_n) == 5) == pytest.approx(0.07, abs=0.03)
    assert np.mean(ak.to_numpy(events_of("llll").lep_n) == 5) == pytest.approx(0.005, abs=0.002)


def test_the_branches_have_the_types_of_the_release(cache: Path) -> None:
    tree = tree_of(demo.demo_file(DEMO.sample("Zee"), DEMO, EVENTS, cache))
    assert {name: str(branch.interpretation.numpy_dtype) for name, branch in tree.items() if "lep" not in name} == {
        "runNumber": "int32",
        "eventNumber": "int32",
        "channelNumber": "int32",
        "mcWeight": "float32",
        "scaleFactor_PILEUP": "float32",
        "scaleFactor_ELE": "float32",
        "scaleFactor_MUON": "float32",
        "scaleFactor_LepTRIGGER": "float32",
    }
    assert tree["lep_pt"].typename == "float[]"
    assert tree["lep_charge"].typename == "int32_t[]"
    assert tree["lep_type"].typename == "uint32_t[]"


def test_a_file_of_all_branches_has_81_branches_and_the_same_events(
    events_of: Callable[[str], ak.Array], tmp_path: Path
) -> None:
    path = demo.demo_file(DEMO.sample("ttbar_lep"), DEMO, EVENTS, tmp_path, all_branches=True)
    assert path.is_relative_to(tmp_path / f"v{demo.DEMO_VERSION}-{EVENTS}-full")
    full = tree_of(path).arrays()
    assert len(full.fields) == 81
    short = events_of("ttbar_lep")
    assert ak.array_equal(full[short.fields], short)


def test_a_long_sample_is_written_in_blocks_with_different_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "BLOCK_ENTRIES", 400)
    tree = tree_of(demo.demo_file(DEMO.sample("ggH125_ZZ4lep"), DEMO, 5_000, tmp_path))
    assert tree["lep_pt"].num_baskets == 3
    assert tree["eventNumber"].array(library="np").tolist() == list(range(tree.num_entries))
    pt = tree["lep_pt"].array()
    assert not np.array_equal(ak.to_numpy(pt[:10, 0]), ak.to_numpy(pt[400:410, 0]))


def test_a_second_call_returns_the_file_without_writing_it(tmp_path: Path) -> None:
    first = demo.demo_file(DEMO.sample("Zee"), DEMO, 1_000, tmp_path)
    made = first.stat().st_mtime_ns
    assert demo.demo_file(DEMO.sample("Zee"), DEMO, 1_000, tmp_path) == first
    assert first.stat().st_mtime_ns == made
    assert sorted(path.suffix for path in first.parent.iterdir()) in ([".lock", ".root"], [".root"])


def _make(directory: Path, start: multiprocessing.synchronize.Barrier, made: multiprocessing.Queue[str]) -> None:
    """Make a file at the same time as the other process, and report whether this process wrote it."""
    write = demo.write_file

    def noted(sample: Sample, analysis: Analysis, events: int, path: Path, *, all_branches: bool) -> None:
        write(sample, analysis, events, path, all_branches=all_branches)
        made.put("written")

    demo.write_file = noted
    start.wait(timeout=30)
    path = demo.demo_file(DEMO.sample("llll"), DEMO, 30_000, directory)
    made.put(f"found {tree_of(path).num_entries}")


def test_two_processes_that_need_a_file_write_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, made = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_make, args=(tmp_path, start, made)) for _ in range(2)]
    for process in processes:
        process.start()
    reports = sorted(made.get(timeout=60) for _ in range(3))
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    entries = demo.shares(DEMO, 30_000)["llll"]
    assert reports == [f"found {entries}", f"found {entries}", "written"]
    assert made.empty()
