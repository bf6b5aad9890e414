"""The warnings of complete embedded runs of the demo: what is missing, scaled by hand, or lost in the selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.display import window_lines
from common.settings import RunSettings
from physics import ANALYSES
from tests.support.runs import run_embedded

SIMULATION = tuple(sample.name for sample in ANALYSES["demo"].samples if not sample.is_data)


def result_of(cache: Path, **settings: Any) -> dict[str, Any]:
    outcome = run_embedded(RunSettings(release="demo", demo_events=5_000, plots=False, **settings), cache)
    assert outcome.problem is None
    assert outcome.result is not None
    assert outcome.result["complete"]
    return dict(outcome.result)


def test_a_run_of_one_data_sample_says_that_it_has_no_simulation(cache: Path) -> None:
    result = result_of(cache, samples=("data_A",))

    assert result["settings"]["lumi"] == 0.5
    assert [warning for warning in result["warnings"] if "no sample in this run" in warning] == [
        f"category {name} has no sample in this run" for name in ("z_ttbar", "zz", "signal")
    ]
    assert result["fit_problem"] == "the run has no signal sample"
    assert (result["window"]["n_signal"], result["window"]["significance_s_b"]) == (None, None)
    assert "observed" in window_lines(result)[0]
    assert "expected" not in "".join(window_lines(result))
    assert result["window"]["n_data"] >= 0


def test_simulation_is_scaled_to_the_luminosity_of_one_data_sample_without_warning(cache: Path) -> None:
    result = result_of(cache, samples=("data_D", *SIMULATION))

    assert result["settings"]["lumi"] == 4.7
    assert not [warning for warning in result["warnings"] if "fb⁻¹" in warning or "lacks" in warning]


def test_a_luminosity_that_the_data_do_not_have_is_reported_and_nothing_is_fitted(cache: Path) -> None:
    result = result_of(cache, lumi_ifb=139.0)

    reason = "simulation is scaled to 139 fb⁻¹ (LUMI), but the data have 10 fb⁻¹"
    assert reason in result["warnings"]
    assert (result["fit"], result["fit_problem"]) == (None, reason)
    assert result["window"]["n_signal"] > 10


def test_samples_that_lose_all_events_are_named_with_the_step(cache: Path) -> None:
    result = result_of(cache, samples=("data_A", "llll"), pt_cuts_gev=(5000.0,))

    read = {name: sample["events_read"] for name, sample in result["samples"].items()}
    for name in ("data_A", "llll"):
        assert f"{name}: none of its {read[name]:,} events passes pt_cuts" in result["warnings"]
    assert result["fit"] is None
