"""The figures of a fit: m4l before and after it, pulls, correlations, and the scans of signal strength and mass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from workers.visualisation.plots import (
    TOY_TITLE,
    WARNING,
    Array,
    Contents,
    draw_marks,
    energy_and_luminosity,
    is_toy,
    read_histogram,
    result_release,
    simulated,
    stack_figure,
    style,
)
from workers.visualisation.ticks import draw_ticks

#: A correlation below this is not shown, as is usual.
SHOWN_CORRELATION = 0.1
#: Colours from -1 to 1, the middle one white; so few are drawn as areas, where more would be an image.
SHADES = 41
ONE_SIGMA_BAND, TWO_SIGMA_BAND = "#8fd694", "#ffe08a"
CURVE = "#1f4e9c"
#: How much higher than its curves a scan's axes are: above them stand words.
_HEADROOM = 1.35

_PARAMETERS = MappingProxyType(
    {
        "mu": r"Signal strength $\mu$",
        "m4l_scale": r"$m_{4\ell}$ scale",
        "luminosity": "Luminosity",
        "scale_factors": "Lepton scale factors",
        "zz_normalisation": r"$ZZ^{*}$ normalisation",
    }
)
_STATISTICS = "mc_statistics["


def fit_figures(result: Mapping[str, Any]) -> dict[str, Callable[[Mapping[str, Any]], Figure]]:
    """The figures of a result's fit by the names of their files; none where it has no fit."""
    return dict(_FIGURES) if result.get("fit") else {}


def prefit_figure(result: Mapping[str, Any]) -> Figure:
    """m4l as expected before the fit, with all uncertainties of the model."""
    return _expectation_figure(result, "prefit", [r"Before the fit, $\mu$ = 1"])


def postfit_figure(result: Mapping[str, Any]) -> Figure:
    """m4l as fitted, with the uncertainties that the fit leaves."""
    fit = result["fit"]
    mu = rf"After the fit, $\mu$ = {_measured(fit['signal_strength'], fit['signal_strength_error'])}"
    return _expectation_figure(
        result, "postfit", [mu, f"Goodness of fit: $p$ = {fit['goodness_of_fit']['p_value']:.2g}"]
    )


def pulls_figure(result: Mapping[str, Any]) -> Figure:
    """Each nuisance parameter's fitted value, in standard deviations of its constraint, with its uncertainty."""
    parameters = {name: of for name, of in result["fit"]["parameters"].items() if "pull" in of}
    names = sorted(parameters, key=lambda name: name.startswith(_STATISTICS))  # the field's order else: as in the model
    rows = np.arange(len(names))
    pull, constraint = (np.array([parameters[name][key] for name in names]) for key in ("pull", "constraint"))
    with style():
        figure = Figure(figsize=(8, max(4.0, 1.7 + 0.235 * len(names))))
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.36, right=0.965, bottom=0.75 / height, top=1 - 0.5 / height)
        axes = figure.add_subplot()
        for sigma, colour in ((2, TWO_SIGMA_BAND), (1, ONE_SIGMA_BAND)):
            axes.axvspan(-sigma, sigma, color=colour, linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8, linestyle="--")
        axes.errorbar(pull, rows, xerr=constraint, linestyle="", marker="o", markersize=4.5, color="black")
        limit = max(2.6, float((np.abs(pull) + constraint).max()) + 0.2)
        axes.set(
            xlim=(-limit, limit), ylim=(len(names) - 0.4, -0.6), xlabel=r"$(\hat{\theta}-\theta_0)\;/\;\Delta\theta$"
        )
        axes.set_yticks(rows, [_label(name, result) for name in names], fontsize=11)
        axes.tick_params(axis="y", which="both", left=False, right=False)
        axes.minorticks_off()
        _draw_header(figure, result)
        draw_marks(figure, result)
    return figure


def correlations_figure(result: Mapping[str, Any]) -> Figure:
    """Correlations of the signal strength and of every parameter that has one of at least 0.1 with another."""
    found = result["fit"]["correlations"]
    matrix = np.array(found["matrix"])
    others = np.abs(matrix - np.eye(len(matrix)))
    by_name = found["names"].index
    kept = [place for place in range(len(matrix)) if others[place].max(initial=0.0) >= SHOWN_CORRELATION]
    kept = sorted(
        {by_name("mu"), *kept},
        key=lambda place: (found["names"][place] != "mu", found["names"][place].startswith(_STATISTICS), place),
    )
    shown = matrix[np.ix_(kept, kept)]
    labels = [_label(found["names"][place], result) for place in kept]
    size = len(kept)
    with style():
        figure = Figure(figsize=(max(8.0, 3.2 + 0.46 * size), max(6.5, 2.7 + 0.42 * size)))
        width, height = figure.get_size_inches()
        figure.subplots_adjust(left=2.3 / width, right=1 - 0.95 / width, bottom=2.2 / height, top=1 - 0.5 / height)
        axes = figure.add_subplot()
        edges = np.arange(size + 1) - 0.5
        mesh = axes.pcolormesh(edges, edges, shown, cmap=colormaps["RdBu_r"].resampled(SHADES), vmin=-1, vmax=1)
        axes.set(xlim=edges[[0, -1]], ylim=edges[[-1, 0]])
        for (row, column), value in np.ndenumerate(shown):
            if abs(value) >= 0.005:
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=9, color=colour)
        axes.set_xticks(range(size), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=11)
        axes.set_yticks(range(size), labels, fontsize=11)
        axes.tick_params(which="both", length=0)
        axes.minorticks_off()
        figure.colorbar(mesh, ax=axes, label="Correlation", fraction=0.05, pad=0.02).minorticks_off()
        _draw_header(figure, result)
        draw_marks(figure, result)
    return figure


def likelihood_figure(result: Mapping[str, Any]) -> Figure:
    """The profile likelihood of the signal strength, with its 68.3 % interval and its value without a signal."""
    fit = result["fit"]
    scan = fit["likelihood_scan"]
    mu, curve = np.array(scan["mu"]), np.array(scan["twice_delta_nll"])
    with style():
        figure, axes = _scan_axes(result)
        top = min(10.0, float(curve.max()))
        axes.plot(mu, np.where(curve <= 1.02 * top, curve, np.nan), color=CURVE, linewidth=2.2)
        _draw_interval(axes, fit["signal_strength"], fit["signal_strength_interval"])
        _draw_levels(axes, mu, top)
        words = [
            rf"$\hat{{\mu}}$ = {_with_sides(fit['signal_strength'], fit['signal_strength_interval'])}",
            rf"No signal: {fit['significance_observed']:.1f}$\sigma$"
            rf" (expected {fit['significance_expected']:.1f}$\sigma$)",
        ]
        axes.set(xlabel=r"Signal strength $\mu$", ylabel=r"$-2\,\Delta\,\ln\,L$")
        _draw_words(axes, words)
        draw_ticks(figure)
        draw_marks(figure, result)
    return figure


def limits_figure(result: Mapping[str, Any]) -> Figure:
    """CLs over the signal strength, observed and expected without a signal, with the upper limit at 95 %."""
    fit = result["fit"]
    scan, limit = fit["limit_scan"], fit["upper_limit"]
    mu, observed = np.array([0.0, *scan["mu"]]), np.array([1.0, *scan["cls_observed"]])
    expected = np.array([[1.0] * 5, *scan["cls_expected"]])
    level = 1 - limit["confidence_level"]
    with style():
        figure, axes = _scan_axes(result)
        bands = (
            ((0, 4), TWO_SIGMA_BAND, r"Expected $\pm 2\sigma$"),
            ((1, 3), ONE_SIGMA_BAND, r"Expected $\pm 1\sigma$"),
        )
        for (low, high), colour, label in bands:
            axes.fill_between(mu, expected[:, low], expected[:, high], color=colour, linewidth=0, label=label)
        axes.plot(mu, expected[:, 2], color="black", linestyle="--", linewidth=1.5, label="Expected without a signal")
        axes.plot(mu, observed, color=CURVE, linewidth=2.2, label="Toy data" if is_toy(result) else "Observed")
        axes.axhline(level, color=WARNING, linewidth=1.2)
        axes.text(
            0.985 * mu[-1], level * 1.1, f"{limit['confidence_level']:.0%} CL", color=WARNING, size=11, ha="right"
        )
        axes.set(xlim=(mu[0], mu[-1]), ylim=(1e-3, 12.0), yscale="log")
        axes.set(xlabel=r"Signal strength $\mu$", ylabel=r"$\mathrm{CL_s}$")
        words = [
            rf"Observed: $\mu$ < {_or_more(limit['observed'], mu[-1])}",
            rf"Expected: $\mu$ < {_or_more(limit['expected'][2], mu[-1])}",
        ]
        _draw_words(axes, words)
        axes.legend(loc="upper right", fontsize=12)
        draw_ticks(figure)
        draw_marks(figure, result)
    return figure


def mass_figure(result: Mapping[str, Any]) -> Figure:
    """The profile likelihood of the Higgs boson's mass, and the signal strength that goes with each mass."""
    mass = result["fit"]["mass"]
    masses, curve, strength = (np.array(mass["scan"][key]) for key in ("m_h_gev", "twice_delta_nll", "signal_strength"))
    with style():
        figure = Figure(figsize=(8, 7))
        figure.subplots_adjust(left=0.12, right=0.96, bottom=0.105, top=0.93)
        grid = figure.add_gridspec(2, 1, height_ratios=(3.2, 1), hspace=0.07)
        axes = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=axes)
        axes.plot(masses, curve, color=CURVE, linewidth=2.2)
        axes.xaxis.set_major_locator(MultipleLocator(5))
        if mass["value_gev"] is not None:
            _draw_interval(axes, mass["value_gev"], mass["statistical_interval_gev"])
            measured = _with_sides(mass["value_gev"], mass["statistical_interval_gev"])
            words = [
                rf"$m_{{H}}$ = {measured} (stat.) $\pm$ {mass['m4l_scale_error_gev']:.2f} ($m_{{4\ell}}$ scale) GeV",
                rf"68.3% of pseudo-experiments: $-2\,\Delta\,\ln\,L$ < {mass['threshold']:.2f}",
            ]
        else:
            words = ["No measurement:", str(mass["problem"])]
        _draw_levels(axes, masses, float(curve.max()))
        _draw_words(axes, words)
        axes.set_ylabel(r"$-2\,\Delta\,\ln\,L$")
        axes.xaxis.set_visible(False)
        below.plot(masses, strength, color=CURVE, linewidth=1.8)
        below.axhline(1, color="black", linewidth=0.8, linestyle="--")
        below.set(
            ylim=(0, max(1.5, 1.15 * float(strength.max()))), ylabel=r"$\hat{\mu}(m_{H})$", xlabel=r"$m_{H}$ [GeV]"
        )
        figure.align_ylabels()
        _draw_header(figure, result)
        draw_ticks(figure)
        draw_marks(figure, result)
    return figure


_FIGURES = MappingProxyType(
    {
        "fit_prefit": prefit_figure,
        "fit_postfit": postfit_figure,
        "fit_pulls": pulls_figure,
        "fit_correlations": correlations_figure,
        "fit_likelihood": likelihood_figure,
        "fit_limits": limits_figure,
        "fit_mass": mass_figure,
    }
)


def _expectation_figure(result: Mapping[str, Any], which: str, notes: list[str]) -> Figure:
    edges, contents = read_histogram(result, "m4l")
    expected = result["fit"][which]
    nothing = np.zeros(len(edges) - 1)
    layers = [
        (category, Contents(np.array(expected[category.name]["values"]), nothing))
        for category in simulated(result)
        if category.name in expected
    ]
    error = np.array(expected["total"]["errors"])
    return stack_figure(
        result, "m4l", edges, layers, contents["data"].values, error=error, uncertainty="Uncertainty", notes=notes
    )


def _label(name: str, result: Mapping[str, Any]) -> str:
    """A parameter's name for people; of a bin's statistics, which bin."""
    if not name.startswith(_STATISTICS):
        return _PARAMETERS.get(name, name)
    place = int(name.removeprefix(_STATISTICS).removesuffix("]"))
    edges = result["histograms"]["m4l"]["edges"]
    return f"MC stat. {edges[place]:g}–{edges[place + 1]:g} GeV"


def _scan_axes(result: Mapping[str, Any]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 6))
    figure.subplots_adjust(left=0.12, right=0.96, bottom=0.125, top=0.92)
    axes = figure.add_subplot()
    _draw_header(figure, result)
    return figure, axes


def _draw_header(figure: Figure, result: Mapping[str, Any]) -> None:
    """Whose data and how much, above the axes."""
    toy = is_toy(result)
    title = TOY_TITLE if toy else f"{result_release(result).title} for education"
    y = 1 - 0.34 / figure.get_figheight()
    figure.text(0.03, y, title, size=13, weight="bold", color=WARNING if toy else "black")
    figure.text(0.97, y, energy_and_luminosity(result), size=13, ha="right")


def _draw_interval(axes: Axes, value: float, interval: list[float | None]) -> None:
    low, high = interval
    left, right = axes.get_xlim()
    axes.axvspan(
        left if low is None else low,
        right if high is None else high,
        ymax=1 / _HEADROOM,
        color=ONE_SIGMA_BAND,
        alpha=0.5,
        linewidth=0,
    )
    axes.axvline(value, ymax=1 / _HEADROOM, color="black", linewidth=1.2)


def _draw_levels(axes: Axes, x: Array, top: float) -> None:
    """Lines at 1, 4 and 9: one, two and three standard deviations; and empty space above for words."""
    axes.set(xlim=(x[0], x[-1]), ylim=(0, _HEADROOM * max(top, 4.5)))
    for sigma in (1, 2, 3):
        if sigma**2 < axes.get_ylim()[1] / 1.3:
            axes.axhline(sigma**2, color="#777777", linewidth=1, linestyle=":")
            axes.text(x[-1], sigma**2, rf"{sigma}$\sigma$   ", ha="right", va="bottom", size=11, color="#555555")
    axes.yaxis.set_major_locator(MultipleLocator(5 if top > 15 else 2 if top > 6 else 1))


def _draw_words(axes: Axes, words: list[str]) -> None:
    for row, line in enumerate(words):
        axes.annotate(line, (0.04, 0.925 - 0.075 * row), xycoords="axes fraction", va="center")


def _measured(value: float, error: float) -> str:
    return rf"{value:.2f} $\pm$ {error:.2f}"


def _with_sides(value: float, interval: list[float | None]) -> str:
    """A value with its errors on both sides; a side without an end is left out."""
    low, high = interval
    up = "" if high is None else f"^{{+{high - value:.2f}}}"
    down = "" if low is None else f"_{{-{value - low:.2f}}}"
    return rf"${value:.2f}{up}{down}$".replace("-", r"\mathrm{-}") if up or down else f"{value:.2f}"


def _or_more(limit: float | None, end: float) -> str:
    return f"{limit:.2f}" if limit is not None else f"more than {end:.2g}"
