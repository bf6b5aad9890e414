"""The statistical model of a run: a HistFactory workspace of the fitted histogram, as pyhf reads it.

    expected(bin) = Σ over categories: template(bin) · Π factors · γ(bin)

with these parameters (K. Cranmer et al., CERN-OPEN-2012-016; L. Heinrich et al., JOSS 6 (2021) 2823):

======================== ============================================== ==========================
``mu``                   signal strength: factor of the signal          free
each normalisation       of the analysis' model: yields                 Gaussian constraint
the model's scale        of the observable: shape and normalisation     Gaussian constraint
``mc_statistics``        one factor a bin, on all simulation            Gaussian constraint
======================== ============================================== ==========================

A workspace is a JSON document, so that this module needs no pyhf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from common.analyses import Analysis
from common.errors import PipelineError
from physics import ANALYSES

FloatArray = npt.NDArray[np.float64]

#: A bin gets a parameter for the simulation's statistical uncertainty if the relative uncertainty is not below this.
NEGLIGIBLE_STATISTICS = 0.01
#: The lower bound of the signal strength of a model that is no search: every bin keeps an expected event.
LEAST_STRENGTH = 0.01
#: The least number of effective events, (Σw)²/Σw², in the bin of an average event for a variation of the shape.
MIN_EVENTS_FOR_SHAPE = 50.0


class NoFit(PipelineError):  # noqa: N818  not an error, but the reason why a run has no fit
    """A run's histograms cannot be fitted; the message is the reason."""


def workspace_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the workspace (pyhf's schema 1.0.0) of a result document's fitted histogram.

    Bins and categories with few simulated events are treated as follows:

    - a category's bin with a negative sum of weights counts as 0, and keeps its variance;
    - the statistical uncertainties are one Gaussian factor per bin for the sum of all
      simulation (R. Barlow, C. Beeston, Comput. Phys. Commun. 77 (1993) 219, in J. Conway's
      version, arXiv:1103.0354), left out where the uncertainty is below 1 %;
    - the scale of the observable varies the shape only of categories with enough events (50 effective
      events in the bin of an average event).

    Raises NoFit if data or signal are missing, or no event is expected in a bin, where the likelihood is not
    defined. For a search, that is without the signal: there must be background, and in every bin.
    """
    analysis = ANALYSES.of_result(result)
    region = analysis.model.observable
    found = result["histograms"][region]
    (data,), signals = analysis.with_role("data"), analysis.with_role("signal")
    present = [category.name for category in analysis.categories if category.role != "data" and category.name in found]
    signal = [name for name in present if name in signals]
    if not signal:
        raise NoFit("the run has no signal sample")
    if data not in found:
        raise NoFit("the run has no data")
    is_search = analysis.model.is_search
    if is_search and present == signal:
        raise NoFit("the run has no background sample")
    nominal = {name: np.maximum(_values(found[name]), 0.0) for name in present}
    expected_signal = np.sum([nominal[name] for name in signal], axis=0)
    background = np.sum(
        [np.zeros_like(expected_signal), *(values for name, values in nominal.items() if name not in signal)], axis=0
    )
    if not expected_signal.any():
        raise NoFit(f"the signal samples have no event in the {region} histogram")
    if not _values(found[data]).any():
        raise NoFit(f"the data have no event in the {region} histogram")
    least = background if is_search else background + expected_signal
    if not least.all():
        where = _bins(np.asarray(found["edges"]), least == 0, analysis.observable(region).unit)
        what = "background" if is_search else "event"
        raise NoFit(f"the simulation expects no {what} in {where}; it has too few events")
    deviations = _statistical_deviations(nominal, {name: np.asarray(found[name]["variances"]) for name in present})
    samples = [
        _sample(name, nominal[name], deviations[name], _modifiers(name, analysis, found[name], result["variations"]))
        for name in present
    ]
    low, high = mu_bounds(expected_signal, background)
    low = low if is_search else max(low, LEAST_STRENGTH)
    parameters = [{"name": "mu", "inits": [1.0], "bounds": [[low, high]]}]
    return {
        "channels": [{"name": region, "samples": samples}],
        "observations": [{"name": region, "data": found[data]["values"]}],
        "measurements": [{"name": "signal_strength", "config": {"poi": "mu", "parameters": parameters}}],
        "version": "1.0.0",
    }


def mu_bounds(signal: FloatArray, background: FloatArray) -> tuple[float, float]:
    """Return the bounds of the signal strength.

    They lie ten standard deviations of a counting experiment, 1/√Σ(S²/(S+B)), around μ = 1, and contain
    μ = 0. The lower one is raised so that the expectation of every bin stays positive, the upper one is
    at least 10.
    """
    filled = signal > 0
    deviation = 1 / math.sqrt(float(np.sum(signal[filled] ** 2 / (signal + background)[filled])))
    lowest = -0.8 * float(np.min(background[filled] / signal[filled]))
    return max(lowest, min(0.0, 1 - 10 * deviation)), max(10.0, 1 + 10 * deviation)


def has_enough_events_for_shape(contents: Mapping[str, Any]) -> bool:
    """Whether a category's histogram has enough events for a variation of its shape."""
    values, variances = _values(contents), np.asarray(contents["variances"], dtype=np.float64)
    filled = (values > 0) & (variances > 0)
    if not filled.any():
        return False
    effective = values[filled] ** 2 / variances[filled]
    return bool(np.average(effective, weights=values[filled]) >= MIN_EVENTS_FOR_SHAPE)


def treatment(workspace: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """How few simulated events were treated in a workspace; edges are the lower edges of bins."""
    (channel,) = workspace["channels"]
    samples, found = channel["samples"], result["histograms"][channel["name"]]
    edges = np.asarray(found["edges"])[:-1]
    scale = ANALYSES.of_result(result).model.scale
    without_scale = [
        sample["name"] for sample in samples if all(one["type"] != "histosys" for one in sample["modifiers"])
    ]
    return {
        "negative_bins_set_to_zero": {
            sample["name"]: edges[_values(found[sample["name"]]) < 0].tolist() for sample in samples
        },
        **({} if scale is None else {f"without_{scale.name}": without_scale}),
        "bins_with_statistical_parameter": int(
            np.count_nonzero(np.sum([_modifier(sample, "staterror")["data"] for sample in samples], axis=0))
        ),
    }


def _modifier(sample: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    modifier: Mapping[str, Any] = next(one for one in sample["modifiers"] if one["type"] == kind)
    return modifier


def _statistical_deviations(
    nominal: Mapping[str, FloatArray], variances: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """Standard deviations of the categories' bins; 0 in bins where that of the sum is negligible."""
    total = np.sum([*nominal.values()], axis=0)
    relative = np.sqrt(np.sum([*variances.values()], axis=0)) / total
    return {name: np.where(relative < NEGLIGIBLE_STATISTICS, 0.0, np.sqrt(of)) for name, of in variances.items()}


def _sample(
    name: str, nominal: FloatArray, deviations: FloatArray, modifiers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    statistics = {"name": "mc_statistics", "type": "staterror", "data": deviations.tolist()}
    return {"name": name, "data": nominal.tolist(), "modifiers": [*modifiers, statistics]}


def _modifiers(
    name: str, analysis: Analysis, found: Mapping[str, Any], variations: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return what the parameters of the model do to a category."""
    model = analysis.model
    norms = [one for one in model.normalisations if one.categories is None or name in one.categories]
    modifiers = [_norm(one.name, one.relative) for one in norms]
    if name in analysis.with_role("signal"):
        modifiers.append({"name": "mu", "type": "normfactor", "data": None})
    if model.scale is not None and has_enough_events_for_shape(found):
        up, down = (_values(variations[varied][name]).clip(min=0.0) for varied in model.scale.factors)
        shape = {"hi_data": up.tolist(), "lo_data": down.tolist()}
        modifiers.append({"name": model.scale.name, "type": "histosys", "data": shape})
    return modifiers


def _norm(name: str, relative: float) -> dict[str, Any]:
    return {"name": name, "type": "normsys", "data": {"hi": 1 + relative, "lo": 1 - relative}}


def _values(contents: Mapping[str, Sequence[float]]) -> FloatArray:
    return np.asarray(contents["values"], dtype=np.float64)


def _bins(edges: FloatArray, chosen: npt.NDArray[np.bool_], unit: str) -> str:
    """The bins of a mask, as text."""
    ranges = [f"{low:g} to {high:g}" for low, high in zip(edges[:-1][chosen], edges[1:][chosen], strict=True)]
    more = f" and {len(ranges) - 3} more bins" if len(ranges) > 3 else ""
    return f"{', '.join(ranges[:3])} {unit}{more}"
