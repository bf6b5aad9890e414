"""Expected events of a workspace and their derivatives, in closed form.

The expected events agree with pyhf's model to rounding. pyhf has no derivatives
with numpy, and finite differences take ten times as long.
Reference: [1] L. Heinrich et al., JOSS 6 (2021) 2823 (pyhf, and its interpolation codes 4 and 4p).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Rates:
    """Expected events by sample and bin of a workspace with one channel.

    ``samples`` gives the order of the samples, ``slice_of`` the slice of a parameter in the vector of all
    ``size`` parameters. Supports the modifiers that ``workspace_of`` writes: normsys, at most one
    normfactor and one histosys per sample, and a staterror common to all samples. Raises ValueError for
    others.
    """

    def __init__(
        self,
        workspace: Mapping[str, Any],
        samples: Sequence[str],
        slice_of: Callable[[str], slice],
        size: int,
    ) -> None:
        (channel,) = workspace["channels"]
        named = {sample["name"]: sample for sample in channel["samples"]}
        self._nominal = np.array([named[name]["data"] for name in samples], dtype=np.float64)
        self._size = size
        norms: list[tuple[int, int, float, float]] = []
        shapes: list[tuple[int, int, FloatArray, FloatArray]] = []
        strengths: list[tuple[int, int]] = []
        for row, name in enumerate(samples):
            for modifier in named[name]["modifiers"]:
                parameter, data = slice_of(modifier["name"]), modifier["data"]
                match modifier["type"]:
                    case "normsys":
                        norms.append((row, parameter.start, data["hi"], data["lo"]))
                    case "histosys":
                        shapes.append((row, parameter.start, np.array(data["hi_data"]), np.array(data["lo_data"])))
                    case "normfactor":
                        strengths.append((row, parameter.start))
                    case "staterror":
                        self._gammas = parameter
                    case other:
                        raise ValueError(f"sample {name!r}: modifier type {other!r} is not supported")
        for found in (shapes, strengths):
            if len({row for row, *_ in found}) < len(found):
                raise ValueError("a sample has more than one histosys or normfactor modifier")
        self._norm_rows, self._norm_indices = _columns(norms)
        self._norms = _FactorInterpolation(*(np.array([norm[k] for norm in norms]) for k in (2, 3)))
        self._shape_rows, self._shape_indices = _columns(shapes)
        at = self._nominal[self._shape_rows]
        high, low = (np.array([shape[k] for shape in shapes]).reshape(at.shape) for k in (2, 3))
        self._shapes = _ShapeInterpolation(high - at, at - low)
        self._strength_rows, self._strength_indices = _columns(strengths)

    def __call__(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Expected events, shape (samples, bins), and their derivatives, shape (samples, bins, parameters)."""
        factors, factor_slopes = self._norms(parameters[self._norm_indices])
        norm = np.ones(len(self._nominal))
        np.multiply.at(norm, self._norm_rows, factors)
        strength = np.ones(len(self._nominal))
        strength[self._strength_rows] = parameters[self._strength_indices]
        moved, moved_slopes = self._shapes(parameters[self._shape_indices])
        shape = self._nominal.copy()
        shape[self._shape_rows] += moved
        gamma = parameters[self._gammas]

        without_strength = shape * norm[:, np.newaxis] * gamma
        expected = without_strength * strength[:, np.newaxis]
        slopes = np.zeros((*expected.shape, self._size))
        relative = factor_slopes / factors
        slopes[self._norm_rows, :, self._norm_indices] = expected[self._norm_rows] * relative[:, np.newaxis]
        slopes[self._strength_rows, :, self._strength_indices] = without_strength[self._strength_rows]
        scale = (norm * strength)[:, np.newaxis]
        slopes[self._shape_rows, :, self._shape_indices] = moved_slopes * scale[self._shape_rows] * gamma
        bins = np.arange(len(gamma))
        slopes[:, bins, self._gammas.start + bins] = shape * scale
        return expected, slopes


class _FactorInterpolation:
    """Factors of nuisance parameters α: ``high`` at α = 1 and ``low`` at -1, each of shape (factors,) [1, code 4].

    Exponential for |α| > 1. In between, the polynomial of sixth order that is 1 at 0 and has the same
    value, slope and curvature at ±1.
    """

    def __init__(self, high: FloatArray, low: FloatArray) -> None:
        self._logs = np.log(high), np.log(low)
        up, down = self._logs
        wanted = np.array([high - 1, high * up, high * up**2, low - 1, -low * down, low * down**2])
        order = np.arange(1, 7)
        sign = (-1.0) ** order
        rows = np.array([np.ones(6), order, order * (order - 1)])
        system = np.concatenate([rows, rows * sign * np.array([[1], [-1], [1]])])
        self._coefficients = np.linalg.solve(system, wanted)
        self._slope_coefficients = self._coefficients * order[:, np.newaxis]

    def __call__(self, alpha: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The factors and their slopes, each of shape (factors,)."""
        powers = alpha ** np.arange(7)[:, np.newaxis]
        value = 1 + (self._coefficients * powers[1:]).sum(axis=0)
        slope = (self._slope_coefficients * powers[:-1]).sum(axis=0)
        for beyond, exponent, log in (
            (alpha > 1, alpha, self._logs[0]),
            (alpha < -1, -alpha, self._logs[1]),
        ):
            if beyond.any():
                exponential = np.exp(exponent * log)
                value = np.where(beyond, exponential, value)
                slope = np.where(beyond, np.sign(alpha) * log * exponential, slope)
        return value, slope


class _ShapeInterpolation:
    """What nuisance parameters α add to shapes: ``up`` at α = 1, ``-down`` at -1, shape (shapes, bins) [1, code 4p].

    Linear for |α| > 1. In between, the polynomial of sixth order that is 0 at 0 and has the same value,
    slope and curvature at ±1.
    """

    def __init__(self, up: FloatArray, down: FloatArray) -> None:
        self._up, self._down = up, down
        self._odd, self._even = (up + down) / 2, (up - down) / 16

    def __call__(self, alpha: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The additions and their slopes, each of shape (shapes, bins)."""
        a = alpha[:, np.newaxis]
        square = a * a
        value = a * self._odd + square * (15 + square * (3 * square - 10)) * self._even
        slope = self._odd + a * (30 + square * (18 * square - 40)) * self._even
        for beyond, line in ((a > 1, self._up), (a < -1, self._down)):
            if beyond.any():
                value, slope = np.where(beyond, a * line, value), np.where(beyond, line, slope)
        return value, slope


def _columns(modifiers: Sequence[tuple[Any, ...]]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first two entries of each modifier: the sample's row and the parameter's index."""
    rows, indices = ([modifier[k] for modifier in modifiers] for k in (0, 1))
    return np.array(rows, dtype=np.intp), np.array(indices, dtype=np.intp)
