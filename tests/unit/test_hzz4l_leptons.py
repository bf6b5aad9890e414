"""The leptons and weights of the 2020 release that are read from files, and the loader's steps that remove events."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest

from common.errors import DataError
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


@pytest.mark.parametrize(
    ("branch", "value", "message"),
    [
        ("mcWeight", np.nan, "mcWeight is nan in entry 1 of the chunk; it must be a finite number"),
        ("scaleFactor_ELE", np.nan, "scaleFactor_ELE is nan in entry 1 of the chunk; it must be a finite number"),
        ("scaleFactor_LepTRIGGER", np.inf, "scaleFactor_LepTRIGGER is inf in entry 1 of the chunk"),
        ("mcWeight", 1e39, "the event weight is inf in entry 1 of the chunk"),
        ("mcWeight", -1e37, "the event weight is -.* in entry 1 of the chunk; its absolute value must be at most 1e"),
    ],
)
def test_a_weight_that_cannot_be_added_up_is_refused_in_simulation(
    branch: str, value: float, message: str, tmp_path: Path
) -> None:
    path = write_file(tmp_path / "f.root", [GOOD] * 3, change={branch: np.array([1.0, value, 1.0])})

    with pytest.raises(DataError, match=message):
        read_all(path)
    assert read_all(path, DATA)[1]["four_leptons"] == 3


def test_a_product_of_weights_that_overflows_is_refused(tmp_path: Path) -> None:
    weights = {"mcWeight": [1, 1e30, 1], "scaleFactor_LepTRIGGER": [1, 1e30, 1]}

    with pytest.raises(DataError, match="the event weight is inf in entry 1 of the chunk"):
        read_all(write_file(tmp_path / "f.root", [GOOD] * 3, weights))


@pytest.mark.parametrize(
    ("branch", "lengths", "message"),
    [
        ("lep_eta", (4, 3, 4), "lep_pt has 4 values and lep_eta 3 in entry 1 of the chunk"),
        ("lep_type", (4, 4, 5), "lep_pt has 4 values and lep_type 5 in entry 2 of the chunk"),
        ("lep_pt", (3, 4, 4), "lep_pt has 3 values and lep_eta 4 in entry 0 of the chunk"),
    ],
)
def test_branches_with_different_numbers_of_leptons_are_refused(
    branch: str, lengths: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    values = ak.Array([[11] * length for length in lengths])
    dtype = np.uint32 if branch == "lep_type" else np.float32
    path = write_file(tmp_path / "f.root", [GOOD] * 3, change={branch: ak.values_astype(values, dtype)})

    with pytest.raises(DataError, match=f"{message}; the lists of an event must be equally long"):
        read_all(path)


@pytest.mark.parametrize(
    ("branch", "values", "message"),
    [
        ("lep_type", [12, 12, 12, 12], "lep_type has the value 12, which is neither 11 nor 13"),
        ("lep_type", [11, 11, 11, 4294967285], "lep_type has the value 4294967285, which is neither 11 nor 13"),
        ("lep_charge", [50, -50, 50, -50], "lep_charge has the value 50, which is neither -1 nor 1"),
        ("lep_charge", [1, -1, 0, 0], "lep_charge has the value 0, which is neither -1 nor 1"),
        ("lep_charge", [1, -1, 1, 1000], "lep_charge has the value 1000, which is neither -1 nor 1"),
    ],
)
def test_a_charge_or_type_that_no_lepton_has_is_refused(
    branch: str, values: list[int], message: str, tmp_path: Path
) -> None:
    dtype = np.uint32 if branch == "lep_type" else np.int32
    wrong = ak.values_astype(ak.Array([[11, 11, 13, 13] if branch == "lep_type" else [1, 1, -1, -1], values]), dtype)

    with pytest.raises(DataError, match=message):
        read_all(write_file(tmp_path / "f.root", [GOOD] * 2, change={branch: wrong}))


@pytest.mark.parametrize("branch", ["lep_pt", "lep_eta", "lep_phi", "lep_E", *WEIGHTS])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_whole_numbers_for_kinematics_or_weights_are_refused(branch: str, dtype: Any, tmp_path: Path) -> None:
    values = ak.Array([[40e3] * 4] * 2 if branch.startswith("lep_") else [1.0, 1.0])
    path = write_file(tmp_path / "f.root", [GOOD] * 2, change={branch: ak.values_astype(values, dtype)})

    with pytest.raises(DataError, match=rf"branch '{branch}' holds '.*int32', not (a list of|one) real number"):
        read_all(path)


def test_doubles_are_read_as_floats_and_an_overflow_of_a_pt_removes_the_event(tmp_path: Path) -> None:
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
