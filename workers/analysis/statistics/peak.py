"""The position of the signal's peak, such as the mass of a boson: a peak in fine bins on a smooth background.

    expected(bin) = μ · signal template of the position (bin) + β · background (bin)

References: [1] S. S. Wilks, Ann. Math. Statist. 9 (1938) 60; [2] G. J. Feldman, R. D. Cousins,
Phys. Rev. D 57 (1998) 3873; [3] B. Sen, M. Walker, M. Woodroofe, Statistica Sinica 19 (2009) 301;
[4] A. Savitzky, M. J. E. Golay, Anal. Chem. 36 (1964) 1627.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize_scalar, nnls
from scipy.signal import savgol_filter

from common.analyses import Analysis, Peak
from physics import ANALYSES
from workers.analysis.statistics.minimisation.likelihood import FitError

FloatArray = npt.NDArray[np.float64]

#: Degree of the Bernstein polynomial that smooths the background, which may have one maximum in the window.
_DEGREE = 3
#: Degree of the polynomials that smooth the peak: they keep its area, mean and standard deviation. Each covers this
#: many standard deviations of the peak on either side, which changes the height of a normal distribution by 0.4 %.
_PEAK_DEGREE, _PEAK_RANGE = 4, 1.5
_EXPERIMENTS, _SEED = 1000, 125
#: The pseudo-experiments are fitted in so many blocks, whose arrays fit into the processor's cache.
_BLOCKS = 25
_ONE_SIGMA = 0.6827
#: The lowest background, relative to the simulated one: keeps every rate positive.
_LEAST_BACKGROUND = 1e-6
#: Keeps the second derivatives invertible for a single event.
_REGULAR = 1 + 1e-9
_MAX_ITERATIONS = 100
#: A fit has converged when the expected decrease of -2 ln L is below this.
_TOLERANCE = 1e-8


def peak_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the position of the peak with the data of a result document, whose model has a ``Peak``.

    For each position of the scan, the signal template is the simulated peak, smoothed [4] and shifted to it by
    whole fine bins: without smoothing, the statistical fluctuations of the simulation move along with the
    peak and make waves in the scan. Its yield (μ ≥ 0) and that of the background (β) are fitted to the
    data in the peak's window, so that the position is measured by the shape alone. The
    background's shape is that of all simulated background in the bins of the observable,
    smoothed by a polynomial. With Δ(m) = -2 ln L(m) less its minimum, interpolated by a cubic
    spline, the measurement has, with the unit of the observable (``gev``) in the names,

    - ``value_gev``: the m with Δ = 0; None if the lowest point is an end of the scan, or no signal is fitted at any;
    - ``threshold``: the 68.3 % quantile of Δ at the true position in pseudo-experiments, which are
      drawn from the fit at its minimum: 1 for many events [1], more for few [2, 3]; at least 1. With 1,000
      experiments, its statistical uncertainty is about 5 %, which is 3 % of the interval's length;
    - ``statistical_interval_gev``: the two m with Δ(m) = ``threshold``; None for one beyond the scan;
    - ``SCALE_error_gev``: the model's scale uncertainty of the value, because the scale shifts the peak;
    - ``interval_gev``: both uncertainties, added in quadrature on each side; 68.3 %;
    - ``error_gev``: half the length of that interval; None if one of its ends is missing;
    - ``scan``: the positions (``m_h_gev`` for the symbol m_H), ``twice_delta_nll`` (statistical) and the
      fitted ``signal_strength``;
    - ``curve``: positions between them, ten to a fine bin, and Δ there by the spline;
    - ``problem``: says why something is None, or is None itself.
    """
    return PeakFit(result).measure(None)


@dataclass(frozen=True)
class Scan:
    """Fits of E experiments at M masses: -2 ln L, signal strengths and background factors, each of shape (E, M)."""

    twice_nll: FloatArray
    strength: FloatArray
    background: FloatArray


class PeakFit:
    """The templates of all scanned positions, for measurements with any data."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.analysis = ANALYSES.of_result(result)
        model = self.analysis.model
        if model.peak is None:
            raise ValueError(f"the model of {self.analysis.release} measures no peak")
        self.peak = peak = model.peak
        #: The scanned positions, each a whole number of fine bins from the simulated one.
        self.positions = np.arange(peak.scanned[0], peak.scanned[1] + peak.step / 2, peak.step)
        low, high = (round((edge - peak.axis.low) / peak.step) for edge in peak.window)
        fine = result[model.fine]
        signals = [fine[name] for name in self.analysis.with_role("signal") if name in fine]
        simulated = _smooth_peak(np.sum([np.asarray(one["values"]) for one in signals], axis=0))
        shifts = np.rint((self.positions - peak.simulated) / peak.step).astype(int)
        #: Signal templates, shape (positions, bins).
        self.signal = np.stack([simulated[low - shift : high - shift] for shift in shifts])
        #: Smoothed background, shape (bins,).
        self.background = _smooth_background(result, self.analysis, peak)
        (data,) = self.analysis.with_role("data")
        #: The data of the result document, shape (bins,).
        self.data = np.asarray(fine[data]["values"], dtype=np.float64)[low:high]

    def measure(self, data: FloatArray | None) -> dict[str, Any]:
        """Measure the position with these data, shape (bins,), or with those of the result; see ``peak_of``."""
        scan = self.scan(np.atleast_2d(self.data if data is None else data))
        twice_nll, strength = scan.twice_nll[0], scan.strength[0]
        lowest = int(np.argmin(twice_nll))
        return self._measured(
            twice_nll, strength, self._threshold(strength[lowest], scan.background[0, lowest], lowest)
        )

    def scan(self, counts: FloatArray, start: tuple[float, float] = (1.0, 1.0)) -> Scan:
        """Fit all positions to the counts of E experiments, shape (E, bins), starting from these μ and β.

        -2 ln L is convex in μ and β, and is minimised by Newton's method with steps that are
        halved until it decreases. Raises FitError if that does not converge.
        """
        shapes = np.stack([self.signal, np.broadcast_to(self.background, self.signal.shape)], axis=-1)
        products = np.stack([shapes[..., 0] ** 2, shapes[..., 0] * shapes[..., 1], shapes[..., 1] ** 2], axis=-1)
        expected = 2 * shapes.sum(axis=1)[:, None]
        least = np.array([0.0, _LEAST_BACKGROUND])
        yields = np.broadcast_to(start, (len(shapes), len(counts), 2)).copy()
        value, rate = self._twice_nll(yields, shapes, counts)
        for _ in range(_MAX_ITERATIONS):
            ratio = counts / rate
            slopes = expected - 2 * (ratio @ shapes)
            ratio /= rate
            of_mu, mixed, of_beta = np.moveaxis(2 * (ratio @ products), -1, 0)
            of_mu, of_beta = of_mu * _REGULAR + 1e-12, of_beta * _REGULAR + 1e-12
            held = (yields <= least) & (slopes > 0)
            slopes[held] = 0.0
            mixed[held.any(axis=-1)] = 0.0
            of_both = np.stack([of_beta, of_mu], axis=-1)
            determinant = (of_mu * of_beta - mixed**2)[..., None]
            steps = (mixed[..., None] * slopes[..., ::-1] - of_both * slopes) / determinant
            moving = -(slopes * steps).sum(axis=-1) > _TOLERANCE
            if not moving.any():
                return Scan(value.T, yields[..., 0].T, yields[..., 1].T)
            length = np.where(moving, 1.0, 0.0)
            for _ in range(30):
                tried = np.maximum(yields + length[..., None] * steps, least)
                further, new_rate = self._twice_nll(tried, shapes, counts)
                expected_decrease = (slopes * (yields - tried)).sum(axis=-1)
                too_long = further > value - 1e-4 * expected_decrease + 1e-9
                if not too_long.any():
                    break
                length[too_long] /= 2
            yields, value, rate = tried, further, new_rate
        raise FitError(f"the scan of the peak has no minimum in {_MAX_ITERATIONS} steps")

    @staticmethod
    def _twice_nll(yields: FloatArray, shapes: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """-2 ln L without its constant, shape (M, E), and the rates, shape (M, E, bins), for yields (M, E, 2)."""
        rate = yields @ np.swapaxes(shapes, -1, -2)
        return 2 * (rate.sum(axis=-1) - np.einsum("eb,meb->me", counts, np.log(rate))), rate

    def _threshold(self, mu: float, beta: float, index: int) -> float:
        """The 68.3 % quantile of Δ at the true mass, number ``index``, in pseudo-experiments; at least 1."""
        expected = mu * self.signal[index] + beta * self.background
        drawn = np.random.default_rng(_SEED).poisson(expected, (_EXPERIMENTS, len(expected)))
        blocks = np.array_split(drawn.astype(np.float64), _BLOCKS)
        found = np.concatenate([self.scan(block, (mu, beta)).twice_nll for block in blocks])
        return max(1.0, float(np.quantile(found[:, index] - found.min(axis=1), _ONE_SIGMA)))

    def _measured(self, twice_nll: FloatArray, strength: FloatArray, threshold: float) -> dict[str, Any]:
        """The minimum of a scan and its interval."""
        positions, unit, suffix = self.positions, self.analysis.fitted.unit, self.analysis.fitted.suffix
        scale = self.analysis.model.scale
        lowest = int(np.argmin(twice_nll))
        is_flat = not strength.any()
        at_end = lowest in (0, len(positions) - 1)
        spline = CubicSpline(positions, twice_nll)
        between = np.linspace(positions[0], positions[-1], 10 * (len(positions) - 1) + 1)
        best, least = float(positions[lowest]), float(twice_nll[lowest])
        if not at_end:
            found = minimize_scalar(spline, bounds=(positions[lowest - 1], positions[lowest + 1]), method="bounded")
            best, least = float(found.x), float(found.fun)
        measured: dict[str, Any] = {
            f"value{suffix}": None, f"error{suffix}": None, f"interval{suffix}": [None, None],
            f"statistical_interval{suffix}": [None, None], "threshold": threshold,
            **({} if scale is None else {f"{scale.name}_error{suffix}": None}),
            "scan": {
                f"{self.peak.symbol.lower()}{suffix}": positions.tolist(), "signal_strength": strength.tolist(),
                "twice_delta_nll": np.maximum(twice_nll - least, 0.0).tolist(),
            },
            "curve": {
                f"{self.peak.symbol.lower()}{suffix}": between.tolist(),
                "twice_delta_nll": np.maximum(spline(between) - least, 0.0).tolist(),
            },
        }  # fmt: skip
        if is_flat:
            return {**measured, "problem": "no signal is fitted at any position of the scan"}
        if at_end:
            return {**measured, "problem": f"the likelihood has its maximum at {best:g} {unit}, an end of the scan"}
        sides = [
            _side(lambda m: float(spline(m)) - least - threshold, best, sign, self.peak.scanned) for sign in (-1, 1)
        ]
        of_scale = scale.relative * best if scale is not None else 0.0
        low, high = (
            None if side is None else best + sign * float(np.hypot(side - best, of_scale))
            for sign, side in zip((-1, 1), sides, strict=True)
        )
        missing = [where for where, side in (("below", low), ("above", high)) if side is None]
        return {
            **measured,
            f"value{suffix}": best,
            f"error{suffix}": (high - low) / 2 if low is not None and high is not None else None,
            f"interval{suffix}": [low, high],
            f"statistical_interval{suffix}": sides,
            **({} if scale is None else {f"{scale.name}_error{suffix}": of_scale}),
            "problem": f"the interval ends beyond the scan {' and '.join(missing)} the value" if missing else None,
        }


def _smooth_peak(values: FloatArray) -> FloatArray:
    """Return the simulated peak, shape (bins,), with each bin as the polynomial that is fitted to the bins around it.

    The standard deviation is half of the central 68.3 % interval. A peak of few bins, which polynomials would
    interpolate, is not changed. Negative bins count as 0.
    """
    positive = np.maximum(values, 0.0)
    below = np.cumsum(positive)
    quantiles = np.array([(1 - _ONE_SIGMA) / 2, (1 + _ONE_SIGMA) / 2])
    low, high = np.interp(quantiles * below[-1], below, np.arange(len(values)))
    half = round(_PEAK_RANGE * (high - low) / 2)
    if 2 * half <= _PEAK_DEGREE:
        return positive
    smooth: FloatArray = savgol_filter(values, 2 * half + 1, _PEAK_DEGREE, mode="constant")
    return np.maximum(smooth, 0.0)


def _smooth_background(result: Mapping[str, Any], analysis: Analysis, peak: Peak) -> FloatArray:
    """The Bernstein polynomial without negative coefficients that is closest to the background's wide bins.

    Raises FitError if no background is expected.
    """
    (channel,) = result["workspace"]["channels"]
    signals = analysis.with_role("signal")
    in_wide_bins = np.zeros(analysis.fitted.axis.bins)
    for sample in channel["samples"]:
        if sample["name"] not in signals:
            in_wide_bins += sample["data"]
    low, high = peak.window
    inside = analysis.fitted.axis.bins_between(low, high)
    bins = round((high - low) / peak.step)
    x = (np.arange(bins) + 0.5) / bins
    basis = np.stack([comb(_DEGREE, k) * x**k * (1 - x) ** (_DEGREE - k) for k in range(_DEGREE + 1)])
    in_wide = basis.reshape(_DEGREE + 1, int(inside.sum()), -1).sum(axis=2)
    coefficients, _ = nnls(in_wide.T, in_wide_bins[inside])
    smooth = coefficients @ basis
    if not smooth.any():
        raise FitError(f"no background is expected in {low:g} to {high:g} {analysis.fitted.unit}".rstrip())
    return np.asarray(np.maximum(smooth, 1e-6 * smooth.max()))  # positive in every bin


def _side(function: Callable[[float], float], start: float, sign: int, scanned: tuple[float, float]) -> float | None:
    """The first zero of a function below (``sign`` -1) or above ``start`` in the scanned range; None without one."""
    inner, end = start, scanned[0 if sign < 0 else 1]
    while inner != end:
        outer = max(inner - 0.1, end) if sign < 0 else min(inner + 0.1, end)
        if function(outer) >= 0:
            return float(brentq(function, inner, outer))
        inner = outer
    return None
