#!/usr/bin/env python3
"""Closure test of the fit: pseudo-experiments with toy data of known signal strength and Higgs mass.

    python -m benchmarks.closure [--experiments 200] [--seed 1] [--picture docs/closure.png]

Each pseudo-experiment draws new data from the toys of the demo release, and new
Z and tt̄ simulation, whose few events cause the largest uncertainty; the many
simulated events of ZZ* and of the signal are those of the demo release. The m4l
of the data is multiplied by a factor drawn from 1 ± 0.01 in each experiment, as
the model's m4l scale allows. Selection, histograms, model and fit are those of
the services. The true signal strength is 1 and the true Higgs mass 125 GeV.

The exit code is 0 if the pull of the signal strength has mean 0 ± 0.15 and width
1 ± 0.15, if the mass intervals contain 125 GeV in 68 % of the experiments, and if
the statistical mass intervals contain 125 GeV times the factor in 68 % of them
(both within two standard deviations of the binomial distribution); otherwise 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.stats import norm

from common import settings
from common.analyses import Analysis, Sample
from common.messages import Chunk, RunPlan, SamplePlan
from common.settings import RunSettings
from physics import ANALYSES
from physics.hzz4l.toy import files as demo
from workers.analysis.histograms import fill
from workers.analysis.result import result_of
from workers.analysis.statistics.minimisation.likelihood import FitError, Likelihood
from workers.analysis.statistics.minimisation.profile import Profile
from workers.analysis.statistics.peak import peak_of
from workers.analysis.statistics.workspace import NoFit
from workers.analysis.store import PartialSums, Store
from workers.data_loader import reading
from workers.data_processor.service import select

FloatArray = npt.NDArray[np.float64]

#: The relative uncertainty of the m4l scale in the model.
M4L_SCALE = 0.01
TRUE_MU, TRUE_MASS_GEV = 1.0, 125.0
TOLERANCE = 0.15
ONE_SIGMA = 0.6827
REDRAWN = ("data", "z_ttbar")


Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Experiment:
    """The result of one pseudo-experiment; masses in GeV, None if the likelihood determines none.

    ``m4l_scale`` is the factor by which the m4l of its data was multiplied.
    """

    mu: float
    mu_error: float
    significance: float
    mass_gev: float | None
    mass_interval_gev: Interval
    statistical_interval_gev: Interval = (None, None)
    m4l_scale: float = 1.0

    @property
    def pull(self) -> float:
        """(μ̂ - 1) / σ."""
        return (self.mu - TRUE_MU) / self.mu_error

    @property
    def mass_pull(self) -> float | None:
        """(m̂ - 125 GeV) / the length of the interval on the side of the true mass; None if one of them is missing."""
        if self.mass_gev is None:
            return None
        side = self.mass_interval_gev[0 if self.mass_gev > TRUE_MASS_GEV else 1]
        return None if side is None else (self.mass_gev - TRUE_MASS_GEV) / abs(side - self.mass_gev)

    @property
    def covers_mass(self) -> bool | None:
        """Whether the interval contains 125 GeV; an end that is None is unbounded. None if there is no mass."""
        return None if self.mass_gev is None else _holds(self.mass_interval_gev, TRUE_MASS_GEV)

    @property
    def covers_scaled_mass(self) -> bool | None:
        """Whether the statistical interval contains 125 GeV times the m4l scale. None if there is no mass."""
        truth = TRUE_MASS_GEV * self.m4l_scale
        return None if self.mass_gev is None else _holds(self.statistical_interval_gev, truth)


def _holds(interval: Interval, truth: float) -> bool:
    low, high = interval
    return (low is None or low <= truth) and (high is None or high >= truth)


class Laboratory:
    """Makes pseudo-experiments with the same ZZ* and signal simulation, and with other events drawn for each."""

    def __init__(self, cache: Path) -> None:
        self.release = ANALYSES["demo"]
        self.run = ANALYSES.resolve(RunSettings(release=self.release.release))
        self._common = {
            sample.name: self._of_file(sample, cache)
            for sample in self.release.samples
            if sample.category not in REDRAWN
        }

    def result(self, rng: np.random.Generator, m4l_scale: float) -> dict[str, Any]:
        """Return the result document of a pseudo-experiment, without its fit."""
        with closing(Store(None)) as store:
            store.begin(RunPlan("closure", 0.0, self.run))
            for sample in self.release.samples:
                partial = self._common.get(sample.name) or self._drawn(rng, sample, m4l_scale)
                entries = max(1, partial.cutflow["read"])
                store.plan(SamplePlan("closure", sample.name, entries, (0, entries)))
                store.add(Chunk("closure", sample.name, 0, entries), partial)
            run = store.run("closure")
            assert run is not None
            return result_of(run, store, 1.0, final=True)

    def experiment(self, rng: np.random.Generator) -> Experiment:
        """Draw a pseudo-experiment and fit it; raises NoFit or FitError if it cannot be fitted."""
        scale = float(rng.normal(1.0, M4L_SCALE))
        result = self.result(rng, scale)
        if result["workspace"] is None:
            raise NoFit(result["fit_problem"])
        likelihood = Likelihood(result["workspace"])
        best = likelihood.fit(likelihood.data)
        variance = likelihood.covariance(best, likelihood.data)[likelihood.poi, likelihood.poi]
        q0 = Profile(likelihood, likelihood.data, best).q0()
        mass = peak_of(result)
        (low, high), (left, right) = mass["interval_gev"], mass["statistical_interval_gev"]
        mu = float(best.parameters[likelihood.poi])
        return Experiment(mu, math.sqrt(variance), math.sqrt(q0), mass["value_gev"], (low, high), (left, right), scale)

    def _drawn(self, rng: np.random.Generator, sample: Sample, m4l_scale: float) -> PartialSums:
        """Draw a data sample, or a simulated one with a Poisson number of entries about that of the demo release."""
        if sample.is_data:
            branches = demo.data_block(rng, self.release, sample)
        else:
            entries = demo.shares(self.release, self.run.demo_events)[sample.name]
            n = int(rng.poisson(entries))
            branches = demo.simulated_block(rng, self.release, sample, n, first=0, entries=entries)
        scale = m4l_scale if sample.is_data else 1.0
        return _partial(ak.Array(branches), self.release, sample, self.run, scale)

    def _of_file(self, sample: Sample, cache: Path) -> PartialSums:
        path = demo.demo_file(sample, self.release, self.run.demo_events, cache / "demo")
        entries = reading.chunk_bounds(path, self.release, sample, self.run)[-1]
        arrays = reading.read(path, self.release, sample, 0, entries)
        return _partial(arrays, self.release, sample, self.run)


def _partial(
    arrays: ak.Array, analysis: Analysis, sample: Sample, run: RunSettings, m4l_scale: float = 1.0
) -> PartialSums:
    """Return the partial result of a sample's events, with their m4l multiplied by a factor."""
    events, cutflow = reading.select(arrays, analysis, sample, run)
    selected, further = select(events, analysis, run)
    selected = ak.with_field(selected, selected.m4l * m4l_scale, "m4l")
    weights = np.empty(0, np.float32) if sample.is_data else ak.to_numpy(selected.weight)
    return PartialSums({**cutflow, **further}, fill(selected, analysis, sample.category), weights)


@dataclass(frozen=True)
class Summary:
    """Means and widths over the pseudo-experiments."""

    experiments: int
    pull_mean: float
    pull_width: float
    mu_mean: float
    mass_measured: int
    mass_covered: float
    scaled_mass_covered: float
    mass_mean_gev: float
    median_significance: float

    @classmethod
    def of(cls, experiments: Sequence[Experiment]) -> Summary:
        """Calculate means and sample standard deviations over the experiments."""
        pulls = np.array([one.pull for one in experiments])
        with_mass = [one for one in experiments if one.mass_gev is not None]
        masses = [one.mass_gev for one in with_mass if one.mass_gev is not None]
        return cls(
            experiments=len(experiments),
            pull_mean=float(pulls.mean()),
            pull_width=float(pulls.std(ddof=1)),
            mu_mean=float(np.mean([one.mu for one in experiments])),
            mass_measured=len(masses),
            mass_covered=float(np.mean([one.covers_mass for one in with_mass])),
            scaled_mass_covered=float(np.mean([one.covers_scaled_mass for one in with_mass])),
            mass_mean_gev=float(np.mean(masses)),
            median_significance=float(np.median([one.significance for one in experiments])),
        )

    def problems(self) -> list[str]:
        """Return a sentence for each criterion that is not met."""
        found = []
        if abs(self.pull_mean) > TOLERANCE:
            found.append(f"the pull of the signal strength has mean {self.pull_mean:.3f}")
        if abs(self.pull_width - 1) > TOLERANCE:
            found.append(f"the pull of the signal strength has width {self.pull_width:.3f}")
        for which, covered in (("", self.mass_covered), ("statistical ", self.scaled_mass_covered)):
            if abs(covered - ONE_SIGMA) > 2 * self.coverage_error:
                found.append(f"{covered:.0%} of the {which}mass intervals contain the true mass")
        return found

    @property
    def coverage_error(self) -> float:
        """Binomial standard deviation of the fraction of intervals that contain the true mass."""
        return math.sqrt(ONE_SIGMA * (1 - ONE_SIGMA) / max(1, self.mass_measured))

    def __str__(self) -> str:
        n = self.experiments
        return (
            f"{n} pseudo-experiments: pull of μ has mean {self.pull_mean:+.3f} ± {1 / math.sqrt(n):.3f} and width "
            f"{self.pull_width:.3f} ± {1 / math.sqrt(2 * n):.3f}; mean μ {self.mu_mean:.3f}; median significance "
            f"{self.median_significance:.2f}\n"
            f"mass: {self.mass_measured} measured, mean {self.mass_mean_gev:.2f} GeV, "
            f"{self.mass_covered:.1%} of the 68.3 % intervals contain {TRUE_MASS_GEV:g} GeV, "
            f"{self.scaled_mass_covered:.1%} of the statistical ones {TRUE_MASS_GEV:g} GeV times the scale, "
            f"both ± {self.coverage_error:.1%}"
        )


def picture(experiments: Sequence[Experiment], summary: Summary) -> Figure:
    """Draw the pulls of the signal strength and of the mass, each with the normal distribution."""
    from workers.visualisation.plots.histograms import TOY_TITLE
    from workers.visualisation.plots.stack import RED, style

    pulls = [one.pull for one in experiments]
    mass_pulls = [one.mass_pull for one in experiments if one.mass_pull is not None]
    panels: Mapping[str, list[float]] = {
        r"$(\hat{\mu} - 1)\;/\;\sigma_{\mu}$": pulls,
        r"$(\hat{m}_{H} - 125\ \mathrm{GeV})\;/\;\sigma_{m}$": mass_pulls,
    }
    annotations = (
        f"mean {summary.pull_mean:+.2f} ± {1 / math.sqrt(len(pulls)):.2f}\n"
        f"width {summary.pull_width:.2f} ± {1 / math.sqrt(2 * len(pulls)):.2f}",
        f"125 GeV is in\n{summary.mass_covered:.0%} ± {summary.coverage_error:.0%} of\nthe 68% intervals",
    )
    edges = np.linspace(-4, 4, 25)
    grid = np.linspace(-4, 4, 200)
    with style():
        figure = Figure(figsize=(11, 5))
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.9, wspace=0.22)
        for panel, (label, values) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, 2, panel)
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts, edges, fill=True, color="#3fc1e8", label=f"{len(values)} pseudo-experiments")
            expected = len(values) * (edges[1] - edges[0]) * norm.pdf(grid)
            axes.plot(grid, expected, color="black", linewidth=1.6, label="Normal distribution")
            axes.set(xlim=(-4, 4), ylim=(0, 1.6 * max(counts.max(), expected.max())), xlabel=label)
            axes.set_ylabel(f"Pseudo-experiments / {edges[1] - edges[0]:.2g}")
            axes.annotate(annotations[panel - 1], (0.04, 0.76), xycoords="axes fraction", va="top", size=11)
            axes.legend(loc="upper right")
            outside = len(values) - int(counts.sum())
            if outside:
                axes.annotate(f"{outside} outside", (0.96, 0.06), xycoords="axes fraction", ha="right", size=10)
        figure.text(0.07, 0.94, f"{TOY_TITLE}: closure of the fit", color=RED, weight="bold", size=14)
    return figure


def measure(laboratory: Laboratory, experiments: int, seed: int) -> tuple[list[Experiment], int]:
    """Return the pseudo-experiments, and how many could not be fitted; each has its own random numbers."""
    done, failed = [], 0
    for number in range(experiments):
        try:
            done.append(laboratory.experiment(np.random.default_rng([seed, number])))
        except (NoFit, FitError) as reason:
            failed += 1
            print(f"experiment {number}: {reason}", file=sys.stderr)
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {experiments}", file=sys.stderr, flush=True)
    return done, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pseudo-experiments, print the summary and draw the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="file to draw the pulls into, for example docs/closure.png")
    flags = parser.parse_args(arguments)
    import os

    laboratory = Laboratory(settings.read(os.environ).cache)
    experiments, failed = measure(laboratory, flags.experiments, flags.seed)
    summary = Summary.of(experiments)
    print(summary)
    if flags.picture is not None:
        from workers.visualisation.plots.stack import figure_bytes

        flags.picture.parent.mkdir(parents=True, exist_ok=True)
        flags.picture.write_bytes(figure_bytes(picture(experiments, summary), "png", dpi=120))
    problems = summary.problems() + ([f"{failed} pseudo-experiments could not be fitted"] if failed else [])
    for problem in problems:
        print(f"closure: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
