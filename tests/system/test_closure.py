"""The fit finds the true values of the demo in a few pseudo-experiments; benchmarks/closure.py does 200."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.closure import Experiment, Laboratory, Summary, measure

EXPERIMENTS = 12


def test_the_pull_of_the_mass_uses_the_interval_side_towards_the_true_mass() -> None:
    experiment = Experiment(1.4, 0.5, 2.0, 127.0, (124.0, 128.0))

    assert experiment.pull == pytest.approx(0.8)
    assert experiment.mass_pull == pytest.approx(2 / 3)
    assert experiment.covers_mass is True
    assert Experiment(1.4, 0.5, 2.0, None, (None, None)).mass_pull is None
    assert Experiment(1.4, 0.5, 2.0, 127.0, (125.5, None)).covers_mass is False


def test_a_statistical_interval_has_to_contain_the_scaled_mass() -> None:
    scaled = Experiment(1.4, 0.5, 2.0, 126.5, (124.0, 129.0), (125.8, 127.4), m4l_scale=1.01)

    assert scaled.covers_mass is True
    assert scaled.covers_scaled_mass is True
    assert Experiment(1.4, 0.5, 2.0, 126.5, (124.0, 129.0), (125.8, 127.4)).covers_scaled_mass is False


@pytest.mark.slow
def test_the_fit_finds_the_true_values_of_the_demo(tmp_path: Path) -> None:
    experiments, failed = measure(Laboratory(tmp_path), EXPERIMENTS, seed=3)

    summary = Summary.of(experiments)
    assert failed == 0
    assert abs(summary.pull_mean) < 3.5 / math.sqrt(EXPERIMENTS)
    assert abs(summary.pull_width - 1) < 3.5 / math.sqrt(2 * EXPERIMENTS)
    assert summary.mass_covered > 0.2
