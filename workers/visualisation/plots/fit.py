"""The figures of a fit: the histogram before and after the fit, pulls and correlations; scans.py has the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from common.rounding import with_error
from workers.visualisation.plots.histograms import (
    Array,
    Contents,
    legend_name,
    read_histogram,
    result_analysis,
    simulated,
)
from workers.visualisation.plots.scans import (
    AT_BOUND,
    ONE_SIGMA_BAND,
    TWO_SIGMA_BAND,
    likelihood_figure,
    limits_figure,
    peak_figure,
)
from workers.visualisation.plots.stack import (
    TOP,
    Layer,
    StyledFigure,
    draw_header,
    draw_status,
    histogram_figure,
    stack_figure,
    style,
)

#: Parameters whose correlations are all smaller than this are left out of the figure.
MIN_CORRELATION = 0.1
#: Number of colours for correlations from -1 to 1; it is odd, so that the middle one is white.
COLOURS = 41

PULL_LABEL = r"$(\hat{\theta}-\theta_0)\;/\;\Delta\theta$"
PULLS: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4.5, "color": "black"}
ZERO_LINE: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": "--"}

_STATISTICS = "mc_statistics["


def prefit_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the fitted histogram as expected before the fit, with all uncertainties of the model."""
    return _expectation_figure(result, "prefit", [r"Before the fit, $\mu$ = 1"])


def postfit_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the histogram as fitted, with the uncertainties after the fit."""
    fit = result["fit"]
    error = fit["signal_strength_error"]
    value = with_error(fit["signal_strength"], error).replace("±", r"$\pm$")
    mu = rf"After the fit, $\mu$ = {value}" + (AT_BOUND if error is None else "")
    return _expectation_figure(
        result, "postfit", [mu, f"Goodness of fit: $p$ = {fit['goodness_of_fit']['p_value']:.2g}"]
    )


def pulls_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the pull of each nuisance parameter: its fitted value and uncertainty in units of its constraint's width.

    The parameters of the simulation's statistics, one for each bin, are in a panel of their own.
    """
    parameters = {name: of for name, of in result["fit"]["parameters"].items() if "pull" in of}
    names = [name for name in parameters if not name.startswith(_STATISTICS)]
    bins = {_bin_of(name): of for name, of in parameters.items() if name.startswith(_STATISTICS)}
    observable = result_analysis(result).fitted
    pull, constraint = (np.array([parameters[name][key] for name in names]) for key in ("pull", "constraint"))
    with style():
        figure = StyledFigure(figsize=(8, 5.2 + 0.3 * len(names)))
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.3, right=0.965, bottom=0.75 / height, top=1 - TOP / height)
        grid = figure.add_gridspec(2, 1, height_ratios=(0.3 * len(names) + 0.3, 2.3), hspace=0.55)
        axes, below = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        for sigma, colour in ((2, TWO_SIGMA_BAND), (1, ONE_SIGMA_BAND)):
            axes.axvspan(-sigma, sigma, color=colour, linewidth=0)
            below.axhspan(-sigma, sigma, color=colour, linewidth=0)
        axes.axvline(0, **ZERO_LINE)
        below.axhline(0, **ZERO_LINE)
        rows = np.arange(len(names))
        axes.errorbar(pull, rows, xerr=constraint, **PULLS)
        limit = _pull_limit(pull, constraint)
        axes.set(xlim=(-limit, limit), ylim=(len(names) - 0.4, -0.6), xlabel=PULL_LABEL)
        axes.set_yticks(rows, [_label(name, result) for name in names])
        axes.tick_params(axis="y", which="both", left=False, right=False)
        edges = np.array(result["histograms"][observable.name]["edges"])
        centres = ((edges[:-1] + edges[1:]) / 2)[list(bins)]
        pull, constraint = (np.array([of[key] for of in bins.values()]) for key in ("pull", "constraint"))
        below.errorbar(centres, pull, yerr=constraint, **PULLS)
        limit = _pull_limit(pull, constraint)
        below.set(xlim=edges[[0, -1]], ylim=(-limit, limit), xlabel=observable.axis_label)
        below.set_ylabel(f"MC statistics\n{PULL_LABEL}", fontsize=13)
        for panel in (axes, below):
            panel.minorticks_off()
        draw_header(figure, result)
        draw_status(figure, result, axes)
    return figure


def _pull_limit(pull: Array, constraint: Array) -> float:
    return max(2.6, float((np.abs(pull) + constraint).max(initial=0.0)) + 0.2)


def correlations_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the correlations of the signal strength and of every parameter with a correlation of at least 0.1."""
    found = result["fit"]["correlations"]
    matrix = np.array(found["matrix"])
    others = np.abs(matrix - np.eye(len(matrix)))
    kept = [index for index in range(len(matrix)) if others[index].max(initial=0.0) >= MIN_CORRELATION]
    kept = sorted(
        {found["names"].index("mu"), *kept},
        key=lambda index: (found["names"][index] != "mu", found["names"][index].startswith(_STATISTICS), index),
    )
    drawn = matrix[np.ix_(kept, kept)]
    labels = [_label(found["names"][index], result) for index in kept]
    size = len(kept)
    with style():
        figure = StyledFigure(figsize=(max(8.0, 3.2 + 0.46 * size), max(6.5, 2.7 + 0.42 * size)))
        width, height = figure.get_size_inches()
        figure.subplots_adjust(left=2.3 / width, right=1 - 0.95 / width, bottom=2.2 / height, top=1 - TOP / height)
        axes = figure.add_subplot()
        edges = np.arange(size + 1) - 0.5
        mesh = axes.pcolormesh(edges, edges, drawn, cmap=colormaps["RdBu_r"].resampled(COLOURS), vmin=-1, vmax=1)
        axes.set(xlim=edges[[0, -1]], ylim=edges[[-1, 0]])
        for (row, column), value in np.ndenumerate(drawn):
            if abs(value) >= 0.005:
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=9, color=colour)
        axes.set_xticks(range(size), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=11)
        axes.set_yticks(range(size), labels, fontsize=11)
        axes.tick_params(which="both", length=0)
        axes.minorticks_off()
        figure.colorbar(mesh, ax=axes, label="Correlation", fraction=0.05, pad=0.02).minorticks_off()
        draw_header(figure, result)
        draw_status(figure, result, axes)
    return figure


#: The figures by the names of their files, without that of the model's peak.
FIGURES: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = MappingProxyType(
    {
        "fit_prefit": prefit_figure,
        "fit_postfit": postfit_figure,
        "fit_pulls": pulls_figure,
        "fit_correlations": correlations_figure,
        "fit_likelihood": likelihood_figure,
        "fit_limits": limits_figure,
    }
)


def draw_figure(result: Mapping[str, Any], name: str) -> Figure:
    """Draw the figure of this name: one of the fit, that of the model's peak, or a histogram."""
    peak = result_analysis(result).model.peak
    figures = {**FIGURES, **({} if peak is None else {f"fit_{peak.name}": peak_figure})}
    return figures[name](result) if name in figures else histogram_figure(result, name)


def _expectation_figure(result: Mapping[str, Any], which: str, notes: list[str]) -> Figure:
    analysis = result_analysis(result)
    fitted, (data,) = analysis.model.observable, analysis.with_role("data")
    edges, contents = read_histogram(result, fitted)
    expected = result["fit"][which]
    zeros = np.zeros(len(edges) - 1)
    layers = [
        Layer(
            category,
            legend_name(result, category),
            Contents(np.array(expected[category.name]["values"]), zeros),
            result["fit"]["yields"][which][category.name]["yield_error"],
        )
        for category in simulated(result)
        if category.name in expected
    ]
    error = np.array(expected["total"]["errors"])
    return stack_figure(
        result, fitted, edges, layers, contents[data].values, error=error, uncertainty="Uncertainty", notes=notes
    )


def _label(name: str, result: Mapping[str, Any]) -> str:
    """Return the label of a parameter; a bin's statistical parameter is named by the bin's edges."""
    model = result_analysis(result).model
    if not name.startswith(_STATISTICS):
        scale = () if model.scale is None else (model.scale,)
        labels: dict[str, str] = {one.name: one.label for one in (*model.normalisations, *scale)}
        known = {"mu": r"Signal strength $\mu$", **labels}
        return known.get(name, name)
    index = _bin_of(name)
    edges = result["histograms"][model.observable]["edges"]
    unit = result_analysis(result).fitted.unit
    return f"MC stat. {edges[index]:g}–{edges[index + 1]:g} {unit}".rstrip()


def _bin_of(name: str) -> int:
    """The index of the bin to which a statistical parameter belongs."""
    return int(name.removeprefix(_STATISTICS).removesuffix("]"))
