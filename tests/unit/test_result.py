"""The result document has the promised keys, and numbers that can be calculated by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.analyses import Analysis, Period
from common.messages import Chunk, RunPlan, SamplePlan
from common.settings import RunSettings
from physics import ANALYSES
from tests.support.real_data import ANALYSIS, random_selected
from workers.analysis.histograms import empty, fill, split
from workers.analysis.result import result_of, scaling_problem, with_fit
from workers.analysis.store import PartialSums, Run, Store

HISTOGRAMS = {"m4l", "m4l_4e", "m4l_4mu", "m4l_2e2mu"}


def result_with(partials: dict[str, Sequence[PartialSums]], *, final: bool = True, **settings: Any) -> dict[str, Any]:
    """The result of a run over these samples, submitted at 1000 s and finished 20 s later."""
    with closing(Store(None)) as store:
        store.begin(RunPlan("run", 1000.0, ANALYSES.resolve(RunSettings(samples=tuple(partials), **settings))))
        for sample, parts in partials.items():
            store.plan(SamplePlan("run", sample, 10 * len(parts), tuple(range(0, 10 * len(parts) + 1, 10))))
            for place, part in enumerate(parts):
                store.add(Chunk("run", sample, 10 * place, 10 * place + 10), of_sample(part, sample))
        run = store.run("run")
        assert run is not None
        return result_of(run, store, 1020.0, final=final)


def of_sample(part: PartialSums, sample: str) -> PartialSums:
    """A chunk with room for the variations of its sample, all empty."""
    sums = empty(ANALYSIS, ANALYSIS.sample(sample).category)
    bins = sum(one.axis.bins for one in ANALYSIS.histograms.values())
    sums[:, :bins] = part.sums[:, :bins]
    return replace(part, sums=sums)


def some(seed: int, n: int = 50, *, data: bool = False) -> PartialSums:
    events = random_selected(np.random.default_rng(seed), n)
    cutflow = dict(zip(ANALYSIS.steps, (100 + n, 90 + n, 80 + n, 70 + n, n), strict=True))
    return PartialSums(
        cutflow, fill(events, ANALYSIS, "data"), np.empty(0, np.float32) if data else np.asarray(events.weight)
    )


def at(m4l: dict[float, float]) -> PartialSums:
    """A chunk whose m4l histogram holds these weights at these masses."""
    sums = empty(ANALYSIS, "data")
    for mass, weight in m4l.items():
        values, variances = split(sums, ANALYSIS, "data")["m4l"]
        values[int((mass - 80) // 5)] += weight
        variances[int((mass - 80) // 5)] += weight**2
    return PartialSums(dict.fromkeys(ANALYSIS.steps, len(m4l)), sums, np.array([*m4l.values()], np.float32))


#: Samples of a run, and the luminosity of their data in fb⁻¹.
RUNS: dict[str, tuple[tuple[str, ...], float]] = {
    "every sample": (ANALYSIS.sample_names, 10.0),
    "no data": (("Zee", "llll", "ggH125_ZZ4lep"), 10.0),
    "no signal": (("data_A", "Zee", "llll"), 0.5),
    "only data": (("data_A", "data_B"), 2.4),
    "only signal": (("WH125_ZZ4lep",), 10.0),
}


@pytest.mark.parametrize(("names", "lumi"), RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("final", [True, False], ids=["final", "partial"])
def test_the_document_has_every_key_that_other_programs_read(names: tuple[str, ...], lumi: float, final: bool) -> None:
    partials = {name: [some(i, data=ANALYSIS.sample(name).is_data), some(99)] for i, name in enumerate(names)}

    result = result_with(partials, final=final)

    assert (result["run_id"], result["analysis"], result["release"]) == ("run", "hzz4l", "2020e-13tev")
    assert (result["toy"], result["complete"], result["problems"]) == (False, final, [])
    assert result["settings"].items() >= {"lumi": lumi, "fraction": 1.0, "pt_cuts": [20.0, 15.0, 10.0]}.items()
    assert list(result["samples"]) == list(names)
    for sample in result["samples"].values():
        assert isinstance(sample["category"], str)
        assert isinstance(sample["events_read"], int)
        assert isinstance(sample["events_selected"], int)
        assert isinstance(sample["yield"], float)
        assert isinstance(sample["yield_error"], float)
        assert list(sample["cutflow"]) == ["read", "four_leptons", "pt_cuts", "charge", "flavour"]
    present = {ANALYSIS.sample(name).category for name in names}
    assert result["categories"].keys() == present <= {"data", "z_ttbar", "zz", "signal"}
    assert result["histograms"].keys() >= HISTOGRAMS
    for name in HISTOGRAMS:
        histogram = result["histograms"][name]
        assert histogram.keys() == {"edges", *present}
        assert histogram["edges"] == list(range(80, 251, 5))
        assert all(len(histogram[category][key]) == 34 for category in present for key in ("values", "variances"))
    assert result["window"].keys() == {
        "low", "high", "unit", "n_data", "significance", "significance_s_b",
        *(f"{n}{error}" for n in ("n_signal", "n_background", "n_signal_plus_background") for error in ("", "_error")),
    }  # fmt: skip
    has_background = present & {"z_ttbar", "zz"}
    for significance in ("significance", "significance_s_b"):
        assert isinstance(result["window"][significance], float if has_background else type(None))
    assert all(isinstance(warning, str) for warning in result["warnings"])
    assert final or result["warnings"] == []
    assert result["fit"] is None
    assert (result["workspace"] is None) == isinstance(result["fit_problem"], str)
    assert result["timing"].keys() == {"submitted", "finished", "seconds", "events_per_second", "waits"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_yields_and_cutflows_add_up_over_chunks_and_samples() -> None:
    parts = {"Zee": [some(1), some(2)], "ttbar_lep": [some(3)], "data_A": [some(4, 25, data=True)]}
    weights = {name: np.concatenate([part.weights for part in all_]).astype(float) for name, all_ in parts.items()}

    result = result_with(parts)

    zee = result["samples"]["Zee"]
    assert zee["cutflow"] == {"read": 300, "four_leptons": 280, "pt_cuts": 260, "charge": 240, "flavour": 100}
    assert (zee["events_read"], zee["events_selected"]) == (300, 100)
    assert zee["yield"] == pytest.approx(weights["Zee"].sum(), rel=1e-5)
    assert zee["sum_of_weights"] == pytest.approx(weights["Zee"].sum(), rel=1e-14)
    assert zee["yield_error"] == pytest.approx(math.sqrt((weights["Zee"] ** 2).sum()), rel=1e-14)
    background = result["categories"]["z_ttbar"]
    both = np.concatenate([weights["Zee"], weights["ttbar_lep"]])
    assert background["events_selected"] == 150
    assert background["yield"] == zee["yield"] + result["samples"]["ttbar_lep"]["yield"]
    assert background["yield_error"] == pytest.approx(math.sqrt((both**2).sum()), rel=1e-14)
    assert result["categories"]["data"] == {"events_selected": 25, "yield": 25.0, "yield_error": 5.0}


def test_the_window_holds_the_three_bins_from_115_to_130_gev() -> None:
    result = result_with(
        {
            "data_A": [at({122.0: 1000.0})],
            "Zee": [at({114.9: 100.0, 115.0: 1.0, 120.0: 2.0})],
            "llll": [at({129.9: 3.0, 130.0: 100.0})],
            "ggH125_ZZ4lep": [at({124.0: 1.5, 126.0: 2.5})],
        }
    )

    window = result["window"]
    assert (window["low"], window["high"]) == (115.0, 130.0)
    assert window["n_data"] == 1000
    assert isinstance(window["n_data"], int)
    assert window["n_signal"] == 4.0
    assert window["n_background"] == 6.0
    assert window["n_signal_plus_background"] == 10.0
    assert window["significance"] == pytest.approx(10 / math.sqrt(6 + 0.3 * 36))  # 2.44
    assert window["significance_s_b"] == pytest.approx(4 / math.sqrt(6))


@pytest.mark.parametrize("background", [0.0, -0.5, -10.0])
def test_no_significance_is_given_where_no_background_is_expected(background: float) -> None:
    window = result_with({"Zee": [at({124.0: background})], "ggH125_ZZ4lep": [at({124.0: 1.0})]})["window"]

    assert window["significance"] is None
    assert window["significance_s_b"] is None
    assert window["n_signal_plus_background"] == 1.0 + background


def test_a_sample_without_any_event_is_in_the_result() -> None:
    result = result_with({"Zee": [], "data_A": []})

    assert result["complete"] is True
    assert result["samples"]["Zee"]["yield"] == 0.0
    assert result["categories"]["data"] == {"events_selected": 0, "yield": 0.0, "yield_error": 0.0}
    assert result["timing"]["events_per_second"] == 0


def test_times_are_utc_and_the_rate_is_events_read_a_second() -> None:
    timing = result_with({"Zee": [some(1), some(2)]})["timing"]

    assert timing == {
        "submitted": "1970-01-01T00:16:40.000Z",
        "finished": "1970-01-01T00:17:00.000Z",
        "seconds": 20.0,
        "events_per_second": 15.0,
        "waits": {},
    }


def test_a_demo_s_result_says_that_it_is_a_toy() -> None:
    result = result_with({"Zee": [some(1)]}, release="demo")

    assert (result["toy"], result["release"]) == (True, "demo")
    assert result["settings"]["demo_events"] == RunSettings(release="demo").demo_events
    assert ANALYSES[result["release"]].toy


# --- warnings ---------------------------------------------------------------


def events_of(name: str) -> list[PartialSums]:
    """A chunk of some selected events of all that the sample's file has."""
    sample = ANALYSIS.sample(name)
    part = some(ANALYSIS.sample_names.index(name), 3_000, data=sample.is_data)
    return [replace(part, cutflow=part.cutflow | {"read": sample.entries or 0})]


def with_samples(*names: str, **settings: Any) -> dict[str, Any]:
    return result_with({name: events_of(name) for name in names}, **settings)


def lost_at(step: str) -> PartialSums:
    """A chunk of the 898 events of Zee, all of which fail this step."""
    steps = ANALYSIS.steps
    cutflow = {name: 898 if place < steps.index(step) else 0 for place, name in enumerate(steps)}
    return PartialSums(cutflow, empty(ANALYSIS, "data"), np.empty(0, np.float32))


def test_a_run_of_every_sample_has_no_warnings() -> None:
    assert with_samples(*ANALYSIS.sample_names)["warnings"] == []


@pytest.mark.parametrize(
    ("names", "warnings"),
    [
        (
            ("data_A",),
            [
                "category z_ttbar has no sample in this run",
                "category zz has no sample in this run",
                "category signal has no sample in this run",
            ],
        ),
        (
            ("Zee", "ttbar_lep", "llll", "WH125_ZZ4lep"),
            [
                "the run has no data",
                "category z_ttbar lacks Zmumu",
                "category signal lacks ggH125_ZZ4lep, VBFH125_ZZ4lep, ZH125_ZZ4lep",
            ],
        ),
        (
            ("data_A", "data_B", *ANALYSIS.sample_names[4:]),
            [],
        ),
    ],
    ids=["one data period", "no data and some simulation", "two data periods"],
)
def test_samples_that_are_not_in_the_run_are_named(names: tuple[str, ...], warnings: list[str]) -> None:
    assert with_samples(*names)["warnings"] == warnings


def test_a_luminosity_other_than_that_of_the_data_is_a_warning_and_prevents_the_fit() -> None:
    result = with_samples(*ANALYSIS.sample_names, lumi_ifb=139.0)

    reason = "simulation is scaled to 139 fb⁻¹ (LUMI), but the data have 10 fb⁻¹"
    assert result["warnings"] == [reason]
    assert result["fit_problem"] == reason
    assert result["workspace"] is None


@pytest.mark.parametrize(("names", "lumi_ifb"), [(("data_A",), 0.5), (("data_A", "data_C"), 3.4)])
def test_the_luminosity_of_the_run_s_own_data_may_be_given(names: tuple[str, ...], lumi_ifb: float) -> None:
    given = with_samples(*names, *ANALYSIS.sample_names[4:], lumi_ifb=lumi_ifb)

    assert given["warnings"] == []
    assert "LUMI" not in str(given["fit_problem"])


def test_simulation_without_data_may_be_scaled_to_any_luminosity() -> None:
    assert with_samples(*ANALYSIS.sample_names[4:], lumi_ifb=139.0)["warnings"] == ["the run has no data"]


def with_one_period(*names: str) -> Analysis:
    """The analysis, whose data samples of these names belong to one period of 5 fb⁻¹."""
    samples = tuple(replace(one, period="all") if one.name in names else one for one in ANALYSIS.samples)
    return replace(ANALYSIS, samples=samples, periods=(*ANALYSIS.periods, Period("all", 5.0)))


def test_too_few_simulated_background_events_in_the_window_are_a_warning() -> None:
    few = result_with({"Zee": [at({118.0: 2.0, 124.0: 2.0})], "data_A": [at({124.0: 3.0})], "WH125_ZZ4lep": [some(1)]})

    assert few["warnings"][-1].startswith("the simulation has too few background events in 115 to 130 GeV, where 4.0 ±")


def test_the_window_has_no_numbers_of_what_the_run_has_no_sample_of() -> None:
    only_signal = result_with({"WH125_ZZ4lep": [at({124.0: 1.0})]})["window"]

    assert only_signal["n_data"] is only_signal["n_background"] is only_signal["n_background_error"] is None
    assert only_signal["n_signal"] == only_signal["n_signal_plus_background"] == 1.0


@pytest.mark.parametrize("error", [None, 0.5])
def test_a_fit_that_ends_at_a_bound_of_the_signal_strength_is_a_warning(error: float | None) -> None:
    run, result = Run("run", 0.0, 0.0, RunSettings()), result_with({"Zee": [some(1)]})

    warnings = with_fit(result, {"signal_strength": -1.164, "signal_strength_error": error}, None, run, 1.0)["warnings"]

    assert len(warnings) - len(result["warnings"]) == (error is None)
    assert error or warnings[-1].startswith("the signal strength is fitted at -1.16, an end of the range")


def test_a_part_of_a_data_period_has_no_known_luminosity() -> None:
    analysis = with_one_period("data_A", "data_B")
    settings = replace(ANALYSES.resolve(RunSettings()), lumi_ifb=10.0)

    problem = scaling_problem(analysis, replace(settings, samples=("data_A",)))

    assert problem is not None
    assert problem.startswith("the run has a part of the data of all, whose luminosity is not known")
    assert "scaled to 10 fb⁻¹" in problem


@pytest.mark.parametrize("step", ANALYSIS.steps[1:])
def test_a_sample_that_loses_all_events_is_named_with_the_step(step: str) -> None:
    result = result_with(
        {name: [lost_at(step)] if name == "Zee" else events_of(name) for name in ANALYSIS.sample_names}
    )

    assert result["warnings"] == [f"Zee: none of its 898 events passes {step}"]


def test_an_empty_file_loses_no_events_at_a_step() -> None:
    result = result_with({name: [] if name == "Zee" else events_of(name) for name in ANALYSIS.sample_names})

    assert not [warning for warning in result["warnings"] if "passes" in warning]
