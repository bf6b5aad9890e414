"""The mass of the Higgs boson, from signal templates at other masses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize_scalar

from workers.analysis.histograms import M4L_SCALE, TEMPLATE_MASSES_GEV
from workers.analysis.likelihood import Likelihood
from workers.analysis.workspace import SIGNAL

FloatArray = npt.NDArray[np.float64]

#: The masses that are tried, in GeV; the templates reach 1 % further, for the m4l scale.
SCANNED_MASSES_GEV = np.arange(115.0, 135.25, 0.5)


def mass_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The mass measurement of a result document.

    At each mass m of the scan the signal's template is that of m, and μ ≥ 0 and
    all other parameters are fitted. With Δ(m) = -2 ln L(m) less its minimum,
    interpolated by a cubic spline,

    - ``value_gev`` is the m with Δ = 0; None where the lowest point is an end of the scan;
    - ``interval_gev`` has the two m with Δ(m) = 1, 68.3 %; None for a side on which there is none;
    - ``error_gev`` is half its length; None where a side is missing;
    - ``scan`` has ``m_h_gev``, ``twice_delta_nll`` and the fitted ``signal_strength``;
    - ``problem`` says in words what is None, else it is None.

    So the peak's place alone measures the mass: the yield at other masses is left to μ.
    The m4l scale is one of the parameters, and moves the signal too. (The profile
    likelihood interval: S. S. Wilks, Ann. Math. Statist. 9 (1938) 60.)
    """
    return MassModels(result).measure(None)


class MassModels:
    """The models of all scanned masses: built once, they measure any data."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        templates = _Templates(result)
        self._models = [Likelihood(templates.workspace(mass)) for mass in SCANNED_MASSES_GEV]

    def measure(self, data: FloatArray | None) -> dict[str, Any]:
        """The measurement by these data, those of the workspace where None; see ``mass_of``."""
        values, strengths = [], []
        start = None
        for model in self._models:
            fit = model.fit(model.data if data is None else data, start, mu_low=0.0)
            start = fit.parameters
            values.append(fit.twice_nll)
            strengths.append(float(fit.parameters[model.poi]))
        return _measured(SCANNED_MASSES_GEV, np.array(values), strengths)


class _Templates:
    """Signal templates at any mass: of each bin, a cubic spline through those that were filled."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self._workspace = result["workspace"]
        filled = [result["variations"][f"m_h_{mass:g}"][SIGNAL]["values"] for mass in TEMPLATE_MASSES_GEV]
        self._at = CubicSpline(TEMPLATE_MASSES_GEV, np.array(filled), axis=0)

    def at(self, mass_gev: float) -> FloatArray:
        return np.asarray(np.maximum(self._at(mass_gev), 0.0))

    def workspace(self, mass_gev: float) -> dict[str, Any]:
        """The run's workspace with the signal at this mass, and its m4l scale as the masses 1 % from it."""
        (channel,) = self._workspace["channels"]
        samples = [
            self._moved(sample, mass_gev) if sample["name"] == SIGNAL else sample for sample in channel["samples"]
        ]
        return {**self._workspace, "channels": [{**channel, "samples": samples}]}

    def _moved(self, sample: Mapping[str, Any], mass_gev: float) -> dict[str, Any]:
        up, down = (self.at(mass_gev * (1 + way * M4L_SCALE)).tolist() for way in (1, -1))
        modifiers = [
            {**one, "data": {"hi_data": up, "lo_data": down}} if one["type"] == "histosys" else one
            for one in sample["modifiers"]
        ]
        return {**sample, "data": self.at(mass_gev).tolist(), "modifiers": modifiers}


def _measured(masses: FloatArray, twice_nll: FloatArray, strengths: list[float]) -> dict[str, Any]:
    """The minimum of a scan and its interval."""
    curve = CubicSpline(masses, twice_nll)
    lowest = int(np.argmin(twice_nll))
    scan = {"m_h_gev": masses.tolist(), "signal_strength": strengths}
    nothing: dict[str, Any] = {"value_gev": None, "error_gev": None, "interval_gev": [None, None]}
    if lowest in (0, len(masses) - 1):
        scan["twice_delta_nll"] = (twice_nll - twice_nll.min()).tolist()
        problem = f"the likelihood is highest at {masses[lowest]:g} GeV, an end of the scan"
        return {**nothing, "scan": scan, "problem": problem}
    found = minimize_scalar(curve, bounds=(masses[lowest - 1], masses[lowest + 1]), method="bounded")
    best, least = float(found.x), float(found.fun)
    scan["twice_delta_nll"] = np.maximum(twice_nll - least, 0.0).tolist()
    low, high = (_side(lambda m: float(curve(m)) - least - 1.0, best, way) for way in (-1, 1))
    error = (high - low) / 2 if low is not None and high is not None else None
    missing = [word for word, side in (("below", low), ("above", high)) if side is None]
    open_ended = f"the scan has no end of the interval {' and '.join(missing)} the value" if missing else None
    return {
        "value_gev": best,
        "error_gev": error,
        "interval_gev": [low, high],
        "scan": scan,
        "problem": open_ended,
    }


def _side(function: Callable[[float], float], start: float, way: int) -> float | None:
    """The first zero of a function, from ``start`` down (``way`` -1) or up the scanned masses; None for none."""
    inner, end = start, float(SCANNED_MASSES_GEV[0 if way < 0 else -1])
    while inner != end:
        outer = max(inner - 0.1, end) if way < 0 else min(inner + 0.1, end)
        if function(outer) >= 0:
            return float(brentq(function, inner, outer))
        inner = outer
    return None
