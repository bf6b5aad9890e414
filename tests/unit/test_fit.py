"""The fit agrees with pyhf and cabinetry, finds the true values, and reports why there is none."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import cabinetry
import numpy as np
import pyhf
import pytest
import uproot
from scipy.stats import norm

from tests.support.toy_run import SAMPLES, document
from workers.analysis.statistics.fit import fit_of
from workers.analysis.statistics.fit_pool import FitPool
from workers.analysis.statistics.minimisation.likelihood import Likelihood
from workers.analysis.statistics.minimisation.profile import Limits, Profile
from workers.analysis.statistics.peak import PeakFit
from workers.analysis.statistics.workspace import NoFit, workspace_of
from workers.visualisation.result_files import root_file

ROOT = Path(__file__).parents[2]
# pyhf 0.7 uses jsonschema's older way to resolve references, and cabinetry numpy's older names.
pytestmark = [
    pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:cabinetry.*"),
]


@cache
def fitted() -> tuple[dict[str, Any], dict[str, Any]]:
    result = document()
    return result, fit_of(result)


def changed(category: str, part: str, bins: dict[int, float]) -> dict[str, Any]:
    """A run's document with other numbers in these bins of m4l."""
    result = copy.deepcopy(document())
    for place, number in bins.items():
        result["histograms"]["m4l"][category][part][place] = number
    return result


# --- the workspace ----------------------------------------------------------


def test_the_workspace_is_valid_and_expects_what_the_histograms_hold() -> None:
    result, _ = fitted()
    workspace = pyhf.Workspace(result["workspace"])  # validates against the schema
    model = workspace.model()
    m4l = result["histograms"]["m4l"]

    expected = model.main_model.expected_data(np.array(model.config.suggested_init()), return_by_sample=True)

    for name, values in zip(model.config.samples, expected, strict=True):
        np.testing.assert_allclose(values, m4l[name]["values"], rtol=1e-12)
    assert workspace.data(model, include_auxdata=False) == m4l["data"]["values"]
    assert set(model.config.parameters) == {
        "mu", "luminosity", "scale_factors", "zz_normalisation", "m4l_scale", "mc_statistics"
    }  # fmt: skip


def test_the_uncertainties_are_those_of_the_analysis() -> None:
    samples = {sample["name"]: sample for sample in document()["workspace"]["channels"][0]["samples"]}
    factors = {
        name: {one["name"]: one["data"]["hi"] for one in sample["modifiers"] if one["type"] == "normsys"}
        for name, sample in samples.items()
    }

    everywhere = {"luminosity": 1.017, "scale_factors": 1.1}
    assert factors == {
        "z_ttbar": everywhere, "zz": {**everywhere, "zz_normalisation": 1.1}, "signal": everywhere
    }  # fmt: skip


def test_a_negative_bin_counts_nothing_and_keeps_its_variance() -> None:
    result = changed("z_ttbar", "values", {12: -0.5})
    (sample,) = (one for one in workspace_of(result)["channels"][0]["samples"] if one["name"] == "z_ttbar")

    assert sample["data"][12] == 0
    (statistics,) = (one["data"] for one in sample["modifiers"] if one["type"] == "staterror")
    assert statistics[12] == pytest.approx(np.sqrt(result["histograms"]["m4l"]["z_ttbar"]["variances"][12]))
    result["workspace"] = workspace_of(result)
    assert fit_of(result)["treatment"]["negative_bins_set_to_zero"]["z_ttbar"] == [140.0]


def test_a_category_of_few_events_keeps_its_shape_under_the_m4l_scale() -> None:
    _, fit = fitted()

    assert fit["treatment"]["without_m4l_scale"] == ["z_ttbar"]


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (("data_A", "Zee", "llll"), "the run has no signal sample"),
        (("Zee", "llll", "ggH125_ZZ4lep"), "the run has no data"),
        (("data_A", "ggH125_ZZ4lep"), "the run has no background sample"),
    ],
)
def test_a_run_without_what_a_fit_needs_has_none_and_says_why(samples: tuple[str, ...], why: str) -> None:
    result = document(samples)

    assert (result["complete"], result["problems"]) == (True, [])
    assert (result["fit"], result["workspace"], result["fit_problem"]) == (None, None, why)


def test_bins_without_background_or_data_or_signal_make_no_fit() -> None:
    no_background = changed("zz", "values", {3: -9.0, 7: 0.0})
    for place in (3, 7):
        no_background["histograms"]["m4l"]["z_ttbar"]["values"][place] = 0.0
    with pytest.raises(NoFit, match="no background in 95 to 100, 115 to 120 GeV; it has too few events"):
        workspace_of(no_background)
    with pytest.raises(NoFit, match="data have no event"):
        workspace_of(changed("data", "values", dict.fromkeys(range(34), 0.0)))
    with pytest.raises(NoFit, match="signal samples have no event"):
        workspace_of(changed("signal", "values", dict.fromkeys(range(34), 0.0)))


# --- compared with pyhf, Minuit and cabinetry ------------------------------------------


def test_signal_strength_parameters_and_errors_are_minuit_s() -> None:
    result, fit = fitted()
    model, data = cabinetry.model_utils.model_and_data(result["workspace"])

    theirs = cabinetry.fit.fit(model, data)

    for name, value, error in zip(model.config.par_names, theirs.bestfit, theirs.uncertainty, strict=True):
        if name in fit["parameters"]:
            assert fit["parameters"][name]["value"] == pytest.approx(value, abs=3e-3 * error)
            assert fit["parameters"][name]["error"] == pytest.approx(error, rel=0.015)
    assert fit["signal_strength"] == fit["parameters"]["mu"]["value"]
    assert fit["signal_strength_error"] == fit["parameters"]["mu"]["error"]
    places = [theirs.labels.index(name) for name in fit["correlations"]["names"]]
    np.testing.assert_allclose(fit["correlations"]["matrix"], theirs.corr_mat[np.ix_(places, places)], atol=0.015)


def test_significance_and_limits_are_pyhf_s() -> None:
    result, fit = fitted()
    pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(tolerance=1e-4))
    workspace = pyhf.Workspace(result["workspace"])
    model = workspace.model()
    data = workspace.data(model)
    at = {"par_bounds": [list(bounds) for bounds in model.config.suggested_bounds()]}
    at["par_bounds"][model.config.poi_index] = [0.0, 10.0]

    p0 = pyhf.infer.hypotest(0.0, data, model, test_stat="q0", **at)
    cls, expected = pyhf.infer.hypotest(1.0, data, model, return_expected_set=True, **at)
    with_signal = pyhf.infer.hypotest(
        0.0, model.expected_data(model.config.suggested_init()), model, test_stat="q0", **at
    )
    limit = fit["upper_limit"]["observed"]
    at_limit = pyhf.infer.hypotest(limit, data, model, **at)

    normal = pyhf.tensorlib.normal_cdf
    assert float(p0) == pytest.approx(fit["p0_observed"], rel=5e-3)
    assert float(p0) == pytest.approx(1 - float(normal(fit["significance_observed"])), rel=5e-3)
    assert float(with_signal) == pytest.approx(1 - float(normal(fit["significance_expected"])), rel=5e-3)
    assert float(cls) == pytest.approx(fit["cls_mu1"], rel=5e-3)
    assert float(at_limit) == pytest.approx(0.05, rel=0.01)
    likelihood = Likelihood(result["workspace"])
    ours = Limits(likelihood, Profile(likelihood, likelihood.data, likelihood.fit(likelihood.data)))
    np.testing.assert_allclose(ours.expected(1.0), [float(one) for one in expected], rtol=0.01)


def test_cabinetry_reads_the_root_file(tmp_path: Path) -> None:
    result, _ = fitted()
    (tmp_path / "histograms.root").write_bytes(root_file(result))
    paths = {"Data": "data", "zz": "zz", "signal": "signal", "z_ttbar": "z_ttbar"}
    config = {
        "General": {
            "Measurement": "test", "POI": "mu", "HistogramFolder": str(tmp_path / "templates"),
            "InputPath": str(tmp_path / "histograms.root") + ":{VariationPath}/{SamplePath}", "VariationPath": "m4l",
        },
        "Regions": [{"Name": "m4l"}],
        "Samples": [{"Name": name, "SamplePath": path, **({"Data": True} if name == "Data" else {})}
                    for name, path in paths.items()],
        "Systematics": [{"Name": "m4l_scale", "Type": "NormPlusShape", "Samples": ["zz", "signal"],
                         "Up": {"VariationPath": "m4l_scale_up"}, "Down": {"VariationPath": "m4l_scale_down"}}],
        "NormFactors": [{"Name": "mu", "Samples": ["signal"], "Nominal": 1, "Bounds": [-5, 10]}],
    }  # fmt: skip
    cabinetry.templates.collect(config)
    workspace = pyhf.Workspace(cabinetry.workspace.build(config))

    assert workspace.observations["m4l"] == result["histograms"]["m4l"]["data"]["values"]
    for sample in workspace["channels"][0]["samples"]:
        expected = result["histograms"]["m4l"][sample["name"]]["values"]
        np.testing.assert_allclose(sample["data"], expected, rtol=1e-12)


def test_the_root_file_has_every_variation() -> None:
    result, _ = fitted()
    with uproot.open(io.BytesIO(root_file(result))) as file:
        for name, of in result["variations"].items():
            for category, contents in of.items():
                assert file[f"{name}/{category}"].values().tolist() == contents["values"]


# --- fitted values ----------------------------------------------------------


def test_a_fit_of_asimov_data_returns_their_parameters() -> None:
    result, _ = fitted()
    likelihood = Likelihood(result["workspace"])
    asimov = likelihood.asimov(likelihood.start)

    best = likelihood.fit(asimov, likelihood.start + 0.3)

    np.testing.assert_allclose(best.parameters, likelihood.start, atol=1e-5)


# --- the Higgs boson's mass ---------------------------------------------------


@cache
def mass_fit() -> PeakFit:
    return PeakFit(document())


@pytest.mark.parametrize("truth", [119.0, 122.5, 125.0, 129.0])
def test_a_higgs_boson_of_any_mass_is_found_there(truth: float) -> None:
    fit = mass_fit()
    (place,) = np.flatnonzero(truth == mass_fit().positions)

    mass = fit.measure(fit.signal[place] + fit.background)

    assert mass["problem"] is None
    assert mass["value_gev"] == pytest.approx(truth, abs=0.01)
    assert mass["scan"]["signal_strength"][place] == pytest.approx(1.0, abs=1e-4)
    low, high = mass["statistical_interval_gev"]
    assert truth - 1.5 < low < truth - 0.4
    assert truth + 0.4 < high < truth + 1.5


def test_the_template_of_the_mass_is_smoother_than_the_simulation() -> None:
    values = np.array(document()["m4l_fine"]["signal"]["values"])[20:130]
    edges = np.linspace(105, 160, 111)
    truth = 15 * np.diff(norm.cdf(edges, 124.8, 2.2))
    template = mass_fit().signal[20]  # that of the simulated mass

    assert np.std(template - truth) < 0.6 * np.std(values - truth)
    centres = (edges[:-1] + edges[1:]) / 2
    moments = [
        (one.sum(), np.average(centres, weights=one), np.average((centres - 125) ** 2, weights=one))
        for one in (template, values)
    ]
    np.testing.assert_allclose(*moments, rtol=2e-3)


def test_a_scan_of_the_mass_is_that_of_pyhf() -> None:
    """The same templates in a pyhf model with two free yields, fitted by Minuit."""
    fit = mass_fit()
    pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(tolerance=1e-4))
    scan = fit.scan(fit.data[None, :])
    theirs = []
    for place in (8, 20, 29):
        samples = [
            {"name": name, "data": template.tolist(), "modifiers": [{"name": name, "type": "normfactor", "data": None}]}
            for name, template in (("mu", fit.signal[place]), ("beta", fit.background))
        ]
        model = pyhf.Model({"channels": [{"name": "m4l", "samples": samples}]}, poi_name="mu", validate=False)
        best, value = pyhf.infer.mle.fit(fit.data, model, return_fitted_val=True)
        theirs.append(float(value))
        found = [float(best[model.config.par_map[name]["slice"]][0]) for name in ("mu", "beta")]
        assert [scan.strength[0, place], scan.background[0, place]] == pytest.approx(found, abs=2e-3)
    np.testing.assert_allclose(np.diff(scan.twice_nll[0, [8, 20, 29]]), np.diff(theirs), atol=1e-3)


def test_both_uncertainties_of_the_mass_are_in_its_interval() -> None:
    mass = fitted()[1]["mass"]
    value, scale = mass["value_gev"], mass["m4l_scale_error_gev"]

    assert scale == pytest.approx(0.01 * value)
    for side, statistical in zip(mass["interval_gev"], mass["statistical_interval_gev"], strict=True):
        assert abs(side - value) == pytest.approx(np.hypot(statistical - value, scale))
    assert mass["threshold"] >= 1


def test_for_many_events_the_threshold_is_that_of_wilks() -> None:
    fit = mass_fit()

    mass = fit.measure(200 * (fit.signal[20] + fit.background))

    assert mass["threshold"] == pytest.approx(1.0, abs=0.25)
    low, high = mass["statistical_interval_gev"]
    assert (high - low) / 2 == pytest.approx(2.2 / np.sqrt(200 * 15), rel=0.7)


def test_without_a_peak_there_is_no_mass_and_the_problem_says_so() -> None:
    fit = mass_fit()
    counts = fit.background.copy()
    counts[(136 - 105) * 2 : (140 - 105) * 2] += 6  # beyond the scan

    mass = fit.measure(counts)

    assert (mass["value_gev"], mass["error_gev"]) == (None, None)
    assert mass["problem"] == "the likelihood has its maximum at 135 GeV, an end of the scan"


def test_without_an_event_in_the_window_there_is_no_mass() -> None:
    mass = mass_fit().measure(np.zeros(110))

    assert mass["value_gev"] is None
    assert mass["problem"]


def test_the_fit_has_the_promised_keys_and_is_json() -> None:
    _, fit = fitted()
    assert fit.keys() >= {
        "signal_strength", "signal_strength_error", "significance_observed", "significance_expected", "cls_mu1",
        "parameters", "correlations", "yields", "upper_limit", "mass",
    }  # fmt: skip
    assert json.loads(json.dumps(fit, allow_nan=False)) == fit
    low, high = fit["signal_strength_interval"]
    assert low < fit["signal_strength"] < high
    yields = fit["yields"]["postfit"]
    assert yields["signal"]["yield"] == pytest.approx(
        fit["signal_strength"] * fit["yields"]["prefit"]["signal"]["yield"], rel=0.2
    )
    total = sum(yields[name]["yield"] for name in ("signal", "zz", "z_ttbar"))
    assert yields["total"]["yield"] == pytest.approx(total)
    assert yields["total"]["yield_error"] < fit["yields"]["prefit"]["total"]["yield_error"]


def test_the_same_histograms_give_the_same_fit_in_another_process() -> None:
    result, fit = fitted()
    fits = FitPool()
    fits.start()
    for run_id, requested in (("run", result), ("other", document(seed=2)), ("again", result)):
        done = Event()
        fits.submit(run_id, requested, then=done.set)
        assert done.wait(300)

    assert json.dumps(fits.outcomes()["run"].fit) == json.dumps(fit)
    assert json.dumps(fits.outcomes()["again"].fit) == json.dumps(fit)
    assert json.dumps(fits.outcomes()["other"].fit) != json.dumps(fit)
    fits.close()


def test_the_service_starts_without_the_packages_of_the_fit() -> None:
    code = (
        "import sys, workers.analysis.service;"
        "heavy = {'pyhf', 'scipy', 'matplotlib', 'jsonschema'} & sys.modules.keys();"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(SAMPLES) <= set(document()["samples"])
