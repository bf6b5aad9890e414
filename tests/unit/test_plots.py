"""The figures of a result, compared with baseline pictures and with published numbers.

``python -m tests.unit.test_plots`` redraws the baseline pictures; look at them before committing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from common.errors import MessageError, SettingsError
from physics import ANALYSES
from workers.visualisation.plots import stack
from workers.visualisation.plots.stack import POINTS, figure_bytes, garwood_interval

BASELINE = Path(__file__).parent / "baseline"
DPI = 50
TOLERANCE = 6.0  # RMS of 255: another FreeType version gives less, a displaced histogram more
EDGES = [80.0 + 5 * i for i in range(35)]
SHARES = {"m4l": 1.0, "m4l_4e": 0.2, "m4l_4mu": 0.35, "m4l_2e2mu": 0.45}
SIMULATION = ("z_ttbar", "zz", "signal")
DATA = [2, 8, 25, 7, 6, 2, 6, 1, 5, 10, 2, 3, 5, 3, 4, 5, 1, 5, 3, 5, 10, 18, 18, 15, 18, 15, 19, 19, 7, 14,
        11, 9, 13, 0]  # fmt: skip
PROBLEM = "llll: 3 of 12 chunks were dead-lettered, the first because its file ends early"


def histogram_figure(document: dict[str, Any], histogram: str = "m4l") -> Figure:
    return stack.histogram_figure(document, histogram)


def result(**changes: Any) -> dict[str, Any]:
    """Return a result like the real one: a Z at 91 GeV, a Higgs boson at 125 GeV, ZZ from 180 GeV, and data."""
    mass = np.array(EDGES[:-1]) + 2.5
    templates = {
        "z_ttbar": (_peak(mass, 91, 6, 2.0) + 3 * np.exp(-(mass - 100) / 50) * (mass > 95), 0.6),
        "zz": (
            _peak(mass, 91, 3, 32.0) + 2.2 * (mass > 100)
            + 18 * np.exp(-(mass - 185) / 55) / (1 + np.exp(-(mass - 183) / 3.5)) * (mass > 165),
            0.02,
        ),
        "signal": (_peak(mass, 124, 3, 9.5), 0.003),
    }  # fmt: skip
    histograms: dict[str, Any] = {}
    for name, share in SHARES.items():
        counts = np.floor(np.array(DATA) * share + 0.5)
        histograms[name] = {"edges": EDGES, "data": {"values": counts.tolist(), "variances": counts.tolist()}}
        for category, (values, mean_weight) in templates.items():
            contents = {"values": values * share, "variances": values * share * mean_weight}
            histograms[name][category] = {part: numbers.tolist() for part, numbers in contents.items()}
    document = {
        "run_id": "run1", "release": "2020e-13tev", "title": "ATLAS Open Data", "toy": False,
        "complete": True, "problems": [],
        "settings": {"lumi": 10.0, "fraction": 1.0, "pt_cuts": [20.0, 15.0, 10.0]},
        "warnings": [],
        "samples": {sample.name: {"category": sample.category} for sample in ANALYSES["2020e-13tev"].samples},
        "histograms": histograms,
    }  # fmt: skip
    return document | changes


def _peak(mass: Any, mean: float, width: float, events: float) -> Any:
    return events * 5 / (width * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((mass - mean) / width) ** 2)


def without(*categories: str) -> dict[str, Any]:
    """Return a result whose run did not request these categories."""
    document = copy.deepcopy(result())
    document["samples"] = {n: s for n, s in document["samples"].items() if s["category"] not in categories}
    for histogram in document["histograms"].values():
        for category in categories:
            del histogram[category]
    return document


def changed(category: str, part: str, bins: dict[int, float]) -> dict[str, Any]:
    """Return a result with these numbers in bins of m4l."""
    document = copy.deepcopy(result())
    for index, number in bins.items():
        document["histograms"]["m4l"][category][part][index] = number
    return document


BASELINES: dict[str, tuple[dict[str, Any], str]] = {
    "m4l": (result(), "m4l"),
    "m4l_4mu": (result(), "m4l_4mu"),
    "toy": (result(toy=True, release="demo"), "m4l"),
    "incomplete": (result(complete=False, problems=[PROBLEM, "another"]), "m4l"),
}


def texts(figure: Figure) -> str:
    """Return all texts of a figure."""
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts]
        legend = axes.get_legend()
        found += [text.get_text() for text in (legend.get_title(), *legend.get_texts())] if legend else []
    return "\n".join(found)


def watermarks(figure: Figure) -> list[str]:
    """Return the large texts; each is behind the points."""
    found = [text for axes in figure.axes for text in axes.texts if float(text.get_fontsize()) > 70]
    assert all(text.get_zorder() < POINTS["zorder"] for text in found)
    return [text.get_text() for text in found]


def points(figure: Figure, panel: int = 0) -> dict[float, float]:
    """Return the data points of a panel by m4l [GeV]."""
    found: dict[float, float] = {}
    for container in figure.axes[panel].containers:
        if isinstance(container, ErrorbarContainer) and container.lines[0].get_marker() == "o":
            line = container.lines[0]
            x, y = np.array(line.get_data(), dtype=float)
            found |= dict(zip(x.tolist(), y.tolist(), strict=True))
    return found


@pytest.mark.parametrize("name", BASELINES)
def test_the_figure_looks_like_its_baseline(name: str, tmp_path: Path) -> None:
    document, histogram = BASELINES[name]
    drawn = tmp_path / f"{name}.png"
    drawn.write_bytes(figure_bytes(histogram_figure(document, histogram), "png", DPI))
    difference = compare_images(str(BASELINE / drawn.name), str(drawn), tol=TOLERANCE)
    assert difference is None, difference


@pytest.mark.parametrize("other", ["toy", "incomplete", "m4l_4mu", "no data", "shifted"])
def test_the_baseline_comparison_detects_changes_that_matter(other: str, tmp_path: Path) -> None:
    shifted = copy.deepcopy(result())
    shifted["histograms"]["m4l"]["zz"]["values"].insert(0, shifted["histograms"]["m4l"]["zz"]["values"].pop())
    others = {**BASELINES, "no data": (without("data"), "m4l"), "shifted": (shifted, "m4l")}
    drawn = tmp_path / "other.png"
    drawn.write_bytes(figure_bytes(histogram_figure(*others[other]), "png", DPI))
    assert compare_images(str(BASELINE / "m4l.png"), str(drawn), tol=TOLERANCE) is not None


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_the_same_result_gives_the_same_bytes(kind: str) -> None:
    assert figure_bytes(histogram_figure(result()), kind) == figure_bytes(histogram_figure(result()), kind)


def test_drawing_does_not_change_the_settings_of_matplotlib() -> None:
    before = dict(mpl.rcParams)
    figure_bytes(histogram_figure(result()), "png")
    figure_bytes(histogram_figure(result()), "pdf")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(0, 0.0, 1.841), (1, 0.173, 3.300), (2, 0.708, 4.638), (5, 2.840, 8.382), (10, 6.891, 14.267),
     (100, 90.02, 111.03)],
)  # fmt: skip
def test_poisson_errors_are_the_published_garwood_intervals(count: int, low: float, high: float) -> None:
    found_low, found_high = garwood_interval(np.array([count]))
    assert found_low[0] == pytest.approx(low, abs=0.01 if count == 100 else 6e-4)
    assert found_high[0] == pytest.approx(high, abs=0.01 if count == 100 else 6e-4)


@pytest.mark.parametrize("count", [-1, 0.5, np.nan])
def test_a_poisson_interval_needs_a_whole_count(count: float) -> None:
    with pytest.raises(ValueError, match="whole counts"):
        garwood_interval(np.array([3, count]))


def test_the_labels_name_origin_luminosity_and_channel() -> None:
    words = texts(histogram_figure(result(settings={"lumi": 10.0, "fraction": 0.1}), "m4l_4mu"))
    for expected in ("ATLAS Open Data for education", "13 TeV, 1 fb", r"ZZ^{*}\to 4\mu", "Data: "):
        assert expected in words
    assert "TOY" not in words
    assert "INCOMPLETE" not in words


@pytest.mark.parametrize(
    ("histogram", "edges", "below", "beside"),
    [
        ("m4l", EDGES, r"$m_{4\ell}$ [GeV]", "Events / 5 GeV"),
        ("m4l_4mu", EDGES, r"$m_{4\ell}$ [GeV]", "Events / 5 GeV"),
        ("m_z1", [40 + 2.5 * i for i in range(35)], "$m_{Z1}$ [GeV]", "Events / 2.5 GeV"),
        ("m_z2", [4.0 * i for i in range(35)], "$m_{Z2}$ [GeV]", "Events / 4 GeV"),
        ("lead_pt", [0.0, *EDGES[1:]], r"Leading lepton $p_{\mathrm{T}}$ [GeV]", "Events / bin"),
    ],
)
def test_the_axes_name_quantity_unit_and_bin_width(histogram: str, edges: list[float], below: str, beside: str) -> None:
    document = copy.deepcopy(result())
    document["histograms"][histogram] = {**document["histograms"]["m4l"], "edges": edges}
    figure = histogram_figure(document, histogram)
    main, ratio = figure.axes
    assert (main.get_ylabel(), ratio.get_xlabel()) == (beside, below)
    channel = r"4\mu" if histogram == "m4l_4mu" else r"4\ell"
    assert rf"ZZ^{{*}}\to {channel}$" in texts(figure)


@pytest.mark.parametrize("labels", [{"toy": True}, {"release": "demo"}, {"toy": True, "release": "demo"}])
def test_a_toy_is_labelled_as_one_and_not_as_open_data(labels: dict[str, Any]) -> None:
    figure = histogram_figure(result(**labels))
    words = texts(figure)
    assert "TOY demo – not ATLAS data" in words
    assert "Toy data: " in words
    assert "Open Data" not in words
    assert "for education" not in words
    assert watermarks(figure) == []


def test_an_incomplete_run_has_a_watermark_and_its_first_problem() -> None:
    figure = histogram_figure(result(complete=False, problems=[PROBLEM, "another"]))
    assert watermarks(figure) == ["INCOMPLETE"]
    assert f"INCOMPLETE: {PROBLEM} (and 1 more)" in texts(figure)


def test_a_long_problem_is_shortened_to_the_width_of_the_figure() -> None:
    figure = histogram_figure(result(complete=False, problems=["data_A:\n" + "https://example.org/$x_{" * 20, "b"]))
    line = next(text for text in figure.texts if text.get_text().startswith("INCOMPLETE: "))
    figure_bytes(figure, "png", DPI)
    assert line.get_window_extent().x1 < figure.bbox.x1
    assert line.get_text().endswith("… (and 1 more)")


def test_an_incomplete_run_without_a_problem_says_that_chunks_are_not_analysed() -> None:
    assert "INCOMPLETE: not all chunks are analysed" in texts(histogram_figure(result(complete=False)))


def test_a_run_under_way_says_how_far_it_is_and_is_not_called_incomplete() -> None:
    progress = {"percent": 43, "note": "simulation is scaled to the whole run"}
    figure = histogram_figure(result(complete=False, progress=progress))
    assert "IN PROGRESS, 43 %: simulation is scaled to the whole run" in texts(figure)
    assert watermarks(figure) == []
    figure = histogram_figure(result(complete=False, problems=[PROBLEM], progress=progress))
    assert f"INCOMPLETE: {PROBLEM}" in texts(figure)
    assert watermarks(figure) == ["INCOMPLETE"]
    assert len(figure.axes) == 2
    figure = histogram_figure(result(complete=False, progress={**progress, "unread": 3}))
    assert len(figure.axes) == 1  # no ratio to a part of the simulation


def warning_line(figure: Figure) -> Any:
    (line,) = [text for text in figure.texts if text.get_text().startswith("WARNING: ")]
    return line


def test_a_plot_shows_the_first_warning_and_the_number_of_others_without_a_watermark() -> None:
    figure = histogram_figure(result(warnings=["simulation is scaled to 139 fb⁻¹", "b", "c"]))
    assert warning_line(figure).get_text() == "WARNING: simulation is scaled to 139 fb⁻¹ (and 2 more)"
    assert watermarks(figure) == []
    figure = histogram_figure(result(complete=False, problems=[PROBLEM], warnings=["a $x_{ b"]))
    assert f"INCOMPLETE: {PROBLEM}" in texts(figure)
    assert warning_line(figure).get_text() == "WARNING: a $x_{ b"
    colours = {text.get_text()[:5]: text.get_color() for text in figure.texts}
    assert colours["WARNI"] != colours["INCOM"]


def test_lines_of_problems_and_warnings_do_not_overlap_and_are_above_the_plot() -> None:
    long = "https://example.org/ℓ⁻¹" * 20
    figure = histogram_figure(result(complete=False, problems=[long, "b"], warnings=[long, "b"]))
    figure_bytes(figure, "png", DPI)
    (problem,) = [text for text in figure.texts if text.get_text().startswith("INCOMPLETE: ")]
    warning = warning_line(figure)
    assert warning.get_text().endswith("… (and 1 more)")
    assert warning.get_window_extent().x1 < figure.bbox.x1
    assert problem.get_window_extent().y1 <= figure.bbox.y1
    assert warning.get_window_extent().y1 <= problem.get_window_extent().y0
    (header,) = [text for text in figure.texts if "for education" in text.get_text()]
    assert header.get_window_extent().y1 <= warning.get_window_extent().y0
    assert figure.axes[0].get_window_extent().y1 <= header.get_window_extent().y0


def test_the_legend_names_no_sample_that_the_run_does_not_have() -> None:
    document = result()
    for name in ("Zmumu", "ttbar_lep", "ZH125_ZZ4lep", "data_B"):
        del document["samples"][name]
    shown = texts(histogram_figure(document))
    assert "Zee: 34" in shown
    assert "bar{t}" not in shown
    assert "$H\\to ZZ^{*}$ ($m_H$ = 125 GeV): 9.50\n(3 of 4 samples)" in shown
    assert "Data: 294" in shown


def test_the_legend_has_the_digits_that_the_uncertainty_allows() -> None:
    shown = texts(histogram_figure(result()))
    for expected in ("$ZZ^{*}$: 243.9", "bar{t}$: 34\n", "GeV): 9.50\n"):
        assert expected in shown + "\n"


def test_a_bin_without_data_has_no_point() -> None:
    drawn = points(histogram_figure(result()))
    assert 247.5 not in drawn
    assert list(drawn.values()) == [count for count in DATA if count]


def test_a_run_without_data_has_neither_points_nor_a_ratio() -> None:
    figure = histogram_figure(without("data"))
    assert len(figure.axes) == 1
    assert points(figure) == {}
    assert "Data" not in texts(figure).replace("Open Data", "")


def test_data_without_a_selected_event_are_in_the_legend() -> None:
    figure = histogram_figure(changed("data", "values", dict.fromkeys(range(34), 0)))
    assert "Data: 0" in texts(figure)
    assert len(figure.axes) == 1


def test_a_run_of_data_alone_has_points_only() -> None:
    figure = histogram_figure(without(*SIMULATION))
    assert len(figure.axes) == 1
    assert len(points(figure)) == 33
    assert not figure.axes[0].patches
    assert "uncertainty" not in texts(figure)


def test_a_run_without_any_category_draws_empty_axes() -> None:
    assert figure_bytes(histogram_figure(without("data", *SIMULATION)), "png", DPI)


def test_a_category_that_was_not_requested_is_not_drawn() -> None:
    document = without("signal")
    absent = figure_bytes(histogram_figure(document), "png", DPI)
    for histogram in document["histograms"].values():
        histogram["signal"] = {"values": [0.0] * 34, "variances": [0.0] * 34}
    assert figure_bytes(histogram_figure(document), "png", DPI) == absent


@pytest.mark.parametrize("bin_", [2, 9, 20, 33])
def test_the_highest_point_takes_three_quarters_of_the_height_beside_the_legend(bin_: int) -> None:
    figure = histogram_figure(changed("data", "values", {bin_: 400}))
    main = figure.axes[0]
    highest = garwood_interval(np.array([400]))[1][0]
    figure_bytes(figure, "png", DPI)
    legend = main.get_legend()
    assert legend is not None
    box = legend.get_window_extent().transformed(main.transAxes.inverted())
    centre = (EDGES[bin_] + 2.5 - EDGES[0]) / (EDGES[-1] - EDGES[0])
    assert not box.x0 < centre < box.x1
    assert 0.7 < highest / main.get_ylim()[1] < 0.8


def test_no_point_is_behind_the_legend() -> None:
    figure = histogram_figure(changed("data", "values", dict.fromkeys(range(34), 100)))
    main = figure.axes[0]
    figure_bytes(figure, "png", DPI)
    legend = main.get_legend()
    assert legend is not None
    lowest = legend.get_window_extent().transformed(main.transData.inverted()).y0
    assert garwood_interval(np.array([100]))[1][0] < lowest


def test_the_axis_reaches_below_a_negative_bin() -> None:
    figure = histogram_figure(changed("z_ttbar", "values", {12: -6.0}))
    assert figure.axes[0].get_ylim()[0] < -6.0


def test_the_ratio_has_no_point_where_the_simulation_is_not_positive() -> None:
    document = changed("z_ttbar", "values", {12: -6.0})
    for category in SIMULATION:
        document["histograms"]["m4l"][category]["values"][15] = 0.0
    figure = histogram_figure(document)
    assert {142.5, 157.5} <= points(figure).keys()
    assert not {142.5, 157.5} & points(figure, panel=1).keys()


def test_a_ratio_whose_interval_is_beyond_the_panel_is_an_arrow() -> None:
    simulated = sum(result()["histograms"]["m4l"][category]["values"][9] for category in SIMULATION)
    reaches_in = int(2 * simulated) + 2
    for count, is_arrow in ((100, True), (reaches_in, False)):
        figure = histogram_figure(changed("data", "values", {9: count}))
        arrows = [line for line in figure.axes[1].lines if line.get_marker() == "^"]
        assert any(127.5 in np.array(line.get_xdata()) for line in arrows) is is_arrow
        assert 127.5 not in points(figure, panel=1)


@pytest.mark.parametrize(
    ("category", "part", "number", "reason"),
    [
        ("zz", "values", float("nan"), "values of zz are not all finite"),
        ("signal", "variances", float("inf"), "variances of signal are not all finite"),
        ("zz", "values", None, "values of zz are not all finite"),
        ("zz", "values", "many", "values of zz are absent or not numbers"),
        ("zz", "variances", -1.0, "variances of zz are negative"),
        ("data", "values", -1, "values of data are not whole counts"),
        ("data", "values", 0.5, "values of data are not whole counts"),
    ],
)
def test_a_histogram_that_is_not_valid_is_refused_by_name(category: str, part: str, number: Any, reason: str) -> None:
    with pytest.raises(MessageError, match=f"histogram 'm4l': {reason}"):
        histogram_figure(changed(category, part, {3: number}))


def test_a_histogram_of_the_wrong_shape_is_refused() -> None:
    document = copy.deepcopy(result())
    document["histograms"]["m4l_4e"]["zz"]["values"].pop()
    with pytest.raises(MessageError, match=r"'m4l_4e': values of zz have shape \(33,\)"):
        histogram_figure(document, "m4l_4e")
    document["histograms"]["m4l"]["edges"] = EDGES[::-1]
    with pytest.raises(MessageError, match="'m4l': edges do not increase"):
        histogram_figure(document)


def test_a_missing_histogram_or_release_is_named() -> None:
    with pytest.raises(MessageError, match="'m4l_3e' is not in the result, which has m4l, m4l_4e"):
        histogram_figure(result(), "m4l_3e")
    with pytest.raises(SettingsError, match="'2030' is not known"):
        histogram_figure(result(release="2030"))


if __name__ == "__main__":
    for picture, (content, which) in BASELINES.items():
        (BASELINE / f"{picture}.png").write_bytes(figure_bytes(histogram_figure(content, which), "png", DPI))
