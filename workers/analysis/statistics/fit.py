"""The fit of a run: signal strength, significance, limits, mass.

References: [1] G. Cowan, K. Cranmer, E. Gross, O. Vitells, Eur. Phys. J. C 71 (2011) 1554 (asymptotic
formulae); [2] A. L. Read, J. Phys. G 28 (2002) 2693 (CLs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyhf
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import chi2

from workers.analysis.statistics.likelihood import Fit, Likelihood
from workers.analysis.statistics.mass import mass_of
from workers.analysis.statistics.workspace import treatment

FloatArray = npt.NDArray[np.float64]

CONFIDENCE_LEVEL = 0.95
_SCAN_POINTS = 41
_N_SIGMA = (-2, -1, 0, 1, 2)


def fit_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The ``fit`` part of a result document, whose ``workspace`` is fitted.

    ===================================== =================================================================
    ``signal_strength``                   μ̂, the maximum-likelihood estimate of the signal's yield over the
                                          simulated one; may be negative
    ``signal_strength_error``             √(covariance) from the second derivatives of -ln L at the minimum
    ``signal_strength_interval``          where the profile likelihood ratio -2 ln λ(μ) = 1: 68.3 % [1, 2.1]
    ``significance_observed``             √q₀, standard deviations from no signal; 0 for μ̂ < 0 [1, eqs. 12, 53]
    ``p0_observed``                       1 - Φ(√q₀): the probability of so much or more without a signal
    ``significance_expected``             the same of the Asimov data of μ = 1, nominal simulation [1, 4.2]
    ``cls_mu1``                           CLs of μ = 1 by q̃(1) [1, eqs. 64 to 66; 2]
    ``upper_limit``                       the μ with CLs = 0.05: observed, and expected without a signal at
                                          -2 to 2 standard deviations
    ``parameters``                        NAME: value, error and, but for ``mu``, pull = (value - nominal) over
                                          the constraint's width, and constraint = error over that width
    ``correlations``                      of all free parameters: ``names`` and the ``matrix``
    ``yields``                            before and after the fit, by category: events, and their error from
                                          the parameters' covariance
    ``prefit``, ``postfit``               expected events by bin: by category, and ``total`` with its errors
    ``goodness_of_fit``                   -2 ln of the likelihood over that of a model which fits each bin
                                          exactly; its p-value by the χ² of (bins - 1)
    ``likelihood_scan``                   μ and -2 ln λ(μ)
    ``limit_scan``                        μ, CLs observed, CLs expected at -2 to 2 standard deviations
    ``mass``                              of the Higgs boson: see ``mass_of``
    ``treatment``                         what was done about too few simulated events: see ``workspace_of``
    ``software``                          the version of pyhf
    ===================================== =================================================================

    Raises FitError where a minimum is not found.
    """
    pyhf.set_backend("numpy")
    workspace = result["workspace"]
    likelihood = Likelihood(workspace)
    data, poi = likelihood.data, likelihood.poi
    best = likelihood.fit(data)
    covariance = likelihood.covariance(best, data)
    mu_hat, error = float(best.parameters[poi]), float(np.sqrt(covariance[poi, poi]))
    profile = Profile(likelihood, data, best)
    asimov_with = likelihood.asimov(likelihood.start)
    with_signal = Profile(likelihood, asimov_with, likelihood.fit(asimov_with))
    limits = Limits(likelihood, profile)
    q0 = profile.q0()
    limit_scan, upper_limit = limits.scan(mu_hat, error)
    prior = _prior_covariance(likelihood)
    nominal = Fit(likelihood.start, 0.0)
    prefit, prefit_yields = _expectation(likelihood, nominal, prior)
    postfit, postfit_yields = _expectation(likelihood, best, covariance)
    return {
        "signal_strength": mu_hat,
        "signal_strength_error": error,
        "signal_strength_interval": profile.interval(error),
        "significance_observed": float(np.sqrt(q0)),
        "p0_observed": float(ndtr(-np.sqrt(q0))),
        "significance_expected": float(np.sqrt(with_signal.q0())),
        "cls_mu1": limits.cls(1.0),
        "upper_limit": {"confidence_level": CONFIDENCE_LEVEL, **upper_limit},
        "parameters": _parameters(likelihood, best, covariance),
        "correlations": _correlations(likelihood, covariance),
        "yields": {"prefit": prefit_yields, "postfit": postfit_yields},
        "prefit": prefit,
        "postfit": postfit,
        "goodness_of_fit": _goodness(likelihood, best),
        "likelihood_scan": profile.scan(mu_hat, error),
        "limit_scan": limit_scan,
        "mass": mass_of(result),
        "treatment": treatment(workspace, result),
        "software": {"pyhf": pyhf.__version__},
    }


class Profile:
    """The profile likelihood of the signal strength for some data, of which ``best`` is the fit."""

    def __init__(self, likelihood: Likelihood, data: FloatArray, best: Fit) -> None:
        self.likelihood, self.data, self.best = likelihood, data, best
        self.mu_hat = float(best.parameters[likelihood.poi])
        self._last = (self.mu_hat, best.parameters)
        self._last_but_one = self._last
        self._known: dict[float, float] = {}

    def conditional(self, mu: float) -> Fit:
        """The fit with μ held; begun where a straight line through the last two of them leads."""
        (last, there), (before, from_there) = self._last, self._last_but_one
        start = there if last == before else there + (there - from_there) * (mu - last) / (last - before)
        fit = self.likelihood.fit(self.data, start, mu=mu)
        self._last_but_one, self._last = self._last, (mu, fit.parameters)
        return fit

    def __call__(self, mu: float) -> float:
        """-2 ln λ(μ) = -2 ln L(μ, θ̂(μ)) + 2 ln L(μ̂, θ̂) [1, eq. 7]."""
        if mu not in self._known:
            self._known[mu] = max(0.0, self.conditional(mu).twice_nll - self.best.twice_nll)
        return self._known[mu]

    def q0(self) -> float:
        """q₀ = -2 ln λ(0) for μ̂ ≥ 0, else 0 [1, eq. 12]."""
        return self(0.0) if self.mu_hat > 0 else 0.0

    def q_tilde(self, mu: float) -> float:
        """q̃(μ): -2 ln λ(μ) below μ, with μ = 0 in place of a negative μ̂, and 0 for μ̂ > μ [1, eq. 16]."""
        if self.mu_hat > mu:
            return 0.0
        return max(0.0, self(mu) - (self(0.0) if self.mu_hat < 0 else 0.0))

    def interval(self, error: float) -> list[float | None]:
        """Where -2 ln λ(μ) = 1 on either side of μ̂; None where a bound of μ comes first."""
        bounds = (float(side[self.likelihood.poi]) for side in (self.likelihood.low, self.likelihood.high))
        return [
            _crossing(lambda mu: self(mu) - 1.0, self.mu_hat, way * error, bound)
            for way, bound in zip((-1, 1), bounds, strict=True)
        ]

    def scan(self, mu_hat: float, error: float) -> dict[str, list[float]]:
        """-2 ln λ(μ) from three and a half errors below μ̂ to four above, inside the bounds of μ."""
        low, high = (float(side[self.likelihood.poi]) for side in (self.likelihood.low, self.likelihood.high))
        mu = np.linspace(max(low, mu_hat - 3.5 * error), min(high, mu_hat + 4.0 * error), _SCAN_POINTS)
        return {"mu": mu.tolist(), "twice_delta_nll": [self(value) for value in mu]}


class Limits:
    """CLs by q̃(μ) and its asymptotic distributions, with the Asimov data of μ = 0 fitted to the data."""

    def __init__(self, likelihood: Likelihood, profile: Profile) -> None:
        self._observed = profile
        without = likelihood.fit(profile.data, mu=0.0)
        data = likelihood.asimov(without.parameters)
        at_truth = likelihood.twice_nll(data, data)  # the Asimov data's own parameters fit them best
        self._asimov = Profile(likelihood, data, Fit(without.parameters, at_truth))

    def cls(self, mu: float) -> float:
        """CLs = p(s+b) / (1 - p(b)) of the data [1, eqs. 64 to 66; 2]."""
        q, q_asimov = self._observed.q_tilde(mu), self._asimov.q_tilde(mu)
        root = np.sqrt(q_asimov)
        if q <= q_asimov:
            signal, background = ndtr(-np.sqrt(q)), ndtr(root - np.sqrt(q))
        else:
            signal, background = ndtr(-(q + q_asimov) / (2 * root)), ndtr((q_asimov - q) / (2 * root))
        return float(signal / background)

    def expected(self, mu: float) -> list[float]:
        """CLs where the data lie -2 to 2 standard deviations from the median without a signal [1, 4.3]."""
        root = np.sqrt(self._asimov.q_tilde(mu))
        return [float(ndtr(n - root) / ndtr(n)) for n in _N_SIGMA]

    def scan(self, mu_hat: float, error: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """CLs over μ, and the μ at which it is 0.05, interpolated in ln CLs."""
        high = max(mu_hat, 0.0) + 4.5 * error
        bound = float(self._observed.likelihood.high[self._observed.likelihood.poi])
        mu = np.linspace(0.0, min(high, bound), _SCAN_POINTS)[1:]
        observed = [self.cls(value) for value in mu]
        expected = [self.expected(value) for value in mu]
        scan = {"mu": mu.tolist(), "cls_observed": observed, "cls_expected": expected}
        bands = [_limit(mu, [band[n] for band in expected]) for n in range(len(_N_SIGMA))]
        return scan, {"observed": _limit(mu, observed), "expected": bands}


def _limit(mu: FloatArray, cls: Sequence[float]) -> float | None:
    """The μ at which CLs falls to 0.05; None where it does not on the scan."""
    log_cls = np.log(np.maximum(np.concatenate([[1.0], cls]), 1e-300)) - np.log(1 - CONFIDENCE_LEVEL)
    if log_cls[-1] > 0:
        return None
    mu = np.concatenate([[0.0], mu])
    last = int(np.flatnonzero(log_cls > 0)[-1])
    return float(brentq(PchipInterpolator(mu, log_cls), mu[last], mu[last + 1]))


def _crossing(function: Callable[[float], float], start: float, step: float, bound: float) -> float | None:
    """Where a function that is negative at ``start`` becomes 0, going by ``step`` at first; None beyond ``bound``."""
    inner, outer = start, start
    while outer != bound:
        outer += step
        outer = min(outer, bound) if step > 0 else max(outer, bound)
        if function(outer) >= 0:
            return float(brentq(function, inner, outer, xtol=1e-6))
        inner = outer
    return None


def _parameters(likelihood: Likelihood, best: Fit, covariance: FloatArray) -> dict[str, dict[str, float]]:
    """Values, errors, pulls and constraints of the free parameters."""
    errors = np.sqrt(np.diag(covariance))
    widths = np.sqrt(np.diag(_prior_covariance(likelihood)))
    found: dict[str, dict[str, float]] = {}
    for place, name in enumerate(likelihood.names):
        if likelihood.fixed[place]:
            continue
        value, error = float(best.parameters[place]), float(errors[place])
        found[name] = {"value": value, "error": error}
        if place != likelihood.poi:
            pull = (value - float(likelihood.start[place])) / float(widths[place])
            found[name] |= {"pull": pull, "constraint": error / float(widths[place])}
    return found


def _correlations(likelihood: Likelihood, covariance: FloatArray) -> dict[str, Any]:
    free = ~likelihood.fixed
    errors = np.sqrt(np.diag(covariance))[free]
    matrix = covariance[np.ix_(free, free)] / np.outer(errors, errors)
    names = [name for name, is_free in zip(likelihood.names, free, strict=True) if is_free]
    return {"names": names, "matrix": np.clip(matrix, -1, 1).tolist()}


def _prior_covariance(likelihood: Likelihood) -> FloatArray:
    """The constraints' variances, before any data; 0 for μ, which has none."""
    config = likelihood.model.config
    variances = np.zeros(config.npars)
    place = 0
    for name in config.auxdata_order:
        where = config.par_slice(name)
        size = where.stop - where.start
        variances[where] = likelihood.widths[place : place + size] ** 2
        place += size
    variances[likelihood.fixed] = 0.0
    return np.diag(variances)


def _expectation(
    likelihood: Likelihood, fit: Fit, covariance: FloatArray
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Expected events by bin and by category, with the parameters' uncertainties propagated to first order."""
    samples = likelihood.model.config.samples
    central, slopes = likelihood.rates(fit.parameters)

    def deviation(slope: FloatArray) -> FloatArray:
        """Of a quantity with these derivatives, shape (..., parameters)."""
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
    """The saturated model's test (R. D. Cousins, 2013): as many degrees of freedom as bins, less one for μ."""
    counts = likelihood.data[: likelihood.bins]
    filled = counts > 0
    saturated = 2 * float(np.sum(counts) - np.sum(counts[filled] * np.log(counts[filled])))
    ratio = best.twice_nll - saturated
    degrees = likelihood.bins - 1
    return {"twice_nll_ratio": ratio, "degrees_of_freedom": degrees, "p_value": float(chi2.sf(ratio, degrees))}
