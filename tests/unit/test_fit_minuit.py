"""The fit agrees with pyhf and Minuit for random settings and pseudo-data, also at bounds of the parameters."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pyhf
import pytest
from iminuit import Minuit

from tests.support.toy_run import document
from workers.analysis.statistics.fit import fit_of
from workers.analysis.statistics.minimisation.likelihood import Likelihood
from workers.analysis.statistics.minimisation.profile import Limits, Profile
from workers.analysis.statistics.workspace import NoFit, workspace_of

#: The range of the decimal logarithm of the number of simulated events, by category.
SIMULATED = {"zz": (2.3, 4.5), "signal": (1.5, 4.0), "z_ttbar": (0.5, 3.0)}
#: Minuit's errors are distorted for parameters that are closer to a bound than this, in standard deviations.
NEAR_BOUND = 2.0


@cache
def simulation() -> dict[str, Any]:
    return document()


def random_run(seed: int) -> dict[str, Any]:
    """Return a run's document with random luminosity, categories, numbers of simulated events and pseudo-data.

    Some simulated events have negative weights; the data of some runs have another luminosity than
    the simulation, and their signal strength is 0, 1, or between 0 and 4.
    """
    rng = np.random.default_rng([9, seed])
    while True:
        result = copy.deepcopy(simulation())
        m4l = result["histograms"]["m4l"]
        luminosity, rates = 10 ** rng.uniform(-1.5, 1), np.zeros(len(m4l["zz"]["values"]))
        without_z = rng.random() > 0.8
        for name, simulated in SIMULATED.items():
            if name == "z_ttbar" and without_z:
                del m4l[name]
                continue
            nominal, events = np.array(m4l[name]["values"]), int(10 ** rng.uniform(*simulated))
            weight, shape = nominal.sum() * luminosity / events, nominal / nominal.sum()
            positive = rng.multinomial(events, shape)
            negative = rng.multinomial(rng.integers(0, max(1, events // 10)), shape)
            values = (positive - negative) * weight
            m4l[name] = {"values": values.tolist(), "variances": ((positive + negative) * weight**2).tolist()}
            for way in ("up", "down"):
                shifted = result["variations"][f"m4l_scale_{way}"][name]
                ratio = np.array(shifted["values"]) / np.where(nominal > 0, nominal, 1)
                shifted["values"] = (values * ratio).tolist()
            strength = rng.choice([0, 1, rng.uniform(0, 4)]) if name == "signal" else 1
            rates += strength * luminosity * nominal
        if rng.random() < 0.3:
            rates *= 10 ** rng.uniform(-0.7, 0.7)
        m4l["data"]["values"] = rng.poisson(rates).astype(float).tolist()
        try:
            result["workspace"] = workspace_of(result)
        except NoFit:  # a bin without background
            continue
        return result


def minuit(likelihood: Likelihood, mu: float | None = None) -> tuple[float, float]:
    """Minimise pyhf's -2 ln L by Minuit; returns the signal strength and -2 ln L. ``mu`` fixes the signal strength."""
    model, data, bins = likelihood.model, likelihood.data, likelihood.bins

    def function(parameters: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return -2 * float(model.logpdf(parameters, data)[0])

    def gradient(parameters: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        expected, slopes = likelihood.expected(parameters)
        variances = np.concatenate([expected[:bins], likelihood.widths**2])
        return np.asarray(2 * ((expected - data) / variances) @ slopes)

    start = likelihood.start.copy()
    if mu is not None:
        start[likelihood.poi] = mu
    fit = Minuit(function, start, grad=gradient, name=likelihood.names)
    fit.limits = list(zip(likelihood.low, likelihood.high, strict=True))
    for index, fixed in enumerate(likelihood.fixed):
        fit.fixed[index] = bool(fixed) or (mu is not None and index == likelihood.poi)
    fit.tol = 1e-3
    fit.migrad(ncall=100_000)
    return float(fit.values[likelihood.poi]), float(fit.fval)


@pytest.mark.parametrize("seed", range(12))
def test_signal_strength_and_q0_agree_with_minuit_for_random_runs(seed: int) -> None:
    likelihood = Likelihood(random_run(seed)["workspace"])
    best = likelihood.fit(likelihood.data)
    error = np.sqrt(likelihood.covariance(best, likelihood.data)[likelihood.poi, likelihood.poi])
    profile = Profile(likelihood, likelihood.data, best)

    mu, least = minuit(likelihood)
    q0 = max(0.0, minuit(likelihood, mu=0.0)[1] - least) if mu > 0 else 0.0

    assert profile.mu_hat == pytest.approx(mu, abs=5e-3 * error)
    assert profile.q0() == pytest.approx(q0, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("seed", [5, 11, 28])
def test_a_minimum_at_a_bound_has_a_fit_with_finite_numbers(seed: int) -> None:
    fit = fit_of(random_run(seed))

    assert json.dumps(fit, allow_nan=False)
    assert fit["parameters"]["mu"]["error"] > 0
    assert fit["signal_strength_error"] in (None, fit["parameters"]["mu"]["error"])
    assert fit["upper_limit"]["observed"] > max(0, fit["signal_strength"])


def by_pyhf(function: Callable[[], Any]) -> Any:
    """Return what a function of pyhf finds, by other strategies and optimisers if the usual one fails; else None."""
    optimizers = [
        pyhf.optimize.minuit_optimizer(maxiter=1_000_000, tolerance=1e-3),
        pyhf.optimize.minuit_optimizer(maxiter=1_000_000, tolerance=1e-2, strategy=2),
        pyhf.optimize.minuit_optimizer(maxiter=1_000_000, tolerance=0.1, strategy=2),
        pyhf.optimize.scipy_optimizer(maxiter=100_000),
    ]
    for optimizer in optimizers:
        pyhf.set_backend("numpy", optimizer)
        with suppress(pyhf.exceptions.FailedMinimization):
            return function()
    return None


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # pyhf takes logarithms of negative rates
@pytest.mark.parametrize("first", range(0, 500, 50))
def test_50_random_runs_agree_with_pyhf_in_strength_error_q0_and_cls(
    first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    differences: dict[str, list[float]] = {"mu / error": [], "error, relative": [], "q0": [], "CLs(1)": []}
    at_bound, without_minimum, higher = 0, 0, 0
    for seed in range(first, first + 50):
        likelihood = Likelihood(random_run(seed)["workspace"])
        model, data, poi = likelihood.model, likelihood.data, likelihood.poi

        def twice_nll(parameters: Any, model: Any = model, data: Any = data) -> float:
            return -2 * float(model.logpdf(np.asarray(parameters), data)[0])

        best = likelihood.fit(data)
        error = float(np.sqrt(likelihood.covariance(best, data)[poi, poi]))
        profile = Profile(likelihood, data, best)
        not_negative = [list(bounds) for bounds in model.config.suggested_bounds()]
        not_negative[poi][0] = 0.0
        init, fixed = model.config.suggested_init(), model.config.suggested_fixed()
        fitted = by_pyhf(lambda: pyhf.infer.mle.fit(data, model, return_uncertainties=True))  # noqa: B023
        tested = by_pyhf(
            lambda: pyhf.infer.test_statistics.q0(0.0, data, model, init, not_negative, fixed, return_fitted_pars=True)  # noqa: B023
        )
        cls = by_pyhf(lambda: pyhf.infer.hypotest(1.0, data, model, par_bounds=not_negative))  # noqa: B023
        without_minimum += any(one is None for one in (fitted, tested, cls))
        to_bound = min(profile.mu_hat - likelihood.low[poi], likelihood.high[poi] - profile.mu_hat)
        at_bound += to_bound < 1e-9
        if fitted is not None:
            mu, minuit_error = (float(one) for one in np.atleast_2d(fitted)[poi])
            differences["mu / error"].append(abs(profile.mu_hat - mu) / error)
            if to_bound > NEAR_BOUND * error and minuit_error > 0:  # 0: an optimiser without uncertainties
                differences["error, relative"].append(abs(error / minuit_error - 1))
        if tested is not None:
            q0, (at_zero, free) = tested
            without_signal = likelihood.fit(data, mu=0.0)
            above = [
                twice_nll(theirs) - twice_nll(ours.parameters)
                for theirs, ours in ((at_zero, without_signal), (free, best if profile.mu_hat > 0 else without_signal))
            ]
            assert min(above) > -0.01, f"pyhf's minimum is lower, seed {seed}: {above}"
            if max(above) > 0.01:
                higher += 1
            else:
                differences["q0"].append(abs(profile.q0() - float(q0)) / max(1.0, profile.q0()))
        if cls is not None:
            differences["CLs(1)"].append(abs(Limits(likelihood, profile).cls(1.0) - float(cls)))
    with capsys.disabled():
        print(f"\nruns {first} to {first + 49}: {at_bound} with the signal strength at a bound; ", end="")
        print(f"pyhf did not converge in {without_minimum}, and found a higher minimum in {higher}")
        for name, found in differences.items():
            print(f"{name:<16} largest difference {max(found):.1e}, median {np.median(found):.1e} ({len(found)} runs)")
    assert without_minimum + higher <= 5
    assert max(differences["mu / error"]) < 0.01
    assert max(differences["error, relative"]) < 0.1
    assert max(differences["q0"]) < 0.01
    assert max(differences["CLs(1)"]) < 0.005
