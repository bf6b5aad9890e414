"""The figures of a fit's scans: profile likelihoods of the signal strength and of the peak's position, and CLs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, MultipleLocator

from common.rounding import rounded
from workers.visualisation.plots.histograms import Array, is_toy, result_analysis
from workers.visualisation.plots.stack import RED, TOP, StyledFigure, draw_header, draw_status, style

ONE_SIGMA_BAND, TWO_SIGMA_BAND = "#8fd694", "#ffe08a"
CURVE = "#1f4e9c"
#: Follows a signal strength that is an end of its range.
AT_BOUND = ", end of its range"
#: Height of a scan's axes in units of the height of its curve; the text is above the curve.
_HEADROOM = 1.35


def likelihood_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the profile likelihood of the signal strength, with its 68.3 % interval."""
    fit = result["fit"]
    scan = fit["likelihood_scan"]
    mu, curve = np.array(scan["mu"]), np.array(scan["twice_delta_nll"])
    with style():
        figure, axes = _scan_axes(result)
        axes.plot(mu, curve, color=CURVE, linewidth=2.2)
        _set_limits(axes, mu, curve)
        _draw_interval(axes, fit["signal_strength"], fit["signal_strength_interval"])
        _draw_levels(axes, {rf"{sigma}$\sigma$": sigma**2 for sigma in (1, 2, 3)})
        measured = _with_errors(fit["signal_strength"], fit["signal_strength_interval"])[0]
        text = [rf"$\hat{{\mu}}$ = {measured}" + (AT_BOUND if fit["signal_strength_error"] is None else "")]
        if fit["significance_observed"] is not None:
            text.append(
                rf"Significance {fit['significance_observed']:.1f}$\sigma$"
                rf" (expected {fit['significance_expected']:.1f}$\sigma$)"
            )
        axes.set(xlabel=r"Signal strength $\mu$", ylabel=r"$-2\,\Delta\,\ln\,L$")
        _draw_text(axes, text)
        draw_status(figure, result, axes)
    return figure


def limits_figure(result: Mapping[str, Any]) -> Figure:
    """Draw CLs against the signal strength, observed and expected without a signal, and the upper limit."""
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
        axes.axhline(level, color=RED, linewidth=1.2)
        axes.text(0.985 * mu[-1], level * 1.1, f"{limit['confidence_level']:.0%} CL", color=RED, size=11, ha="right")
        axes.set(xlim=(mu[0], mu[-1]), ylim=(1e-3, 12.0), yscale="log")
        axes.set(xlabel=r"Signal strength $\mu$", ylabel=r"$\mathrm{CL_s}$")
        text = [
            rf"Observed: $\mu$ < {_limit(limit['observed'], mu[-1])}",
            rf"Expected: $\mu$ < {_limit(limit['expected'][2], mu[-1])}",
        ]
        _draw_text(axes, text)
        axes.legend(loc="upper right", fontsize=12)
        draw_status(figure, result, axes)
    return figure


def peak_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the profile likelihood of the peak's position, and the fitted signal strength at each position."""
    analysis = result_analysis(result)
    model = analysis.model
    assert model.peak is not None
    observable = analysis.fitted
    suffix = observable.suffix
    symbol, of_symbol = f"${model.peak.symbol}$", f"{model.peak.symbol.lower()}{suffix}"
    found = result["fit"][model.peak.name]
    positions, strength = (np.array(found["scan"][key]) for key in (of_symbol, "signal_strength"))
    curve_at, curve = (np.array(found["curve"][key]) for key in (of_symbol, "twice_delta_nll"))
    value, interval = found[f"value{suffix}"], found[f"statistical_interval{suffix}"]
    with style():
        figure = StyledFigure(figsize=(8, 7))
        figure.subplots_adjust(left=0.12, right=0.96, bottom=0.105, top=1 - TOP / 7)
        grid = figure.add_gridspec(2, 1, height_ratios=(3.2, 1), hspace=0.07)
        axes = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=axes)
        axes.plot(curve_at, curve, color=CURVE, linewidth=2.2)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        _set_limits(axes, curve_at, curve)
        if value is not None:
            _draw_interval(axes, value, interval)
            scale = None if model.scale is None else found[f"{model.scale.name}_error{suffix}"]
            measured, scale_error = _with_errors(value, interval, scale)
            errors = f"{measured} (stat.)"
            if model.scale is not None:
                errors += rf" $\pm$ {scale_error} ({model.scale.label})"
            share = "68.3%" if found["threshold"] > 1 else "At least 68.3%"
            text = [
                f"{symbol} = {errors} {observable.unit}",
                rf"{share} of pseudo-experiments: $-2\,\Delta\,\ln\,L$ < {found['threshold']:.2f}",
            ]
        else:
            text = ["No measurement:", str(found["problem"])]
        _draw_levels(axes, {"68.3%": found["threshold"]})
        _draw_text(axes, text)
        axes.set_ylabel(r"$-2\,\Delta\,\ln\,L$")
        axes.tick_params(axis="x", labelbottom=False)
        below.plot(positions, strength, color=CURVE, linewidth=1.8)
        below.axhline(1, color="black", linewidth=0.8, linestyle="--")
        below.set(
            ylim=(0, max(1.5, 1.15 * float(strength.max()))),
            ylabel=rf"$\hat{{\mu}}({model.peak.symbol})$",
            xlabel=f"{symbol} [{observable.unit}]",
        )
        figure.align_ylabels()
        draw_header(figure, result)
        draw_status(figure, result, axes)
    return figure


def _scan_axes(result: Mapping[str, Any]) -> tuple[Figure, Axes]:
    figure = StyledFigure(figsize=(8, 6))
    figure.subplots_adjust(left=0.12, right=0.96, bottom=0.125, top=1 - TOP / 6)
    axes = figure.add_subplot()
    draw_header(figure, result)
    return figure, axes


def _draw_interval(axes: Axes, value: float, interval: list[float | None]) -> None:
    """Draw a value as a line and its interval as a band; an end of None is at the edge of the axes."""
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


def _set_limits(axes: Axes, x: Array, curve: Array) -> None:
    """Show the curve up to a height of 10, and below that where it is, with space for text above it."""
    top = max(4.5, min(10.0, float(curve.max())))
    inside = x[curve <= 1.05 * top]
    axes.set(xlim=(inside[0], inside[-1]), ylim=(0, _HEADROOM * top))
    axes.yaxis.set_major_locator(MultipleLocator(2 if top > 6 else 1))
    for line in axes.lines:
        line.set_clip_path(Rectangle((0, 0), 1, 1 / _HEADROOM, transform=axes.transAxes))


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Draw labelled lines at these heights, as far as the curve reaches."""
    right, top = axes.get_xlim()[1], axes.get_ylim()[1] / _HEADROOM
    for label, height in levels.items():
        if height < top:
            axes.axhline(height, color="#777777", linewidth=1, linestyle=":")
            axes.text(right, height, f"{label}   ", ha="right", va="bottom", size=11, color="#555555")


def _draw_text(axes: Axes, lines: list[str]) -> None:
    for row, line in enumerate(lines):
        axes.annotate(line, (0.04, 0.925 - 0.075 * row), xycoords="axes fraction", va="center")


def _with_errors(value: float, interval: list[float | None], other: float | None = None) -> tuple[str, str]:
    """Return a value with its upper and lower error in mathtext, and another uncertainty with as many digits.

    The error of an end that is None is left out.
    """
    low, high = interval
    errors = (None if high is None else high - value, None if low is None else value - low, other)
    text, up, down, other_text = rounded(value, *errors)
    above = "" if high is None else f"^{{+{up}}}"
    below = "" if low is None else f"_{{-{down}}}"
    return (rf"${text}{above}{below}$".replace("-", r"\mathrm{-}") if above or below else text), other_text


def _limit(limit: float | None, end: float) -> str:
    """Format a limit; None means that it is beyond the end of the scan."""
    return f"{limit:.2f}" if limit is not None else f"more than {end:.2g}"
