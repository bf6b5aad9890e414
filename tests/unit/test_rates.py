"""The rates in closed form are those of pyhf's model, and their slopes are its finite differences."""

from __future__ import annotations

import copy

import numpy as np
import pyhf
import pytest

from tests.support.toy_run import document
from workers.analysis.statistics.minimisation.likelihood import Likelihood
from workers.analysis.statistics.minimisation.rates import Rates

STEP = 1e-6


def anywhere(likelihood: Likelihood, seed: int, spread: float = 3.0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Parameters within the bounds, nuisance parameters up to ``spread`` standard deviations off."""
    rng = np.random.default_rng(seed)
    low, high = np.maximum(likelihood.low, -spread), np.minimum(likelihood.high, spread)
    return np.asarray(rng.uniform(low, high))


@pytest.mark.parametrize("seed", range(20))
def test_rates_and_derivatives_agree_with_pyhf_for_any_parameters(seed: int) -> None:
    likelihood = Likelihood(document()["workspace"])
    model = likelihood.model
    parameters = anywhere(likelihood, seed)

    events, _ = likelihood.rates(parameters)
    expected, slopes = likelihood.expected(parameters)

    by_sample = model.main_model.expected_data(parameters, return_by_sample=True)
    np.testing.assert_allclose(events, by_sample, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(expected, model.expected_data(parameters), rtol=1e-12, atol=1e-12)
    for place, slope in enumerate(slopes.T):
        shift = STEP * np.eye(len(parameters))[place]
        up, down = (model.expected_data(parameters + way * shift) for way in (1, -1))
        np.testing.assert_allclose(slope, (up - down) / (2 * STEP), rtol=1e-5, atol=1e-5)


def test_minus_twice_ln_likelihood_differs_from_pyhfs_by_a_constant() -> None:
    likelihood = Likelihood(document()["workspace"])
    differences = []
    for seed in range(5):
        parameters = np.abs(anywhere(likelihood, seed, spread=1.0))
        pyhfs = -2 * float(likelihood.model.logpdf(parameters, likelihood.data)[0])
        differences.append(likelihood.twice_nll(parameters, likelihood.data)[0] - pyhfs)

    np.testing.assert_allclose(differences, differences[0], rtol=1e-9)


def test_an_unsupported_modifier_type_is_rejected_by_name() -> None:
    workspace = copy.deepcopy(document()["workspace"])
    sample = workspace["channels"][0]["samples"][0]
    sample["modifiers"].append({"name": "shape", "type": "shapesys", "data": [1.0] * len(sample["data"])})
    config = pyhf.Model({"channels": workspace["channels"]}, poi_name="mu", validate=False).config

    with pytest.raises(ValueError, match="'shapesys' is not supported"):
        Rates(workspace, config.samples, config.par_slice, config.npars)
