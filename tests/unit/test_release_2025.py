"""The release 2025e-13tev-beta gives the numbers of the HZZAnalysis notebook, and refuses files that it cannot use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pytest
import uproot
import vector

from common.analyses import Sample
from common.errors import DataError
from common.messages import RunPlan
from common.settings import RunSettings
from physics import ANALYSES
from tests.support.real_data import Processed, process, real_data
from tests.support.release_2025 import (
    ANALYSIS,
    BRANCHES,
    DATA,
    SIMULATION,
    dtype_of,
    is_jagged,
    random_events,
    write_file,
)
from workers.analysis.histograms import fill
from workers.analysis.result import result_of
from workers.analysis.store import PartialSums, Store
from workers.data_loader import reading

EDGES_GEV = np.linspace(80, 250, 69)
LUMI_IFB = 36.6
RUN = ANALYSES.resolve(RunSettings(release=ANALYSIS.release, chunk_entries=700))


# --- the notebook's recipe ----------------------------------------------------


def notebook(events: ak.Array, sample: Sample) -> tuple[dict[str, int], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the number of events after each cut, and m4l in GeV and the weight of the selected events."""
    counts = {"read": len(events)}
    events = events[events.trigE | events.trigM]
    counts["trigger"] = len(events)
    events = events[ak.sum(events.lep_isTrigMatched, axis=1) >= 1]
    counts["trigger_match"] = len(events)
    events = events[(events.lep_pt[:, 0] > 20) & (events.lep_pt[:, 1] > 15) & (events.lep_pt[:, 2] > 10)]
    counts["pt_cuts"] = len(events)
    good_muon = (events.lep_type == 13) & events.lep_isMediumID & events.lep_isLooseIso
    good_electron = (events.lep_type == 11) & events.lep_isLooseID & events.lep_isLooseIso
    events = events[ak.sum(good_muon | good_electron, axis=1) == 4]
    counts["identification"] = len(events)
    types = ak.sum(events.lep_type, axis=1)
    events = events[(types == 44) | (types == 48) | (types == 52)]
    counts["flavour"] = len(events)
    events = events[ak.sum(events.lep_charge, axis=1) == 0]
    counts["charge"] = len(events)
    components = {"pt": "lep_pt", "eta": "lep_eta", "phi": "lep_phi", "E": "lep_e"}
    leptons = vector.zip({ours: ak.values_astype(events[theirs], "float64") for ours, theirs in components.items()})
    m4l = ak.to_numpy((leptons[:, 0] + leptons[:, 1] + leptons[:, 2] + leptons[:, 3]).M)
    if sample.is_data:
        return counts, m4l, np.ones(len(events))
    weight = LUMI_IFB * 1000 / events.sum_of_weights
    weight = weight * abs(events.filteff)
    weight = weight * abs(events.kfac)
    weight = weight * abs(events.xsec)
    weight = weight * abs(events.mcWeight)
    weight = weight * abs(events.ScaleFactor_PILEUP)
    weight = weight * abs(events.ScaleFactor_ELE)
    weight = weight * abs(events.ScaleFactor_MUON)
    weight = weight * abs(events.ScaleFactor_LepTRIGGER)
    return counts, m4l, ak.to_numpy(weight)


def result_of_run(processed: Mapping[str, Processed]) -> dict[str, Any]:
    """Return the final result document of the messages of the data-processor."""
    settings = replace(RUN, samples=tuple(processed))
    with closing(Store(None)) as store:
        store.begin(RunPlan("run", 1000.0, settings))
        for name, one in processed.items():
            store.plan(one.plan)
            sample = ANALYSIS.sample(name)
            for message in one.messages:
                weights = np.empty(0) if sample.is_data else ak.to_numpy(message.events.weight)
                sums = fill(message.events, ANALYSIS, sample.category)
                store.add(message.chunk, PartialSums(message.cutflow, sums, weights))
        run = store.run("run")
        assert run is not None
        return result_of(run, store, 1010.0, final=True)


@pytest.fixture(scope="module", params=[SIMULATION, DATA], ids=lambda sample: sample.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, Path]:
    """A file of 3000 random events of simulation or data, in baskets of 400 entries."""
    columns = random_events(np.random.default_rng(13), 3000, request.param)
    path = tmp_path_factory.mktemp("2025") / request.param.file
    return request.param, write_file(path, columns, basket=400)


def test_made_files_have_the_117_branches_of_the_release(made: tuple[Sample, Path]) -> None:
    tree = uproot.open(made[1])["analysis"]
    found = {name: branch.typename for name, branch in tree.items()}
    jagged = {name: kind.removeprefix("RVec<").removesuffix(">") + "[]" for name, kind in BRANCHES.items()}
    expected = {name: jagged[name] if is_jagged(name) else kind for name, kind in BRANCHES.items()}
    assert len(found) == 117
    assert found == expected | {"category": "char*"}


def test_the_branches_are_those_of_the_real_file() -> None:
    directory = real_data() / "exactly4lep"
    tree = uproot.open(directory / DATA.file)["analysis"]
    assert {name: branch.typename for name, branch in tree.items()} == BRANCHES


def test_each_step_leaves_as_many_events_as_in_the_notebook(made: tuple[Sample, Path]) -> None:
    sample, path = made
    expected, *_ = notebook(uproot.open(path)["analysis"].arrays(), sample)

    found = result_of_run({sample.name: process("run", path, sample, RUN, ANALYSIS)})

    assert found["samples"][sample.name]["cutflow"] == expected
    assert list(expected) == list(ANALYSIS.steps)
    counts = list(expected.values())
    assert all(after < before for before, after in pairwise(counts))
    assert counts[-1] > 50


def test_the_weights_are_those_of_the_notebook_to_the_last_bit(made: tuple[Sample, Path]) -> None:
    sample, path = made
    events = uproot.open(path)["analysis"].arrays()
    _, m4l, weight = notebook(events, sample)

    found = ak.concatenate([one.events for one in process("run", path, sample, RUN, ANALYSIS).messages])

    assert ak.to_numpy(found.weight).dtype == np.float64
    assert ak.to_numpy(found.weight).tolist() == weight.tolist()
    np.testing.assert_allclose(ak.to_numpy(found.m4l), m4l, rtol=1e-12)
    assert not np.any(weight < 0)
    if not sample.is_data:
        assert np.any(ak.to_numpy(events.mcWeight) < 0)
        assert len(set(weight)) == len(weight)


def test_the_histograms_are_those_of_the_notebook(made: tuple[Sample, Path]) -> None:
    sample, path = made
    _, m4l, weight = notebook(uproot.open(path)["analysis"].arrays(), sample)
    processed = process("run", path, sample, RUN, ANALYSIS)
    assert len(processed.messages) > 3

    result = result_of_run({sample.name: processed})

    found = result["histograms"]["m4l"]
    assert found["edges"] == EDGES_GEV.tolist()
    inside = (m4l >= 80) & (m4l < 250)
    assert 0 < inside.sum() < len(m4l)
    for key, w in {"values": weight, "variances": weight**2}.items():
        expected = np.histogram(m4l[inside], EDGES_GEV, weights=w[inside])[0]
        np.testing.assert_allclose(found[sample.category][key], expected, rtol=1e-12)
    if sample.is_data:
        assert found["data"]["values"] == np.histogram(m4l[inside], EDGES_GEV)[0].tolist()
    assert result["samples"][sample.name]["yield"] == pytest.approx(weight.sum(), rel=1e-12)


def test_the_size_of_a_chunk_changes_no_bit_of_the_yield(made: tuple[Sample, Path]) -> None:
    sample, path = made
    yields = {
        result_of_run({sample.name: process("run", path, sample, replace(RUN, chunk_entries=size), ANALYSIS)})[
            "samples"
        ][sample.name]["yield"].hex()
        for size in (37, 700, 50_000)
    }
    assert len(yields) == 1


def test_data_weigh_one_whatever_their_weight_branches_hold(tmp_path: Path) -> None:
    columns = random_events(np.random.default_rng(5), 400, DATA)
    columns |= {"mcWeight": np.full(400, np.nan), "sum_of_weights": np.zeros(400)}

    messages = process("run", write_file(tmp_path / "f.root", columns), DATA, RUN, ANALYSIS).messages

    assert set(ak.to_numpy(messages[0].events.weight)) == {1.0}


def test_the_pt_cuts_hold_for_the_leptons_in_the_order_of_the_file(tmp_path: Path) -> None:
    columns = {name: values[:3] for name, values in random_events(np.random.default_rng(5), 50, DATA).items()}
    columns["lep_pt"] = np.array([[21, 16, 11, 8], [11, 16, 21, 8], [20, 16, 11, 50]])
    columns |= {"trigE": np.ones(3, bool), "lep_isTrigMatched": np.ones((3, 4), bool)}

    _, cutflow = read_all(write_file(tmp_path / "f.root", columns), DATA)

    assert (cutflow["trigger_match"], cutflow["pt_cuts"]) == (3, 1)


# --- the real file ------------------------------------------------------------


@pytest.mark.parametrize("chunk_entries", [50_000, 500])
def test_the_real_file_gives_the_published_number_of_events(chunk_entries: int) -> None:
    path = real_data() / "exactly4lep" / DATA.file
    expected, m4l, _ = notebook(uproot.open(path)["analysis"].arrays(filter_name=list(ANALYSIS.branches)), DATA)

    processed = process("run", path, DATA, replace(RUN, chunk_entries=chunk_entries), ANALYSIS)

    result = result_of_run({DATA.name: processed})
    assert result["samples"][DATA.name]["cutflow"] == expected
    assert expected == {
        "read": 3424, "trigger": 458, "trigger_match": 395, "pt_cuts": 110, "identification": 2, "flavour": 2,
        "charge": 2,
    }  # fmt: skip
    assert result["samples"][DATA.name]["yield"] == 2.0
    found = np.concatenate([ak.to_numpy(message.events.m4l) for message in processed.messages])
    np.testing.assert_allclose(found, m4l, rtol=1e-12)
    assert result["histograms"]["m4l"]["data"]["values"] == np.histogram(m4l, EDGES_GEV)[0].tolist()


# --- files that ROOT writes ---------------------------------------------------

_WRITE_RVEC = """
import sys, warnings
warnings.simplefilter("ignore")
import ROOT
source, target, *columns = sys.argv[1:]
frame = ROOT.RDataFrame("analysis", source)
names = []
for column in columns:
    name, _, kind = column.partition("=")
    names.append(name)
    if kind:
        frame = frame.Redefine(name, f"ROOT::VecOps::RVec<{kind}>({name}.begin(), {name}.end())")
frame.Snapshot("analysis", target, names)
"""


@pytest.mark.skipif(find_spec("ROOT") is None, reason="needs the package root")
def test_rvec_branches_written_by_root_give_the_same_events(tmp_path: Path) -> None:
    path = write_file(tmp_path / "uproot.root", random_events(np.random.default_rng(17), 1000, SIMULATION))
    names = list(ANALYSIS.branches)
    kinds = {"float32": "float", "int32": "int", "bool": "bool"}
    columns = [f"{name}={kinds[dtype_of(name)]}" if is_jagged(name) else name for name in names]
    written = tmp_path / "root.root"

    subprocess.run([sys.executable, "-c", _WRITE_RVEC, path, written, *columns], check=True, timeout=120)

    tree = uproot.open(written)["analysis"]
    assert {tree[name].typename for name in names if is_jagged(name)} <= {
        "RVec<float>", "RVec<int32_t>", "RVec<int>", "RVec<bool>",
    }  # fmt: skip
    expected, cutflow = read_all(path)
    found, same = read_all(written)
    assert same == cutflow
    assert ak.array_equal(found, expected)


# --- files that are refused ---------------------------------------------------


def read_all(path: Path, sample: Sample = SIMULATION) -> tuple[ak.Array, dict[str, int]]:
    entries = reading.chunk_bounds(path, ANALYSIS, sample, RUN)[-1]
    return reading.select(reading.read(path, ANALYSIS, sample, 0, entries), ANALYSIS, sample, RUN)


@pytest.mark.parametrize("leptons", [3, 5])
def test_an_event_without_exactly_four_leptons_is_refused(leptons: int, tmp_path: Path) -> None:
    columns = {
        name: values.tolist() if values.ndim == 2 else values
        for name, values in random_events(np.random.default_rng(1), 20, SIMULATION).items()
    }
    for name, values in columns.items():
        if is_jagged(name):
            values[7] = (values[7] * 2)[:leptons]

    with pytest.raises(DataError, match=f"entry 7 of the chunk has {leptons} leptons; the skim exactly4lep has four"):
        read_all(write_file(tmp_path / "f.root", columns))


@pytest.mark.parametrize(
    ("branch", "index", "value", "message"),
    [
        ("lep_pt", (3, 2), np.nan, "lep_pt is nan in entry 3 of the chunk; it must be a finite number"),
        ("lep_e", (3, 0), np.inf, "lep_e is inf in entry 3 of the chunk; it must be a finite number"),
        ("mcWeight", 5, np.nan, "mcWeight is nan in entry 5 of the chunk; it must be a finite number"),
        ("ScaleFactor_ELE", 5, np.inf, "ScaleFactor_ELE is inf in entry 5 of the chunk; it must be a finite number"),
        ("mcWeight", 5, 1e37, "the event weight is .* in entry 5 of the chunk; its absolute value must be at most"),
        ("sum_of_weights", 9, 0.0, "sum_of_weights is 0.0 in entry 9 of the chunk; it must be a positive, finite"),
        ("sum_of_weights", 9, -2.0, "sum_of_weights is -2.0 in entry 9 of the chunk; it must be a positive, finite"),
        ("sum_of_weights", 9, np.inf, "sum_of_weights is inf in entry 9 of the chunk; it must be a positive, finite"),
        ("lep_charge", (4, 1), 1000, "lep_charge has the value 1000, which is neither -1 nor 1"),
        ("lep_charge", (4, 1), 0, "lep_charge has the value 0, which is neither -1 nor 1"),
        ("lep_type", (4, 1), 12, "lep_type has the value 12, which is neither 11 nor 13"),
    ],
)
def test_a_value_that_cannot_be_right_is_named(
    branch: str, index: Any, value: float, message: str, tmp_path: Path
) -> None:
    columns = random_events(np.random.default_rng(1), 20, SIMULATION)
    columns[branch][index] = value

    with pytest.raises(DataError, match=message):
        read_all(write_file(tmp_path / "f.root", columns))


@pytest.mark.parametrize("branch", ["lep_isTrigMatched", "lep_isLooseIso", "lep_eta", "lep_charge"])
def test_branches_with_different_numbers_of_leptons_are_refused(branch: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", random_events(np.random.default_rng(1), 20, SIMULATION))
    arrays = reading.read(path, ANALYSIS, SIMULATION, 0, 20)
    arrays[branch] = ak.concatenate([arrays[branch][:7], arrays[branch][7:, :3]])

    with pytest.raises(DataError, match=f"lep_pt has 4 values and {branch} 3 in entry 7 of the chunk"):
        reading.select(arrays, ANALYSIS, SIMULATION, RUN)


@pytest.mark.parametrize(
    ("branch", "dtype", "message"),
    [
        ("lep_charge", "uint32", r"branch 'lep_charge' holds 'var \* uint32', not a list of signed integers an event"),
        ("lep_isLooseIso", "float32", r"branch 'lep_isLooseIso' holds 'var \* float32', not a list of truth values"),
        ("trigE", "int32", r"branch 'trigE' holds 'int32', not one truth value an event"),
        ("xsec", "int32", r"branch 'xsec' holds 'int32', not one real number an event"),
    ],
)
def test_a_branch_of_another_type_is_refused(branch: str, dtype: str, message: str, tmp_path: Path) -> None:
    columns = random_events(np.random.default_rng(1), 20, SIMULATION)

    with pytest.raises(DataError, match=message):
        read_all(write_file(tmp_path / "f.root", columns, types={branch: dtype}))


@pytest.mark.parametrize("branch", ["trigM", "lep_isTrigMatched", "lep_e", "kfac"])
def test_a_missing_branch_is_named(branch: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", random_events(np.random.default_rng(1), 20, SIMULATION), without=branch)

    with pytest.raises(DataError, match=f"tree 'analysis' has no branch {branch}"):
        read_all(path)


def test_data_need_no_branch_of_simulated_weights(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", random_events(np.random.default_rng(1), 20, DATA), without="kfac")

    assert read_all(path, DATA)[1]["read"] == 20


# --- samples ------------------------------------------------------------------

DSIDS = {
    "z_ttbar": [
        410470, 410155, 410218, 410219, 412043, 364243, 364242, 364246, 364248,
        700320, 700321, 700322, 700323, 700324, 700325,
    ],
    "zz": [700600],
    "signal": [345060, 346228, 346310, 346311, 346312, 346340, 346341, 346342],
}  # fmt: skip
COLOURS = {"data": "black", "z_ttbar": "#6b59d3", "zz": "#ff0000", "signal": "#00cdff"}


def test_the_categories_have_their_samples_and_colours() -> None:
    for category, dsids in DSIDS.items():
        samples = [sample for sample in ANALYSIS.samples if sample.category == category]
        assert [sample.dsid for sample in samples] == dsids
        assert all(f"_mc_{sample.dsid}." in sample.file and not sample.is_data for sample in samples)
    assert {category.name: category.colour for category in ANALYSIS.categories} == COLOURS
    assert [sample.name for sample in ANALYSIS.samples if sample.is_data] == [
        *(f"data15_period{letter}" for letter in "DEFGHJ"),
        *(f"data16_period{letter}" for letter in "ABCDEFGIKL"),
    ]


def test_the_two_years_have_their_luminosities() -> None:
    assert {period.name: period.lumi_ifb for period in ANALYSIS.periods} == {"2015": 3.24, "2016": 33.4}
    assert all(sample.period == f"20{sample.name[4:6]}" for sample in ANALYSIS.samples if sample.is_data)
    assert (RUN.luminosity_ifb, RUN.cuts_gev) == (36.6, (20.0, 15.0, 10.0))
    only_2015 = [sample.name for sample in ANALYSIS.samples if sample.period != "2016"]
    assert ANALYSIS.lumi_of(only_2015) == 3.24


def test_every_sample_has_the_size_checksum_and_entries_of_the_record() -> None:
    record = json.loads((real_data() / "records" / "2025e-13tev-beta.json").read_text())
    published = {
        one["file"]: (one["bytes"], one["adler32"], one.get("entries"))
        for one in record["files"]
        if "lllv" not in one["name"]
    }
    found = {sample.file: (sample.bytes, sample.adler32, sample.entries) for sample in ANALYSIS.samples}
    assert found == published
    assert ANALYSIS.record_urls == (record["https"], record["base"])
