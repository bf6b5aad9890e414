"""The figures of a result: stacked simulation, data with Poisson errors, and their ratio."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from common.analyses import Category
from common.rounding import rounded
from workers.visualisation.plots.histograms import (
    TOY_TITLE,
    Array,
    Contents,
    events_label,
    is_toy,
    legend_name,
    read_histogram,
    result_analysis,
    simulated,
)

#: Probability of a normal variable to lie within one standard deviation of its mean.
ONE_SIGMA = 0.682689492137
#: The height of the highest point, and the space between a point and the legend, as fractions of the axes' height.
HIGHEST, CLEARANCE = 0.76, 0.04
#: Height of the space above the axes, for the header and two lines of status, in inches.
TOP = 0.62
#: Upper end of the ratio panel.
RATIO_LIMIT = 2.0
#: The most characters of a problem or warning that fit in the width of a figure.
LINE_LENGTH = 104
#: The colours of toys and incomplete runs, of warnings, and of runs under way.
RED, AMBER, BLUE = "#b00020", "#8a4b00", "#0b57a4"
STYLE: dict[Any, Any] = {
    **mplhep.style.ATLAS, "font.size": 13, "axes.labelsize": 15, "xtick.labelsize": 13, "ytick.labelsize": 13,
    "ytick.major.size": 8, "ytick.minor.size": 4, "lines.linewidth": 1.2, "hatch.linewidth": 0.7,
    "text.hinting": "none",  # the same glyph positions on every machine
    "xtick.major.pad": 7,  # so that the first label is not on that of the vertical axis
    "xtick.minor.ndivs": 2, "ytick.minor.ndivs": 2,  # fewer ticks: they take most of the time of drawing
    "axes.formatter.use_mathtext": False, "axes.unicode_minus": True,
    "mathtext.fallback": "stix",  # for the radical sign and ℓ, which TeX Gyre Heros does not have
    "pdf.fonttype": 3,  # matplotlib cannot embed OpenType-CFF fonts such as TeX Gyre Heros as Type 42
}  # fmt: skip
#: The second font has the characters that a problem may contain and the first one does not have.
STATUS: dict[str, Any] = {"size": 9, "family": ["TeX Gyre Heros", "DejaVu Sans"], "parse_math": False}
HATCH: dict[str, Any] = {"fill": True, "fc": "none", "ec": "#333333", "hatch": "//////", "linewidth": 0}
POINTS: dict[str, Any] = {"linestyle": "", "markersize": 5, "zorder": 5}
WATERMARK: dict[str, Any] = {
    "size": 76, "weight": "bold", "rotation": 25, "ha": "center", "va": "center",
    "color": RED, "alpha": 0.22, "zorder": 1.5,  # in front of the stack, behind the points
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A category of a stack, its name in the legend, and the uncertainty of its yield."""

    category: Category
    name: str
    contents: Contents
    yield_error: float

    @property
    def label(self) -> str:
        """The entry of the legend: the name and the yield, and a second line if the name has one."""
        first, _, second = self.name.partition("\n")
        return f"{first}: {rounded(float(self.contents.values.sum()), self.yield_error)[0]}\n{second}".rstrip()


def garwood_interval(counts: Array) -> tuple[Array, Array]:
    """Return the central 68.27 % confidence interval of a Poisson mean for each observed count n, shape (bins,).

    Garwood's exact interval: P(N ≥ n | low) = P(N ≤ n | high) = 15.87 %; low is
    0 for n = 0. Solved by bisection. Raises ValueError if a count is negative or
    not a whole number. Source: F. Garwood, Biometrika 28 (1936) 437.
    """
    n = np.asarray(counts, dtype=np.float64)
    if not ((n >= 0) & (n % 1 == 0)).all():
        raise ValueError(f"Poisson intervals need whole counts from 0, not {counts}")
    k = np.arange(n.max(initial=0) + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    tail = (1 - ONE_SIGMA) / 2

    def mean_where(most: Array, probability: float, low: Array, high: Array) -> Array:
        for _ in range(60):  # P(N ≤ most | mean) decreases with the mean
            mean = ((low + high) / 2)[:, np.newaxis]
            terms = np.exp(k * np.log(mean) - mean - log_factorial)
            below = (terms * (k <= most[:, np.newaxis])).sum(axis=1) > probability
            low, high = np.where(below, mean[:, 0], low), np.where(below, high, mean[:, 0])
        return high

    lower = mean_where(n - 1, 1 - tail, np.zeros_like(n), np.maximum(n, 1.0))
    return np.where(n > 0, lower, 0.0), mean_where(n, tail, n, n + 3 * np.sqrt(n) + 3)


@contextmanager
def style() -> Iterator[None]:
    """Use the ATLAS style within the context, whatever the machine's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


class StyledFigure(Figure):
    """A figure that is drawn in the ATLAS style wherever it is shown or saved: fonts are chosen when it is drawn."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        with style():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        """Show the figure in a notebook."""
        return figure_bytes(self, "png", int(self.dpi))


def figure_bytes(figure: Figure, kind: str, dpi: int = 150) -> bytes:
    """Return a figure as a file, png or pdf; the same figure gives the same bytes."""
    file = io.BytesIO()
    with style():
        figure.savefig(file, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else None)
    return file.getvalue()


def histogram_figure(result: Mapping[str, Any], histogram: str) -> Figure:
    """Draw one histogram of a result document.

    Simulation is stacked in the release's order, with a hatched statistical
    uncertainty. Data have Garwood intervals; bins without data have no point. The
    ratio panel is drawn if there are both data and simulation, and has no point
    where the simulation is not positive. The figure of a toy is labelled as one; problems
    and warnings are drawn as ``draw_status`` describes. Raises MessageError if the
    histogram is not valid (see read_histogram).
    """
    edges, contents = read_histogram(result, histogram)
    requested = {sample["category"] for sample in result.get("samples", {}).values()}
    drawn = {name for name, content in contents.items() if name in requested or content.values.any()}
    layers = [
        Layer(category, legend_name(result, category), found, float(np.sqrt(found.variances.sum())))
        for category in simulated(result)
        if category.name in drawn and (found := contents[category.name])
    ]
    return stack_figure(result, histogram, edges, layers, _counts(result, contents, drawn))


def _counts(result: Mapping[str, Any], contents: Mapping[str, Contents], drawn: Collection[str]) -> Array | None:
    (data,) = result_analysis(result).with_role("data")
    return contents[data].values if data in drawn else None


def stack_figure(
    result: Mapping[str, Any],
    histogram: str,
    edges: Array,
    simulation: Sequence[Layer],
    counts: Array | None,
    *,
    error: Array | None = None,
    uncertainty: str = "Stat. uncertainty",
    notes: Sequence[str] = (),
) -> Figure:
    """Draw stacked simulation, data counts (None if the run has no data) and their ratio.

    There is no ratio while simulated samples of a run under way are not read yet.
    ``error`` is the uncertainty of the stack's sum, shape (bins,), None for the statistical
    one; ``uncertainty`` is its label. ``notes`` are lines of text above the legend, below the process. The legend
    is on the side where the histogram is lower, and the axes reach so high that nothing is behind it.
    """
    with_data, counts = counts is not None, np.zeros(len(edges) - 1) if counts is None else counts
    interval = garwood_interval(counts)
    observable = result_analysis(result).histograms[histogram]
    with style():
        lacks_samples = bool((result.get("progress") or {}).get("unread"))
        figure = StyledFigure(figsize=(8, 7))
        with_ratio = bool(simulation) and bool(counts.any()) and not lacks_samples
        figure.subplots_adjust(left=0.12, right=0.96, bottom=0.105, top=1 - TOP / 7)
        grid = figure.add_gridspec(2, 1, height_ratios=(3.2, 1), hspace=0.07)
        main = figure.add_subplot(grid[0] if with_ratio else grid[:])
        bottom = figure.add_subplot(grid[1], sharex=main) if with_ratio else main
        total, error, low, heights = _draw_stack(main, edges, simulation, error, uncertainty)
        if with_data:
            data = next(category for category in result_analysis(result).categories if category.role == "data")
            label = f"{'Toy data' if is_toy(result) else data.label}: {counts.sum():,.0f}"
            points = np.stack([counts, *interval])
            _draw_points(main, edges, points, over=np.ones_like(counts), limit=np.inf, label=label, colour=data.colour)
            if with_ratio:
                _draw_band(bottom, edges, total, error)
                _draw_points(bottom, edges, points, over=total, limit=RATIO_LIMIT, label="_", colour=data.colour)
                main.tick_params(axis="x", labelbottom=False)
        heights = np.maximum(heights, interval[1] * (counts > 0))
        main.set(xlim=edges[[0, -1]])
        main.set(ylabel=events_label(edges, observable.unit))
        main.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        bottom.set_xlabel(observable.axis_label)
        figure.align_ylabels()
        legend_bottom, below_legend = _draw_legend(main, edges, heights, _legend_title(result, histogram, notes))
        high = max(heights.max() / HIGHEST, heights[below_legend].max(initial=0) / (legend_bottom - CLEARANCE)) or 1.0
        main.set_ylim(1.1 * low, high)
        draw_header(figure, result)
        draw_status(figure, result, main)
    return figure


def _draw_legend(axes: Axes, edges: Array, heights: Array, title: str) -> tuple[float, NDArray[np.bool_]]:
    """Draw the legend on the side where the histogram is lower.

    Returns its lower end as a fraction of the axes' height, and whether each bin is below it, shape (bins,).
    """
    middle = (edges[0] + edges[-1]) / 2
    left, right = heights[edges[:-1] < middle].max(initial=0), heights[edges[1:] > middle].max(initial=0)
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles[::-1], labels[::-1], title=title, alignment="left",
        loc="upper right" if right <= left else "upper left", borderpad=0.6,
    )  # fmt: skip
    box = legend.get_window_extent().transformed(axes.transAxes.inverted())
    from_left, to_right = edges[0] + np.array([box.x0, box.x1]) * (edges[-1] - edges[0])
    return box.y0, (edges[1:] > from_left) & (edges[:-1] < to_right)


def _legend_title(result: Mapping[str, Any], histogram: str, notes: Sequence[str]) -> str:
    """The decay channel or the process, and the notes, each on a line."""
    analysis = result_analysis(result)
    channel = analysis.channel_of(histogram)
    return "\n".join([f"${analysis.process if channel is None else channel.label}$", *notes])


def _draw_stack(
    axes: Axes, edges: Array, stack: Sequence[Layer], error: Array | None, uncertainty: str
) -> tuple[Array, Array, float, Array]:
    """Stack positive bins upwards and negative bins downwards from 0.

    Returns the sum and its uncertainty, shape (bins,), the lowest point drawn, and the highest one of each bin.
    """
    total, variance, top, bottom = (np.zeros(len(edges) - 1) for _ in range(4))
    if stack:  # the legend is in reverse order: the top of the stack first, the uncertainty last
        axes.stairs([], [0.0], label=uncertainty, **HATCH)
    for layer in stack:
        values, colour = layer.contents.values, layer.category.colour
        base = np.where(values < 0, bottom, top)
        axes.stairs(base + values, edges, baseline=base, fill=True, color=colour, label=layer.label)
        top, bottom = top + values.clip(min=0), bottom + values.clip(max=0)
        total, variance = total + values, variance + layer.contents.variances
    error = np.sqrt(variance) if error is None else error
    if stack:
        axes.stairs(total, edges, color="black", linewidth=0.8)
        axes.stairs(total + error, edges, baseline=total - error, **HATCH)
    low = min(float(bottom.min()), float((total - error)[total < 0].min(initial=0)))
    axes.axhline(0, color="black", linewidth=0.8)
    return total, error, low, np.maximum(top, total + error)


def _draw_points(
    axes: Axes, edges: Array, points: Array, *, over: Array, limit: float, label: str, colour: str
) -> None:
    """Draw ``counts / over`` with intervals where both are positive.

    An arrow stands for a point whose whole interval is above the limit. ``points`` are the counts and the ends of
    their intervals, shape (3, bins).
    """
    drawn = (points[0] > 0) & (over > 0)
    centres, (points, low, high) = ((edges[:-1] + edges[1:]) / 2)[drawn], points[:, drawn] / over[drawn]
    bars, inside = np.stack([points - low, high - points]), points < 0.96 * limit
    for chosen, marker, text in ((inside, "o", label), (~inside, "", "_")):
        drawing = {"marker": marker, "color": colour, "label": text, **POINTS}
        axes.errorbar(centres[chosen], points[chosen], bars[:, chosen], **drawing)
    beyond = low > limit
    if beyond.any():
        axes.plot(centres[beyond], np.full(beyond.sum(), 0.94 * limit), "^", color=colour, markersize=6)


def _draw_band(axes: Axes, edges: Array, total: Array, error: Array) -> None:
    """Draw a line at 1 with the relative uncertainty of the simulation: the ratio panel without its points."""
    relative = np.divide(error, total, out=np.full_like(total, np.nan), where=total > 0)
    axes.stairs(1 + relative, edges, baseline=1 - relative, **HATCH)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(ylim=(0, RATIO_LIMIT), ylabel="Data / Sim.")
    axes.set_yticks([0, 0.5, 1, 1.5, 2], ["0", "0.5", "1", "1.5", "2"])


def draw_header(figure: Figure, result: Mapping[str, Any]) -> None:
    """Draw the origin of the data, the energy and the luminosity above the axes."""
    toy = is_toy(result)
    title = TOY_TITLE if toy else f"{result_analysis(result).title} for education"
    y = 1 - (TOP - 0.1) / figure.get_figheight()
    figure.text(0.03, y, title, size=13, weight="bold", color=RED if toy else "black")
    figure.text(0.97, y, energy_and_luminosity(result), size=13, ha="right")


def energy_and_luminosity(result: Mapping[str, Any]) -> str:
    """Return the centre-of-mass energy and the integrated luminosity (LUMI × FRACTION), in mathtext."""
    lumi_ifb = result["settings"]["lumi"] * result["settings"]["fraction"]
    return rf"$\sqrt{{s}}$ = {result_analysis(result).sqrt_s_tev} TeV, {lumi_ifb:.4g} fb$^{{\mathrm{{-1}}}}$"


def draw_status(figure: Figure, result: Mapping[str, Any], axes: Axes) -> None:
    """Draw the first problem and the first warning of a run as lines at the top, and count the others.

    The figure of an incomplete run has a watermark in its axes, too. That of a run under way, with ``progress`` as
    ``scaled_result`` of the page gives it, has a line with its percentage instead, unless a part of the run is lost.
    """
    lines, progress = [], result.get("progress")
    if progress is not None:
        done = "" if progress["percent"] is None else f", {progress['percent']} %"
        lines.append((f"IN PROGRESS{done}", [progress["note"]], BLUE))
    if not result["complete"] and (progress is None or result["problems"]):
        axes.text(0.5, 0.5, "INCOMPLETE", transform=axes.transAxes, **WATERMARK)
        lines.append(("INCOMPLETE", result["problems"] or ["not all chunks are analysed"], RED))
    if result.get("warnings"):
        lines.append(("WARNING", result["warnings"], AMBER))
    for row, (kind, texts, colour) in enumerate(lines):
        first, more = " ".join(texts[0].split()), f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        if len(first + more) > LINE_LENGTH:
            first = first[: LINE_LENGTH - len(more) - 1] + "…"
        y = 1 - (0.14 + 0.16 * row) / figure.get_figheight()
        size = 11 if colour == BLUE else STATUS["size"]
        figure.text(0.02, y, f"{kind}: {first}{more}", color=colour, **STATUS | {"size": size})
