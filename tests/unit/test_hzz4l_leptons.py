"""The leptons and weights of the 2020 release that are read from files, and the loader's steps that remove events."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest

from common.settings import RunSettings
from physics import ANALYSES
from physics.hzz4l.release_2020e import WEIGHTS, cross_section_weight
from tests.support.real_data import (
    DATA,
    NO_CUTS,
    SIMULATION,
    four_leptons,
    lepton,
    read_all,
    write_file,
)

GOOD = four_leptons(40e3, 30e3, 20e3, 10e3)


def with_lepton(changed: int, **change: float) -> list[dict[str, Any]]:
    return [{**one, **change} if index == changed else one for index, one in enumerate(GOOD)]


def test_the_four_leading_leptons_are_those_of_the_file_bit_for_bit(tmp_path: Path) -> None:
    five = [*four_leptons(51234.567, 40e3, 30e3, 20e3), lepton(7e3, -1, 13)]
    factors = {name: [0.1 * (i + 1), 2.0] for i, name in enumerate(WEIGHTS)}

    events, cutflow = read_all(write_file(tmp_path / "f.root", [five, GOOD], factors))

    assert cutflow == {"read": 2, "four_leptons": 2, "pt_cuts": 2}
    assert ak.to_numpy(events.lep_pt).tolist() == [
        [float(np.float32(51234.567)), 40e3, 30e3, 20e3],
        [40e3, 30e3, 20e3, 10e3],
    ]
    assert ak.to_numpy(events.lep_charge).tolist() == [[1, -1, 1, -1]] * 2
    weight = np.float32(cross_section_weight(SIMULATION, NO_CUTS.luminosity_ifb))
    for i in range(5):
        weight *= np.float32(0.1 * (i + 1))
    assert ak.to_numpy(events.weight)[0] == weight


def test_weights_scale_with_the_luminosity_and_data_have_weight_one(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", [GOOD] * 3, {"mcWeight": [1.5, -2, 0.25]})

    at_10, at_25 = (ak.to_numpy(read_all(path, settings=replace(NO_CUTS, lumi_ifb=one))[0].weight) for one in (10, 25))

    np.testing.assert_allclose(at_25, 2.5 * at_10, rtol=1e-6)
    np.testing.assert_allclose(at_10, cross_section_weight(SIMULATION, 10) * np.array([1.5, -2, 0.25]), rtol=1e-6)
    assert ak.to_numpy(read_all(path, DATA)[0].weight).tolist() == [1, 1, 1]


def test_events_with_fewer_than_four_leptons_are_counted_and_dropped(tmp_path: Path) -> None:
    events = [GOOD[:n] for n in (0, 1, 2, 3)] + [GOOD, [*GOOD, lepton(5e3)]]

    assert read_all(write_file(tmp_path / "f.root", events))[1] == {"read": 6, "four_leptons": 2, "pt_cuts": 2}


@pytest.mark.parametrize(
    ("branch", "value"),
    [
        *product(("lep_pt", "lep_eta", "lep_phi", "lep_E"), (np.nan, np.inf, -np.inf)),
        ("lep_pt", -1.0),
        ("lep_pt", 0.0),
        ("lep_E", -1.0),
        ("lep_E", 0.0),
        ("lep_eta", 1000.0),
    ],
)
def test_a_badly_measured_leading_lepton_removes_only_its_event(tmp_path: Path, branch: str, value: float) -> None:
    bad_fifth = [*GOOD, {**lepton(5e3), branch: value}]
    events = [GOOD, with_lepton(0, **{branch: value}), with_lepton(3, **{branch: value}), bad_fifth]

    kept, cutflow = read_all(write_file(tmp_path / "f.root", events))

    assert cutflow == {"read": 4, "four_leptons": 2, "pt_cuts": 2}
    assert ak.to_numpy(kept.lep_pt).tolist() == [[40e3, 30e3, 20e3, 10e3]] * 2


def test_a_weight_that_is_not_finite_removes_its_event_in_simulation_only(tmp_path: Path) -> None:
    weights = {"mcWeight": [1, np.nan, 1, 1], "scaleFactor_LepTRIGGER": [1, 1, np.inf, 1]}
    path = write_file(tmp_path / "f.root", [GOOD] * 4, weights)

    assert read_all(path)[1]["four_leptons"] == 2
    assert read_all(path, DATA)[1]["four_leptons"] == 4


def test_a_product_of_weights_that_overflows_removes_its_event(tmp_path: Path) -> None:
    weights = {"mcWeight": [1, 1e30, 1e30], "scaleFactor_LepTRIGGER": [1, 1e30, 1]}

    assert read_all(write_file(tmp_path / "f.root", [GOOD] * 3, weights))[1]["four_leptons"] == 2


def test_branches_with_different_numbers_of_leptons_remove_the_event(tmp_path: Path) -> None:
    energies = ak.Array([[5e4] * 4, [5e4] * 3, [5e4] * 5])
    path = write_file(tmp_path / "f.root", [GOOD] * 3, change={"lep_E": ak.values_astype(energies, np.float32)})

    assert read_all(path)[1]["four_leptons"] == 1


def test_doubles_are_read_as_floats_and_an_overflow_removes_the_event(tmp_path: Path) -> None:
    pts = ak.Array([[40e3, 30e3, 20e3, 10e3], [1e300, 30e3, 20e3, 10e3]])
    weights = np.array([1.0, 1.0])

    path = write_file(tmp_path / "f.root", [GOOD] * 2, change={"lep_pt": pts, "mcWeight": weights})
    events, cutflow = read_all(path)

    assert cutflow["four_leptons"] == 1
    assert ak.to_numpy(events.lep_pt).dtype == np.float32


# --- pT cuts ----------------------------------------------------------------

JUST_ABOVE_20_GEV = float(np.nextafter(np.float32(20e3), np.float32(np.inf)))


@pytest.mark.parametrize(
    ("cuts", "passing"),
    [
        ((), 4),
        ((0,), 4),
        ((20,), 3),
        ((20, 15), 2),
        ((20, 15, 10), 1),
        ((20, 15, 10, 5), 1),
        ((20, 15, 10, 9), 0),
        ((0, 0, 0, 5), 4),
    ],
)
def test_pt_cut_i_keeps_events_whose_lepton_i_is_strictly_above_it(
    tmp_path: Path, cuts: tuple[float, ...], passing: int
) -> None:
    events = [
        four_leptons(20e3, 15.1e3, 10.1e3, 9e3),  # the first is exactly at its cut
        four_leptons(JUST_ABOVE_20_GEV, 15e3, 10.1e3, 9e3),
        four_leptons(JUST_ABOVE_20_GEV, 15.1e3, 10e3, 9e3),
        four_leptons(JUST_ABOVE_20_GEV, 15.1e3, 10.1e3, 9e3),
    ]
    path = write_file(tmp_path / "f.root", events)

    cutflow = read_all(path, settings=ANALYSES.resolve(RunSettings(pt_cuts_gev=cuts)))[1]

    assert cutflow == {"read": 4, "four_leptons": 4, "pt_cuts": passing}
