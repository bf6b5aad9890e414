"""The profile likelihood ratio of the signal strength, and limits by CLs.

References: [1] G. Cowan, K. Cranmer, E. Gross, O. Vitells, Eur. Phys. J. C 71 (2011) 1554 (asymptotic
formulae); [2] A. L. Read, J. Phys. G 28 (2002) 2693 (CLs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.special import log_ndtr

from workers.analysis.statistics.minimisation.likelihood import Fit, FitError, Likelihood

FloatArray = npt.NDArray[np.float64]
T = TypeVar("T")

CONFIDENCE_LEVEL = 0.95
_SCAN_POINTS = 41
_N_SIGMA = (-2, -1, 0, 1, 2)


class Profile:
    """The profile likelihood ratio of the signal strength μ for data, whose fit is ``best``."""

    def __init__(self, likelihood: Likelihood, data: FloatArray, best: Fit) -> None:
        self.likelihood, self.data, self.best = likelihood, data, best
        self.mu_hat = float(best.parameters[likelihood.poi])
        self._minima: dict[float, FloatArray] = {self.mu_hat: best.parameters}
        self._known: dict[float, float] = {}

    def conditional(self, mu: float) -> Fit:
        """Fit with fixed μ; the search begins on the parabola through the parameters of the three nearest fits."""
        nearest = sorted(self._minima, key=lambda fitted: abs(fitted - mu))[:3]
        weights = [prod((mu - other) / (fitted - other) for other in nearest if other != fitted) for fitted in nearest]
        start = np.average([self._minima[fitted] for fitted in nearest], axis=0, weights=weights)
        fit = self.likelihood.fit(self.data, start, mu=mu)
        self._minima[mu] = fit.parameters
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
        """The two μ below and above μ̂ with -2 ln λ(μ) = 1; None for one beyond a bound of μ."""
        bounds = (float(side[self.likelihood.poi]) for side in (self.likelihood.low, self.likelihood.high))
        return [
            _crossing(lambda mu: self(mu) - 1.0, self.mu_hat, sign * error, bound)
            for sign, bound in zip((-1, 1), bounds, strict=True)
        ]

    def scan(self, error: float, interval: Sequence[float | None]) -> dict[str, list[float]]:
        """-2 ln λ(μ) as far as it is below about 10: 3.2 times the distance of each end of the ``interval``.

        Within the bounds of μ, and without the points whose fit does not reach a minimum.
        """
        low, high = (float(side[self.likelihood.poi]) for side in (self.likelihood.low, self.likelihood.high))
        below, above = (error if end is None else abs(end - self.mu_hat) for end in interval)
        ends = max(low, self.mu_hat - 3.2 * below), min(high, self.mu_hat + 3.2 * above)
        found = dict(_values(self, np.linspace(*ends, _SCAN_POINTS).tolist()))
        return {"mu": list(found), "twice_delta_nll": list(found.values())}


class Limits:
    """CLs from q̃(μ) and its asymptotic distributions.

    The Asimov data are those of μ = 0 with the nuisance parameters fitted to the data.
    """

    def __init__(self, likelihood: Likelihood, profile: Profile) -> None:
        self._observed = profile
        without = likelihood.fit(profile.data, mu=0.0)
        data = likelihood.asimov(without.parameters)
        at_truth = likelihood.twice_nll(without.parameters, data)[0]  # the likelihood's maximum for the Asimov data
        self._asimov = Profile(likelihood, data, Fit(without.parameters, at_truth))

    def cls(self, mu: float) -> float:
        """CLs = p(s+b) / (1 - p(b)) of the data [1, eqs. 64 to 66; 2]; 1 if μ changes no expected event."""
        q, q_asimov = self._observed.q_tilde(mu), self._asimov.q_tilde(mu)
        root = np.sqrt(q_asimov)
        if root == 0:
            return 1.0
        if q <= q_asimov:
            signal, background = -np.sqrt(q), root - np.sqrt(q)
        else:
            signal, background = -(q + q_asimov) / (2 * root), (q_asimov - q) / (2 * root)
        return float(np.exp(log_ndtr(signal) - log_ndtr(background)))

    def expected(self, mu: float) -> list[float]:
        """CLs of data at -2 to 2 standard deviations from the median without a signal [1, 4.3]."""
        root = np.sqrt(self._asimov.q_tilde(mu))
        return [float(np.exp(log_ndtr(n - root) - log_ndtr(n))) for n in _N_SIGMA]

    def scan(self, mu_hat: float, error: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """The scan of CLs over μ, and the upper limits: the μ with CLs = 0.05, interpolated in ln CLs.

        The scan ends 4.5 errors above μ̂, or further up where all limits are below its end; at the bound of μ
        at the latest. It is without the points whose fit does not reach a minimum.
        """
        bound = float(self._observed.likelihood.high[self._observed.likelihood.poi])
        end = min(max(mu_hat, 0.0) + 4.5 * error, bound)
        while end < bound and any(
            max(found) > 1 - CONFIDENCE_LEVEL for _, found in _values(self._observed_and_expected, [end])
        ):
            end = min(1.5 * end, bound)
        points = dict(_values(self._observed_and_expected, np.linspace(0.0, end, _SCAN_POINTS)[1:].tolist()))
        mu = np.array(list(points))
        limits = [_limit(mu, [found[n] for found in points.values()]) for n in range(1 + len(_N_SIGMA))]
        observed, expected = ([found[0] for found in points.values()], [found[1:] for found in points.values()])
        scan = {"mu": mu.tolist(), "cls_observed": observed, "cls_expected": expected}
        return scan, {"observed": limits[0], "expected": limits[1:]}

    def _observed_and_expected(self, mu: float) -> list[float]:
        return [self.cls(mu), *self.expected(mu)]


def _values(function: Callable[[float], T], points: Iterable[float]) -> list[tuple[float, T]]:
    """The points, each with the function's value, without those at which it raises FitError."""
    found = []
    for point in points:
        with suppress(FitError):
            found.append((point, function(point)))
    return found


def _limit(mu: FloatArray, cls: Sequence[float]) -> float | None:
    """The μ at which CLs falls to 0.05; None if it does not within the scan."""
    log_cls = np.log(np.maximum(np.concatenate([[1.0], cls]), 1e-300)) - np.log(1 - CONFIDENCE_LEVEL)
    if log_cls[-1] > 0:  # also without a scan
        return None
    mu = np.concatenate([[0.0], mu])
    last = int(np.flatnonzero(log_cls > 0)[-1])
    return float(brentq(PchipInterpolator(mu, log_cls), mu[last], mu[last + 1]))


def _crossing(function: Callable[[float], float], start: float, step: float, bound: float) -> float | None:
    """The first zero of a function from ``start``, where it is negative, towards ``bound``; None if there is none.

    The search goes by ``step``, whose sign is the direction and which doubles each time.
    """
    inner, outer = start, start
    while outer != bound:
        outer += step
        outer = min(outer, bound) if step > 0 else max(outer, bound)
        if function(outer) >= 0:
            return float(brentq(function, inner, outer, xtol=1e-6))
        inner, step = outer, 2 * step
    return None
