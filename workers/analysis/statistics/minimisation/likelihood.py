"""The likelihood of a workspace: pyhf's model, minimised by scipy with derivatives in closed form.

With numpy, pyhf's minimisers compute gradients by finite differences, one
parameter after the other, which takes half a second a fit. ``Rates`` has the
derivatives, with which scipy's L-BFGS-B reaches the same minimum in a few
milliseconds. Reference: R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, SIAM J. Sci.
Comput. 16 (1995) 1190.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyhf
from scipy.optimize import Bounds, minimize
from scipy.special import xlogy

from workers.analysis.statistics.minimisation.rates import Rates

FloatArray = npt.NDArray[np.float64]

#: Step of the second derivatives, in standard deviations of a parameter whose others are fixed.
_STEP = 1e-3
#: A parameter is at a bound that is not further away than this, in the same units.
_AT_BOUND = 1e-6
#: The logarithm of a rate is replaced by its tangent below this fraction of the nominal rate.
_LEAST_RATE = 1e-6
#: A fit ends when a step changes -2 ln L by a fraction below ``ftol``, or when all derivatives are below ``gtol``.
_OPTIONS = {"ftol": 1e-13, "gtol": 1e-5, "maxcor": 20, "maxiter": 2000, "maxfun": 2000}
#: The largest derivative of -2 ln L at a minimum, by a parameter in units of its standard deviation.
_LARGEST_SLOPE = 1e-2


class FitError(Exception):
    """A fit does not reach a minimum."""


@dataclass(frozen=True)
class Fit:
    """A minimum: the parameters, shape (parameters,), and -2 ln L there."""

    parameters: FloatArray
    twice_nll: float


class Likelihood:
    """The likelihood of a workspace's first measurement.

    As in pyhf, ``data`` has the observed counts followed by the auxiliary
    measurements of the constraints. -2 ln L is relative to that of a model which
    describes the data exactly.
    """

    def __init__(self, workspace: Mapping[str, Any]) -> None:
        measurement = workspace["measurements"][0]
        spec = {"channels": workspace["channels"], "parameters": measurement["config"]["parameters"]}
        poi = measurement["config"]["poi"]
        self.model = pyhf.Model(spec, poi_name=poi, validate=False)
        config = self.model.config
        n = config.npars
        self.rates = Rates(workspace, config.samples, config.par_slice, n)
        self._auxiliary = np.concatenate([np.arange(n)[config.par_slice(name)] for name in config.auxdata_order])
        self._auxiliary_slopes = np.eye(n)[self._auxiliary]
        self.names: tuple[str, ...] = tuple(config.par_names)
        self.poi: int = config.poi_index
        self.start = np.asarray(config.suggested_init(), dtype=np.float64)
        self.low, self.high = (
            np.array(side, dtype=np.float64) for side in zip(*config.suggested_bounds(), strict=True)
        )
        self.fixed = np.asarray(config.suggested_fixed(), dtype=np.bool_)
        self.bins: int = config.nmaindata
        self.data = np.asarray([*workspace["observations"][0]["data"], *config.auxdata], dtype=np.float64)
        self.widths = np.concatenate([config.param_set(name).width() for name in config.auxdata_order])
        expected, slopes = self.expected(self.start)
        self._least_rate = _LEAST_RATE * expected[: self.bins]
        variances = np.concatenate([expected[: self.bins], self.widths**2])
        #: Standard deviation of each parameter at nominal values if the others are fixed.
        self._deviations = 1 / np.sqrt(np.sum(slopes**2 / variances[:, np.newaxis], axis=0))

    def expected(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Expected data, shape (data,), and their derivatives, shape (data, parameters)."""
        events, slopes = self.rates(parameters)
        return (
            np.concatenate([events.sum(axis=0), parameters[self._auxiliary]]),
            np.concatenate([slopes.sum(axis=0), self._auxiliary_slopes]),
        )

    def twice_nll(self, parameters: FloatArray, data: FloatArray) -> tuple[float, FloatArray]:
        """-2 ln L and its derivatives, shape (parameters,): Poisson in the bins, Gaussian in the auxiliary data.

        As in pyhf, a bin without events may have a negative rate. With events, the logarithm of a rate
        below a millionth of the nominal one is continued by its tangent, so that -2 ln L is finite
        everywhere and no minimum is there.
        """
        expected, slopes = self.expected(parameters)
        rate, count = expected[: self.bins], data[: self.bins]
        logged = np.maximum(rate, self._least_rate)
        below = np.minimum(rate - self._least_rate, 0.0) / self._least_rate
        pulls = (expected[self.bins :] - data[self.bins :]) / self.widths
        value = 2 * np.sum(rate - count + xlogy(count, count / logged) - count * below) + np.sum(pulls**2)
        return float(value), 2 * np.concatenate([1 - count / logged, pulls / self.widths]) @ slopes

    def fit(self, data: FloatArray, start: FloatArray | None = None, mu: float | None = None) -> Fit:
        """Minimise -2 ln L for these data within the parameters' bounds; ``mu`` fixes the signal strength.

        The search begins at ``start``, by default at the nominal parameters. Raises FitError if no
        minimum is reached.
        """
        x = np.clip(self.start if start is None else start, self.low, self.high)
        free = ~self.fixed
        if mu is not None:
            x[self.poi], free[self.poi] = mu, False
        scale = self._deviations[free]

        def function(scaled: FloatArray) -> tuple[float, FloatArray]:
            x[free] = scaled * scale
            value, slopes = self.twice_nll(x, data)
            return value, slopes[free] * scale

        bounds = Bounds(self.low[free] / scale, self.high[free] / scale)
        found = minimize(function, x[free] / scale, jac=True, method="L-BFGS-B", bounds=bounds, options=_OPTIONS)
        slopes = np.where(found.x <= bounds.lb + _AT_BOUND, np.minimum(found.jac, 0.0), found.jac)
        slopes = np.where(found.x >= bounds.ub - _AT_BOUND, np.maximum(slopes, 0.0), slopes)
        if not np.abs(slopes).max() < _LARGEST_SLOPE:
            raise FitError(f"-2 ln L = {found.fun:.6g} is not at a minimum after {found.nfev} evaluations")
        x[free] = np.clip(found.x * scale, self.low[free], self.high[free])
        return Fit(x, float(found.fun))

    def covariance(self, fit: Fit, data: FloatArray) -> FloatArray:
        """Covariance of the parameters at a minimum, shape (parameters, parameters); 0 for fixed parameters.

        The inverse of the second derivatives of -ln L, as computed by Minuit's HESSE. A parameter at a
        bound has no correlation with the others, and as its error the distance at which -2 ln L has risen
        by 1 with the slope at the bound, at most the distance between its bounds.
        """
        x = fit.parameters
        gradient = self.twice_nll(x, data)[1] / 2
        to_bound = np.minimum(x - self.low, self.high - x)
        at_bound = ~self.fixed & (to_bound < _AT_BOUND * self._deviations)
        information = np.zeros((len(x), len(x)))
        for index in np.flatnonzero(~self.fixed & ~at_bound):
            step = np.zeros_like(x)
            step[index] = min(_STEP * self._deviations[index], to_bound[index] / 2)
            up, down = (self.twice_nll(x + sign * step, data)[1] for sign in (1, -1))
            information[index] = (up - down) / (4 * step[index])
        information = (information + information.T) / 2
        information[at_bound, :] = information[:, at_bound] = 0.0
        least = 1 / (self.high - self.low)
        information[at_bound, at_bound] = np.maximum(np.abs(2 * gradient), least)[at_bound] ** 2
        covariance = np.zeros_like(information)
        free = np.ix_(~self.fixed, ~self.fixed)
        covariance[free] = np.linalg.inv(information[free])
        return covariance

    def asimov(self, parameters: FloatArray) -> FloatArray:
        """Asimov data of these parameters, with the auxiliary measurements (Cowan et al. 2011, section 3.2).

        A bin with a negative rate has no events.
        """
        data = self.expected(parameters)[0]
        return np.concatenate([np.maximum(data[: self.bins], 0.0), data[self.bins :]])
