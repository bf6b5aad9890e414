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

from common.messages import Chunk, RunPlan, SamplePlan
from common.settings import RunSettings
from physics import ANALYSES
from tests.support.real_data import ANALYSIS, random_selected
from workers.analysis.histograms import axes, empty, fill, split
from workers.analysis.result import result_of
from workers.analysis.store import PartialSums, Store

HISTOGRAMS = {"m4l", "m4l_4e", "m4l_4mu", "m4l_2e2mu"}


def result_with(partials: dict[str, Sequence[PartialSums]], *, final: bool = True, **settings: Any) -> dict[str, Any]:
    """The result of a run over these samples, submitted at 1000 s and finished 20 s later."""
    with closing(Store(None)) as store:
        store.begin(RunPlan("run", 1000.0, RunSettings(samples=tuple(partials), **settings)))
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
    bins = sum(axis.bins for axis in axes(ANALYSIS).values())
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
        split(sums, ANALYSIS, "data")["m4l"][0][int((mass - 80) // 5)] += weight
    return PartialSums(dict.fromkeys(ANALYSIS.steps, len(m4l)), sums, np.array([*m4l.values()], np.float32))


RUNS: dict[str, tuple[str, ...]] = {
    "every sample": ANALYSIS.sample_names,
    "no data": ("Zee", "llll", "ggH125_ZZ4lep"),
    "no signal": ("data_A", "Zee", "llll"),
    "only data": ("data_A", "data_B"),
    "only signal": ("WH125_ZZ4lep",),
}


@pytest.mark.parametrize("names", RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("final", [True, False], ids=["final", "partial"])
def test_the_document_has_every_key_that_other_programs_read(names: tuple[str, ...], final: bool) -> None:
    partials = {name: [some(i, data=ANALYSIS.sample(name).is_data), some(99)] for i, name in enumerate(names)}

    result = result_with(partials, final=final)

    assert (result["run_id"], result["release"]) == ("run", "2020e-13tev")
    assert (result["toy"], result["complete"], result["problems"]) == (False, final, [])
    assert result["settings"].items() >= {"lumi": 10.0, "fraction": 1.0, "pt_cuts": [20.0, 15.0, 10.0]}.items()
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
    assert result["window"].keys() == {"low", "high", "n_signal_plus_background", "n_background", "significance"}
    has_background = present & {"z_ttbar", "zz"}
    assert isinstance(result["window"]["significance"], float if has_background else type(None))
    assert result["fit"] is None
    assert (result["workspace"] is None) == isinstance(result["fit_problem"], str)
    assert result["timing"].keys() == {"submitted", "finished", "seconds", "events_per_second"}
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
    assert window["n_background"] == 6.0
    assert window["n_signal_plus_background"] == 10.0
    assert window["significance"] == pytest.approx(10 / math.sqrt(6 + 0.3 * 36))  # 2.44


@pytest.mark.parametrize("background", [0.0, -0.5, -10.0])
def test_no_significance_is_given_where_no_background_is_expected(background: float) -> None:
    window = result_with({"Zee": [at({124.0: background})], "ggH125_ZZ4lep": [at({124.0: 1.0})]})["window"]

    assert window["significance"] is None
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
    }


def test_a_demo_s_result_says_that_it_is_a_toy() -> None:
    result = result_with({"Zee": [some(1)]}, release="demo")

    assert (result["toy"], result["release"]) == (True, "demo")
    assert result["settings"]["demo_events"] == RunSettings(release="demo").demo_events
    assert ANALYSES[result["release"]].toy
