"""A result says what is missing, empty, or scaled by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.messages import Chunk, FileIdentity, RunPlan, SamplePlan
from common.settings import RunSettings
from physics import ANALYSES
from workers.analysis.histograms import empty, split
from workers.analysis.result import result_of
from workers.analysis.store import PartialSums, Store

ANALYSIS = ANALYSES["2020e-13tev"]
#: Events of a sample: the histograms that have an event, and the number of events that are selected.
EVERYWHERE = (tuple(ANALYSIS.histograms), 3)
FULL = dict.fromkeys(ANALYSIS.sample_names, EVERYWHERE)


def result_with(
    events: Mapping[str, tuple[tuple[str, ...], int]],
    read: Mapping[str, int] | None = None,
    weightless: Sequence[str] = (),
    files: Mapping[str, FileIdentity] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Return the result of a run in which events weigh 1, and those of the ``weightless`` samples 0.

    ``read`` has the numbers of entries that are not those of the release.
    """
    run_settings = ANALYSES.resolve(RunSettings(samples=tuple(events), **settings))
    with closing(Store(None)) as store:
        store.begin(RunPlan("run", 1000.0, run_settings))
        for name, (filled, selected) in events.items():
            sample = ANALYSIS.sample(name)
            sums = empty(ANALYSIS, sample.category)
            weight = 0 if name in weightless else 1
            for histogram in filled:
                values, variances = split(sums, ANALYSIS, sample.category)[histogram]
                values[2], variances[2] = weight * selected, weight * selected
            entries = (read or {}).get(name, run_settings.entries_of(sample.entries or 0))
            cutflow = dict.fromkeys(ANALYSIS.steps, selected) | {"read": entries, "four_leptons": min(entries, 5)}
            weights = np.full(0 if sample.is_data else selected, weight, np.float32)
            store.plan(SamplePlan("run", name, 10, (0, 10), file=(files or {}).get(name)))
            store.add(Chunk("run", name, 0, 10), PartialSums(cutflow, sums, weights))
        run = store.run("run")
        assert run is not None
        return result_of(run, store, 1010.0, final=True)


def without(*samples: str) -> dict[str, tuple[tuple[str, ...], int]]:
    return {name: events for name, events in FULL.items() if name not in samples}


def test_a_whole_run_has_no_warning() -> None:
    assert result_with(FULL)["warnings"] == []


def test_samples_whose_server_could_not_be_asked_for_its_version_are_named() -> None:
    confirmed = FileIdentity("http://host/a.root", 10, "0" * 8, "0" * 36)
    copy = replace(confirmed, is_confirmed=False)
    warnings = result_with(FULL, files={"data_A": copy, "Zee": confirmed, "llll": copy})["warnings"]
    assert warnings == [
        "data_A, llll: the server of DATA could not be reached, and may have other files by now; copies in the cache "
        "were read"
    ]


def test_missing_samples_of_a_category_are_named() -> None:
    warnings = result_with(without("Zmumu", "ttbar_lep", "llll"))["warnings"]
    assert warnings == ["category z_ttbar lacks Zmumu, ttbar_lep", "category zz has no sample in this run"]


def test_a_run_without_data_says_so() -> None:
    assert result_with(without("data_A", "data_B", "data_C", "data_D"))["warnings"] == ["the run has no data"]


def test_simulation_of_some_data_periods_is_scaled_to_their_luminosity() -> None:
    result = result_with(without("data_B", "data_C", "data_D"))
    assert result["settings"]["lumi"] == 0.5
    assert result["warnings"] == []


@pytest.mark.parametrize(("lumi", "scaled"), [(139.0, "139"), (0.25, "0.25")])
def test_a_luminosity_other_than_the_data_s_is_a_warning_and_is_not_fitted(lumi: float, scaled: str) -> None:
    result = result_with(FULL, lumi_ifb=lumi)
    expected = f"simulation is scaled to {scaled} fb⁻¹ (LUMI), but the data have 10 fb⁻¹"
    assert result["warnings"] == [expected]
    assert result["fit_problem"] == expected
    assert result["workspace"] is None


def test_a_run_that_selects_nothing_says_so_and_at_which_step() -> None:
    warnings = result_with({"data_A": ((), 0), "Zee": ((), 0)})["warnings"]
    assert "the run selects no event" in warnings
    assert "Zee: none of its 5 events passes pt_cuts" in warnings
    assert not any("category z_ttbar has no selected event" in text for text in warnings)


def test_a_category_without_a_selected_event_is_named() -> None:
    warnings = result_with(FULL | {"llll": ((), 0)})["warnings"]
    assert warnings == ["category zz has no selected event", "llll: none of its 5 events passes pt_cuts"]


def test_a_category_whose_events_are_outside_the_fitted_histogram_is_named() -> None:
    beyond = tuple(name for name in ANALYSIS.histograms if name != "m4l")
    assert result_with(FULL | {"llll": (beyond, 3)})["warnings"] == [
        "category zz has no event in the range of histogram m4l"
    ]


def test_empty_histograms_are_named() -> None:
    kept = tuple(name for name in ANALYSIS.histograms if name not in {"m4l_4e", "m_z2"})
    one = tuple(name for name in ANALYSIS.histograms if name != "m_z2")
    assert result_with(dict.fromkeys(FULL, (one, 3)))["warnings"] == ["no event is in histogram m_z2"]
    assert result_with(dict.fromkeys(FULL, (kept, 3)))["warnings"] == ["no event is in histograms m_z2, m4l_4e"]


def test_a_sample_of_which_no_event_was_read_is_named() -> None:
    warnings = result_with({"data_A": ((), 0), "Zee": ((), 0)}, read={"Zee": 0})["warnings"]
    assert "Zee: no event was read" in warnings


def test_files_with_other_numbers_of_entries_than_the_release_are_named_together() -> None:
    warnings = result_with(FULL, read={"data_A": 237, "WH125_ZZ4lep": 5000})["warnings"]
    assert warnings == [
        "files that differ from the release's in their number of entries: data_A (237 instead of 39), "
        "WH125_ZZ4lep (5,000 instead of 15,379)"
    ]


def test_a_fraction_of_the_release_s_entries_is_not_a_warning() -> None:
    assert result_with(FULL, fraction=0.29)["warnings"] == []
    cut = result_with(FULL, fraction=0.29, read={"llll": 80_000})["warnings"]
    assert cut == ["files that differ from the release's in their number of entries: llll (80,000 instead of 160,740)"]


def test_a_toy_may_have_any_number_of_entries() -> None:
    assert result_with(FULL, release="demo", read={"llll": 80_000})["warnings"] == []


def test_samples_whose_selected_events_have_no_weight_are_named_together() -> None:
    simulated = ANALYSIS.sample_names[4:]
    assert result_with(FULL, weightless=["ttbar_lep"])["warnings"] == ["all selected events of ttbar_lep have weight 0"]
    assert result_with(FULL, weightless=simulated)["warnings"] == [
        "all selected events of Zee, Zmumu, ttbar_lep, llll and 4 more have weight 0"
    ]


def test_the_window_has_data_signal_background_and_their_errors() -> None:
    events = FULL | {"llll": ((), 0)}
    window = result_with(events)["window"]
    assert window["unit"] == "GeV"
    assert {window[name] for name in window if name.startswith("n_")} == {0.0}  # bin 2 is below the window
