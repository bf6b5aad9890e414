"""The releases agree with a table of their samples that is typed here independently."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import SettingsError
from physics import ANALYSES
from physics.hzz4l.release_2020e import WEIGHTS, cross_section_weight
from tests.support.real_data import real_data

# name, file, category, DSID, cross-section [pb], sum of weights
SIMULATED = [
    ("Zee", "MC/mc_361106.Zee.4lep.root", "z_ttbar", 361106, 1950.5295, 150277594200),
    ("Zmumu", "MC/mc_361107.Zmumu.4lep.root", "z_ttbar", 361107, 1950.6321, 147334691090),
    ("ttbar_lep", "MC/mc_410000.ttbar_lep.4lep.root", "z_ttbar", 410000, 452.693559, 49386600),
    ("llll", "MC/mc_363490.llll.4lep.root", "zz", 363490, 1.2578, 7538705.8077),
    ("ggH125_ZZ4lep", "MC/mc_345060.ggH125_ZZ4lep.4lep.root", "signal", 345060, 0.0060239, 27881776.6536),
    ("VBFH125_ZZ4lep", "MC/mc_344235.VBFH125_ZZ4lep.4lep.root", "signal", 344235, 0.0004633012, 3680490.83243),
    ("WH125_ZZ4lep", "MC/mc_341964.WH125_ZZ4lep.4lep.root", "signal", 341964, 0.0003769, 149400),
    ("ZH125_ZZ4lep", "MC/mc_341947.ZH125_ZZ4lep.4lep.root", "signal", 341947, 0.0000021424784, 150000),
]
DATA = [("data_A", 0.5), ("data_B", 1.9), ("data_C", 2.9), ("data_D", 4.7)]


@pytest.mark.parametrize("name", ["2020e-13tev", "demo"])
def test_every_sample_has_its_file_category_and_published_numbers(name: str) -> None:
    samples = ANALYSES[name].samples
    columns = [(s.name, s.file, s.category, s.dsid, s.cross_section_pb, s.sum_of_weights) for s in samples]
    assert columns[4:] == SIMULATED
    assert [s.reduction for s in samples] == [1.0] * 12
    lumi_ifb = {period.name: period.lumi_ifb for period in ANALYSES[name].periods}
    assert [(s.name, lumi_ifb[s.period or ""]) for s in samples[:4]] == DATA
    assert [s.file for s in samples[:4]] == [f"Data/data_{period}.4lep.root" for period in "ABCD"]
    assert [s.is_data for s in samples] == [True] * 4 + [False] * 8
    assert sum(lumi_ifb.values()) == pytest.approx(ANALYSES[name].lumi_ifb) == pytest.approx(10.0)


def test_the_samples_of_2020_have_the_entries_sizes_and_checksums_of_the_record() -> None:
    record = json.loads((real_data() / "records" / "2020e-13tev.json").read_text())["files"]
    samples = ANALYSES["2020e-13tev"].samples
    assert {
        sample.name: {
            "path": sample.file, "bytes": sample.bytes, "adler32": sample.adler32, "entries": sample.entries,
        }
        for sample in samples
    } == record  # fmt: skip


def test_the_samples_of_2025_have_the_files_categories_and_numbers_of_the_records() -> None:
    records = json.loads((real_data() / "records" / "2025e-13tev-beta.json").read_text())
    analysis = ANALYSES["2025e-13tev-beta"]
    categories = {"z_ttbar_ttv_vvv": "z_ttbar"}
    keys = ("bytes", "adler32", "entries")
    assert {
        sample.file: (sample.category, sample.dsid, sample.bytes, sample.adler32, sample.entries)
        for sample in analysis.samples
    } == {
        one["file"]: (
            categories.get(one["category"], one["category"]),
            int(one["dsid"]) if "dsid" in one else None,
            *(one.get(key) for key in keys),
        )
        for one in records["files"]
        if "dropped" not in one["category"]  # by the notebook, in June 2025
    }
    assert [sample.name for sample in analysis.samples if sample.is_data] == [
        one["name"] for one in records["files"] if one["category"] == "data"
    ]
    assert analysis.record_urls == (records["https"], records["base"])


@pytest.mark.parametrize("release", ANALYSES)
def test_every_data_sample_belongs_to_a_period_and_only_data_do(release: str) -> None:
    analysis = ANALYSES[release]
    periods = {period.name for period in analysis.periods}
    assert {sample.period for sample in analysis.samples if sample.category == "data"} == periods
    assert all(sample.is_data == (sample.category == "data") for sample in analysis.samples)
    assert len({period.name for period in analysis.periods}) == len(analysis.periods)
    assert len(set(analysis.sample_names)) == len(analysis.samples)


@pytest.mark.parametrize(
    ("samples", "whole", "part", "lumi_ifb"),
    [
        ("2015", ["2015"], [], 3.24),
        ("2016", ["2016"], [], 33.4),
        ("2015 2016", ["2015", "2016"], [], 36.6),
        ("data15_periodD", [], ["2015"], 3.24),
        ("2016 data15_periodD", ["2016"], ["2015"], 36.64),
        ("llll", [], [], 36.6),
    ],
)
def test_a_period_of_2025_is_whole_only_with_all_its_samples(
    samples: str, whole: list[str], part: list[str], lumi_ifb: float
) -> None:
    analysis = ANALYSES["2025e-13tev-beta"]
    given = samples.split()
    names = [one.name for one in analysis.samples if one.name in given or (one.period or "") in given]

    found = analysis.periods_of(names)

    assert tuple([period.name for period in one] for one in found) == (whole, part)
    assert analysis.lumi_of(names) == pytest.approx(lumi_ifb)


def test_the_release_has_its_tree_units_steps_and_addresses() -> None:
    real = ANALYSES["2020e-13tev"]
    assert (real.tree, real.sqrt_s_tev, real.toy) == ("mini", 13, False)
    assert real.objects({"lep_pt": np.array([[40e3, 3e4, 2e4, 1e4]], np.float32)}).pt_gev(0) == [40.0]
    assert real.steps == ("read", "four_leptons", "pt_cuts", "charge", "flavour")
    assert [channel.name for channel in real.channels] == ["4e", "2e2mu", "4mu"]
    assert [category.name for category in real.categories] == ["data", "z_ttbar", "zz", "signal"]
    assert WEIGHTS == (
        "mcWeight", "scaleFactor_PILEUP", "scaleFactor_ELE", "scaleFactor_MUON", "scaleFactor_LepTRIGGER",
    )  # fmt: skip
    assert real.record_urls == (
        "https://opendata.cern.ch/eos/opendata/atlas/OutreachDatasets/2020-08-19/4lep/",
        "root://eospublic.cern.ch//eos/opendata/atlas/OutreachDatasets/2020-08-19/4lep/",
    )
    assert real.other_urls == (
        "https://opendata.cern.ch/eos/opendata/atlas/OutreachDatasets/2020-01-22/4lep/",
        "https://atlas-opendata.web.cern.ch/atlas-opendata/samples/2020/4lep/",
        "root://eospublic.cern.ch//eos/opendata/atlas/OutreachDatasets/2020-01-22/4lep/",
    )


def test_the_demo_is_labelled_as_a_toy_and_has_no_address() -> None:
    demo = ANALYSES["demo"]
    assert demo.toy
    assert "TOY" in demo.title
    assert demo.record_urls + demo.other_urls == ()
    assert set(ANALYSES) == {"2020e-13tev", "2025e-13tev-beta", "demo", "demo-2025"}


def test_the_cross_section_weight_is_luminosity_times_cross_section_over_sum_w() -> None:
    # 10 fb⁻¹ = 10 000 pb⁻¹; 10 000 · 1.2578 pb = 12 578 events, spread over Σw = 7 538 705.8077
    assert cross_section_weight(ANALYSES["2020e-13tev"].sample("llll"), 10) == pytest.approx(1.668456e-3, rel=1e-6)


def test_an_unknown_release_or_sample_is_refused_with_the_valid_names() -> None:
    with pytest.raises(
        SettingsError, match=r"release '2019' is not known; choose one of 2020e-13tev, 2025e-13tev-beta, d"
    ):
        ANALYSES["2019"]
    with pytest.raises(
        SettingsError,
        match=r"sample 'Zee2' is not in release demo; did you mean 'Zee'\? .* ZH125",
    ):
        ANALYSES["demo"].sample("Zee2")
    with pytest.raises(SettingsError, match="Zee2"):
        ANALYSES["demo"].in_order(["Zee", "Zee2"])
