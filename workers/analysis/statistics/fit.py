"""The fit of a run: signal strength, significance, limits, position of the peak.

References: [1] G. Cowan, K. Cranmer, E. Gross, O. Vitells, Eur. Phys. J. C 71 (2011) 1554 (asymptotic
formulae); [2] A. L. Read, J. Phys. G 28 (2002) 2693 (CLs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyhf
from scipy.special import ndtr
from scipy.stats import chi2

from physics import ANALYSES
from workers.analysis.statistics.minimisation.likelihood import Fit, FitError, Likelihood
from workers.analysis.statistics.minimisation.profile import CONFIDENCE_LEVEL, Limits, Profile
from workers.analysis.statistics.peak import peak_of
from workers.analysis.statistics.workspace import treatment

FloatArray = npt.NDArray[np.float64]

#: The part of the document that compares with the absence of the signal, for a model that is no search.
NO_SEARCH = dict.fromkeys(("significance_observed", "p0_observed", "significance_expected", "cls_mu1"))


def fit_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Fit the ``workspace`` of a result document; returns the document's ``fit``.

    ===================================== =================================================================
    ``signal_strength``                   μ̂, the maximum-likelihood estimate of the ratio of the signal's yield
                                          to the simulated one; may be negative
    ``signal_strength_error``             √(covariance) from the second derivatives of -ln L at the minimum; None at
                                          a bound of μ, where the minimum is no estimate
    ``signal_strength_interval``          the two μ with -2 ln λ(μ) = 1: 68.3 % [1, 2.1]; None beyond a bound
    ``significance_observed``             √q₀, in standard deviations; 0 for μ̂ < 0 [1, eqs. 12, 53]
    ``p0_observed``                       1 - Φ(√q₀): the probability of a q₀ at least as large without a signal
    ``significance_expected``             √q₀ of the Asimov data of μ = 1, nominal simulation [1, 4.2]
    ``cls_mu1``                           CLs of μ = 1 by q̃(1) [1, eqs. 64 to 66; 2]
    ``upper_limit``                       the μ with CLs = 0.05: observed, and expected without a signal at
                                          -2 to 2 standard deviations; None beyond the bound of μ
    ``parameters``                        by name: value and error, at a bound of a parameter 1 over the slope of
                                          -2 ln L; except for ``mu`` also pull = (value - nominal) over the
                                          constraint's width, and constraint = error over that width
    ``correlations``                      of the free parameters: ``names`` and ``matrix``
    ``yields``                            before and after the fit, by category: events, and their error
                                          propagated from the parameters' covariance
    ``prefit``, ``postfit``               expected events by bin, for each category and for ``total``, with errors
    ``goodness_of_fit``                   -2 ln of the likelihood ratio to a model that fits each bin exactly,
                                          and its p-value for a χ² distribution of (bins - 1)
    ``likelihood_scan``                   μ and -2 ln λ(μ)
    ``limit_scan``                        μ, CLs observed, CLs expected at -2 to 2 standard deviations
    the name of the model's peak          its position: see ``peak_of``
    ``treatment``                         how bins and categories with few simulated events were treated
    ``software``                          the version of pyhf
    ===================================== =================================================================

    ``significance_observed`` to ``cls_mu1``, ``upper_limit`` and ``limit_scan`` compare with the absence of the
    signal. For a model that is no search the first are None, and the last two left out. Raises FitError if a
    minimum is not found.
    """
    pyhf.set_backend("numpy")
    workspace = result["workspace"]
    likelihood = Likelihood(workspace)
    data, poi = likelihood.data, likelihood.poi
    best = likelihood.fit(data)
    covariance = likelihood.covariance(best, data)
    mu_hat, error = float(best.parameters[poi]), float(np.sqrt(covariance[poi, poi]))
    profile = Profile(likelihood, data, best)
    is_search = ANALYSES.of_result(result).model.is_search
    # A conditional fit begins between the nearest ones made before, so that the order of these lines matters to the
    # last bit.
    q0 = profile.q0() if is_search else None
    interval = profile.interval(error)
    search = NO_SEARCH if q0 is None else _search(likelihood, profile, q0, error)
    prior = _prior_covariance(likelihood)
    nominal = Fit(likelihood.start, 0.0)
    prefit, prefit_yields = _expectation(likelihood, nominal, prior)
    postfit, postfit_yields = _expectation(likelihood, best, covariance)
    return {
        "signal_strength": mu_hat,
        "signal_strength_error": None if mu_hat in (likelihood.low[poi], likelihood.high[poi]) else error,
        "signal_strength_interval": interval,
        **search,
        "parameters": _parameters(likelihood, best, covariance),
        "correlations": _correlations(likelihood, covariance),
        "yields": {"prefit": prefit_yields, "postfit": postfit_yields},
        "prefit": prefit,
        "postfit": postfit,
        "goodness_of_fit": _goodness(likelihood, best),
        "likelihood_scan": profile.scan(error, interval),
        **_measured_peak(result),
        "treatment": treatment(workspace, result),
        "software": {"pyhf": pyhf.__version__},
    }


def _search(likelihood: Likelihood, profile: Profile, q0: float, error: float) -> dict[str, Any]:
    """Return the significance of the signal and the upper limit of its strength, whose fitted error is ``error``."""
    asimov_with = likelihood.asimov(likelihood.start)
    with_signal = Profile(likelihood, asimov_with, likelihood.fit(asimov_with))
    limits = Limits(likelihood, profile)
    limit_scan, upper_limit = limits.scan(profile.mu_hat, error)
    return {
        "significance_observed": float(np.sqrt(q0)),
        "p0_observed": float(ndtr(-np.sqrt(q0))),
        "significance_expected": float(np.sqrt(with_signal.q0())),
        "cls_mu1": limits.cls(1.0),
        "upper_limit": {"confidence_level": CONFIDENCE_LEVEL, **upper_limit},
        "limit_scan": limit_scan,
    }


def _measured_peak(result: Mapping[str, Any]) -> dict[str, Any]:
    """The position of the peak under its name, or why it was not found; the fit does not depend on it."""
    peak = ANALYSES.of_result(result).model.peak
    if peak is None:
        return {}
    try:
        return {peak.name: peak_of(result)}
    except FitError as problem:
        return {f"{peak.name}_problem": str(problem)}


def _parameters(likelihood: Likelihood, best: Fit, covariance: FloatArray) -> dict[str, dict[str, float]]:
    """Values, errors, pulls and constraints of the free parameters."""
    errors = np.sqrt(np.diag(covariance))
    widths = np.sqrt(np.diag(_prior_covariance(likelihood)))
    found: dict[str, dict[str, float]] = {}
    for index, name in enumerate(likelihood.names):
        if likelihood.fixed[index]:
            continue
        value, error = float(best.parameters[index]), float(errors[index])
        found[name] = {"value": value, "error": error}
        if index != likelihood.poi:
            pull = (value - float(likelihood.start[index])) / float(widths[index])
            found[name] |= {"pull": pull, "constraint": error / float(widths[index])}
    return found


def _correlations(likelihood: Likelihood, covariance: FloatArray) -> dict[str, Any]:
    free = ~likelihood.fixed
    errors = np.sqrt(np.diag(covariance))[free]
    matrix = covariance[np.ix_(free, free)] / np.outer(errors, errors)
    names = [name for name, is_free in zip(likelihood.names, free, strict=True) if is_free]
    return {"names": names, "matrix": np.clip(matrix, -1, 1).tolist()}


def _prior_covariance(likelihood: Likelihood) -> FloatArray:
    """The covariance of the constraints alone, shape (parameters, parameters); 0 for μ, which has no constraint."""
    config = likelihood.model.config
    variances = np.zeros(config.npars)
    start = 0
    for name in config.auxdata_order:
        indices = config.par_slice(name)
        size = indices.stop - indices.start
        variances[indices] = likelihood.widths[start : start + size] ** 2
        start += size
    variances[likelihood.fixed] = 0.0
    return np.diag(variances)


def _expectation(
    likelihood: Likelihood, fit: Fit, covariance: FloatArray
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Expected events by bin, and by category, with errors propagated to first order from the covariance."""
    samples = likelihood.model.config.samples
    central, slopes = likelihood.rates(fit.parameters)

    def deviation(slope: FloatArray) -> FloatArray:
        """Standard deviations, shape (...), of quantities with these derivatives, shape (..., parameters)."""
        return np.asarray(np.sqrt(np.maximum(np.einsum("...i,ij,...j->...", slope, covariance, slope), 0.0)))

    bins: dict[str, Any] = {name: {"values": central[n].tolist()} for n, name in enumerate(samples)}
    total = slopes.sum(axis=0)
    bins["total"] = {"values": central.sum(axis=0).tolist(), "errors": deviation(total).tolist()}
    yields = {
        name: {"yield": float(central[n].sum()), "yield_error": float(deviation(slopes[n].sum(axis=0)))}
        for n, name in enumerate(samples)
    }
    yields["total"] = {"yield": float(central.sum()), "yield_error": float(deviation(total.sum(axis=0)))}
    return bins, yields


def _goodness(likelihood: Likelihood, best: Fit) -> dict[str, float]:
    """The test against the saturated model (R. D. Cousins, 2013): one degree of freedom per bin, less one for μ."""
    degrees = likelihood.bins - 1
    p_value = float(chi2.sf(best.twice_nll, degrees))
    return {"twice_nll_ratio": best.twice_nll, "degrees_of_freedom": degrees, "p_value": p_value}
